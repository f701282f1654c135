//! How many connections each worker has, and the bound on all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

use crate::store::WorkerId;

/// How often a full house looks again: a reload may have raised the bound.
const RECHECK: Duration = Duration::from_secs(1);

/// The open connections of each worker.
#[derive(Debug)]
pub struct Occupancy {
    workers: Box<[AtomicUsize]>,
    open: AtomicUsize,
    left: Notify,
}

impl Occupancy {
    /// Of `workers` that have none.
    pub fn new(workers: usize) -> Self {
        let workers = (0..workers.max(1)).map(|_| AtomicUsize::new(0)).collect();
        Self { workers, open: AtomicUsize::new(0), left: Notify::new() }
    }

    /// All open connections.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// The open connections of one worker.
    pub fn of(&self, worker: WorkerId) -> usize {
        self.workers[worker.0].load(Relaxed)
    }

    /// Waits until there are fewer connections than `bound` says.
    pub async fn room(&self, bound: impl Fn() -> usize) {
        loop {
            let left = self.left.notified();
            if self.open() < bound() {
                return;
            }
            let _ = tokio::time::timeout(RECHECK, left).await;
        }
    }

    /// A place with the worker that has the fewest.
    pub fn enter(self: &Arc<Self>) -> Place {
        let fewest = self.workers.iter().enumerate().min_by_key(|(_, open)| open.load(Relaxed));
        let worker = WorkerId(fewest.map_or(0, |(index, _)| index));
        self.workers[worker.0].fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Place { occupancy: Arc::clone(self), worker }
    }
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    occupancy: Arc<Occupancy>,
    /// Whose it is.
    pub worker: WorkerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.occupancy.workers[self.worker.0].fetch_sub(1, Relaxed);
        self.occupancy.open.fetch_sub(1, Relaxed);
        self.occupancy.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_to_the_worker_with_the_fewest() {
        let occupancy = Arc::new(Occupancy::new(3));
        let mut places: Vec<Place> = (0..6).map(|_| occupancy.enter()).collect();
        assert_eq!((0..3).map(|worker| occupancy.of(WorkerId(worker))).collect::<Vec<_>>(), [2, 2, 2]);
        places.retain(|place| place.worker != WorkerId(1));
        assert_eq!(occupancy.enter().worker, WorkerId(1));
        assert_eq!(occupancy.open(), 4);
    }

    #[tokio::test]
    async fn a_full_house_waits_for_a_place() {
        let occupancy = Arc::new(Occupancy::new(1));
        let place = occupancy.enter();
        let leave = async {
            tokio::task::yield_now().await;
            drop(place);
        };
        tokio::join!(occupancy.room(|| 1), leave);
        assert_eq!(occupancy.open(), 0);
    }
}
