//! The admin listener: figures and health, never on the public one.

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::generation::Shared;
use crate::server::drain::Drain;
use crate::telemetry::events::Event;
use crate::telemetry::stats;

/// Connections at one time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Until a request head is complete, which bounds the time between requests too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole connection: figures are short, and a client that does not read them must not hold its place.
const CONNECTION_MAX: Duration = Duration::from_secs(600);
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// What a request may do here.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD");

/// What the admin listener answers from.
pub struct Admin {
    /// The figures.
    pub shared: Arc<Shared>,
    /// Whether the process is ready.
    pub drain: Arc<Drain>,
    /// The bearer token; none on loopback.
    pub token: Option<String>,
}

impl Admin {
    /// Answers until dropped.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return self.shared.telemetry.emit(&Event::AcceptFailed { error: error.to_string() }),
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = Arc::clone(&self);
                    connections.spawn(async move {
                        let _place = place;
                        let _ = tokio::time::timeout(CONNECTION_MAX, admin.serve(stream)).await;
                    });
                }
                Err(error) => {
                    self.shared.telemetry.emit(&Event::AcceptFailed { error: error.to_string() });
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// A connection that breaks is the client's affair.
    async fn serve(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let answer = service_fn(move |request: Request<Incoming>| {
            let response = self.answer(&request);
            async { Ok::<_, Infallible>(response) }
        });
        let mut http1 = hyper::server::conn::http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let _ = http1.serve_connection(TokioIo::new(stream), answer).await;
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let page = match Page::find(request.uri().path()) {
            Some(page) => page,
            None => return text(StatusCode::NOT_FOUND, "not found\n"),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD\n");
            response.headers_mut().insert(ALLOW, METHODS);
            return response;
        }
        if page.is_guarded()
            && let Err(refusal) = admit(request.headers(), self.token.as_deref())
        {
            return refusal.response();
        }
        match page {
            Page::Health => text(StatusCode::OK, "ok\n"),
            Page::Readiness if self.drain.has_begun() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            Page::Readiness => text(StatusCode::OK, "ready\n"),
            Page::Stats => response(StatusCode::OK, "application/json", stats::text(&self.shared)),
        }
    }
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Health,
    Readiness,
    Stats,
}

impl Page {
    fn find(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Readiness),
            "/cache-stats" => Some(Self::Stats),
            _ => None,
        }
    }

    /// Probes carry neither token nor a Host of ours.
    const fn is_guarded(self) -> bool {
        match self {
            Self::Health | Self::Readiness => false,
            Self::Stats => true,
        }
    }
}

/// Why a request may not see a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The token is missing or wrong.
    Token,
    /// A name instead of an address: a page of another origin may have had it point here (DNS rebinding).
    Host,
}

impl Refusal {
    fn response(self) -> Response<Full<Bytes>> {
        match self {
            Self::Token => {
                let mut response = text(StatusCode::UNAUTHORIZED, "expected the bearer token\n");
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                response
            }
            Self::Host => text(StatusCode::MISDIRECTED_REQUEST, "expected an address or localhost as host\n"),
        }
    }
}

/// A token proves who asks; without one, only what cannot be a browser's page of another origin may.
fn admit(fields: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
    match token {
        Some(token) if is_bearer(fields, token) => Ok(()),
        Some(_) => Err(Refusal::Token),
        None if names_an_address(fields) => Ok(()),
        None => Err(Refusal::Host),
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

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain", Bytes::from_static(text.as_bytes()))
}

fn response(status: StatusCode, content_type: &'static str, content: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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

    #[test]
    fn probes_need_no_admission() {
        assert_eq!(Page::find("/healthz").map(Page::is_guarded), Some(false));
        assert_eq!(Page::find("/readyz").map(Page::is_guarded), Some(false));
        assert_eq!(Page::find("/cache-stats").map(Page::is_guarded), Some(true));
        assert_eq!(Page::find("/cache-stats/"), None);
    }
}
