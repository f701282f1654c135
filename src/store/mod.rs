//! The two tiers as one store: memory before Redis, both checked against the purge ledger.

pub mod codec;
pub mod ledger;
pub mod memory;
pub mod redis;
pub mod slot;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::clock::Timestamp;
use crate::key::{Address, Tag};
use crate::route::ConfiguredTags;
use crate::stored::{Epoch, PurgeNumber, StoredResponse};
use crate::telemetry::Telemetry;

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

/// A stored response.
#[derive(Clone, Debug)]
pub struct Found {
    /// The response.
    pub response: Arc<StoredResponse>,
    /// Where it was.
    pub tier: Tier,
    /// Softly purged: to be validated before use, still good for stale-if-error.
    pub must_validate: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// Nothing for the key.
    Key,
    /// Responses for the key, none for these selecting fields.
    Variant,
    /// What was stored has been purged.
    Purged,
    /// The key is remembered as uncacheable until then (hit-for-miss).
    Uncacheable,
    /// Redis did not answer in time, refused, or its breaker is open.
    Unavailable,
    /// What Redis held could not be read; it is deleted and counted.
    Corrupt,
}

/// What became of a response that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Readable from now on.
    Stored,
    /// The key has its most variants.
    TooManyVariants,
}

/// The bounds of one `put`.
#[derive(Clone, Copy, Debug)]
pub struct PutLimits {
    /// The route's `max_variants`.
    pub max_variants: usize,
}

/// Both tiers and the ledger. Shared by all workers; outlives configurations.
pub struct Store {
    _private: (),
}

impl Store {
    /// An empty memory tier and unconnected Redis clients, one for each of `workers`.
    pub fn new(config: &StoreConfig, workers: usize, telemetry: Arc<Telemetry>) -> Self {
        todo!("{} {workers} {}", config.memory_max_size, Arc::strong_count(&telemetry))
    }

    /// Connects the worker's Redis client on the current runtime, in the background, for as long as the runtime lives.
    /// Also run once by the control thread with the id `workers` (it owns the epoch key and the breaker's probes).
    pub fn attach(&self, worker: WorkerId) {
        todo!("{worker:?}")
    }

    /// Looks up: memory, then what waits to be written, then Redis. A Redis hit is put into memory.
    pub async fn get(&self, worker: WorkerId, query: &Query<'_>) -> Lookup {
        todo!("{worker:?} {:?}", query.address)
    }

    /// The memory tier's part of [`Self::get`]: no await; none where Redis would have to be asked.
    pub fn get_local(&self, query: &Query<'_>) -> Option<Lookup> {
        todo!("{:?}", query.address)
    }

    /// Stores: readable on return; written to Redis behind it, bounded (what does not fit is dropped and counted).
    /// `response.selecting` is already without the route's `vary.ignore`.
    pub fn put(&self, worker: WorkerId, query: &Query<'_>, response: Arc<StoredResponse>, limits: PutLimits) -> Put {
        todo!("{worker:?} {:?} {response:?} {limits:?}", query.address)
    }

    /// Remembers the key as uncacheable for `span` (hit-for-miss); in this process.
    pub fn put_uncacheable(&self, address: &Address, now: Timestamp, span: Duration) {
        todo!("{address:?} {now:?} {span:?}")
    }

    /// Forgets what is stored under exactly this address and variant (a response shown to be outdated).
    pub fn remove(&self, worker: WorkerId, query: &Query<'_>) {
        todo!("{worker:?} {:?}", query.address)
    }

    /// The last purge known, and the epoch: taken before the upstream is contacted.
    pub fn synced(&self) -> (PurgeNumber, Epoch) {
        todo!()
    }

    /// Purges by tags: all that was stored under them, or is being fetched now, is dead (hard) or to be validated (soft).
    pub fn purge(&self, tags: &[Tag], kind: ledger::PurgeKind, now: Timestamp) -> PurgeNumber {
        todo!("{tags:?} {kind:?} {now:?}")
    }

    /// Whether something fetched since `synced_to` under these tags has been purged meanwhile.
    pub fn is_purged(&self, provenance: &crate::stored::Provenance, tags: &ConfiguredTags<'_>) -> bool {
        todo!("{provenance:?} {:?}", tags.target)
    }

    /// The figures of `/cache-stats`.
    pub fn stats(&self) -> StoreStats {
        todo!()
    }

    /// Waits until what was to be written to Redis is written, at most `within`.
    pub async fn flush(&self, within: Duration) {
        todo!("{within:?}")
    }
}

/// The figures of both tiers.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreStats {
    /// Stored responses in memory.
    pub objects: u64,
    /// Their bytes, all in.
    pub bytes: u64,
    /// The bound.
    pub max_bytes: u64,
    /// How many were evicted for room.
    pub evictions: u64,
    /// Redis; none in embedded mode.
    pub redis: Option<RedisStats>,
}

/// The figures of the Redis tier.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisStats {
    /// `up`, `down` or `connecting`.
    pub state: &'static str,
    /// Errors since start.
    pub errors: u64,
    /// Timeouts since start.
    pub timeouts: u64,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// `local` until the ledger travels between processes; `unknown epoch` before Redis was reached.
    pub ledger: &'static str,
    /// Writes waiting.
    pub pending_writes: u64,
    /// Writes dropped for want of room, or that Redis refused.
    pub dropped_writes: u64,
    /// Values that could not be read, deleted.
    pub corrupt: u64,
}
