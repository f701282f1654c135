//! Fields that belong to one connection (RFC 9110 §7.6.1) and never travel or get stored.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, COOKIE, EXPIRES, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY, VIA,
};
use http::{HeaderMap, HeaderName};

use super::{forwarding, has_any};

/// Removed wherever they are, named by `Connection` or not.
static OWN: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    // Part of the upgrade to h2c, which is never forwarded (RFC 7540 §3.2.1).
    HeaderName::from_static("http2-settings"),
];

/// What `Connection` cannot take away: without these a message would mean something else than what was judged, or
/// seem to come from elsewhere. Without the tags, a purge would miss it.
const KEPT: [HeaderName; 14] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    COOKIE,
    EXPIRES,
    HOST,
    SET_COOKIE,
    VARY,
    VIA,
    HeaderName::from_static("cache-groups"),
    HeaderName::from_static("cache-tag"),
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("surrogate-key"),
    HeaderName::from_static("x-real-ip"),
];
const KEPT_PREFIX: &str = "x-forwarded-";

/// Removes the connection's own fields, and those that `Connection` names, besides the ones it must not
/// name: Host, Cookie, Set-Cookie, Authorization, Content-Length, what caches go by, tags, and what tells who asks stay.
pub fn remove(fields: &mut HeaderMap) {
    remove_named(fields);
    // Most heads have none: a look at their names costs less than to search them for eleven.
    forwarding::remove_if(fields, is_own);
}

/// Removes those that `Connection` names; the connection's own stay ([`is_own`]).
pub fn remove_named(fields: &mut HeaderMap) {
    for name in named(fields) {
        fields.remove(name);
    }
}

/// The fields there are that `Connection` names, besides the ones it must not name.
pub fn named(fields: &HeaderMap) -> Vec<HeaderName> {
    if has_any(fields, &[CONNECTION]) { named_by_connection(fields) } else { Vec::new() }
}

/// Whether a field is the connection's own, named by `Connection` or not.
pub fn is_own(name: &HeaderName) -> bool {
    // Nearly every field is told apart by its first letter.
    matches!(name.as_str().as_bytes(), [b'c' | b'h' | b'k' | b'p' | b't' | b'u', ..]) && OWN.contains(name)
}

fn named_by_connection(fields: &HeaderMap) -> Vec<HeaderName> {
    let members = fields.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    members
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !is_kept(name) && fields.contains_key(name))
        .collect()
}

fn is_kept(name: &HeaderName) -> bool {
    KEPT.contains(name) || name.as_str().starts_with(KEPT_PREFIX)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(before: &[(&'static str, &'static str)], expected: &[&str]) {
        let mut fields = HeaderMap::new();
        for (name, value) in before {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove(&mut fields);
        let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn the_connections_own_fields_go() {
        for name in &OWN {
            let mut fields = HeaderMap::new();
            fields.append(name, HeaderValue::from_static("x"));
            fields.append(name, HeaderValue::from_static("y"));
            remove(&mut fields);
            assert!(fields.is_empty() && is_own(name), "{name}");
        }
    }

    #[test]
    fn fields_named_by_connection_go_but_for_the_kept_ones() {
        check(
            &[("connection", "close, X-A"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")],
            &["x-c"],
        );
        check(
            &[
                ("connection", "Cookie, Authorization, Host, Content-Length, Cache-Control, Set-Cookie, ,;, Age"),
                ("cookie", "a"),
                ("authorization", "b"),
                ("host", "c"),
                ("content-length", "1"),
                ("cache-control", "no-store"),
                ("set-cookie", "c"),
                ("age", "1"),
            ],
            &["authorization", "cache-control", "content-length", "cookie", "host", "set-cookie"],
        );
        check(
            &[
                ("connection", "X-Forwarded-For, x-forwarded-proto, Forwarded, X-Real-IP, Via, x-a"),
                ("x-forwarded-for", "a"),
                ("x-forwarded-proto", "b"),
                ("forwarded", "c"),
                ("x-real-ip", "d"),
                ("via", "e"),
                ("x-a", "f"),
            ],
            &["forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"],
        );
    }
}
