//! The upstreams: which server gets a request, over which connection, and what its trouble means.

mod balance;
mod body;
mod call;
mod checks;
mod connect;
mod error;
mod framing;
mod health;
mod interim;
mod outgoing;
mod pool;
mod probe;
mod room;
mod roster;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::MissedTickBehavior;

use self::balance::Turn;
pub use self::body::ResponseBody;
pub use self::error::UpstreamError;
pub use self::interim::OnInterim;
pub use self::probe::{Reached, probe};
use self::room::Room;
use self::roster::{Lookup, Roster};
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
    /// How long the addresses of a name are used before they are looked up again.
    pub resolve_interval: Duration,
    /// Passive ejection.
    pub breaker: Breaker,
    /// Active checks, where wanted.
    pub health: Option<HealthCheck>,
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

/// How a server is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is got, behind the base path; 2xx means well.
    pub path: PathAndQuery,
    /// How often; no answer until the next check is due means not well.
    pub interval: Duration,
    /// Failed checks in a row until the server is asked only when no other can be.
    pub unhealthy: u32,
    /// Passed checks in a row until it is one of many again.
    pub healthy: u32,
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
    /// The most interim responses; 16 where it does not say.
    pub interim_max: Option<usize>,
    /// Is told each interim response.
    pub on_interim: Option<OnInterim>,
}

/// Makes the fields of a request as they were.
pub type Remade<'a> = &'a (dyn Fn() -> HeaderMap + Sync);

/// Every upstream of one configuration.
pub struct Upstreams {
    by_name: BTreeMap<Arc<str>, Arc<Upstream>>,
}

/// One upstream: its servers' health, its pools, one for each worker.
pub struct Upstream {
    config: Arc<UpstreamConfig>,
    roster: Roster,
    turn: Turn,
    room: Room,
    telemetry: Arc<Telemetry>,
}

impl Upstreams {
    /// Builds; an upstream whose configuration is unchanged is taken over from `previous` with pools and health.
    pub fn new(
        configs: Vec<UpstreamConfig>,
        workers: usize,
        previous: Option<&Self>,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        let by_name = configs.into_iter().map(|config| {
            let name = Arc::clone(&config.name);
            let old = previous.and_then(|previous| previous.find(&name));
            let upstream = match old {
                Some(old) if old.config.equals(&config) => Arc::clone(old),
                old => {
                    Arc::new(Upstream::new(config, workers, telemetry, roster::system(), old.map(|old| &old.roster)))
                }
            };
            (name, upstream)
        });
        Self { by_name: by_name.collect() }
    }

    /// By name.
    pub fn find(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// Looks up names and checks health, until dropped. Where nobody does, no name is ever found.
    pub async fn tend(&self) {
        join_all(self.by_name.values().map(|upstream| upstream.tend())).await;
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Upstream>)> {
        self.by_name.iter()
    }
}

impl Upstream {
    fn new(
        config: UpstreamConfig,
        workers: usize,
        telemetry: &Arc<Telemetry>,
        lookup: Lookup,
        previous: Option<&Roster>,
    ) -> Self {
        let room = Room::new(config.max_concurrent, config.max_pending, config.connect_timeout);
        let config = Arc::new(config);
        let roster = Roster::new(Arc::clone(&config), workers, telemetry, lookup, previous);
        Self { config, roster, turn: Turn::default(), room, telemetry: Arc::clone(telemetry) }
    }

    async fn tend(&self) {
        tokio::join!(self.roster.keep(), self.check());
    }

    /// Checks every server, at the same time, once an interval.
    async fn check(&self) {
        let Some(health) = &self.config.health else { return };
        let mut ticks = tokio::time::interval(health.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let servers = self.roster.now();
            join_all(servers.iter().map(|server| server.check(health))).await;
        }
    }

    /// Sends a request: `request.uri()` is the path and query to send, before the base path; fields are complete but
    /// for Host. `worker` selects the pool.
    ///
    /// A request that surely was not written goes to another server, if there is one, up to `retries` times; what may
    /// have been written is sent again only where it is safe, has no content, and what broke was a connection that had
    /// been kept. The call's place is held until the response's content ends or is dropped; an upgraded connection
    /// holds none.
    ///
    /// `remade` makes the request's fields anew for a further attempt; without it, a copy of them is kept for that.
    pub fn fetch<'a>(
        &'a self,
        worker: usize,
        request: Request<RequestBody>,
        options: &'a CallOptions,
        remade: Option<Remade<'a>>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, UpstreamError>> + use<'a> {
        call::run(self, worker, request, options, remade)
    }

    /// Connect plus first-byte timeout: the longest a call waits for its head, but for `retries` and `max_pending`,
    /// which may each add a connect timeout, and for the time the request's own content takes.
    pub fn patience(&self) -> Duration {
        self.config.connect_timeout.saturating_add(self.config.first_byte_timeout)
    }

    /// The figures of `/cache-stats`.
    pub fn stats(&self) -> Vec<ServerStats> {
        self.roster.stats()
    }
}

impl UpstreamConfig {
    /// Whether pools and health built from `other` may be kept.
    fn equals(&self, other: &Self) -> bool {
        // Destructured so that a new setting cannot be forgotten. `fingerprint` stands for `tls`.
        let Self {
            name,
            urls,
            host,
            balance,
            connect_timeout,
            first_byte_timeout,
            idle_timeout,
            retries,
            max_concurrent,
            max_pending,
            resolve_interval,
            breaker,
            health,
            tls: _,
            fingerprint,
        } = self;
        *name == other.name
            && *urls == other.urls
            && *host == other.host
            && *balance == other.balance
            && *connect_timeout == other.connect_timeout
            && *first_byte_timeout == other.first_byte_timeout
            && *idle_timeout == other.idle_timeout
            && *retries == other.retries
            && *max_concurrent == other.max_concurrent
            && *max_pending == other.max_pending
            && *resolve_interval == other.resolve_interval
            && *breaker == other.breaker
            && *health == other.health
            && *fingerprint == other.fingerprint
    }
}

/// The figures of one server.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ServerStats {
    /// Its URL.
    pub url: String,
    /// Its address, where the URL has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// `up`, `ejected` (by its failures), `unhealthy` (by its checks), or `unresolved` (a name without addresses).
    pub state: &'static str,
    /// Requests sent.
    pub requests: u64,
    /// Failures.
    pub failures: u64,
}

impl ServerStats {
    fn unresolved(url: String) -> Self {
        Self { url, address: None, state: "unresolved", requests: 0, failures: 0 }
    }
}

#[cfg(test)]
mod tests;
