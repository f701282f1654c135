//! The Redis tier, through fred: the only module that knows of either.

mod breaker;
mod client;
mod epoch;
mod errors;
mod lock;
mod lookup;
mod pending;
mod wake_listener;
mod wakes;
mod writes;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::ledger::Ledger;
use super::{RedisStats, WorkerId};
use crate::key::CacheKey;
use crate::telemetry::Telemetry;
use client::Lane;
use errors::Reports;
pub use lock::{Guard, Lock};
use pending::Pending;
pub(super) use pending::Waiting;
use wakes::Wakes;
pub use wakes::{Waiter, Wake};

/// How Redis is reached and used.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://`, `rediss://`, `redis+unix://`, `valkey://`, `valkeys://`, with optional database.
    pub url: String,
    /// ACL user; empty: the default one.
    pub username: String,
    /// Password.
    pub password: Option<String>,
    /// Private CA and client certificate for TLS.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// What every key begins with.
    pub prefix: String,
    /// A lookup that takes longer is a miss.
    pub timeout: Duration,
    /// The largest stored body in bytes.
    pub max_object: u64,
}

impl RedisConfig {
    /// Why no client can be built from it, for people; none when all is well. Nothing is connected to.
    pub fn problem(&self) -> Option<String> {
        client::builder(self).err().map(|error| error.details().to_owned())
    }
}

/// The Redis tier: a lane for each worker, one for the control thread and one for large bodies.
pub(super) struct RedisTier {
    config: RedisConfig,
    /// In this order: workers, control, bulk.
    lanes: Box<[Lane]>,
    pending: Pending,
    ledger: Arc<Ledger>,
    reports: Reports,
    /// Whether the epoch that Redis holds is known; nothing is written or read before.
    synced: watch::Sender<bool>,
    tasks: TaskTracker,
    wakes: Wakes,
    /// The locks that are held; closed, so that one can wait for there being none.
    locks: TaskTracker,
}

impl RedisTier {
    pub(super) fn new(config: RedisConfig, workers: usize, ledger: Arc<Ledger>, telemetry: Arc<Telemetry>) -> Self {
        let locks = TaskTracker::new();
        locks.close();
        Self {
            config,
            lanes: (0..workers + 2).map(|_| Lane::new()).collect(),
            pending: Pending::new(),
            ledger,
            reports: Reports::new(telemetry),
            synced: watch::Sender::new(false),
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
            self.tasks.spawn(client::supervise(Arc::clone(self), self.bulk(), builder.clone()));
            self.tasks.spawn(epoch::follow(Arc::clone(self)));
            self.tasks.spawn(wake_listener::listen(Arc::clone(self), builder.clone()));
        } else {
            self.tasks.spawn(writes::work_off(Arc::clone(self), worker.0));
        }
        self.tasks.spawn(client::supervise(Arc::clone(self), worker.0, builder));
    }

    /// Whether a lookup by this worker would ask Redis at all.
    pub(super) fn is_available(&self, worker: WorkerId) -> bool {
        self.is_synced() && self.lanes.get(worker.0).is_some_and(Lane::is_usable)
    }

    /// Whether any lookup may ask Redis.
    pub(super) fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(super) fn stats(&self) -> RedisStats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        RedisStats {
            state: self.reports.state(),
            errors: count(&self.reports.errors),
            timeouts: count(&self.reports.timeouts),
            breaker: self.breaker_state(),
            ledger: if self.is_synced() { "local" } else { "unknown epoch" },
            pending_writes: self.pending.count() as u64,
            dropped_writes: count(&self.reports.dropped_writes),
            corrupt: count(&self.reports.corrupt),
        }
    }

    fn control(&self) -> usize {
        self.lanes.len() - 2
    }

    fn bulk(&self) -> usize {
        self.lanes.len() - 1
    }

    /// The key of a record. The hash tag puts all of a base key's variants and bodies into one slot of a cluster.
    fn record_key(&self, base: &CacheKey, key: &CacheKey) -> String {
        let (prefix, base_hex) = (&self.config.prefix, hex(base.as_bytes()));
        if key == base {
            format!("{prefix}:r:{{{base_hex}}}")
        } else {
            format!("{prefix}:r:{{{base_hex}}}:{}", hex(key.as_bytes()))
        }
    }

    /// The key of a body in a string of its own. Named by its digest: a record never meets another's body.
    fn body_key(&self, base: &CacheKey, digest: &[u8; 32]) -> String {
        format!("{}:r:{{{}}}:b:{}", self.config.prefix, hex(base.as_bytes()), hex(digest))
    }
}

fn hex(bytes: &[u8; 32]) -> impl std::fmt::Display {
    blake3::Hash::from_bytes(*bytes).to_hex()
}
