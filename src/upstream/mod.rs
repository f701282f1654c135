//! The upstreams: which server gets a request, over which connection, and what its trouble means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;

use crate::telemetry::Telemetry;

/// An upstream's settings, checked.
#[derive(Clone)]
pub struct UpstreamConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Its servers: scheme, authority and base path (no trailing slash).
    pub urls: Box<[Uri]>,
    /// The Host (and SNI) it is sent.
    pub host: HostRule,
    /// How a server is chosen.
    pub balance: Balance,
    /// Until the connection stands, TLS included.
    pub connect_timeout: Duration,
    /// From the request's last byte to the response's head.
    pub first_byte_timeout: Duration,
    /// Between bytes of the body.
    pub idle_timeout: Duration,
    /// How often another server is tried while no byte of the request was written.
    pub retries: u32,
    /// Requests at one time; 0: no bound.
    pub max_concurrent: usize,
    /// Requests waiting for room; above it, and after `connect_timeout`, they fail as `Overloaded`.
    pub max_pending: usize,
    /// Passive ejection.
    pub breaker: Breaker,
    /// TLS towards https servers: verified, with the private CA and client certificate where set.
    pub tls: Arc<rustls::ClientConfig>,
    /// What `tls` was built from, so that an unchanged upstream keeps its pool over a reload.
    pub fingerprint: u64,
}

/// When a server is left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row.
    pub failures: u32,
    /// How long it is left out; then one request tries it.
    pub open: Duration,
}

/// The Host an upstream is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRule {
    /// The server's own authority.
    Upstream,
    /// The client's.
    Preserve,
    /// This one.
    Literal(http::HeaderValue),
}

/// How a server is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastRequests,
}

/// A request's content on its way to the upstream.
pub type RequestBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A call's own settings.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// The route's first-byte timeout, over the upstream's.
    pub first_byte_timeout: Option<Duration>,
    /// The client's Host, for `HostRule::Preserve`.
    pub client_host: Option<http::HeaderValue>,
}

/// Every upstream of one configuration.
pub struct Upstreams {
    by_name: BTreeMap<Arc<str>, Arc<Upstream>>,
}

/// One upstream: its servers' health, its pools, one for each worker.
pub struct Upstream {
    _private: (),
}

/// The content of an upstream's response: timed between bytes, holds the call's place until it ends or is dropped.
/// A body that breaks off ends in an error.
#[derive(Debug)]
pub struct ResponseBody {
    _private: (),
}

/// Why the upstream gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, name not found, TLS failed.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// No head in time.
    FirstByteTimeout,
    /// The connection broke, or what came was not HTTP.
    Protocol,
    /// The request's own body failed (the client left or exceeded a limit).
    RequestBody,
    /// `max_concurrent` and `max_pending` are reached, or the wait was too long.
    Overloaded,
    /// Every server is ejected.
    NoServer,
}

impl Upstreams {
    /// Builds; an upstream whose configuration is unchanged is taken over from `previous` with pools and health.
    pub fn new(
        configs: Vec<UpstreamConfig>,
        workers: usize,
        previous: Option<&Self>,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        todo!("{} {workers} {} {}", configs.len(), previous.is_some(), Arc::strong_count(telemetry))
    }

    /// By name.
    pub fn find(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Upstream>)> {
        self.by_name.iter()
    }
}

impl Upstream {
    /// Sends a request: `request.uri()` is the path and query to send, before the base path; fields are
    /// complete but for Host. Extensions reach hyper (`on_informational`, upgrades). `worker` selects the pool.
    pub async fn fetch(
        &self,
        worker: usize,
        request: Request<RequestBody>,
        options: &CallOptions,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        todo!("{worker} {request:?} {options:?}")
    }

    /// Connect plus first-byte timeout: the longest a call waits for its head.
    pub fn patience(&self) -> Duration {
        todo!()
    }

    /// The figures of `/cache-stats`.
    pub fn stats(&self) -> Vec<ServerStats> {
        todo!()
    }
}

/// The figures of one server.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ServerStats {
    /// Its URL.
    pub url: String,
    /// `up` or `ejected`.
    pub state: &'static str,
    /// Requests sent.
    pub requests: u64,
    /// Failures.
    pub failures: u64,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        todo!()
    }
}
