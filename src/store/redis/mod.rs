//! The Redis tier, through fred: the only module that knows of either.

mod breaker;
mod client;
mod errors;
mod follow;
pub mod live;
mod lock;
mod lookup;
mod pending;
mod script;
mod server;
mod together;
mod wakes;
mod writes;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{SetOnce, mpsc};
use tokio_util::task::TaskTracker;

pub use super::codec::Seal;
use super::ledger::Ledger;
use super::{Purged, RedisStats, WorkerId};
use crate::clock::Clock;
use crate::key::CacheKey;
use crate::stored::PurgeNumber;
use crate::telemetry::Telemetry;
use client::Lane;
use errors::Reports;
pub use lock::{Guard, Lock};
pub(super) use lookup::Read;
use pending::Pending;
pub(super) use pending::Waiting;
use wakes::Wakes;
pub use wakes::{Waiter, Wake};

/// The bound on the backend's orders that wait to be obeyed.
const ORDERS_MAX: usize = 1024;

/// How Redis is reached and used.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://`, `redis+unix://`, `redis-cluster://`, `redis-sentinel://`; with TLS `rediss://` and so on; or the same
    /// with `valkey` and `valkeys`.
    pub url: String,
    /// ACL user; empty: the default one.
    pub username: String,
    /// Password.
    pub password: Option<String>,
    /// The sentinels' own ACL user; empty: the default one.
    pub sentinel_username: String,
    /// The sentinels' own password.
    pub sentinel_password: Option<String>,
    /// Private CA and client certificate for TLS.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// What every key begins with.
    pub prefix: String,
    /// A lookup that takes longer is a miss.
    pub timeout: Duration,
    /// The largest stored body in bytes, as it is received.
    pub max_object: u64,
    /// Whether bodies are compressed where that pays. What is compressed is read all the same.
    pub compress: bool,
    /// What records are sealed with.
    pub seal: Seal,
}

impl RedisConfig {
    /// Whether a URL asks for TLS.
    pub fn is_encrypted(url: &str) -> bool {
        server::is_encrypted(url)
    }

    /// What its URL is or has, and what was expected, where no client can be built from it. Nothing is connected to.
    pub fn problem(&self) -> Option<String> {
        client::builder(self).err().map(|error| error.details().to_owned())
    }
}

/// The Redis tier: a lane for each worker, one for the control thread and one for large bodies.
pub(super) struct RedisTier {
    config: RedisConfig,
    is_cluster: bool,
    /// In this order: workers, control, bulk.
    lanes: Box<[Lane]>,
    pending: Pending,
    ledger: Arc<Ledger>,
    reports: Reports,
    clock: Clock,
    /// Orders that the backend publishes, until somebody takes them.
    orders: mpsc::Sender<Bytes>,
    /// Guards their receiver until it is taken.
    orders_to_take: Mutex<Option<mpsc::Receiver<Bytes>>>,
    /// Whether the ledger in Redis has been read once; no response is written or read before.
    synced: SetOnce<()>,
    tasks: TaskTracker,
    wakes: Wakes,
    /// The locks that are held; closed, so that one can wait for there being none.
    locks: TaskTracker,
}

impl RedisTier {
    pub(super) fn new(
        config: RedisConfig,
        workers: usize,
        ledger: Arc<Ledger>,
        clock: Clock,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let (orders, to_take) = mpsc::channel(ORDERS_MAX);
        let locks = TaskTracker::new();
        locks.close();
        Self {
            is_cluster: server::is_cluster(&config.url),
            config,
            clock,
            orders,
            orders_to_take: Mutex::new(Some(to_take)),
            lanes: (0..workers + 2).map(|_| Lane::new()).collect(),
            pending: Pending::new(),
            ledger,
            reports: Reports::new(telemetry),
            synced: SetOnce::new(),
            tasks: TaskTracker::new(),
            wakes: Wakes::default(),
            locks,
        }
    }

    /// Connects the worker's client on the current runtime; for the control thread the bulk client too, and follows
    /// the epoch.
    pub(super) fn attach(self: &Arc<Self>, worker: WorkerId) {
        if worker.0 > self.control() || !self.lanes[worker.0].attach_once() {
            return;
        }
        let builder = match client::builder(&self.config) {
            Ok(builder) => builder,
            Err(error) => return self.reports.down(error.details()),
        };
        if worker.0 == self.control() {
            self.tasks.spawn(client::supervise(
                Arc::clone(self),
                self.bulk(),
                client::of_large(&builder, &self.config),
            ));
            self.tasks.spawn(follow::follow(Arc::clone(self)));
        } else {
            self.tasks.spawn(writes::work_off(Arc::clone(self), worker.0));
            self.tasks.spawn(together::ask_gathered(Arc::clone(self), worker.0));
        }
        self.tasks.spawn(client::supervise(Arc::clone(self), worker.0, builder));
    }

    /// Whether a lookup by this worker would ask Redis at all.
    pub(in crate::store) fn is_available(&self, worker: WorkerId) -> bool {
        self.is_synced() && self.lanes.get(worker.0).is_some_and(Lane::is_usable)
    }

    /// Whether any lookup may ask Redis.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.initialized()
    }

    pub(super) fn stats(&self) -> RedisStats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        RedisStats {
            state: self.reports.state(),
            errors: count(&self.reports.errors),
            timeouts: count(&self.reports.timeouts),
            breaker: self.breaker_state(),
            ledger: if self.is_synced() { self.reports.ledger_state() } else { "unknown" },
            pending_writes: self.pending.count() as u64,
            dropped_writes: count(&self.reports.dropped_writes),
            corrupt: count(&self.reports.corrupt),
        }
    }

    /// Waits, `within` at most, until Redis has recorded this process' purge of that place in its sequence.
    pub(super) async fn recorded(&self, sequence: u64, within: Duration) -> Purged {
        let refused = |why: String| Purged { number: PurgeNumber(0), acknowledged: Err(why) };
        if !self.is_synced() || !self.lanes[self.control()].is_usable() {
            return refused("redis is not reached; obeyed here, and recorded once it is".to_owned());
        }
        let mut recorded = self.ledger.recorded.subscribe();
        let outcome = tokio::time::timeout(within, recorded.wait_for(|recorded| recorded.upto >= sequence)).await;
        match outcome {
            Ok(Ok(recorded)) => Purged { number: recorded.number, acknowledged: Ok(()) },
            // The ledger outlives its tier: the sender cannot be gone.
            Ok(Err(_)) | Err(_) => refused(format!(
                "redis did not record it within {} ms; obeyed here, and recorded once it does",
                within.as_millis()
            )),
        }
    }

    /// The orders that the backend publishes; once.
    pub(super) fn take_orders(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.orders_to_take.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// An order that the backend published.
    fn ordered(&self, order: Bytes) {
        if self.orders.try_send(order).is_err() {
            self.reports.tell("purge orders are published faster than they are obeyed: one is lost");
        }
    }

    /// The ledger's key, and the channel on which its purges are told.
    fn ledger_name(&self) -> String {
        format!("{}:ledger", self.config.prefix)
    }

    /// The channel on which the backend publishes orders.
    fn orders_channel(&self) -> String {
        format!("{}:purge", self.config.prefix)
    }

    fn control(&self) -> usize {
        self.lanes.len() - 2
    }

    fn bulk(&self) -> usize {
        self.lanes.len() - 1
    }

    /// The key of a record. The hash tag puts all of a base key's variants and bodies into one slot of a cluster.
    fn record_key(&self, base: &CacheKey, key: &CacheKey) -> String {
        let mut name = [&self.config.prefix, ":r:{", &hex(base.as_bytes()), "}"].concat();
        if key != base {
            name.push(':');
            name.push_str(&hex(key.as_bytes()));
        }
        name
    }

    /// The key of a body in a string of its own. Named by its digest: a record never meets another's body.
    fn body_key(&self, base: &CacheKey, digest: &[u8; 32]) -> String {
        format!("{}:r:{{{}}}:b:{}", self.config.prefix, hex(base.as_bytes()), hex(digest))
    }
}

fn hex(bytes: &[u8; 32]) -> impl std::ops::Deref<Target = str> + std::fmt::Display {
    blake3::Hash::from_bytes(*bytes).to_hex()
}
