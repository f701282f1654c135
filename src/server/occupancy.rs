//! How many connections each worker has, and the bounds on all and on each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// The open connections of each source that has a bound; held for one map operation, once for each connection.
    sources: Mutex<HashMap<IpAddr, usize>>,
    left: Notify,
}

/// A source of connections that has a bound.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Whose connections.
    pub address: IpAddr,
    /// How many it may have.
    pub bound: usize,
}

impl Occupancy {
    /// Of `workers` that have none.
    pub fn new(workers: usize) -> Self {
        let workers = (0..workers.max(1)).map(|_| AtomicUsize::new(0)).collect();
        Self { workers, open: AtomicUsize::new(0), sources: Mutex::default(), left: Notify::new() }
    }

    /// All open connections.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// The open connections of one worker.
    pub fn of(&self, worker: WorkerId) -> usize {
        self.workers[worker.0].load(Relaxed)
    }

    /// Waits until there are fewer connections than `bound` says; whether it had to.
    pub async fn room(&self, bound: impl Fn() -> usize) -> bool {
        let mut waited = false;
        loop {
            let left = self.left.notified();
            if self.open() < bound() {
                return waited;
            }
            waited = true;
            let _ = tokio::time::timeout(RECHECK, left).await;
        }
    }

    /// A place with the worker that has the fewest; none where the source has as many as it may.
    pub fn enter(self: &Arc<Self>, source: Option<Source>) -> Option<Place> {
        let network = source.map(|source| network(source.address));
        if let (Some(source), Some(network)) = (source, network) {
            let mut sources = self.sources();
            let open = sources.entry(network).or_default();
            if *open >= source.bound {
                return None;
            }
            *open += 1;
        }
        let fewest = self.workers.iter().enumerate().min_by_key(|(_, open)| open.load(Relaxed));
        let worker = WorkerId(fewest.map_or(0, |(index, _)| index));
        self.workers[worker.0].fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Some(Place { occupancy: Arc::clone(self), worker, network })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held, so poison tells nothing.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    occupancy: Arc<Occupancy>,
    /// Whose it is.
    pub worker: WorkerId,
    /// The source it is counted with.
    network: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(network) = self.network {
            let mut sources = self.occupancy.sources();
            if let Some(open) = sources.get_mut(&network) {
                *open -= 1;
                if *open == 0 {
                    sources.remove(&network);
                }
            }
        }
        self.occupancy.workers[self.worker.0].fetch_sub(1, Relaxed);
        self.occupancy.open.fetch_sub(1, Relaxed);
        self.occupancy.left.notify_waiters();
    }
}

/// What counts as one address: of IPv6 a /64, for who has one of it has all.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_to_the_worker_with_the_fewest() {
        let occupancy = Arc::new(Occupancy::new(3));
        let mut places: Vec<Place> = (0..6).filter_map(|_| occupancy.enter(None)).collect();
        assert_eq!((0..3).map(|worker| occupancy.of(WorkerId(worker))).collect::<Vec<_>>(), [2, 2, 2]);
        places.retain(|place| place.worker != WorkerId(1));
        assert_eq!(occupancy.enter(None).unwrap().worker, WorkerId(1));
        assert_eq!(occupancy.open(), 4);
    }

    #[tokio::test]
    async fn a_full_house_waits_for_a_place() {
        let occupancy = Arc::new(Occupancy::new(1));
        let place = occupancy.enter(None);
        let leave = async {
            tokio::task::yield_now().await;
            drop(place);
        };
        let (waited, ()) = tokio::join!(occupancy.room(|| 1), leave);
        assert!(waited && !occupancy.room(|| 1).await);
        assert_eq!(occupancy.open(), 0);
    }

    #[test]
    fn a_source_has_as_many_places_as_it_may_and_no_entry_without_one() {
        let occupancy = Arc::new(Occupancy::new(1));
        let enter = |address: &str| occupancy.enter(Some(Source { address: address.parse().unwrap(), bound: 2 }));
        let places = [enter("192.0.2.1"), enter("192.0.2.1"), enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(places.iter().all(Option::is_some));
        for refused in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::3"] {
            assert!(enter(refused).is_none(), "{refused}");
        }
        assert!(enter("192.0.2.2").is_some() && enter("2001:db8:0:1::1").is_some());
        assert_eq!(occupancy.open(), 4);
        drop(places);
        assert!(occupancy.sources().is_empty());
    }
}
