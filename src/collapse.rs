//! One fetch per key in this process: who leads, who follows, and how followers are freed.

use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::key::{CacheKey, KeyMap};
use crate::telemetry::limits::Limit;

/// Enough that workers seldom meet on one lock.
const SHARDS: usize = 64;

/// The fetches of some keys; a lock is held for one map operation.
type Shard<T> = Mutex<KeyMap<Led<T>>>;

/// A key's fetch.
#[derive(Debug)]
struct Led<T> {
    /// What its leader has published.
    news: Option<T>,
    /// Those who wait for it. Made when somebody else comes: most fetches have none, and making it
    /// costs as much as the rest.
    followed: Option<Followed<T>>,
}

/// Where a fetch's followers hear of it.
#[derive(Debug)]
struct Followed<T> {
    news: watch::Sender<Option<T>>,
    /// How many wait.
    waiters: Arc<AtomicUsize>,
}

/// The fetches in flight. `T` is what a leader tells its followers.
#[derive(Debug)]
pub struct Inflight<T> {
    shards: Box<[Shard<T>]>,
    /// Who waits, for whatever key.
    waiters: Arc<AtomicUsize>,
}

/// How many may wait.
#[derive(Clone, Copy, Debug)]
pub struct WaitersMax {
    /// For one key.
    pub of_key: usize,
    /// For all.
    pub in_all: usize,
}

/// What a request does about a key that is not usable from the store.
#[derive(Debug)]
pub enum Turn<T> {
    /// It fetches.
    Lead(Lease<T>),
    /// Another does.
    Follow(Follower<T>),
    /// Another does, and as many wait as may.
    Full(Limit),
}

/// The duty to fetch for a key. Dropping it frees the followers and lets the next request lead.
#[derive(Debug)]
pub struct Lease<T> {
    inflight: Arc<Inflight<T>>,
    key: CacheKey,
}

/// A place behind a leader.
#[derive(Debug)]
pub struct Follower<T> {
    news: watch::Receiver<Option<T>>,
    _counted: [Counted; 2],
}

/// One of those who wait; counted until dropped.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn below(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let counted = Self(Arc::clone(count));
        (count.fetch_add(1, Relaxed) < max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How a wait behind a leader ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait<T> {
    /// The leader published this.
    News(T),
    /// The leader is done: ask the store again.
    Freed,
    /// The deadline passed.
    TimedOut,
}

impl<T: Clone> Default for Inflight<T> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), waiters: Arc::default() }
    }
}

impl<T: Clone> Inflight<T> {
    /// Leads where nobody does, else follows, where not too many do.
    pub fn join(self: &Arc<Self>, key: CacheKey, max: WaitersMax) -> Turn<T> {
        let mut shard = self.shard(&key);
        let Led { news, followed } = match shard.entry(key) {
            Entry::Occupied(led) => led.into_mut(),
            Entry::Vacant(vacant) => {
                vacant.insert(Led { news: None, followed: None });
                return Turn::Lead(Lease { inflight: Arc::clone(self), key });
            }
        };
        let followed = followed.get_or_insert_with(|| Followed::new(news.clone()));
        let Some(of_key) = Counted::below(&followed.waiters, max.of_key) else {
            return Turn::Full(Limit::CollapseWaiters);
        };
        let Some(in_all) = Counted::below(&self.waiters, max.in_all) else { return Turn::Full(Limit::Waiters) };
        Turn::Follow(Follower { news: followed.news.subscribe(), _counted: [of_key, in_all] })
    }

    /// Leads where nobody does.
    pub fn lead(self: &Arc<Self>, key: CacheKey) -> Option<Lease<T>> {
        match self.join(key, WaitersMax { of_key: 0, in_all: 0 }) {
            Turn::Lead(lease) => Some(lease),
            Turn::Follow(_) | Turn::Full(_) => None,
        }
    }

    /// How many keys are being fetched.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Inflight<T> {
    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, KeyMap<Led<T>>> {
        let index = usize::from(key.as_bytes()[0]) % SHARDS;
        // A panic elsewhere cannot leave a map half changed, so poison tells nothing.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Followed<T> {
    fn new(news: Option<T>) -> Self {
        Self { news: watch::Sender::new(news), waiters: Arc::default() }
    }
}

impl<T: Clone> Lease<T> {
    /// Tells the followers, those of now and those to come.
    pub fn publish(&self, news: T) {
        let mut shard = self.inflight.shard(&self.key);
        // Its own until it is dropped.
        let Some(led) = shard.get_mut(&self.key) else { return };
        led.news = Some(news.clone());
        let followers = led.followed.as_ref().map(|followed| followed.news.clone());
        drop(shard);
        if let Some(followers) = followers {
            followers.send_replace(Some(news));
        }
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        let led = self.inflight.shard(&self.key).remove(&self.key);
        // It wakes the followers, who need the shard.
        drop(led);
    }
}

impl<T: Clone> Follower<T> {
    /// Waits for the leader's news or end, until `deadline` at most.
    pub async fn wait(&mut self, deadline: Instant) -> Wait<T> {
        match tokio::time::timeout_at(deadline, self.news.wait_for(Option::is_some)).await {
            Ok(Ok(news)) => news.clone().map_or(Wait::Freed, Wait::News),
            Ok(Err(_closed)) => Wait::Freed,
            Err(_elapsed) => Wait::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(byte: u8) -> CacheKey {
        CacheKey::from_bytes([byte; 32])
    }

    const ANY: WaitersMax = WaitersMax { of_key: 9, in_all: 9 };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn only_the_first_leads_and_its_end_frees_the_rest() {
        let inflight: Arc<Inflight<u8>> = Arc::default();
        let Turn::Lead(lease) = inflight.join(key(1), ANY) else { panic!("the first must lead") };
        let Turn::Follow(mut follower) = inflight.join(key(1), ANY) else { panic!("the second must follow") };
        assert!(matches!(inflight.join(key(2), ANY), Turn::Lead(_)), "another key is not concerned");
        drop(lease);
        assert_eq!(follower.wait(soon()).await, Wait::Freed);
        assert!(inflight.is_empty());
    }

    #[tokio::test]
    async fn news_reach_followers_who_come_before_and_after() {
        let inflight: Arc<Inflight<u8>> = Arc::default();
        let Turn::Lead(lease) = inflight.join(key(1), ANY) else { panic!("the first must lead") };
        let Turn::Follow(mut before) = inflight.join(key(1), ANY) else { panic!("the second must follow") };
        lease.publish(7);
        let Turn::Follow(mut after) = inflight.join(key(1), ANY) else { panic!("the third must follow") };
        assert_eq!(before.wait(soon()).await, Wait::News(7));
        assert_eq!(after.wait(soon()).await, Wait::News(7));
        drop(lease);
        assert_eq!(after.wait(soon()).await, Wait::News(7), "what was published outlives the lease");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline() {
        let inflight: Arc<Inflight<u8>> = Arc::default();
        let Turn::Lead(_lease) = inflight.join(key(1), ANY) else { panic!("the first must lead") };
        let Turn::Follow(mut follower) = inflight.join(key(1), ANY) else { panic!("the second must follow") };
        assert_eq!(follower.wait(soon()).await, Wait::TimedOut);
    }

    #[test]
    fn only_so_many_wait_for_a_key_and_in_all() {
        let inflight: Arc<Inflight<u8>> = Arc::default();
        let _leases = [1, 2].map(|byte| inflight.lead(key(byte)).expect("the first must lead"));
        let join = |byte| inflight.join(key(byte), WaitersMax { of_key: 2, in_all: 3 });
        let first = [join(1), join(1)];
        assert!(first.iter().all(|turn| matches!(turn, Turn::Follow(_))));
        assert!(matches!(join(1), Turn::Full(Limit::CollapseWaiters)));
        let other = join(2);
        assert!(matches!(other, Turn::Follow(_)));
        assert!(matches!(join(2), Turn::Full(Limit::Waiters)));
        drop((first, other));
        assert_eq!(inflight.waiters.load(Relaxed), 0);
        assert!(matches!(join(1), Turn::Follow(_)));
    }
}
