//! Reads from Redis that several requests wait for: one command for all who ask for the same key meanwhile.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use super::WorkerId;
use super::find::{Before, ReadOf};
use crate::boxed::pinned;
use crate::key::{Address, CacheKey, Material};

type Waited = Pin<Box<dyn Future<Output = (Arc<Before>, ReadOf)> + Send>>;
type Reading = Shared<Waited>;

/// The reads that are under way, for each worker: its client lives on its runtime.
///
/// A response that is asked for often and that memory does not take would else be read, and decoded, once for each of the
/// requests that come while Redis answers the first: with 64 connections on one such response, that is a fifth of the CPU time,
/// and two thirds of Redis'.
pub(super) struct Reads {
    under_way: Box<[Mutex<HashMap<CacheKey, Entry>>]>,
    /// How often something was stored, by key; keys that share a count only join the less.
    changes: [AtomicU64; CHANGE_COUNTS],
}

const CHANGE_COUNTS: usize = 64;

struct Entry {
    material: Material,
    before: Arc<Before>,
    reading: WeakShared<Waited>,
}

impl Reads {
    pub(super) fn new(workers: usize) -> Arc<Self> {
        // The control thread looks up too.
        let under_way = (0..=workers).map(|_| Mutex::default()).collect();
        Arc::new(Self { under_way, changes: [const { AtomicU64::new(0) }; CHANGE_COUNTS] })
    }

    /// Something was stored under this key: nobody who comes from now on joins a read from before.
    pub(super) fn outdate(&self, key: &CacheKey) {
        self.changes[place(key)].fetch_add(1, Ordering::AcqRel);
    }

    /// How often something was stored under this key, or another that shares its count.
    pub(super) fn changes(&self, key: &CacheKey) -> u64 {
        self.changes[place(key)].load(Ordering::Acquire)
    }

    /// Joins the read of this address that is under way, or begins one. It ends when nobody waits for it any more.
    ///
    /// Whoever joins gets what Redis held before it came, so `before`, which says what this process held and had changed
    /// when the read began, is that of the one who began it. Where something was removed since, or the key's like was
    /// stored, nobody joins. Also tells whether the read was under way.
    pub(super) fn join<F>(
        self: &Arc<Self>,
        worker: WorkerId,
        address: &Address,
        before: Before,
        read: impl FnOnce() -> F,
    ) -> (Reading, bool)
    where
        F: Future<Output = ReadOf> + Send + 'static,
    {
        let mut under_way = self.of(worker);
        let changes = (before.removals, before.changes);
        let may_join = |entry: &&Entry| {
            entry.material == address.material && (entry.before.removals, entry.before.changes) == changes
        };
        let known = under_way.get(&address.key).filter(may_join);
        if let Some(reading) = known.and_then(|entry| entry.reading.upgrade()) {
            return (reading, true);
        }
        let (before, read) = (Arc::new(before), read());
        let leaving = Leaving { reads: Arc::clone(self), worker, key: address.key, before: Arc::clone(&before) };
        let began = Arc::clone(&before);
        let reading: Waited = pinned(move || async move {
            let _leaving = leaving;
            (began, read.await)
        });
        let reading = reading.shared();
        if let Some(weak) = reading.downgrade() {
            under_way.insert(address.key, Entry { material: address.material.clone(), before, reading: weak });
        }
        (reading, false)
    }

    fn of(&self, worker: WorkerId) -> MutexGuard<'_, HashMap<CacheKey, Entry>> {
        self.under_way[worker.0].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(key: &CacheKey) -> usize {
    usize::from(key.as_bytes()[0]) % CHANGE_COUNTS
}

/// Takes a read that has ended, or that nobody waits for, out of those under way; not another in its place.
struct Leaving {
    reads: Arc<Reads>,
    worker: WorkerId,
    key: CacheKey,
    before: Arc<Before>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut under_way = self.reads.of(self.worker);
        if under_way.get(&self.key).is_some_and(|entry| Arc::ptr_eq(&entry.before, &self.before)) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    /// Counts the reads that were begun, and lets none end before it is told to.
    struct World {
        reads: Arc<Reads>,
        begun: Arc<AtomicUsize>,
        end: Arc<Notify>,
    }

    impl World {
        fn new() -> Self {
            Self { reads: Reads::new(1), begun: Arc::default(), end: Arc::default() }
        }

        fn join(&self, material: &[u8], removals: u64) -> Reading {
            let address = Address { key: CacheKey::of(b"one"), material: material.into() };
            let (begun, end) = (Arc::clone(&self.begun), Arc::clone(&self.end));
            let before = Before { removals, changes: 0, held: None };
            let (reading, _) = self.reads.join(WorkerId(0), &address, before, || async move {
                begun.fetch_add(1, Ordering::Relaxed);
                end.notified().await;
                Ok(None)
            });
            reading
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn who_asks_meanwhile_waits_for_the_same_read() {
        let world = World::new();
        let (one, other) = (world.join(b"a", 0), world.join(b"a", 0));
        world.end.notify_one();
        let (one, other) = tokio::join!(one, other);
        assert!(Arc::ptr_eq(&one.0, &other.0) && matches!(one.1, Ok(None)));
        assert_eq!(world.begun(), 1);
        assert!(world.reads.of(WorkerId(0)).is_empty());
        world.end.notify_one();
        world.join(b"a", 0).await.1.unwrap();
        assert_eq!(world.begun(), 2);
    }

    #[tokio::test]
    async fn nobody_joins_after_a_removal_or_for_another_address() {
        let world = World::new();
        let all = [world.join(b"a", 0), world.join(b"b", 0), world.join(b"a", 1)];
        let end_them = async {
            loop {
                world.end.notify_one();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = futures_util::future::join_all(all) => {}
            () = end_them => {}
        }
        assert_eq!(world.begun(), 3);
        assert!(world.reads.of(WorkerId(0)).is_empty());
    }

    #[tokio::test]
    async fn one_that_ends_leaves_the_one_in_its_place() {
        let world = World::new();
        let (old, new) = (world.join(b"a", 0), world.join(b"a", 1));
        world.end.notify_one();
        drop(old.await);
        assert_eq!(world.reads.of(WorkerId(0)).len(), 1);
        drop(new);
        assert!(world.reads.of(WorkerId(0)).is_empty());
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_ends() {
        let world = World::new();
        let reading = world.join(b"a", 0);
        let polled = futures_util::future::poll_immediate(reading.clone()).await;
        assert!(polled.is_none() && world.begun() == 1);
        drop(reading);
        assert!(world.reads.of(WorkerId(0)).is_empty());
        world.end.notify_one();
        world.join(b"a", 0).await.1.unwrap();
        assert_eq!(world.begun(), 2);
    }
}
