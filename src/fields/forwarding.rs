//! Fields by which a sender passes for a proxy: who asked, and for what host, target or method.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Whose request it is; these are in no key.
const ADDRESSES: [&str; 20] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "cloudfront-viewer-address",
    "fastly-client-ip",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forward-for",
    "x-forwarded-for",
    "x-original-for",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
];

/// What else a proxy may claim, besides all that begins with [`PREFIX`].
const CLAIMS: [&str; 26] = [
    "cf-visitor",
    "cloudfront-forwarded-proto",
    "forwarded",
    "front-end-https",
    // Taken for the environment variable HTTP_PROXY by CGI programs.
    "proxy",
    "x-arr-ssl",
    "x-backend-host",
    "x-envoy-original-path",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method",
    "x-method-override",
    "x-original-host",
    "x-original-path",
    "x-original-proto",
    "x-original-uri",
    "x-original-url",
    "x-proxy-url",
    "x-real-host",
    "x-request-uri",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

const PREFIX: &str = "x-forwarded";
static FORWARDED: HeaderName = http::header::FORWARDED;

/// Whether the field is for proxies to send.
pub fn is_claim(name: &HeaderName) -> bool {
    // Nearly every field is told apart by its first letter.
    matches!(name.as_str().as_bytes(), [b'c' | b'f' | b'p' | b't' | b'w' | b'x', ..])
        && as_read(name.as_str(), |name| {
            name.starts_with(PREFIX) || CLAIMS.contains(&name) || ADDRESSES.contains(&name)
        })
}

/// Whether servers that hand fields over as environment variables take the name for another one: all but letters and
/// digits becomes `_` there.
pub fn is_ambiguous(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| PLAIN[usize::from(byte)])
}

/// What stays as it is in an environment variable's name, looked up: every name is read through.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'-';
        byte += 1;
    }
    table
};

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
    if !fields.keys().any(&unwanted) {
        return;
    }
    let names: Vec<HeaderName> = fields.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// What the proxies in front say of the request itself, by name: the upstream may answer by it. Addresses are left out.
pub fn claims(fields: &HeaderMap) -> Vec<(&HeaderName, Vec<u8>)> {
    let told = fields.iter().filter(|(name, _)| is_claim(name) && !is_address(name) && *name != FORWARDED);
    let mut claims: Vec<_> = told.map(|(name, value)| (name, value.as_bytes().to_vec())).collect();
    let lines: Vec<&[u8]> = fields.get_all(&FORWARDED).iter().map(HeaderValue::as_bytes).collect();
    let forwarded = without_addresses(&lines.join(&b","[..]));
    if !forwarded.is_empty() {
        claims.push((&FORWARDED, forwarded));
    }
    // A stable sort: the lines of one field keep their order.
    claims.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    claims
}

/// `Forwarded` (RFC 7239) without the values of its `for` and `by`; empty where there is nothing else. What separates stays
/// where it is, so that no two values that a server could read differently come out alike.
fn without_addresses(value: &[u8]) -> Vec<u8> {
    let (mut out, mut rest, mut claims) = (Vec::with_capacity(value.len()), value, false);
    while !rest.is_empty() {
        let (pair, after) = rest.split_at(end_of_pair(rest));
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        let is_address = [&b"for"[..], b"by"].iter().any(|known| name.trim_ascii().eq_ignore_ascii_case(known));
        out.extend_from_slice(if is_address { name } else { pair });
        claims |= !is_address && !pair.trim_ascii().is_empty();
        let (separator, next) = after.split_at(after.len().min(1));
        out.extend_from_slice(separator);
        rest = next;
    }
    if claims { out } else { Vec::new() }
}

/// Where a pair ends: at a comma or semicolon that is in no quoted string.
fn end_of_pair(text: &[u8]) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let ends = |byte: &u8| {
        match *byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            b',' | b';' => return !is_quoted,
            _ => {}
        }
        false
    };
    text.iter().position(ends).unwrap_or(text.len())
}

/// Asks about a name as a server could read it.
fn as_read(name: &str, ask: impl Fn(&str) -> bool) -> bool {
    if name.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        return ask(name);
    }
    ask(&name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
}

#[cfg(test)]
mod tests {
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
        let check_forwarded = |value, expected| check(&[("forwarded", value)], &[("forwarded", expected)]);
        check_forwarded("for=1; host=a;proto=http, for=2;host=b", "for; host=a;proto=http, for;host=b");
        check_forwarded("for=1, for=2;host=b", "for, for;host=b");
        check(&[("forwarded", "for=1"), ("forwarded", "for=2;host=b")], &[("forwarded", "for,for;host=b")]);
        check(&[("x-forwarded-proto", "")], &[("x-forwarded-proto", "")]);
        check_forwarded("host=\"a;for=b\"", "host=\"a;for=b\"");
        check_forwarded("for=\"a,\\\";b\";host=c", "for;host=c");
    }
}
