//! The figures that `/cache-stats` tells of the store.

use super::Store;
use crate::clock::Timestamp;
use crate::stored::PurgeNumber;

impl Store {
    /// The figures of `/cache-stats`.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            objects: self.memory.objects(),
            bytes: self.memory.bytes(),
            max_bytes: self.memory.max_bytes(),
            evictions: self.memory.evictions(),
            redis: self.redis.as_ref().map(|redis| redis.stats()),
        }
    }

    /// The purge ledger's figures.
    pub fn purge_stats(&self, now: Timestamp) -> PurgeStats {
        let an_hour_ago = now.as_millis().saturating_sub(3_600_000).saturating_mul(1000);
        PurgeStats {
            last: self.ledger.synced().to,
            unrecorded: self.ledger.waiting() as u64,
            false_rate: self.ledger.false_rate(PurgeNumber(an_hour_ago)),
        }
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

/// The figures of the purge ledger.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PurgeStats {
    /// The last purge that is obeyed here, with all before it: microseconds since the Unix epoch.
    pub last: PurgeNumber,
    /// Slots that wait to be recorded in Redis.
    pub unrecorded: u64,
    /// The estimated part of lookups of a response an hour old that take it for purged though nobody purged it.
    pub false_rate: f64,
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
    /// The purge ledger: `synced`, `unsynced` while it cannot be followed, `unknown` before it was read first.
    pub ledger: &'static str,
    /// Writes waiting.
    pub pending_writes: u64,
    /// Writes dropped for want of room, or that Redis refused.
    pub dropped_writes: u64,
    /// Values that could not be read, deleted.
    pub corrupt: u64,
}
