//! One server of an upstream: where it is, how it does, and the connections to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use http::header::{HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, Version};

use super::checks::Checks;
use super::connect::{self, Connector, Offer, Tls};
use super::error::Failure;
use super::health::{Admission, Change, Health, LastAnswer};
use super::outgoing::OutgoingBody;
use super::pool::Pool;
use super::{HealthCheck, HostRule, ServerStats, UpstreamConfig, UpstreamError};
use crate::telemetry::Telemetry;
use crate::telemetry::events::Event;

/// A server, shared by all workers.
pub(super) struct Server {
    upstream: Arc<str>,
    /// As logs and figures name it.
    url: String,
    /// Which of its name's addresses it has, where the URL has a name.
    address: Option<SocketAddr>,
    authority: Authority,
    /// What is put in front of each path; no trailing slash.
    base_path: Box<str>,
    host: Host,
    health: Health,
    in_flight: AtomicUsize,
    answered: LastAnswer,
    requests: AtomicU64,
    failures: AtomicU64,
    /// One for each worker.
    pools: Box<[Pools]>,
    checks: Checks,
    /// What makes the connections that checks are made over.
    connector: Connector,
    telemetry: Arc<Telemetry>,
}

/// The Host rule, ready for use.
enum Host {
    Upstream(HeaderValue),
    Preserve { fallback: HeaderValue },
    Literal { value: HeaderValue, authority: Authority },
}

struct Pools {
    any: Arc<Pool>,
    http1: Arc<Pool>,
}

impl Server {
    pub fn new(
        config: &UpstreamConfig,
        url: &Uri,
        address: Option<SocketAddr>,
        workers: usize,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        let scheme = url.scheme().cloned().unwrap_or(Scheme::HTTP);
        let authority = own_authority(url, &scheme);
        let host = Host::new(&config.host, &authority);
        let [any, http1] = [Offer::Any, Offer::Http1].map(|offer| connector(config, url, address, offer));
        let pools = (0..workers.max(1))
            .map(|_| {
                let any = Pool::new(any.clone());
                let http1 = if scheme == Scheme::HTTPS { Pool::new(http1.clone()) } else { Arc::clone(&any) };
                Pools { any, http1 }
            })
            .collect();
        Self {
            upstream: Arc::clone(&config.name),
            url: named(url),
            address,
            base_path: url.path().trim_end_matches('/').into(),
            health: Health::new(config.breaker),
            checks: Checks::new(config.health.as_ref()),
            connector: any,
            in_flight: AtomicUsize::new(0),
            answered: LastAnswer::new(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            telemetry: Arc::clone(telemetry),
            authority,
            host,
            pools,
        }
    }

    /// The figures.
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            url: self.url.clone(),
            address: self.address,
            state: match (self.health.is_up(), self.is_well()) {
                (false, _) => "ejected",
                (true, false) => "unhealthy",
                (true, true) => "up",
            },
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Which of its name's addresses it has.
    pub const fn at(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What its checks have shown.
    pub fn is_well(&self) -> bool {
        self.checks.is_well()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether a request may come now.
    pub fn would_admit(&self, now: Instant) -> bool {
        self.health.would_admit(now)
    }

    /// Lets a request in, if it may come.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Option<Attempt> {
        let admission = self.health.admit(now)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let verdict = Verdict { server: Arc::clone(self), admission, begun: now, is_given: false };
        Some(Attempt { in_flight: InFlight(Arc::clone(self)), verdict })
    }

    /// The connections that suit a request: only HTTP/1.1 can be upgraded.
    pub fn pool(&self, worker: usize, asked_upgrade: bool) -> &Arc<Pool> {
        // A worker that does not exist would be a mistake elsewhere; sharing a pool is safe.
        let pools = &self.pools[worker % self.pools.len()];
        if asked_upgrade { &pools.http1 } else { &pools.any }
    }

    /// Asks it once whether it is well.
    pub async fn check(&self, rule: &HealthCheck) {
        let asked = tokio::time::timeout(rule.interval, self.ask_health(&rule.path)).await;
        let outcome = asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", rule.interval)));
        let cause = outcome.as_ref().err().cloned().unwrap_or_default();
        let (upstream, server) = (self.upstream.to_string(), self.name());
        match self.checks.note(outcome.is_ok()) {
            Change::Nothing => {}
            Change::Ejected => self.telemetry.emit(&Event::ServerUnhealthy { upstream, server, cause }),
            Change::Restored => self.telemetry.emit(&Event::ServerHealthy { upstream, server }),
        }
    }

    async fn ask_health(&self, path: &PathAndQuery) -> Result<(), String> {
        // Over a connection of its own, so that it is also asked whether it can be connected to.
        let lease = Pool::new(self.connector.clone()).get_new().await.map_err(|error| super::error::chain(&error))?;
        let mut request = Request::new(OutgoingBody::Empty);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("aside-health-check"));
        let target = Uri::from(path.clone());
        self.address(&mut request, &target, None, lease.version()).ok_or("the path makes no valid uri")?;
        let (sent, hold) = lease.send(request);
        let response = sent.await.map_err(|error| super::error::chain(&error.into_error()))?;
        hold.close();
        if response.status().is_success() { Ok(()) } else { Err(format!("answered {}", response.status())) }
    }

    /// As logs name it.
    fn name(&self) -> String {
        self.address.map_or_else(|| self.url.clone(), |address| format!("{} at {address}", self.url))
    }

    /// Addresses a request to the server: where it goes there, and the Host that the rule wants.
    ///
    /// HTTP/1.1 has them in the target and in the field. HTTP/2 takes `:authority` from the URI, and a Host that differs
    /// from it is malformed (RFC 9113 §8.3.1).
    pub fn address<B>(
        &self,
        request: &mut Request<B>,
        target: &Uri,
        client_host: Option<&HeaderValue>,
        version: Version,
    ) -> Option<()> {
        let path = self.path(target)?;
        *request.uri_mut() = if version == Version::HTTP_2 {
            request.headers_mut().remove(HOST);
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(Scheme::HTTPS);
            parts.authority = Some(self.host.authority(client_host).unwrap_or_else(|| self.authority.clone()));
            parts.path_and_query = Some(path);
            Uri::from_parts(parts).ok()?
        } else {
            request.headers_mut().insert(HOST, self.host.value(client_host));
            Uri::from(path)
        };
        Some(())
    }

    fn path(&self, target: &Uri) -> Option<PathAndQuery> {
        let path = target.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        // `OPTIONS *` is about the server, not about a path.
        if self.base_path.is_empty() || path.as_str() == "*" {
            return Some(path);
        }
        PathAndQuery::from_maybe_shared(format!("{}{path}", self.base_path)).ok()
    }

    fn tell(&self, change: Change) {
        let names = || (self.upstream.to_string(), self.name());
        match change {
            Change::Nothing => {}
            Change::Ejected => {
                let (upstream, server) = names();
                self.telemetry.emit(&Event::ServerEjected { upstream, server });
            }
            Change::Restored => {
                let (upstream, server) = names();
                self.telemetry.emit(&Event::ServerRestored { upstream, server });
            }
        }
    }
}

/// What connects to the server at `url`: to one address, or to whichever of its name's answers.
pub(super) fn connector(config: &UpstreamConfig, url: &Uri, address: Option<SocketAddr>, offer: Offer) -> Connector {
    let scheme = url.scheme().unwrap_or(&Scheme::HTTP);
    let authority = own_authority(url, scheme);
    let host = Host::new(&config.host, &authority);
    let tls = || Tls::new(connect::offering(&config.tls, offer), host.server_name(&authority));
    let tls = (*scheme == Scheme::HTTPS).then(tls).flatten();
    let dialled = address.and_then(|address| {
        let authority = SocketAddr::new(address.ip(), address.port()).to_string();
        Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query("/").build().ok()
    });
    Connector::new(dialled.unwrap_or_else(|| url.clone()), tls, config.connect_timeout)
}

/// As logs and figures name it.
pub(super) fn named(url: &Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

/// The URL's authority without userinfo and without its scheme's default port.
fn own_authority(url: &Uri, scheme: &Scheme) -> Authority {
    let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let host = url.host().unwrap_or_default();
    let text = match url.port_u16() {
        Some(port) if port != default => format!("{host}:{port}"),
        Some(_) | None => host.to_owned(),
    };
    Authority::from_maybe_shared(text).unwrap_or_else(|_| Authority::from_static("localhost"))
}

impl Host {
    fn new(rule: &HostRule, own: &Authority) -> Self {
        // An authority consists of what a field value may hold.
        let own_value = HeaderValue::from_str(own.as_str()).unwrap_or_else(|_| HeaderValue::from_static("localhost"));
        match rule {
            HostRule::Upstream => Self::Upstream(own_value),
            HostRule::Preserve => Self::Preserve { fallback: own_value },
            HostRule::Literal(value) => {
                let authority = parse(value).unwrap_or_else(|| own.clone());
                Self::Literal { value: value.clone(), authority }
            }
        }
    }

    /// What is sent and verified in the TLS handshake. With `Preserve` the server's own: connections do not belong to
    /// a client, and which certificate is right must not be the client's to say.
    fn server_name<'a>(&'a self, own: &'a Authority) -> &'a str {
        match self {
            Self::Literal { authority, .. } => authority.host(),
            Self::Upstream(_) | Self::Preserve { .. } => own.host(),
        }
    }

    fn value(&self, client_host: Option<&HeaderValue>) -> HeaderValue {
        match self {
            Self::Upstream(value) | Self::Literal { value, .. } => value.clone(),
            Self::Preserve { fallback } => client_host.unwrap_or(fallback).clone(),
        }
    }

    /// None: the server's own.
    fn authority(&self, client_host: Option<&HeaderValue>) -> Option<Authority> {
        match self {
            Self::Upstream(_) => None,
            Self::Preserve { .. } => client_host.and_then(parse),
            Self::Literal { authority, .. } => Some(authority.clone()),
        }
    }
}

fn parse(value: &HeaderValue) -> Option<Authority> {
    Authority::try_from(value.as_bytes()).ok().filter(|authority| !authority.as_str().contains('@'))
}

/// One of a server's requests in flight; counted until dropped.
pub(super) struct InFlight(Arc<Server>);

impl InFlight {
    /// The response's content broke off. It is logged and counted, but does not eject: the head was an answer.
    pub fn body_broke(&self, cause: String) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
        self.0.telemetry.emit(&Event::BodyTruncated { upstream: self.0.upstream.to_string(), cause });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InFlight").field(&self.0.url).finish()
    }
}

/// A request on its way to a server. It ends with `succeeded` or `failed`; dropped, it says nothing of the server.
pub(super) struct Attempt {
    in_flight: InFlight,
    verdict: Verdict,
}

/// The duty to tell the server's health how the attempt ended; dropped, an abandoned trial passes to the next request.
struct Verdict {
    server: Arc<Server>,
    admission: Admission,
    begun: Instant,
    is_given: bool,
}

impl Attempt {
    /// Where it goes.
    pub const fn server(&self) -> &Arc<Server> {
        &self.verdict.server
    }

    /// A head came; what remains is to read the content.
    pub fn succeeded(mut self) -> InFlight {
        let admission = self.verdict.admission;
        let server = self.verdict.give();
        server.answered.note();
        server.tell(server.health.succeeded(admission));
        self.in_flight
    }

    /// None came. Only what the server is to blame for is logged and counted; a client that left is not. A server that is
    /// reached, and answered others just now, is not left out for it: clients could else do that by what they ask for.
    pub fn failed(mut self, failure: Failure, now: Instant) -> UpstreamError {
        let is_blamed = failure.blames_server();
        let is_unreached = matches!(failure.error, UpstreamError::Connect | UpstreamError::ConnectTimeout);
        let Failure { error, cause, .. } = failure;
        if is_blamed {
            let (admission, begun) = (self.verdict.admission, self.verdict.begun);
            let server = self.verdict.give();
            let (upstream, url) = (server.upstream.to_string(), server.name());
            server.telemetry.emit(&Event::UpstreamFailed { upstream, server: url, error, cause });
            server.failures.fetch_add(1, Ordering::Relaxed);
            if is_unreached || admission == Admission::Trial || !server.answered.was_by(begun) {
                server.tell(server.health.failed(admission, now));
            }
        }
        error
    }
}

impl Verdict {
    fn give(&mut self) -> &Arc<Server> {
        self.is_given = true;
        &self.server
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if !self.is_given {
            self.server.health.abandoned(self.admission);
        }
    }
}
