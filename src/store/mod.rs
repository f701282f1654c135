//! The two tiers as one store: memory before Redis, both checked against the purge ledger.

pub mod asked;
mod buffer;
pub mod codec;
mod figures;
mod find;
mod keep;
pub mod ledger;
pub mod memory;
mod reads;
pub mod redis;
pub mod slot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use tokio::sync::mpsc;

use crate::clock::{Clock, Timestamp};
use crate::fields::vary::SelectingFields;
use crate::key::{Address, CacheKey, Tag};
use crate::route::ConfiguredTags;
use crate::stored::{PurgeNumber, StoredResponse};
use crate::telemetry::Telemetry;
pub use figures::{PurgeStats, RedisStats, StoreStats};
pub use find::Absent;
use find::Reading;
use ledger::{Ledger, Synced, Verdict};
use memory::{Memory, Uncacheable};
use reads::Reads;
use redis::RedisTier;
pub use redis::{Guard, Lock, Waiter, Wake};
use slot::Slot;

/// The number of a worker thread, from 0; it selects the worker's own Redis client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId(pub usize);

/// What both tiers are built from.
#[derive(Clone)]
pub struct StoreConfig {
    /// The bound of the memory tier in bytes; 0: off.
    pub memory_max_size: u64,
    /// Larger responses live in Redis only, where there is one.
    pub memory_max_object: u64,
    /// How long a response is used without asking the upstream while the purge ledger in Redis cannot be followed.
    pub unsynced_residence: Duration,
    /// The slots of one of the purge ledger's arrays, a power of two; the same in every process on one Redis.
    pub purge_slots: u32,
    /// The Redis tier.
    pub redis: Option<redis::RedisConfig>,
}

/// What is asked of the store.
pub struct Query<'a> {
    /// The base address.
    pub address: &'a Address,
    /// The request's fields, which select a variant.
    pub request: &'a HeaderMap,
    /// Names taken out of `Vary`.
    pub vary_ignore: &'a [HeaderName],
    /// The tags that derive from configuration and URL.
    pub tags: &'a ConfiguredTags<'a>,
    /// The present.
    pub now: Timestamp,
}

/// The answer to a query; never an error.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Stored and valid.
    Found(Found),
    /// Nothing usable stored.
    Missing(Missing),
}

/// What this process knows of a query without asking Redis.
pub enum Looked {
    /// All there is to know.
    Known(Lookup),
    /// Nothing, and Redis may know more.
    NotHere(Absent),
}

/// A stored response.
#[derive(Clone, Debug)]
pub struct Found {
    /// The response. Where memory does not take it, its fields and body are slices of what was read from Redis.
    pub response: Arc<StoredResponse>,
    /// Where it was.
    pub tier: Tier,
    /// Softly purged: to be validated before use, still good for stale-if-error.
    pub must_validate: bool,
    /// The key is remembered as uncacheable: whoever asks for it fetches for itself.
    pub uncacheable: bool,
}

/// Which tier answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Memory.
    Memory,
    /// Redis.
    Redis,
}

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing for the key.
    Key,
    /// Responses for the key, none for the request's values of these selecting fields.
    Variant(Arc<[HeaderName]>),
    /// What was stored has been purged.
    Purged,
    /// The key is remembered as uncacheable for now (hit-for-miss).
    Uncacheable,
    /// Redis did not answer in time, refused, or its breaker is open.
    Unavailable,
    /// What Redis held could not be read; it is deleted and counted.
    Corrupt,
    /// What Redis held is too large for memory, and too much of that kind is on its way to clients.
    NoRoom,
}

/// What became of a response that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Readable from now on.
    Stored,
    /// The key has its most variants.
    TooManyVariants,
    /// Neither tier has room: too large for both, or too many writes wait for Redis.
    NoRoom,
}

/// What became of a purge. It is obeyed in this process, whatever Redis says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Its number in the ledger; 0 where Redis has not recorded it.
    pub number: PurgeNumber,
    /// Whether Redis recorded it, and so every process will obey it; else why not, for people. Without Redis there is
    /// nobody else to obey.
    pub acknowledged: Result<(), String>,
}

/// The bounds of one `put`.
#[derive(Clone, Copy, Debug)]
pub struct PutLimits {
    /// The route's `max_variants`.
    pub max_variants: usize,
}

/// Both tiers and the ledger. Shared by all workers; outlives configurations.
pub struct Store {
    memory: Memory,
    uncacheable: Uncacheable,
    ledger: Arc<Ledger>,
    redis: Option<Arc<RedisTier>>,
    reads: Arc<Reads>,
    /// Each guards the change of some keys' markers: reading one, adding a variant, storing it.
    markers: [Mutex<()>; MARKER_LOCKS],
    /// Counts removals, so that what was read from Redis before one does not get into memory after it.
    removals: AtomicU64,
}

/// How long a purge that every process is told of waits for another of them to have it recorded, in microseconds.
const OTHERS_FIRST_MAX_MICROS: u64 = 50_000;
/// The bound on concurrent changes of markers.
const MARKER_LOCKS: usize = 64;

impl Store {
    /// An empty memory tier and unconnected Redis clients, one for each of `workers`.
    pub fn new(config: &StoreConfig, workers: usize, clock: Clock, telemetry: Arc<Telemetry>) -> Self {
        let residence = config.redis.as_ref().map(|_| config.unsynced_residence);
        let ledger = Arc::new(Ledger::new(config.purge_slots, residence));
        let body_max = config.redis.as_ref().map(|_| config.memory_max_object);
        let redis =
            config.redis.clone().map(|redis| RedisTier::new(redis, workers, Arc::clone(&ledger), clock, telemetry));
        Self {
            memory: Memory::new(config.memory_max_size, body_max),
            uncacheable: Uncacheable::new(),
            ledger,
            redis: redis.map(Arc::new),
            reads: Reads::new(workers),
            markers: [const { Mutex::new(()) }; MARKER_LOCKS],
            removals: AtomicU64::new(0),
        }
    }

    /// Connects the worker's Redis client on the current runtime, in the background, for as long as the runtime lives.
    /// Also run once by the control thread with the id `workers` (it owns the epoch key and the client for large
    /// bodies); until it has, nothing is read from Redis or written to it.
    pub fn attach(&self, worker: WorkerId) {
        if let Some(redis) = &self.redis {
            redis.attach(worker);
        }
    }

    /// Looks up: memory, then what waits to be written, then Redis. A Redis hit is put into memory.
    pub async fn get(&self, worker: WorkerId, query: &Query<'_>) -> Lookup {
        self.go_on(worker, query, self.look(query), Reading::Alone).await
    }

    /// The first part of [`Self::get`], which needs no waiting.
    pub fn look(&self, query: &Query<'_>) -> Looked {
        match self.find_local(query) {
            Ok(found) => Looked::Known(Lookup::Found(found)),
            Err(absent) if absent.ask_redis && self.redis.is_some() => Looked::NotHere(absent),
            Err(absent) => Looked::Known(Lookup::Missing(absent.why)),
        }
    }

    /// The rest of [`Self::get`], after [`Self::look`], for a request that has just come: it may have what Redis says to
    /// another that came a moment before.
    pub async fn look_on(&self, worker: WorkerId, query: &Query<'_>, looked: Looked) -> Lookup {
        self.go_on(worker, query, looked, Reading::Joined).await
    }

    async fn go_on(&self, worker: WorkerId, query: &Query<'_>, looked: Looked, reading: Reading) -> Lookup {
        match (looked, &self.redis) {
            (Looked::Known(lookup), _) => lookup,
            (Looked::NotHere(absent), Some(redis)) => self.find_in_redis(redis, worker, query, absent, reading).await,
            (Looked::NotHere(absent), None) => Lookup::Missing(absent.why),
        }
    }

    /// The memory tier's part of [`Self::get`]: no await; none where Redis would have to be asked.
    pub fn get_local(&self, query: &Query<'_>) -> Option<Lookup> {
        match self.look(query) {
            Looked::Known(lookup) => Some(lookup),
            Looked::NotHere(_) if self.redis.as_ref().is_some_and(|redis| redis.is_synced()) => None,
            Looked::NotHere(_) => Some(Lookup::Missing(Missing::Unavailable)),
        }
    }

    /// Looks up as [`Self::get`] does, but asks Redis also where memory holds what is not fresh: another process may
    /// have stored since.
    pub async fn get_newest(&self, worker: WorkerId, query: &Query<'_>) -> Lookup {
        match (self.look(query), &self.redis) {
            (Looked::Known(Lookup::Found(found)), Some(redis))
                if found.must_validate || !found.response.is_fresh(query.now) =>
            {
                self.find_newer(redis, worker, query, found).await
            }
            (looked, _) => self.go_on(worker, query, looked, Reading::Alone).await,
        }
    }

    /// Locks a key among all processes that share the Redis, for who is to fetch it.
    pub async fn lock(&self, worker: WorkerId, key: CacheKey) -> Lock {
        match &self.redis {
            Some(redis) => redis.lock(worker, key).await,
            None => Lock::Unavailable,
        }
    }

    /// Lets the lock of a fetch go once what was just put for the query is in Redis, so that who is woken finds it.
    pub fn release_when_written(&self, guard: &Guard, query: &Query<'_>) {
        if let Some(redis) = &self.redis {
            redis.release_when_written(guard, query);
        }
    }

    /// Stores: readable on return; written to Redis behind it, bounded (what does not fit is dropped and counted).
    /// `response.selecting` is already without the route's `vary.ignore`.
    pub fn put(&self, worker: WorkerId, query: &Query<'_>, response: Arc<StoredResponse>, limits: PutLimits) -> Put {
        self.put_received(worker, query, &response, response.body.clone(), limits).0
    }

    /// The same for a head and the content that has come since; with the response as it is stored.
    pub fn put_received(
        &self,
        worker: WorkerId,
        query: &Query<'_>,
        head: &StoredResponse,
        body: Bytes,
        limits: PutLimits,
    ) -> (Put, Arc<StoredResponse>) {
        self.uncacheable.remove(&query.address.key);
        let response = slot::compacted(head, body, false);
        match &head.selecting {
            SelectingFields::Names(names) if !names.is_empty() => {
                self.put_variant(worker, query, names, response, limits)
            }
            // `Vary: *` is never reused as it is; validated, it may be (RFC 9111 §4.1).
            SelectingFields::Names(_) | SelectingFields::Any => {
                let response = Arc::new(slot::placed(query.address, response));
                let slot = Slot::Response(Arc::clone(&response));
                (self.keep(worker, query.address, query.address.key, slot), response)
            }
        }
    }

    /// Remembers the key as uncacheable for `span` (hit-for-miss); in this process. A fresh response that is stored
    /// for the key is still found.
    pub fn put_uncacheable(&self, address: &Address, now: Timestamp, span: Duration) {
        self.uncacheable.put(address.key, now.plus(span));
    }

    /// Forgets what is stored under this address: with variants, all that are known, for a marker made anew would
    /// lead to them again. In Redis too, as far as it answers.
    pub fn remove(&self, worker: WorkerId, query: &Query<'_>) {
        self.removals.fetch_add(1, Ordering::AcqRel);
        let base = query.address;
        if let Some(Slot::Marker(marker)) = self.slot(base, query.now) {
            let known = marker.variants.keys().copied();
            let selected = base.variant(query.request, &find::selecting(query, &marker)).key;
            known.chain([selected]).for_each(|key| self.remove_key(worker, base, key));
        }
        self.remove_key(worker, base, base.key);
    }

    /// Where the ledger stands: taken before the upstream is contacted.
    pub fn synced(&self) -> Synced {
        self.ledger.synced()
    }

    /// Purges by tags: all that was stored under them, or is being fetched now, is dead (hard) or to be validated
    /// (soft). Obeyed here before it returns the first time; `within` bounds the wait for Redis to record it, which
    /// makes it known to every other process.
    pub async fn purge(&self, tags: &[Tag], kind: ledger::PurgeKind, now: Timestamp, within: Duration) -> Purged {
        match &self.redis {
            Some(redis) => redis.recorded(self.ledger.purge_here(tags, kind, None), within).await,
            None => {
                Purged { number: PurgeNumber(self.ledger.purge_alone(tags, kind, now).number), acknowledged: Ok(()) }
            }
        }
    }

    /// The same for a request whose own response may be stored, which no purge had reached when the ledger stood at
    /// `valid_at`. Also returns where the ledger stands for that response after this purge, which does not count against
    /// it; none where another may have come between, or Redis has not recorded this one.
    pub async fn purge_after(
        &self,
        valid_at: Synced,
        tags: &[Tag],
        kind: ledger::PurgeKind,
        now: Timestamp,
        within: Duration,
    ) -> (Purged, Option<Synced>) {
        let Some(redis) = &self.redis else {
            let head = self.ledger.purge_alone(tags, kind, now);
            let purged = Purged { number: PurgeNumber(head.number), acknowledged: Ok(()) };
            return (purged, valid_at.after(head));
        };
        let sequence = self.ledger.purge_here(tags, kind, None);
        let purged = redis.recorded(sequence, within).await;
        (purged, valid_at.after_own(sequence, &self.ledger.recorded.borrow()))
    }

    /// The same for what every process is told at the same time: one of them has Redis record it.
    pub async fn purge_with_others(
        &self,
        tags: &[Tag],
        kind: ledger::PurgeKind,
        now: Timestamp,
        within: Duration,
    ) -> Purged {
        match &self.redis {
            Some(redis) => {
                let delay = Duration::from_micros(fastrand::u64(..=OTHERS_FIRST_MAX_MICROS));
                redis.recorded(self.ledger.purge_here(tags, kind, Some(delay)), within).await
            }
            None => self.purge(tags, kind, now, within).await,
        }
    }

    /// The purge orders that the backend publishes in Redis, as it wrote them (at most once; to be parsed). Taken once;
    /// none without Redis.
    pub fn take_orders(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.redis.as_ref().and_then(|redis| redis.take_orders())
    }

    /// Whether a response that is being received has been purged meanwhile.
    pub fn is_purged(&self, head: &StoredResponse, tags: &ConfiguredTags<'_>, now: Timestamp) -> bool {
        let verdict = self.ledger.judge(&head.provenance, head.request_time, &AtomicU64::new(0), tags, now);
        verdict != Verdict::Valid
    }

    /// Whether the memory tier takes bodies of this length.
    pub fn memory_admits(&self, length: usize) -> bool {
        self.memory.admits_body(length)
    }

    /// Waits until what was to be written to Redis is written, at most `within`.
    pub async fn flush(&self, within: Duration) {
        if let Some(redis) = &self.redis {
            redis.flush(within).await;
        }
    }
}

#[cfg(test)]
mod tests;
