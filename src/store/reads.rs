//! Reads from Redis that several requests wait for: one command for all who ask for the same key meanwhile.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::WorkerId;
use super::find::{Before, ReadOf};
use crate::key::{Address, CacheKey, KeyMap, Material};

/// What Redis held, and what this process held and had changed when the read began.
type Ended = (Arc<Before>, ReadOf);
/// Who waits for a read that another began.
type Waiting = Arc<Mutex<Vec<oneshot::Sender<Ended>>>>;

/// The reads that are under way, for each worker: its client lives on its runtime.
///
/// A response that is asked for often and that memory does not take would else be read, and decoded, once for each of the
/// requests that come while Redis answers the first: with 64 connections on one such response, that is a fifth of the CPU time,
/// and two thirds of Redis'.
pub(super) struct Reads {
    under_way: Box<[Mutex<KeyMap<Entry>>]>,
    /// How often something was stored, by key; keys that share a count only join the less, or look up twice.
    changes: Box<[AtomicU64]>,
}

/// So many that what is stored under other keys, some dozens while Redis answers, is seldom taken for a change.
const CHANGE_COUNTS: usize = 1 << 14;
/// How often somebody joins a read, or begins one for others: each time but the first because who began it has left. Then it
/// reads alone, so that whoever comes and goes delays nobody for long.
const JOINS_MAX: usize = 4;

struct Entry {
    material: Material,
    before: Arc<Before>,
    waiting: Waiting,
}

/// One's part in a read.
enum Turn<'a> {
    /// It reads, for itself and for who joins.
    Begin(Leaving<'a>),
    /// It waits for what another reads.
    Wait(oneshot::Receiver<Ended>),
}

impl Reads {
    pub(super) fn new(workers: usize) -> Arc<Self> {
        // The control thread looks up too.
        let under_way = (0..=workers).map(|_| Mutex::default()).collect();
        Arc::new(Self { under_way, changes: (0..CHANGE_COUNTS).map(|_| AtomicU64::new(0)).collect() })
    }

    /// Something was stored under this key: nobody who comes from now on joins a read from before.
    pub(super) fn outdate(&self, key: &CacheKey) {
        self.changes[place(key)].fetch_add(1, Ordering::AcqRel);
    }

    /// How often something was stored under this key, or another that shares its count.
    pub(super) fn changes(&self, key: &CacheKey) -> u64 {
        self.changes[place(key)].load(Ordering::Acquire)
    }

    /// Waits for the read of this address that is under way, or reads. It ends when who began it leaves: then those who wait
    /// begin one anew.
    ///
    /// Whoever joins gets what Redis held before it came, so the [`Before`] that comes with it is that of the one who began
    /// it. Where something was removed since, or the key's like was stored, nobody joins. Also tells whether another read.
    ///
    /// Who reads is not woken by its own end, as each of those who wait for a `Shared` future is: a connection that is woken
    /// once more than there is something to do is 2,000 instructions.
    pub(super) async fn join<F>(
        &self,
        worker: WorkerId,
        address: &Address,
        before: Before,
        read: impl Fn() -> F,
    ) -> (Ended, bool)
    where
        F: Future<Output = ReadOf>,
    {
        let before = Arc::new(before);
        for _ in 0..JOINS_MAX {
            match self.turn(worker, address, &before) {
                Turn::Begin(leaving) => {
                    let ended = (before, read().await);
                    leaving.tell(&ended);
                    return (ended, false);
                }
                Turn::Wait(told) => {
                    if let Ok(ended) = told.await {
                        return (ended, true);
                    }
                }
            }
        }
        ((before, read().await), false)
    }

    fn turn(&self, worker: WorkerId, address: &Address, before: &Arc<Before>) -> Turn<'_> {
        let mut under_way = self.of(worker);
        let may_join = |entry: &&Entry| {
            entry.material == address.material
                && (entry.before.removals, entry.before.changes) == (before.removals, before.changes)
        };
        if let Some(entry) = under_way.get(&address.key).filter(may_join) {
            let (tell, told) = oneshot::channel();
            let mut waiting = locked(&entry.waiting);
            if waiting.len() == waiting.capacity() {
                // Rather than grow by those who have left.
                waiting.retain(|tell| !tell.is_closed());
            }
            waiting.push(tell);
            return Turn::Wait(told);
        }
        let waiting = Waiting::default();
        let (material, before) = (address.material.clone(), Arc::clone(before));
        under_way.insert(address.key, Entry { material, before, waiting: Arc::clone(&waiting) });
        Turn::Begin(Leaving { reads: self, worker, key: address.key, waiting, has_left: false })
    }

    fn of(&self, worker: WorkerId) -> MutexGuard<'_, KeyMap<Entry>> {
        locked(&self.under_way[worker.0])
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(key: &CacheKey) -> usize {
    let [first, second, ..] = *key.as_bytes();
    usize::from(u16::from_le_bytes([first, second])) % CHANGE_COUNTS
}

/// Takes a read that has ended, or whose reader has left, out of those under way; not another in its place.
struct Leaving<'a> {
    reads: &'a Reads,
    worker: WorkerId,
    key: CacheKey,
    waiting: Waiting,
    has_left: bool,
}

impl Leaving<'_> {
    /// Tells everybody who waits. Nobody joins any more.
    fn tell(mut self, ended: &Ended) {
        self.leave();
        let waiting = std::mem::take(&mut *locked(&self.waiting));
        for tell in waiting {
            // It may have left.
            let _ = tell.send(ended.clone());
        }
    }

    fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let mut under_way = self.reads.of(self.worker);
        if under_way.get(&self.key).is_some_and(|entry| Arc::ptr_eq(&entry.waiting, &self.waiting)) {
            under_way.remove(&self.key);
        }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::poll_immediate;
    use tokio::sync::Notify;

    use super::*;

    /// Counts the reads that were begun, and lets none end before it is told to.
    struct World {
        reads: Arc<Reads>,
        begun: AtomicUsize,
        end: Notify,
    }

    impl World {
        fn new() -> Self {
            Self { reads: Reads::new(1), begun: AtomicUsize::new(0), end: Notify::new() }
        }

        /// One who asks; it begins when it is first polled.
        async fn ask(&self, material: &[u8], (removals, changes): (u64, u64)) -> (Ended, bool) {
            let address = Address { key: CacheKey::of(b"one"), material: material.into() };
            let before = Before { removals, changes, held: None };
            let read = || async {
                self.begun.fetch_add(1, Ordering::Relaxed);
                self.end.notified().await;
                Ok(None)
            };
            self.reads.join(WorkerId(0), &address, before, read).await
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::Relaxed)
        }

        fn is_idle(&self) -> bool {
            self.reads.of(WorkerId(0)).is_empty()
        }
    }

    /// Lets it go as far as it gets without being told anything.
    async fn waits(asking: Pin<&mut impl Future<Output = (Ended, bool)>>) -> bool {
        poll_immediate(asking).await.is_none()
    }

    #[tokio::test]
    async fn who_asks_meanwhile_waits_for_the_same_read() {
        let world = World::new();
        let (mut one, mut other) = (pin!(world.ask(b"a", (0, 0))), pin!(world.ask(b"a", (0, 0))));
        assert!(waits(one.as_mut()).await && waits(other.as_mut()).await);
        world.end.notify_one();
        let (one, other) = tokio::join!(one, other);
        assert!(Arc::ptr_eq(&one.0.0, &other.0.0) && matches!(other.0.1, Ok(None)));
        assert_eq!((one.1, other.1, world.begun(), world.is_idle()), (false, true, 1, true));
        world.end.notify_one();
        world.ask(b"a", (0, 0)).await.0.1.unwrap();
        assert_eq!(world.begun(), 2);
    }

    #[tokio::test]
    async fn nobody_joins_after_a_removal_or_a_change_or_for_another_address() {
        let others: [(&[u8], _); 3] = [(b"a", (1, 0)), (b"a", (0, 1)), (b"b", (0, 0))];
        for (material, counts) in others {
            let world = World::new();
            let (mut one, mut other) = (pin!(world.ask(b"a", (0, 0))), pin!(world.ask(material, counts)));
            assert!(waits(one.as_mut()).await && waits(other.as_mut()).await);
            assert_eq!(world.begun(), 2);
            world.end.notify_waiters();
            let (one, other) = tokio::join!(one, other);
            assert_eq!((one.1, other.1, world.is_idle()), (false, false, true));
        }
    }

    #[tokio::test]
    async fn those_who_left_are_not_kept() {
        let world = World::new();
        let mut reading = pin!(world.ask(b"a", (0, 0)));
        assert!(waits(reading.as_mut()).await);
        for _ in 0..1000 {
            assert!(waits(pin!(world.ask(b"a", (0, 0)))).await);
        }
        let kept = world.reads.of(WorkerId(0)).values().map(|entry| locked(&entry.waiting).len()).sum::<usize>();
        assert!(kept < 10, "{kept}");
    }

    #[tokio::test]
    async fn one_that_ends_leaves_the_one_in_its_place_and_tells_its_own() {
        let world = World::new();
        let (mut old, mut waiting) = (pin!(world.ask(b"a", (0, 0))), pin!(world.ask(b"a", (0, 0))));
        assert!(waits(old.as_mut()).await && waits(waiting.as_mut()).await);
        let mut new = Box::pin(world.ask(b"a", (1, 0)));
        assert!(waits(new.as_mut()).await);
        world.end.notify_one();
        let (old, waiting) = tokio::join!(old, waiting);
        assert!(Arc::ptr_eq(&old.0.0, &waiting.0.0));
        assert_eq!((world.begun(), world.is_idle()), (2, false));
        drop(new);
        assert!(world.is_idle());
    }

    #[tokio::test]
    async fn who_waits_for_one_that_leaves_reads_itself_and_the_others_wait_for_it() {
        let world = World::new();
        let mut first = Box::pin(world.ask(b"a", (0, 0)));
        let (mut second, mut third) = (pin!(world.ask(b"a", (0, 0))), pin!(world.ask(b"a", (0, 0))));
        assert!(waits(first.as_mut()).await && waits(second.as_mut()).await && waits(third.as_mut()).await);
        drop(first);
        assert!(waits(second.as_mut()).await && waits(third.as_mut()).await);
        assert_eq!(world.begun(), 2);
        world.end.notify_one();
        let (second, third) = tokio::join!(second, third);
        assert_eq!((second.1, third.1, world.begun(), world.is_idle()), (false, true, 2, true));
    }

    #[tokio::test]
    async fn who_waited_for_several_that_left_reads_alone() {
        let world = World::new();
        let mut waiting = pin!(world.ask(b"a", (0, 0)));
        for _ in 0..JOINS_MAX {
            let mut leaving = Box::pin(world.ask(b"a", (0, 0)));
            assert!(waits(leaving.as_mut()).await && waits(waiting.as_mut()).await);
            drop(leaving);
        }
        // Somebody else reads; it is not waited for.
        let mut other = Box::pin(world.ask(b"a", (0, 0)));
        assert!(waits(other.as_mut()).await && waits(waiting.as_mut()).await);
        assert_eq!(world.begun(), JOINS_MAX + 2);
        drop(other);
        world.end.notify_one();
        assert!(!waiting.await.1 && world.is_idle());
    }
}
