//! Everything one configuration builds: immutable, swapped as a whole.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::runtime::RuntimeMetrics;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::collapse::Inflight;
use crate::config::{Config, ServerConfig};
use crate::proxy::fill::{Filling, News};
use crate::proxy::rounds::Pseudonym;
use crate::route::{Conflict, RouteTable};
use crate::store::Store;
use crate::store::asked::Asked;
use crate::telemetry::metrics::RouteCounters;
use crate::telemetry::{Telemetry, UNROUTED};
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

impl Generation {
    fn new(
        config: Config,
        previous: Option<&Self>,
        workers: usize,
        telemetry: &Arc<Telemetry>,
        now: Timestamp,
    ) -> Result<Self, Vec<Conflict>> {
        let routes = RouteTable::new(config.routes)?;
        let counters = routes.routes().iter().map(|route| telemetry.route(&route.name)).collect();
        let upstreams = Upstreams::new(config.upstreams, workers, previous.map(|it| &it.upstreams), telemetry);
        Ok(Self {
            number: previous.map_or(1, |it| it.number + 1),
            loaded_at: now,
            server: config.server,
            routes,
            counters,
            unrouted: telemetry.route(UNROUTED),
            upstreams,
        })
    }
}

/// What outlives generations.
pub struct Shared {
    /// The running generation.
    pub generation: ArcSwap<Generation>,
    /// Both tiers.
    pub store: Store,
    /// Logs and counters.
    pub telemetry: Arc<Telemetry>,
    /// The time.
    pub clock: Clock,
    /// The fetches in flight.
    pub inflight: Arc<Inflight<News>>,
    /// What was asked for lately, for routes with `admission = "second"`.
    pub asked: Asked,
    /// Fills and background revalidations, which drain waits for.
    pub tasks: TaskTracker,
    /// Upgraded connections.
    pub tunnels: TaskTracker,
    /// The room for bodies being stored.
    pub filling: Arc<Filling>,
    /// The room for bodies out of Redis that memory does not take.
    pub serving: Arc<Filling>,
    /// By which a request is known that this process has sent.
    pub pseudonym: Pseudonym,
    /// The problems of the last refused reload.
    pub last_error: ArcSwap<Option<String>>,
    /// When the process started.
    pub started_at: Timestamp,
    workers: usize,
    runtimes: Mutex<Vec<RuntimeMetrics>>,
}

impl Shared {
    /// Everything, with `config` as the first generation.
    pub fn new(config: Config, clock: Clock, telemetry: Arc<Telemetry>) -> Result<Self, Vec<Conflict>> {
        let workers = config.server.threads;
        let store = Store::new(&config.store, workers, clock.clone(), Arc::clone(&telemetry));
        let filling = Arc::new(Filling::new(config.max_filling));
        let serving = Arc::new(Filling::new(config.max_serving));
        let started_at = clock.now();
        let first = Generation::new(config, None, workers, &telemetry, started_at)?;
        Ok(Self {
            generation: ArcSwap::from_pointee(first),
            store,
            telemetry,
            clock,
            inflight: Arc::default(),
            asked: Asked::default(),
            tasks: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            filling,
            serving,
            pseudonym: Pseudonym::random(),
            last_error: ArcSwap::from_pointee(None),
            started_at,
            workers,
            runtimes: Mutex::default(),
        })
    }

    /// From now on the tasks of the runtime that this is called on are counted.
    pub fn count_tasks(&self) {
        let metrics = tokio::runtime::Handle::current().metrics();
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).push(metrics);
    }

    /// The tasks that have not ended, on all runtimes.
    pub fn tasks_alive(&self) -> usize {
        let runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.iter().map(RuntimeMetrics::num_alive_tasks).sum()
    }

    /// Builds the next generation and swaps it in; requests under way keep theirs. Returns its number.
    /// Only one caller at a time: the control thread.
    pub fn swap(&self, config: Config) -> Result<u64, Vec<Conflict>> {
        let running = self.generation.load_full();
        let next = Generation::new(config, Some(&running), self.workers, &self.telemetry, self.clock.now())?;
        let number = next.number;
        self.generation.store(Arc::new(next));
        Ok(number)
    }
}
