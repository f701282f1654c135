//! Who may see and do what on the admin listener.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use subtle::ConstantTimeEq;

use super::text;

/// Why a request may not see a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The token is missing or wrong.
    Token,
    /// A name instead of an address: a page of another origin may have had it point here (DNS rebinding).
    Host,
    /// A page in a browser asks.
    Origin,
}

impl Refusal {
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        match self {
            Self::Token => {
                let mut response = text(StatusCode::UNAUTHORIZED, "expected the bearer token\n");
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                response
            }
            Self::Host => text(StatusCode::MISDIRECTED_REQUEST, "expected an address or localhost as host\n"),
            Self::Origin => text(StatusCode::FORBIDDEN, "a browser's page needs the token\n"),
        }
    }
}

/// A token proves who asks; without one, only what cannot be a browser's page may: there are none of ours, so any
/// `Origin` is another site's.
pub(super) fn admit(fields: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
    match token {
        Some(token) if is_bearer(fields, token) => Ok(()),
        Some(_) => Err(Refusal::Token),
        None if !names_an_address(fields) => Err(Refusal::Host),
        None if fields.contains_key(ORIGIN) => Err(Refusal::Origin),
        None => Ok(()),
    }
}

/// In time that does not tell how much of the token is right.
fn is_bearer(fields: &HeaderMap, token: &str) -> bool {
    let given = fields.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    let (scheme, given) = given.split_at_checked("Bearer ".len()).unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token.as_bytes()))
}

fn names_an_address(fields: &HeaderMap) -> bool {
    let mut hosts = fields.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    literal.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(http::HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn without_a_token_only_an_address_or_localhost_is_admitted() {
        let check = |host: &str, expected| assert_eq!(admit(&fields(&[(HOST, host)]), None), expected, "{host}");
        for host in ["127.0.0.1:9090", "127.0.0.1", "localhost:9090", "LOCALHOST", "[::1]:9090", "[::1]"] {
            check(host, Ok(()));
        }
        for host in ["evil.test", "evil.test:9090", "localhost.evil.test", "127.0.0.1.evil.test:1", ""] {
            check(host, Err(Refusal::Host));
        }
        assert_eq!(admit(&HeaderMap::new(), None), Err(Refusal::Host));
        assert_eq!(admit(&fields(&[(HOST, "localhost"), (HOST, "localhost")]), None), Err(Refusal::Host));
    }

    #[test]
    fn without_a_token_no_page_of_a_browser_is_admitted() {
        for origin in ["http://evil.test", "null", "http://127.0.0.1:9090"] {
            let asked = fields(&[(HOST, "127.0.0.1:9090"), (ORIGIN, origin)]);
            assert_eq!(admit(&asked, None), Err(Refusal::Origin), "{origin}");
            let proven = fields(&[(HOST, "a"), (ORIGIN, origin), (AUTHORIZATION, "Bearer secret")]);
            assert_eq!(admit(&proven, Some("secret")), Ok(()), "{origin}");
        }
    }

    #[test]
    fn with_a_token_only_the_token_is_admitted() {
        let check = |value: &str, expected| {
            let fields = fields(&[(HOST, "admin.test"), (AUTHORIZATION, value)]);
            assert_eq!(admit(&fields, Some("secret")), expected, "{value}");
        };
        check("Bearer secret", Ok(()));
        check("bearer secret", Ok(()));
        for value in ["", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret"] {
            check(value, Err(Refusal::Token));
        }
        assert_eq!(admit(&fields(&[(HOST, "127.0.0.1")]), Some("secret")), Err(Refusal::Token));
    }
}
