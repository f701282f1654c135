//! A request's target, normalised once for match, key and upstream (RFC 3986 §6.2.2).

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::PathAndQuery;

/// The scheme of the listener a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The longest host that DNS can carry, in bytes.
const MAX_HOST: usize = 253;

/// A host and port: lower case, no trailing dot, no default port, no user information.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    text: Box<str>,
    /// Where the host ends in `text`.
    host_length: usize,
    port: Option<u16>,
    /// `text` as a field's value.
    value: HeaderValue,
}

/// Why a target is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTarget {
    /// The host is missing, empty or not a valid host.
    Host,
    /// The path is not valid: it does not begin with `/`, has a control character, a backslash, a bad
    /// percent-encoding, or an encoded slash or backslash, or a parameter (`;`), beside a dot segment. Or the query has a control character.
    Path,
}

impl Authority {
    /// Parses and normalises `host[:port]`; the port is dropped where it is the scheme's default.
    pub fn parse(text: &str, scheme: Scheme) -> Result<Self, BadTarget> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or(BadTarget::Host)?;
                (ipv6_literal(address)?, port_after(rest)?)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                (registered_name(&text[..end])?, port_after(&text[end..])?)
            }
        };
        let port = port.filter(|port| *port != scheme.default_port());
        let host_length = host.len();
        let text = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let value = HeaderValue::from_str(&text).map_err(|_| BadTarget::Host)?;
        Ok(Self { text: text.into(), host_length, port, value })
    }

    /// Host and port.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host, lower case; IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.text[..self.host_length]
    }

    /// Host and port as the value of `Host`.
    pub const fn as_value(&self) -> &HeaderValue {
        &self.value
    }

    /// The port where it is not the scheme's default.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn ipv6_literal(address: &str) -> Result<String, BadTarget> {
    let address: std::net::Ipv6Addr = address.parse().map_err(|_| BadTarget::Host)?;
    Ok(format!("[{address}]"))
}

/// A name or IPv4 address. Sub-delimiters and percent-encodings, which RFC 3986 allows and DNS does not, are refused.
fn registered_name(text: &str) -> Result<String, BadTarget> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let valid_label = |label: &str| !label.is_empty() && label.bytes().all(is_unreserved);
    if name.len() > MAX_HOST || !name.split('.').all(valid_label) {
        return Err(BadTarget::Host);
    }
    Ok(name.to_ascii_lowercase())
}

/// The port of `rest`, which is empty or begins with `:`. An empty port counts as none (RFC 3986 §6.2.3).
fn port_after(rest: &str) -> Result<Option<u16>, BadTarget> {
    if rest.is_empty() || rest == ":" {
        return Ok(None);
    }
    let digits = rest.strip_prefix(':').ok_or(BadTarget::Host)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadTarget::Host);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(BadTarget::Host),
        Ok(port) => Ok(Some(port)),
    }
}

/// A normalised request target. Cheap to clone where it was received in normal form.
#[derive(Clone, Debug)]
pub struct Target {
    /// The listener's scheme.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Arc<Authority>,
    text: Text,
}

/// Path and query. As nearly all are received in normal form, they are a slice of what was read.
#[derive(Clone, Debug)]
enum Text {
    Received(PathAndQuery),
    Made { path: Box<str>, query: Option<Box<str>> },
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        (self.scheme, &self.authority, self.path(), self.query())
            == (other.scheme, &other.authority, other.path(), other.query())
    }
}

impl Eq for Target {}

impl Target {
    /// Normalises: unreserved octets decoded, percent-encodings in upper case, dot segments removed,
    /// an empty path is `/`. `%2F`, `%00` and the like stay encoded; bytes that must be encoded are.
    pub fn new(
        scheme: Scheme,
        authority: impl Into<Arc<Authority>>,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, BadTarget> {
        check_query(query)?;
        let path = if is_normal(path) { path.into() } else { normalised_path(path)?.into() };
        let text = Text::Made { path, query: query.map(Into::into) };
        Ok(Self { scheme, authority: authority.into(), text })
    }

    /// The same of a target as it was received.
    pub fn received(scheme: Scheme, authority: Arc<Authority>, target: &PathAndQuery) -> Result<Self, BadTarget> {
        if !is_normal(target.path()) {
            return Self::new(scheme, authority, target.path(), target.query());
        }
        check_query(target.query())?;
        Ok(Self { scheme, authority, text: Text::Received(target.clone()) })
    }

    /// The normalised path, beginning with `/`.
    pub fn path(&self) -> &str {
        match &self.text {
            Text::Received(received) => received.path(),
            Text::Made { path, .. } => path,
        }
    }

    /// As an absolute URI; none should hyper's grammar be narrower than the normalised form.
    pub fn to_uri(&self) -> Option<http::Uri> {
        let query = self.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}://{}{}{query}", self.scheme.as_str(), self.authority, self.path()).try_into().ok()
    }

    /// The query as received, without `?`.
    pub fn query(&self) -> Option<&str> {
        match &self.text {
            Text::Received(received) => received.query(),
            Text::Made { query, .. } => query.as_deref(),
        }
    }
}

fn check_query(query: Option<&str>) -> Result<(), BadTarget> {
    let has_control = query.is_some_and(|query| query.bytes().any(|byte| byte.is_ascii_control()));
    if has_control { Err(BadTarget::Path) } else { Ok(()) }
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a byte may stand in a segment as it is (`pchar` without percent-encodings).
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

/// [`is_plain`] and the slash, looked up: a path is read byte by byte on each request.
static PLAIN_OR_SLASH: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte as u8 == b'/' || is_plain(byte as u8);
        byte += 1;
    }
    table
};

/// Whether nothing needs to be done: plain bytes alone and no segment that begins with a dot.
fn is_normal(path: &str) -> bool {
    let mut before = b' ';
    path.starts_with('/')
        && path.bytes().all(|byte| {
            let is_dotted = before == b'/' && byte == b'.';
            before = byte;
            !is_dotted && PLAIN_OR_SLASH[usize::from(byte)]
        })
}

/// The path in normal form, as [`Target::new`] makes it.
pub(crate) fn normalised_path(path: &str) -> Result<String, BadTarget> {
    if path.is_empty() {
        return Ok("/".to_owned());
    }
    let mut out = String::with_capacity(path.len() + 8);
    let mut segments = path.strip_prefix('/').ok_or(BadTarget::Path)?.split('/').peekable();
    while let Some(segment) = segments.next() {
        let start = out.len();
        out.push('/');
        push_segment(segment, &mut out)?;
        let keep = match &out[start + 1..] {
            "." => start,
            ".." => out[..start].rfind('/').unwrap_or(0),
            segment if hides_dot_segment(segment) => return Err(BadTarget::Path),
            _ => continue,
        };
        out.truncate(keep);
        if segments.peek().is_none() {
            out.push('/');
        }
    }
    Ok(out)
}

/// Appends one segment: unreserved octets decoded, what must be encoded is, in upper case.
fn push_segment(segment: &str, out: &mut String) -> Result<(), BadTarget> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = bytes.next().and_then(hex_value).ok_or(BadTarget::Path)?;
                let low = bytes.next().and_then(hex_value).ok_or(BadTarget::Path)?;
                let octet = high << 4 | low;
                if is_unreserved(octet) { out.push(char::from(octet)) } else { push_encoded(octet, out) }
            }
            b'\\' => return Err(BadTarget::Path),
            _ if byte.is_ascii_control() => return Err(BadTarget::Path),
            _ if is_plain(byte) => out.push(char::from(byte)),
            _ => push_encoded(byte, out),
        }
    }
    Ok(())
}

/// A query in which what RFC 3986 §6.2.2 takes for the same is spelled alike: to compare, not to send, for some servers
/// tell the spellings apart.
pub fn normalised_query(query: &str) -> Cow<'_, str> {
    if query.is_ascii() && !query.contains('%') {
        return Cow::Borrowed(query);
    }
    let (bytes, mut out, mut at) = (query.as_bytes(), String::with_capacity(query.len() + 8), 0);
    while let Some(byte) = bytes.get(at) {
        let digit = |place: usize| bytes.get(place).copied().and_then(hex_value);
        at += 1;
        match (byte, digit(at).zip(digit(at + 1))) {
            (b'%', Some((high, low))) => {
                let octet = high << 4 | low;
                at += 2;
                if is_unreserved(octet) { out.push(char::from(octet)) } else { push_encoded(octet, &mut out) }
            }
            (0x80.., _) => push_encoded(*byte, &mut out),
            _ => out.push(char::from(*byte)),
        }
    }
    Cow::Owned(out)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn push_encoded(octet: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(octet >> 4)]));
    out.push(char::from(DIGITS[usize::from(octet & 15)]));
}

/// Whether a server that decodes `%2F` or `%5C`, or takes off what stands behind `;`, would see a dot segment in this
/// one.
fn hides_dot_segment(segment: &str) -> bool {
    if segment.starts_with(".;") || segment.starts_with("..;") {
        return true;
    }
    if !segment.contains("%2F") && !segment.contains("%5C") {
        return false;
    }
    segment.split("%2F").flat_map(|part| part.split("%5C")).any(|part| part == "." || part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_authority(text: &str, expected: Result<&str, BadTarget>) {
        let parsed = Authority::parse(text, Scheme::Http).map(|authority| authority.to_string());
        assert_eq!(parsed.as_deref().map_err(|bad| *bad), expected, "{text:?}");
    }

    fn check_path(path: &str, expected: Result<&str, BadTarget>) {
        let authority = Authority::parse("example.com", Scheme::Http).unwrap();
        let target = Target::new(Scheme::Http, authority, path, None);
        assert_eq!(target.as_ref().map(Target::path).map_err(|bad| *bad), expected, "{path:?}");
    }

    #[test]
    fn queries_that_mean_the_same_compare_equal() {
        let check = |query: &str, expected: &str| assert_eq!(normalised_query(query), expected, "{query}");
        check("a=~b&c=/?", "a=~b&c=/?");
        check("a=%7Eb&%61=1", "a=~b&a=1");
        check("a=%2f&b=%26&c=%25", "a=%2F&b=%26&c=%25");
        check("a=\u{e9}&b=%c3%a9", "a=%C3%A9&b=%C3%A9");
        check("100%&%4&%zz&%", "100%&%4&%zz&%");
    }

    #[test]
    fn an_authority_is_normalised() {
        check_authority("example.com", Ok("example.com"));
        check_authority("EXAMPLE.Com.:80", Ok("example.com"));
        check_authority("example.com:", Ok("example.com"));
        check_authority("example.com:8080", Ok("example.com:8080"));
        check_authority("example.com:443", Ok("example.com:443"));
        check_authority("127.0.0.1:80", Ok("127.0.0.1"));
        check_authority("my_host", Ok("my_host"));
        check_authority("[2001:DB8:0::1]:81", Ok("[2001:db8::1]:81"));
    }

    #[test]
    fn a_bad_authority_is_refused() {
        let bad = [
            "",
            ".",
            ":80",
            "a..b",
            ".a",
            "a..",
            "user@a",
            "a/b",
            "a?b",
            "a b",
            "a#b",
            "a%41",
            "a:b",
            "a:0",
            "a:+1",
            "a:65536",
            "a:1:2",
            "[::1",
            "[::1]x",
            "[1.2.3.4]",
            "[fe80::1%25eth0]",
            "::1",
            "m\u{fc}nchen",
        ];
        for text in bad {
            check_authority(text, Err(BadTarget::Host));
        }
        check_authority(&"a".repeat(MAX_HOST + 1), Err(BadTarget::Host));
    }

    #[test]
    fn the_default_port_depends_on_the_scheme() {
        let parse = |text| Authority::parse(text, Scheme::Https).unwrap();
        assert_eq!(parse("a:443").port(), None);
        assert_eq!(parse("a:80").port(), Some(80));
    }

    #[test]
    fn a_path_is_normalised() {
        check_path("", Ok("/"));
        check_path("/", Ok("/"));
        check_path("/a//b/", Ok("/a//b/"));
        check_path("/%61%7e%2d", Ok("/a~-"));
        check_path("/a%2fb%00%25%3a", Ok("/a%2Fb%00%25%3A"));
        check_path("/%252e%252e/x", Ok("/%252e%252e/x"));
        check_path("/\u{fc} {x}", Ok("/%C3%BC%20%7Bx%7D"));
        check_path("/.hidden/..a", Ok("/.hidden/..a"));
        check_path("/a%2F.hidden", Ok("/a%2F.hidden"));
    }

    #[test]
    fn dot_segments_are_removed() {
        check_path("/a/./b/../c", Ok("/a/c"));
        check_path("/a/b/%2e%2E/c", Ok("/a/c"));
        check_path("/../../a", Ok("/a"));
        check_path("/a/..", Ok("/"));
        check_path("/a/b/..", Ok("/a/"));
        check_path("/a/.", Ok("/a/"));
        check_path("/a//../b", Ok("/a/b"));
        check_path("/..", Ok("/"));
    }

    #[test]
    fn a_bad_path_is_refused() {
        for path in [
            "a",
            "*",
            "/%zz",
            "/%",
            "/%4",
            "/a\\b",
            "/..%2f",
            "/%2e%2e%5c",
            "/a%2F..%2Fb",
            "/x%5c.",
            "/a/..;/b",
            "/%2e;x=1/b",
            "/a\nb",
            "/%\u{fc}",
        ] {
            check_path(path, Err(BadTarget::Path));
        }
    }

    #[test]
    fn a_query_is_kept_unless_it_has_control_characters() {
        let new = |query| {
            let authority = Authority::parse("a", Scheme::Http).unwrap();
            Target::new(Scheme::Http, authority, "/", Some(query)).map(|target| target.query().map(str::to_owned))
        };
        assert_eq!(new("b=%7e&a=/../"), Ok(Some("b=%7e&a=/../".to_owned())));
        assert_eq!(new(""), Ok(Some(String::new())));
        assert_eq!(new("a\r\nb"), Err(BadTarget::Path));
    }
}
