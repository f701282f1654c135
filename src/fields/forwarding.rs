//! Fields by which a sender passes for a proxy: who asked, and for what host, target or method.

use http::{HeaderMap, HeaderName};

/// Whose request it is; these are in no key.
const ADDRESSES: [&str; 7] = [
    "client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded-for",
    "x-original-for",
    "x-real-ip",
];

/// What else a proxy may claim, besides all that begins with [`PREFIX`].
const CLAIMS: [&str; 14] = [
    "forwarded",
    "front-end-https",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-proto",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

const PREFIX: &str = "x-forwarded";

/// Whether the field is for proxies to send.
pub fn is_claim(name: &HeaderName) -> bool {
    as_read(name.as_str(), |name| {
        // Nearly every field is told apart by its first letter.
        matches!(name.as_bytes(), [b'c' | b'f' | b't' | b'x', ..])
            && (name.starts_with(PREFIX) || CLAIMS.contains(&name) || ADDRESSES.contains(&name))
    })
}

/// Whether servers that hand fields over as environment variables take the name for another one: all but letters and
/// digits becomes `_` there.
pub fn is_ambiguous(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether the field tells whose request it is. The upstream is sent one that no client's fields select by.
pub fn is_address(name: &HeaderName) -> bool {
    as_read(name.as_str(), |name| ADDRESSES.contains(&name))
}

/// Removes what is for proxies to send.
pub fn remove_claims(fields: &mut HeaderMap) {
    remove_if(fields, is_claim);
}

/// Removes the fields that `unwanted` names.
pub fn remove_if(fields: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// What the proxies in front say of the request itself, by name: the upstream may answer by it. Addresses are left out.
pub fn claims(fields: &HeaderMap) -> Vec<(&HeaderName, Vec<u8>)> {
    let told = fields.iter().filter(|(name, _)| is_claim(name) && !is_address(name));
    let mut claims: Vec<_> = told
        .map(|(name, value)| match name.as_str() {
            "forwarded" => (name, without_addresses(value.as_bytes())),
            _ => (name, value.as_bytes().to_vec()),
        })
        .filter(|(_, value)| !value.is_empty())
        .collect();
    // A stable sort: the lines of one field keep their order.
    claims.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    claims
}

/// `Forwarded` (RFC 7239) without its `for` and `by`.
fn without_addresses(value: &[u8]) -> Vec<u8> {
    let pairs = value.split(|byte| matches!(byte, b',' | b';')).map(<[u8]>::trim_ascii);
    let is_address = |pair: &[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"for") || name.eq_ignore_ascii_case(b"by")
    };
    pairs.filter(|pair| !pair.is_empty() && !is_address(pair)).collect::<Vec<_>>().join(&b';')
}

/// Asks about a name as a server could read it.
fn as_read(name: &str, ask: impl Fn(&str) -> bool) -> bool {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return ask(name);
    }
    ask(&name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        all.iter().map(line).collect()
    }

    #[test]
    fn a_claim_is_known_however_it_is_spelled() {
        let check = |name, expected| assert_eq!(is_claim(&HeaderName::from_static(name)), expected, "{name}");
        for name in ["x-forwarded-host", "x-forwarded", "x-forwarded-anything", "forwarded", "x-real-ip", "x-host"] {
            check(name, true);
        }
        check("x_forwarded_host", true);
        check("x.original-url", true);
        check("true_client-ip", true);
        for name in ["x-forward", "accept", "x-original-name", "x-tenant", "for_warded"] {
            check(name, false);
        }
    }

    #[test]
    fn claims_are_told_in_order_without_addresses() {
        let check = |all: &[(&'static str, &'static str)], expected: &[(&str, &str)]| {
            let fields = fields(all);
            let claims = claims(&fields);
            let claims: Vec<_> =
                claims.iter().map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap())).collect();
            assert_eq!(claims, expected, "{all:?}");
        };
        check(&[("accept", "x"), ("x-real-ip", "1"), ("x-forwarded-for", "1")], &[]);
        check(&[("x-host", "b"), ("x-forwarded-proto", "https")], &[("x-forwarded-proto", "https"), ("x-host", "b")]);
        check(&[("forwarded", "for=1;by=2, For=\"[::1]\"")], &[]);
        check(&[("forwarded", "for=1; host=a;proto=http, for=2;host=b")], &[("forwarded", "host=a;proto=http;host=b")]);
    }
}
