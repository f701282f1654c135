//! What a request must be before it reaches the proxy: an unambiguous host, target and framing, within bounds.

use std::sync::{Arc, OnceLock};

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};

use crate::config::{Limits, ServerConfig};
use crate::target::{Authority, BadTarget, Scheme, Target};
use crate::telemetry::cache_status::Detail;
use crate::telemetry::limits::Limit;

/// A request that may be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// By the proxy.
    Proxied(Target),
    /// By the server: `OPTIONS *` asks about the server as a whole (RFC 9110 §9.3.7).
    ServerOptions,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No Host, several, an invalid one, or two that differ (RFC 9112 §3.2, RFC 9113 §8.3.1).
    Host,
    /// A host that `server.hosts` does not name, or that the connection's certificate is not valid for.
    UnknownHost,
    /// A target in a form that its method does not allow (RFC 9112 §3.2), or a path that is not valid.
    Target,
    /// A target longer than `limits.uri_length`.
    TargetLength,
    /// Longer fields than `limits.header_size`.
    FieldBytes,
    /// More fields than `limits.header_count`.
    FieldCount,
    /// A length that is not plain: RFC 9112 §6.3.
    Framing,
    /// CONNECT: this is no tunnel.
    Connect,
    /// An expectation other than `100-continue` (RFC 9110 §10.1.1).
    Expectation,
}

impl Refusal {
    /// Its answer.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Target | Self::Framing => StatusCode::BAD_REQUEST,
            Self::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
            Self::TargetLength => StatusCode::URI_TOO_LONG,
            Self::FieldBytes | Self::FieldCount => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
        }
    }

    /// What Cache-Status and log call it.
    pub const fn detail(self) -> Detail {
        match self {
            Self::UnknownHost => Detail::UnknownHost,
            Self::Host
            | Self::Target
            | Self::TargetLength
            | Self::FieldBytes
            | Self::FieldCount
            | Self::Framing
            | Self::Connect
            | Self::Expectation => Detail::BadRequest,
        }
    }

    /// The bound it is for.
    pub const fn limit(self) -> Option<Limit> {
        match self {
            Self::TargetLength => Some(Limit::UriLength),
            Self::FieldBytes => Some(Limit::HeaderSize),
            Self::FieldCount => Some(Limit::HeaderCount),
            Self::Host | Self::UnknownHost | Self::Target | Self::Framing | Self::Connect | Self::Expectation => None,
        }
    }

    /// Whether where the next request begins is in doubt, or what follows is not to be trusted.
    pub const fn closes(self) -> bool {
        !matches!(self, Self::UnknownHost)
    }
}

/// The host that a connection's first request was for: nearly always that of all its others, which need not be parsed.
pub type FirstHost = OnceLock<Arc<Authority>>;

/// Checks a request that came over a listener of `scheme`, on a connection whose first host is `known`.
pub fn check<B>(
    request: &Request<B>,
    scheme: Scheme,
    server: &ServerConfig,
    known: &FirstHost,
) -> Result<Accepted, Refusal> {
    let uri = request.uri();
    if bytes_of(uri) > server.limits.uri_length {
        return Err(Refusal::TargetLength);
    }
    let found = Found::among(request.headers());
    check_bounds(request.headers(), found.bytes, &server.limits)?;
    if request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if found.is_ambiguous() {
        return Err(Refusal::Framing);
    }
    if found.has_other_expectation {
        return Err(Refusal::Expectation);
    }
    let parse = |text: &str| parse(text, scheme, known);
    let authority = match request.version() {
        // RFC 9113 §8.2.1: over HTTP/2 white space around a value is no part of the frame but of the value, and makes the
        // message malformed. Written as HTTP/1 it would go.
        Version::HTTP_2 if found.is_padded => return Err(Refusal::Framing),
        Version::HTTP_2 => authority_of_http2(uri, found.host()?, parse)?,
        _ => authority_of_http1(uri, found.host()?, parse)?,
    };
    if !server.hosts.is_empty() && !server.hosts.iter().any(|host| **host == *authority.host()) {
        return Err(Refusal::UnknownHost);
    }
    if uri.path() == "*" {
        return if request.method() == Method::OPTIONS { Ok(Accepted::ServerOptions) } else { Err(Refusal::Target) };
    }
    let target = match uri.path_and_query() {
        Some(target) => Target::received(scheme, authority, target),
        None => Target::new(scheme, authority, uri.path(), uri.query()),
    };
    target.map(Accepted::Proxied).map_err(|bad| match bad {
        BadTarget::Host => Refusal::Host,
        BadTarget::Path => Refusal::Target,
    })
}

/// What one reading of a request's fields finds.
#[derive(Default)]
struct Found<'f> {
    /// Of names and values, with what stands between them: colon, space, CRLF.
    bytes: usize,
    host: Option<&'f HeaderValue>,
    length: Option<&'f HeaderValue>,
    coding: Option<&'f HeaderValue>,
    /// Host comes more than once.
    has_hosts: bool,
    /// A field that says where the content ends comes more than once, or under a name that others take for it.
    has_doubts: bool,
    has_other_expectation: bool,
    /// White space stands around a value.
    is_padded: bool,
}

impl<'f> Found<'f> {
    fn among(fields: &'f HeaderMap) -> Self {
        let mut found = Self::default();
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        for (name, value) in fields {
            let bytes = value.as_bytes();
            found.bytes += name.as_str().len() + bytes.len() + 4;
            found.is_padded |= is_space(bytes.first()) || is_space(bytes.last());
            if *name == HOST {
                found.has_hosts |= found.host.replace(value).is_some();
            } else if *name == CONTENT_LENGTH {
                found.has_doubts |= found.length.replace(value).is_some();
            } else if *name == TRANSFER_ENCODING {
                found.has_doubts |= found.coding.replace(value).is_some();
            } else if *name == EXPECT {
                found.has_other_expectation |= !bytes.eq_ignore_ascii_case(b"100-continue");
            } else {
                found.has_doubts |= matches!(name.as_str(), "transfer_encoding" | "content_length");
            }
        }
        found
    }

    fn host(&self) -> Result<Option<&'f str>, Refusal> {
        if self.has_hosts {
            return Err(Refusal::Host);
        }
        self.host.map(|host| host.to_str().map_err(|_| Refusal::Host)).transpose()
    }

    /// hyper has refused most of it; what it lets through is a `Content-Length` with leading zeros, codings besides
    /// `chunked`, and the names that other servers take for framing fields. With both fields it obeys `chunked` alone, as
    /// RFC 9112 §6.3 says, takes `Content-Length` away, and closes the connection after the answer.
    fn is_ambiguous(&self) -> bool {
        let is_plain =
            |digits: &[u8]| digits == b"0" || (!digits.starts_with(b"0") && digits.iter().all(u8::is_ascii_digit));
        self.has_doubts
            || (self.length.is_some() && self.coding.is_some())
            || self.length.is_some_and(|length| length.is_empty() || !is_plain(length.as_bytes()))
            || self.coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    }
}

fn check_bounds(fields: &HeaderMap, bytes: usize, limits: &Limits) -> Result<(), Refusal> {
    if fields.len() > limits.header_count {
        return Err(Refusal::FieldCount);
    }
    if bytes as u64 > limits.header_size {
        return Err(Refusal::FieldBytes);
    }
    Ok(())
}

fn bytes_of(uri: &Uri) -> usize {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    scheme + authority + uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// RFC 9112 §3.2: exactly one Host whatever the target's form; the authority of an absolute form takes its place.
fn authority_of_http1(
    uri: &Uri,
    host: Option<&str>,
    parse: impl Fn(&str) -> Result<Arc<Authority>, Refusal>,
) -> Result<Arc<Authority>, Refusal> {
    let host = parse(host.ok_or(Refusal::Host)?)?;
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(host),
        (Some("http" | "https"), Some(authority)) => parse(authority.as_str()),
        // The authority form is CONNECT's alone.
        (None, Some(_)) | (Some(_), _) => Err(Refusal::Target),
    }
}

/// RFC 9113 §8.3.1: `:authority`, and a Host that says the same where there is one.
fn authority_of_http2(
    uri: &Uri,
    host: Option<&str>,
    parse: impl Fn(&str) -> Result<Arc<Authority>, Refusal>,
) -> Result<Arc<Authority>, Refusal> {
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Err(Refusal::Target);
    }
    let host = host.map(&parse).transpose()?;
    let authority = uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (authority, host) {
        (Some(authority), Some(host)) if authority != host => Err(Refusal::Host),
        (Some(authority), _) => Ok(authority),
        (None, host) => host.ok_or(Refusal::Host),
    }
}

fn parse(text: &str, scheme: Scheme, known: &FirstHost) -> Result<Arc<Authority>, Refusal> {
    if let Some(known) = known.get().filter(|known| known.as_str() == text) {
        return Ok(Arc::clone(known));
    }
    let authority = Arc::new(Authority::parse(text, scheme).map_err(|_| Refusal::Host)?);
    // The first of a connection stays.
    let _ = known.set(Arc::clone(&authority));
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Stats;

    fn server(hosts: &[&str]) -> ServerConfig {
        ServerConfig {
            listen: Vec::new(),
            threads: 1,
            trusted_proxies: [].into(),
            hosts: hosts.iter().map(|host| Box::from(*host)).collect(),
            fallback: None,
            client_ip_header: None,
            drain_timeout: Duration::from_secs(1),
            stats: Stats { path: "/cache-stats".into(), allow: [].into() },
            purge: [].into(),
            cache_status: true,
            limits: Limits {
                header_size: 100,
                header_count: 5,
                uri_length: 40,
                connections: 1,
                connections_per_address: 0,
                header_timeout: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(1),
                body_idle_timeout: Duration::from_secs(1),
                body_rate_min: 1024,
                answer_rate_min: 1024,
                waiters: 1,
                http2_streams: 1,
                http2_resets: 1,
                ranges: 1,
                tags: 1,
                interim: 1,
            },
        }
    }

    fn request(version: Version, line: &str, fields: &[(&str, &str)]) -> Request<()> {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[track_caller]
    fn check_http1(line: &str, fields: &[(&str, &str)], expected: Result<&str, Refusal>) {
        check_with(&server(&[]), Version::HTTP_11, line, fields, expected);
    }

    #[track_caller]
    fn check_with(
        server: &ServerConfig,
        version: Version,
        line: &str,
        fields: &[(&str, &str)],
        expected: Result<&str, Refusal>,
    ) {
        let accepted = check(&request(version, line, fields), Scheme::Http, server, &FirstHost::new());
        let shown = accepted.map(|accepted| match accepted {
            Accepted::Proxied(target) => format!("{}{}", target.authority, target.path()),
            Accepted::ServerOptions => "*".to_owned(),
        });
        assert_eq!(shown, expected.map(str::to_owned), "{line} {fields:?}");
    }

    const HOST: (&str, &str) = ("host", "a.test");

    #[test]
    fn http1_needs_exactly_one_valid_host() {
        check_http1("GET /x", &[HOST], Ok("a.test/x"));
        check_http1("GET /x", &[("host", "A.Test:80")], Ok("a.test/x"));
        check_http1("GET /x", &[], Err(Refusal::Host));
        check_http1("GET /x", &[HOST, HOST], Err(Refusal::Host));
        for host in ["", "a@b", "a/b", "a b", "a:b"] {
            check_http1("GET /x", &[("host", host)], Err(Refusal::Host));
        }
    }

    #[test]
    fn an_absolute_form_takes_the_place_of_host() {
        check_http1("GET http://b.test/x", &[HOST], Ok("b.test/x"));
        check_http1("GET http://b.test", &[HOST], Ok("b.test/"));
        check_http1("GET http://b.test/x", &[], Err(Refusal::Host));
        check_http1("GET gopher://b.test/x", &[HOST], Err(Refusal::Target));
        check_http1("GET b.test:80", &[HOST], Err(Refusal::Target));
    }

    #[test]
    fn connect_and_the_asterisk_have_their_own_methods() {
        check_http1("CONNECT a.test:80", &[HOST], Err(Refusal::Connect));
        check_http1("GET *", &[HOST], Err(Refusal::Target));
        check_http1("OPTIONS *", &[HOST], Ok("*"));
    }

    #[test]
    fn http2_allows_no_host_that_differs_from_the_authority() {
        let check = |uri: &str, fields: &[(&str, &str)], expected| {
            check_with(&server(&[]), Version::HTTP_2, &format!("GET {uri}"), fields, expected);
        };
        check("http://a.test/x", &[], Ok("a.test/x"));
        check("http://a.test/x", &[("host", "A.test:80")], Ok("a.test/x"));
        check("http://a.test/x", &[("host", "b.test")], Err(Refusal::Host));
        check("http://u@a.test/x", &[], Err(Refusal::Host));
        check("gopher://a.test/x", &[], Err(Refusal::Target));
        check("/x", &[HOST], Ok("a.test/x"));
        check("/x", &[HOST, HOST], Err(Refusal::Host));
        check("/x", &[], Err(Refusal::Host));
    }

    #[test]
    fn a_list_of_hosts_excludes_every_other() {
        let server = server(&["a.test"]);
        check_with(&server, Version::HTTP_11, "GET /", &[("host", "a.test:8080")], Ok("a.test:8080/"));
        check_with(&server, Version::HTTP_11, "GET /", &[("host", "b.test")], Err(Refusal::UnknownHost));
        check_with(&server, Version::HTTP_11, "GET http://b.test/", &[HOST], Err(Refusal::UnknownHost));
    }

    #[test]
    fn what_exceeds_a_bound_is_refused() {
        check_http1(&format!("GET /{}", "x".repeat(39)), &[HOST], Ok(&format!("a.test/{}", "x".repeat(39))));
        check_http1(&format!("GET /{}", "x".repeat(40)), &[HOST], Err(Refusal::TargetLength));
        check_http1("GET /", &[HOST, ("x", &"v".repeat(81))], Ok("a.test/"));
        check_http1("GET /", &[HOST, ("x", &"v".repeat(82))], Err(Refusal::FieldBytes));
        check_http1("GET /", &[HOST, ("a", ""), ("b", ""), ("c", ""), ("d", "")], Ok("a.test/"));
        check_http1("GET /", &[HOST, ("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")], Err(Refusal::FieldCount));
    }

    #[test]
    fn framing_that_two_readers_may_read_differently_is_refused() {
        for fields in [
            &[("content-length", "01")][..],
            &[("content-length", "")],
            &[("content-length", "+1")],
            &[("content-length", "1"), ("content-length", "1")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "chunked"), ("content-length", "1")],
            &[("transfer_encoding", "chunked")],
            &[("content_length", "1")],
        ] {
            let fields: Vec<_> = [HOST].iter().chain(fields).copied().collect();
            check_http1("POST /", &fields, Err(Refusal::Framing));
        }
        check_http1("POST /", &[HOST, ("content-length", "0")], Ok("a.test/"));
        check_http1("POST /", &[HOST, ("transfer-encoding", "Chunked")], Ok("a.test/"));
    }

    #[test]
    fn no_expectation_but_100_continue_is_met() {
        check_http1("POST /", &[HOST, ("expect", "100-Continue")], Ok("a.test/"));
        check_http1("POST /", &[HOST, ("expect", "y 100-continue")], Err(Refusal::Expectation));
    }
}
