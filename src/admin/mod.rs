//! The admin listener: figures, health and purges, never on the public one.

mod admit;
mod purging;

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::generation::Shared;
use crate::server::drain::Drain;
use crate::telemetry::events::Event;
use crate::telemetry::stats;
use admit::admit;

/// Connections at one time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Until a request head is complete, which bounds the time between requests too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole connection: figures are short, and a client that does not read them must not hold its place.
const CONNECTION_MAX: Duration = Duration::from_secs(600);
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

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
                Ok((stream, peer)) => {
                    let admin = Arc::clone(&self);
                    connections.spawn(async move {
                        let _place = place;
                        let _ =
                            tokio::time::timeout(CONNECTION_MAX, admin.serve(stream, peer.ip().to_canonical())).await;
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
    async fn serve(self: Arc<Self>, stream: tokio::net::TcpStream, peer: IpAddr) {
        let answer = service_fn(move |request: Request<Incoming>| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.answer(request, peer).await) }
        });
        let mut http1 = hyper::server::conn::http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let _ = http1.serve_connection(TokioIo::new(stream), answer).await;
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        let Some(page) = Page::find(request.uri().path()) else { return text(StatusCode::NOT_FOUND, "not found\n") };
        if !page.methods().contains(request.method()) {
            return page.other_method();
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
            Page::Stats => json(StatusCode::OK, stats::text(&self.shared)),
            Page::Purge => purging::answer(&self.shared, request, peer).await,
        }
    }
}

/// What there is to see, and to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Health,
    Readiness,
    Stats,
    Purge,
}

impl Page {
    fn find(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Readiness),
            "/cache-stats" => Some(Self::Stats),
            "/purge" => Some(Self::Purge),
            _ => None,
        }
    }

    /// Probes carry neither token nor a Host of ours.
    const fn is_guarded(self) -> bool {
        match self {
            Self::Health | Self::Readiness => false,
            Self::Stats | Self::Purge => true,
        }
    }

    const fn methods(self) -> &'static [Method] {
        match self {
            Self::Health | Self::Readiness | Self::Stats => &[Method::GET, Method::HEAD],
            Self::Purge => &[Method::POST],
        }
    }

    fn other_method(self) -> Response<Full<Bytes>> {
        let (expected, allow) = match self {
            Self::Health | Self::Readiness | Self::Stats => ("expected GET or HEAD\n", "GET, HEAD"),
            Self::Purge => ("expected POST\n", "POST"),
        };
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, expected);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        response
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain", Bytes::from_static(text.as_bytes()))
}

fn json(status: StatusCode, content: Bytes) -> Response<Full<Bytes>> {
    response(status, "application/json", content)
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

    #[test]
    fn probes_need_no_admission() {
        assert_eq!(Page::find("/healthz").map(Page::is_guarded), Some(false));
        assert_eq!(Page::find("/readyz").map(Page::is_guarded), Some(false));
        assert_eq!(Page::find("/cache-stats").map(Page::is_guarded), Some(true));
        assert_eq!(Page::find("/purge").map(Page::is_guarded), Some(true));
        assert_eq!(Page::find("/cache-stats/"), None);
    }
}
