//! What waits to be written to Redis, readable until Redis has acknowledged it.

use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::key::{CacheKey, KeyMap};
use crate::store::slot::Slot;

const SHARDS: usize = 16;

/// One change that waits.
#[derive(Clone, Debug)]
pub(crate) enum Waiting {
    /// To be stored.
    Store(Slot),
    /// To be deleted: until then the key counts as empty, whatever Redis holds.
    Unlink,
}

/// The latest change of each key. A key in here is the duty of exactly one lane's queue.
pub(super) struct Pending {
    /// Each guards the changes of its keys; never held across an await.
    shards: [Mutex<KeyMap<Change>>; SHARDS],
    count: AtomicUsize,
    emptied: Notify,
}

struct Change {
    waiting: Waiting,
    base: CacheKey,
    lane: usize,
    /// Tells a change from a later one of the same key.
    version: u64,
    /// Who is to be told whether Redis holds what was stored under the key.
    watchers: Vec<oneshot::Sender<bool>>,
}

/// A change taken up to be written.
pub(super) struct Taken {
    pub(super) waiting: Waiting,
    pub(super) base: CacheKey,
    version: u64,
}

/// What a change put before another left behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// The key is new here: the lane is to queue it.
    New,
    /// The key was waiting on this lane already, with this many bytes, and is written once.
    Replaced(usize, usize),
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), count: AtomicUsize::new(0), emptied: Notify::new() }
    }

    /// The change of a key that waits.
    pub(super) fn get(&self, key: &CacheKey) -> Option<Waiting> {
        // Most of the time nothing waits, and no lock is taken.
        if self.count() == 0 {
            return None;
        }
        self.shard(key).get(key).map(|change| change.waiting.clone())
    }

    /// Puts a change in place of any before it.
    pub(super) fn put(&self, key: CacheKey, base: CacheKey, lane: usize, waiting: Waiting) -> Added {
        match self.shard(&key).entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Change { waiting, base, lane, version: 0, watchers: Vec::new() });
                self.count.fetch_add(1, Ordering::AcqRel);
                Added::New
            }
            Entry::Occupied(mut occupied) => {
                let (lane, before) = occupied.get_mut().replace(waiting);
                Added::Replaced(lane, before)
            }
        }
    }

    /// Puts a deletion in place of the change of a key, where one waits; on which lane, and with how many bytes.
    pub(super) fn unlink(&self, key: &CacheKey) -> Option<(usize, usize)> {
        self.shard(key).get_mut(key).map(|change| change.replace(Waiting::Unlink))
    }

    /// The change of a key, to be written now.
    pub(super) fn take_up(&self, key: &CacheKey) -> Option<Taken> {
        let shard = self.shard(key);
        let change = shard.get(key)?;
        Some(Taken { waiting: change.waiting.clone(), base: change.base, version: change.version })
    }

    /// Tells, once the key is no one's duty, whether Redis acknowledged a record for it. None: no record waits.
    pub(super) fn watch(&self, key: &CacheKey) -> Option<oneshot::Receiver<bool>> {
        let mut shard = self.shard(key);
        let change = shard.get_mut(key).filter(|change| matches!(change.waiting, Waiting::Store(_)))?;
        let (watcher, settled) = oneshot::channel();
        change.watchers.push(watcher);
        Some(settled)
    }

    /// A change was `written`, or given up: whether nothing newer waits for its key. If so the key is no one's duty.
    pub(super) fn settle(&self, key: &CacheKey, taken: &Taken, written: bool) -> bool {
        let mut shard = self.shard(key);
        if let Entry::Occupied(occupied) = shard.entry(*key) {
            if occupied.get().version != taken.version {
                return false;
            }
            let change = occupied.remove();
            let is_stored = written && matches!(change.waiting, Waiting::Store(_));
            for watcher in change.watchers {
                // Who no longer watches need not be told.
                let _ = watcher.send(is_stored);
            }
            if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.emptied.notify_waiters();
            }
        }
        true
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until nothing waits.
    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, KeyMap<Change>> {
        let shard = usize::from(key.as_bytes()[0]) % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    /// Lets a later one take its place; the lane, and the bytes of the one before.
    fn replace(&mut self, waiting: Waiting) -> (usize, usize) {
        let before = std::mem::replace(&mut self.waiting, waiting);
        self.version += 1;
        (self.lane, before.bytes())
    }
}

impl Waiting {
    /// What it keeps in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Store(slot) => usize::try_from(slot.weight()).unwrap_or(usize::MAX),
            Self::Unlink => size_of::<Change>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::store::slot::Marker;

    const KEY: CacheKey = CacheKey::from_bytes([1; 32]);

    #[test]
    fn a_key_is_one_duty_however_often_it_changes() {
        let pending = Pending::new();
        assert!(pending.get(&KEY).is_none());
        assert_eq!(pending.put(KEY, KEY, 3, Waiting::Unlink), Added::New);
        let taken = pending.take_up(&KEY).unwrap();
        assert_eq!(pending.put(KEY, KEY, 4, Waiting::Unlink), Added::Replaced(3, Waiting::Unlink.bytes()));
        assert!(!pending.settle(&KEY, &taken, true), "a newer change waits");
        assert!(matches!(pending.get(&KEY), Some(Waiting::Unlink)));
        assert_eq!(pending.unlink(&KEY), Some((3, Waiting::Unlink.bytes())));
        let taken = pending.take_up(&KEY).unwrap();
        assert!(pending.settle(&KEY, &taken, true));
        assert_eq!((pending.count(), pending.get(&KEY).is_none()), (0, true));
        assert_eq!(pending.unlink(&KEY), None);
    }

    fn marker() -> Waiting {
        let marker = Marker { material: Bytes::new(), names: Arc::default(), variants: BTreeMap::new() };
        Waiting::Store(Slot::Marker(Arc::new(marker)))
    }

    #[test]
    fn who_watches_a_key_is_told_whether_redis_holds_it() {
        let pending = Pending::new();
        assert!(pending.watch(&KEY).is_none(), "nothing waits");
        let check = |last: Waiting, written: bool, expected: bool| {
            pending.put(KEY, KEY, 0, marker());
            let mut settled = pending.watch(&KEY).unwrap();
            let before = pending.take_up(&KEY).unwrap();
            pending.put(KEY, KEY, 0, last);
            assert!(!pending.settle(&KEY, &before, true));
            assert!(settled.try_recv().is_err(), "a newer change waits");
            let taken = pending.take_up(&KEY).unwrap();
            assert!(pending.settle(&KEY, &taken, written));
            assert_eq!(settled.try_recv(), Ok(expected));
        };
        check(marker(), true, true);
        check(marker(), false, false);
        check(Waiting::Unlink, true, false);
        pending.put(KEY, KEY, 0, Waiting::Unlink);
        assert!(pending.watch(&KEY).is_none(), "it is being deleted");
    }

    #[tokio::test]
    async fn waiting_for_empty_ends_with_the_last_change() {
        let pending = Pending::new();
        pending.empty().await;
        pending.put(KEY, KEY, 0, Waiting::Unlink);
        let taken = pending.take_up(&KEY).unwrap();
        let (settled, ()) = tokio::join!(async { pending.settle(&KEY, &taken, true) }, pending.empty());
        assert!(settled);
    }
}
