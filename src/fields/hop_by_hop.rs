//! Fields that belong to one connection (RFC 9110 §7.6.1) and never travel or get stored.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

const OWN: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What `Connection` cannot take away: without these a message would mean something else to the next recipient.
const KEPT: [HeaderName; 6] = [AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, COOKIE, HOST, SET_COOKIE];

/// Removes the connection's own fields, and those that `Connection` names, besides the ones it must not
/// name: Host, Cookie, Set-Cookie, Authorization, Cache-Control and Content-Length stay.
pub fn remove(fields: &mut HeaderMap) {
    if let Some(named) = named(fields) {
        for name in named.iter().filter(|name| !KEPT.contains(name)) {
            fields.remove(name);
        }
    }
    for name in &OWN {
        fields.remove(name);
    }
}

fn named(fields: &HeaderMap) -> Option<Vec<HeaderName>> {
    fields.get(CONNECTION)?;
    let lines = fields.get_all(CONNECTION).iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    Some(members.filter_map(|member| HeaderName::from_bytes(member.trim_ascii()).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_connections_own_fields_go_and_the_essential_ones_stay() {
        let mut fields = HeaderMap::new();
        let lines = [
            ("connection", "close, X-Mine, Cookie, Host"),
            ("connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("cookie", "a=b"),
            ("host", "a.test"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ];
        for (name, value) in lines {
            fields.append(name, HeaderValue::from_static(value));
        }
        remove(&mut fields);
        let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "cookie", "host"]);
    }
}
