//! A worker: one thread, one runtime, its connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::task::TaskTracker;

use super::accept::Accepted;
use super::connection;
use super::drain::Drain;
use super::occupancy::Occupancy;
use crate::generation::Shared;
use crate::proxy::Proxy;
use crate::store::WorkerId;
use crate::telemetry::events::Event;

/// How long a Redis that is down may take to come back for the last writes.
const REDIS_PATIENCE: Duration = Duration::from_secs(1);

/// What a worker's connections share.
pub struct Worker {
    /// Its view of the proxy.
    pub proxy: Arc<Proxy>,
    /// The end of the process.
    pub drain: Arc<Drain>,
    occupancy: Arc<Occupancy>,
}

impl Worker {
    /// The worker numbered `id`.
    pub fn new(shared: Arc<Shared>, id: WorkerId, drain: Arc<Drain>, occupancy: Arc<Occupancy>) -> Arc<Self> {
        Arc::new(Self { proxy: Proxy::new(shared, id), drain, occupancy })
    }

    /// What outlives configurations.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.proxy.shared
    }

    /// Serves what comes through the door until the acceptor is gone, then drains: its connections, the fills and
    /// revalidations they began, the tunnels, and what is still to be written to Redis by this runtime's client.
    pub async fn run(self: Arc<Self>, mut door: UnboundedReceiver<Accepted>) {
        let shared = Arc::clone(self.shared());
        shared.count_tasks();
        shared.store.attach(self.proxy.worker);
        let connections = TaskTracker::new();
        while let Some(accepted) = door.recv().await {
            connections.spawn(connection::serve(Arc::clone(&self), accepted));
        }
        if !self.drain.has_begun() {
            // The start failed, or the control thread is gone: there is nobody to wait for.
            self.drain.begin(Duration::ZERO);
        }
        for tracker in [&connections, &shared.tasks, &shared.tunnels] {
            tracker.close();
            if !self.drain.wait_for(tracker.wait()).await {
                let connections = self.occupancy.of(self.proxy.worker);
                shared.telemetry.emit(&Event::DrainTimedOut { connections });
                break;
            }
        }
        self.flush_store().await;
    }

    /// Waits for what is to be written to Redis; for a Redis that is down, only [`REDIS_PATIENCE`].
    async fn flush_store(&self) {
        let store = &self.shared().store;
        loop {
            store.flush(self.drain.left().min(REDIS_PATIENCE)).await;
            let awaits_more = store.stats().redis.is_some_and(|redis| redis.pending_writes > 0 && redis.state == "up");
            if !awaits_more || self.drain.left().is_zero() {
                return;
            }
        }
    }
}
