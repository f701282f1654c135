//! Everything one configuration builds: immutable, swapped as a whole.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::config::ServerConfig;
use crate::route::RouteTable;
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::RouteCounters;
use crate::upstream::Upstreams;

/// What a request loads once and sees to its end.
pub struct Generation {
    /// From 1, one more with each reload.
    pub number: u64,
    /// When it was loaded.
    pub loaded_at: Timestamp,
    /// `[server]`.
    pub server: ServerConfig,
    /// `[[route]]`.
    pub routes: RouteTable,
    /// The counters of each route, by its place in the table.
    pub counters: Box<[Arc<RouteCounters>]>,
    /// The counters of what no route matches.
    pub unrouted: Arc<RouteCounters>,
    /// `[upstream.*]`.
    pub upstreams: Upstreams,
}

/// What outlives generations.
pub struct Shared {
    /// The running generation.
    pub generation: ArcSwap<Generation>,
    /// Both tiers.
    pub store: Arc<Store>,
    /// Logs and counters.
    pub telemetry: Arc<Telemetry>,
    /// The time.
    pub clock: Clock,
    /// Fills and background revalidations, which drain waits for.
    pub tasks: TaskTracker,
    /// Bytes of bodies being stored at this time.
    pub filling: AtomicUsize,
    /// `memory.max_filling`.
    pub max_filling: usize,
    /// The problems of the last refused reload.
    pub last_error: ArcSwap<Option<String>>,
}
