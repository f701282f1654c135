//! What an unsafe request invalidates (RFC 9111 §4.4).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, StatusCode, Uri};

/// Whether a response to this method invalidates: an unsafe (or unknown) method with a 2xx or 3xx answer.
/// A POST whose route keys the content is a read, and not to be asked about.
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    let is_safe =
        matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY");
    !is_safe && (status.is_success() || status.is_redirection())
}

/// The further targets to invalidate: `Location` and `Content-Location`, resolved against the request's URI,
/// where they have its origin.
pub fn further_targets(request: &Uri, response: &HeaderMap) -> Vec<Uri> {
    let values = response.get_all(LOCATION).iter().chain(response.get_all(CONTENT_LOCATION));
    let references = values.filter_map(|value| value.to_str().ok());
    let mut targets: Vec<Uri> = references.filter_map(|reference| resolve(request, reference)).collect();
    targets.retain(|target| is_same_origin(request, target));
    targets.dedup();
    targets
}

/// A reference resolved against an absolute URI (RFC 3986 §5.2), without fragment; dot segments are left to the
/// normalisation that every target goes through.
pub fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let has_scheme = reference.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme));
    let absolute = if has_scheme {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else if reference.is_empty() {
        return Some(base.clone());
    } else if reference.starts_with('?') {
        format!("{scheme}://{authority}{}{reference}", base.path())
    } else {
        let (folder, _) = base.path().rsplit_once('/').unwrap_or_default();
        format!("{scheme}://{authority}{folder}/{reference}")
    };
    Uri::try_from(absolute).ok()
}

/// Whether two absolute URIs have one origin: scheme, host and port (RFC 9110 §4.3.1).
pub fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().or_else(|| default_port(uri.scheme()));
    let host = |uri: &Uri| uri.authority().map(Authority::host).map(str::to_ascii_lowercase);
    one.scheme() == other.scheme() && host(one) == host(other) && host(one).is_some() && port(one) == port(other)
}

fn default_port(scheme: Option<&Scheme>) -> Option<u16> {
    match scheme.map(Scheme::as_str) {
        Some("http") => Some(80),
        Some("https") => Some(443),
        Some(_) | None => None,
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::fields;

    #[test]
    fn an_unsafe_or_unknown_method_invalidates_unless_it_failed() {
        let check = |method: &str, status, expected| {
            let seen = invalidates(&method.parse().unwrap(), StatusCode::from_u16(status).unwrap());
            assert_eq!(seen, expected, "{method} {status}");
        };
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "get"] {
            check(method, 200, true);
            check(method, 204, true);
            check(method, 302, true);
            check(method, 404, false);
            check(method, 500, false);
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"] {
            check(method, 200, false);
        }
    }

    #[test]
    fn location_and_content_location_count_within_the_origin() {
        let check = |response, expected: &[&str]| {
            let base = Uri::from_static("http://Origin.test:80/a/b?q");
            let targets: Vec<_> = further_targets(&base, &fields(response)).iter().map(Uri::to_string).collect();
            assert_eq!(targets, expected, "{response}");
        };
        check("", &[]);
        check("location: /x", &["http://Origin.test:80/x"]);
        check("location: /x?y=1#z", &["http://Origin.test:80/x?y=1"]);
        check("location: x", &["http://Origin.test:80/a/x"]);
        check("location: ?z", &["http://Origin.test:80/a/b?z"]);
        check("location: /x | content-location: /y", &["http://Origin.test:80/x", "http://Origin.test:80/y"]);
        check("location: http://ORIGIN.test/x", &["http://ORIGIN.test/x"]);
        check("location: //origin.test/x", &["http://origin.test/x"]);
        check("location: https://origin.test/x", &[]);
        check("location: http://origin.test:81/x", &[]);
        check("location: http://other.test/x", &[]);
        check("location: //other.test/x", &[]);
        check("location: mailto:a@b", &[]);
        check("location: http://", &[]);
        check("location: http://[", &[]);
    }
}
