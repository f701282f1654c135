//! Finds what answers a query: in memory, among what waits to be written, in Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;

use super::ledger::Verdict;
use super::redis::{Read, RedisTier, Waiting};
use super::slot::{Marker, Slot, compacted, placed};
use super::{Found, Lookup, Missing, Query, Store, Tier, WorkerId};
use crate::boxed::pinned;
use crate::clock::Timestamp;
use crate::key::{Address, CacheKey};
use crate::stored::StoredResponse;

/// A record from further in the future was numbered by a clock that is none, and could hide purges.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(86_400);

/// A response that another process stored later than this by our clock is not used: its age is not known, and it could be
/// taken for fresh for as much too long.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// What is known when nothing was found in this process.
pub struct Absent {
    /// Why.
    pub(super) why: Missing,
    /// Whether Redis may know more.
    pub(super) ask_redis: bool,
    /// Where a response would be, by the marker known here.
    variant: Option<Box<Address>>,
}

/// This process holds nothing that may be used under a key.
struct NotHeld {
    /// Whether the key waits to be deleted.
    is_deleted: bool,
}

/// What this process held under a key, and how much it had removed, before Redis was asked for it.
pub(super) struct Before {
    pub(super) removals: u64,
    pub(super) changes: u64,
    pub(super) held: Option<Slot>,
}

/// What a read from Redis brought.
pub(super) type ReadOf = Result<Option<Read>, Missing>;

/// Whether a lookup may have what Redis said to another one that began before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It may: nothing has happened that it must see.
    Joined,
    /// It must ask itself: it waited for something to be stored.
    Alone,
}

impl Store {
    /// How often something was stored here under an address, or another that shares its count.
    pub fn changes(&self, address: &Address) -> u64 {
        self.reads.changes(&address.key)
    }

    /// Looks into memory and what waits to be written.
    pub(super) fn find_local(&self, query: &Query<'_>) -> Result<Found, Absent> {
        let found = self.select_local(query);
        let is_uncacheable = || self.uncacheable.holds(&query.address.key, query.now);
        match found {
            Ok(found) if !found.response.is_fresh(query.now) && is_uncacheable() => {
                Ok(Found { uncacheable: true, ..found })
            }
            Err(_) if is_uncacheable() => Err(Absent { why: Missing::Uncacheable, ask_redis: false, variant: None }),
            found => found,
        }
    }

    fn select_local(&self, query: &Query<'_>) -> Result<Found, Absent> {
        let absent = |why, key: CacheKey, variant| Absent { why, ask_redis: !self.is_deleted(&key), variant };
        match self.held(query.address, query.now) {
            Err(NotHeld { is_deleted }) => Err(Absent { why: Missing::Key, ask_redis: !is_deleted, variant: None }),
            Ok(slot @ Slot::Response(_)) => {
                self.judge(slot, &query.address.key, query).map_err(|why| absent(why, query.address.key, None))
            }
            Ok(Slot::Marker(marker)) => {
                let names = selecting(query, &marker);
                let variant = query.address.variant(query.request, &names);
                let found = match self.slot(&variant, query.now) {
                    Some(slot @ Slot::Response(_)) => self.judge(slot, &variant.key, query),
                    Some(Slot::Marker(_)) | None => Err(Missing::Variant(names)),
                };
                found.map_err(|why| absent(why, variant.key, Some(Box::new(variant))))
            }
        }
    }

    /// Asks Redis: the variant where one is known, else the base key, and its variant if that holds a marker.
    pub(super) async fn find_in_redis(
        &self,
        redis: &Arc<RedisTier>,
        worker: WorkerId,
        query: &Query<'_>,
        absent: Absent,
        reading: Reading,
    ) -> Lookup {
        match self.select_in_redis(redis, worker, query, absent, reading).await {
            Ok(found) => Lookup::Found(found),
            Err(why) => Lookup::Missing(why),
        }
    }

    /// Asks Redis for something newer than what was found here.
    pub(super) async fn find_newer(
        &self,
        redis: &Arc<RedisTier>,
        worker: WorkerId,
        query: &Query<'_>,
        found: Found,
    ) -> Lookup {
        let variant = match self.slot(query.address, query.now) {
            Some(Slot::Marker(marker)) => {
                Some(Box::new(query.address.variant(query.request, &selecting(query, &marker))))
            }
            Some(Slot::Response(_)) | None => None,
        };
        let key = variant.as_ref().map_or(query.address.key, |variant| variant.key);
        // What is still to be written is the newest.
        if redis.waiting(&key).is_some() {
            return Lookup::Found(found);
        }
        let absent = Absent { why: Missing::Key, ask_redis: true, variant };
        match self.select_in_redis(redis, worker, query, absent, Reading::Alone).await {
            Ok(newer) if newer.response.response_time > found.response.response_time => Lookup::Found(newer),
            Ok(_) | Err(_) => Lookup::Found(found),
        }
    }

    async fn select_in_redis(
        &self,
        redis: &Arc<RedisTier>,
        worker: WorkerId,
        query: &Query<'_>,
        absent: Absent,
        reading: Reading,
    ) -> Result<Found, Missing> {
        let base = query.address;
        let read = async |address: &Address| self.read(redis, worker, &base.key, address, reading).await;
        if let Some(variant) = &absent.variant {
            let (before, held) = read(variant).await?;
            if let Some(Read::Response { response, is_body_shared }) = held {
                return self.admit(variant, response, is_body_shared, &before, query);
            }
        }
        // Another process may have replaced the marker known here.
        let marker = match read(base).await? {
            (_, None) => return Err(absent.why),
            (before, Some(Read::Response { response, is_body_shared })) => {
                return self.admit(base, response, is_body_shared, &before, query);
            }
            (before, Some(Read::Marker(marker))) => self.learn(base, marker, &before),
        };
        let names = selecting(query, &marker);
        let variant = base.variant(query.request, &names);
        if absent.variant.is_some_and(|tried| tried.key == variant.key) {
            return Err(absent.why);
        }
        match read(&variant).await? {
            (before, Some(Read::Response { response, is_body_shared })) => {
                self.admit(&variant, response, is_body_shared, &before, query)
            }
            (_, Some(Read::Marker(_)) | None) => Err(Missing::Variant(names)),
        }
    }

    /// What Redis holds under an address, and what this process held and had removed before it was asked.
    async fn read(
        &self,
        redis: &Arc<RedisTier>,
        worker: WorkerId,
        base: &CacheKey,
        address: &Address,
        reading: Reading,
    ) -> Result<(Arc<Before>, Option<Read>), Missing> {
        let removals = self.removals.load(Ordering::Acquire);
        let changes = self.reads.changes(&address.key);
        let before = Before { removals, changes, held: self.memory.get(&address.key) };
        let (before, read) = match reading {
            Reading::Alone => (Arc::new(before), redis.read(worker, base, address).await),
            // Whoever comes once Redis is known not to answer waits for nothing.
            Reading::Joined if !redis.is_available(worker) => return Err(Missing::Unavailable),
            Reading::Joined => {
                let read = || pinned(|| redis.read(worker, base, address));
                let (ended, has_joined) = self.reads.join(worker, address, before, read).await;
                if has_joined && matches!(ended.1, Err(Missing::Unavailable)) {
                    // As many waited in vain as if each had asked.
                    redis.waited_in_vain(worker);
                }
                ended
            }
        };
        Ok((before, read?))
    }

    /// What this process holds under an address and is not past its use.
    pub(super) fn slot(&self, address: &Address, now: Timestamp) -> Option<Slot> {
        self.held(address, now).ok()
    }

    fn held(&self, address: &Address, now: Timestamp) -> Result<Slot, NotHeld> {
        let usable = |slot: &Slot| now <= slot.useless_after();
        if let Some(slot) = self.memory.get(&address.key) {
            if !usable(&slot) {
                self.memory.remove_same(&address.key, &slot);
            } else if *slot.material() == *address.material {
                return Ok(slot);
            }
        }
        match self.redis.as_ref().and_then(|redis| redis.waiting(&address.key)) {
            Some(Waiting::Store(slot)) if usable(&slot) && *slot.material() == *address.material => Ok(slot),
            waiting => Err(NotHeld { is_deleted: matches!(waiting, Some(Waiting::Unlink)) }),
        }
    }

    /// Whether the key waits to be deleted: until it is, what Redis holds does not count.
    fn is_deleted(&self, key: &CacheKey) -> bool {
        let waiting = self.redis.as_ref().and_then(|redis| redis.waiting(key));
        matches!(waiting, Some(Waiting::Unlink))
    }

    fn verdict(&self, response: &StoredResponse, checked: &AtomicU64, query: &Query<'_>) -> Verdict {
        self.ledger.judge(&response.provenance, response.request_time, checked, query.tags, query.now)
    }

    /// Holds a response against the ledger; what it shows dead is forgotten.
    fn judge(&self, slot: Slot, key: &CacheKey, query: &Query<'_>) -> Result<Found, Missing> {
        let Slot::Response(response) = slot else { return Err(Missing::Key) };
        match self.verdict(&response, &response.place.checked, query) {
            Verdict::Valid => Ok(found(response, Tier::Memory, false)),
            Verdict::MustValidate => Ok(found(response, Tier::Memory, true)),
            Verdict::Dead => {
                self.memory.remove_same(key, &Slot::Response(response));
                Err(Missing::Purged)
            }
        }
    }

    /// Takes a response that Redis held: into memory where it fits, in a copy, for what fred returns pins its buffer.
    fn admit(
        &self,
        address: &Address,
        response: Arc<StoredResponse>,
        is_body_shared: bool,
        before: &Before,
        query: &Query<'_>,
    ) -> Result<Found, Missing> {
        let latest = query.now.plus(CLOCK_SKEW_MAX).as_millis().saturating_mul(1000);
        if response.provenance.synced_to.0 > latest || query.now > response.useless_after() {
            return Err(Missing::Purged);
        }
        if response.response_time > query.now.plus(AHEAD_MAX) {
            return Err(Missing::Key);
        }
        if !self.ledger.has_reached(response.provenance.synced_to) {
            return Err(Missing::Unavailable);
        }
        let checked = AtomicU64::new(0);
        let must_validate = match self.verdict(&response, &checked, query) {
            Verdict::Valid => false,
            Verdict::MustValidate => true,
            Verdict::Dead => return Err(Missing::Purged),
        };
        if !self.memory.admits_body(response.body.len()) {
            return Ok(found(response, Tier::Redis, must_validate));
        }
        let mut copy = placed(address, compacted(&response, response.body.clone(), is_body_shared));
        copy.place.checked = checked;
        let copy = Arc::new(copy);
        self.put_over(address, before, Slot::Response(Arc::clone(&copy)));
        Ok(found(copy, Tier::Redis, must_validate))
    }

    /// Takes a marker that Redis held, with the variants that were known here.
    fn learn(&self, base: &Address, mut marker: Marker, before: &Before) -> Arc<Marker> {
        let _change = self.marker_lock(&base.key);
        if let Some(Slot::Marker(known)) = self.memory.get(&base.key)
            && known.names == marker.names
        {
            marker.variants.extend(known.variants.iter().map(|(key, until)| (*key, *until)));
        }
        let marker = Arc::new(marker);
        self.put_over(base, before, Slot::Marker(Arc::clone(&marker)));
        marker
    }

    /// Lets what Redis held into memory, unless something was removed since it was asked, or the key has changed: then it
    /// may be older than that. Whoever changes a key makes the change wait for Redis, or counts the removal, before
    /// memory is changed.
    fn put_over(&self, address: &Address, before: &Before, slot: Slot) {
        self.memory.put_over(&address.key, before.held.as_ref(), slot, || {
            self.removals.load(Ordering::Acquire) == before.removals
                && self.redis.as_ref().is_none_or(|redis| redis.waiting(&address.key).is_none())
        });
    }
}

/// The fields that select among a marker's variants for this query.
pub(super) fn selecting(query: &Query<'_>, marker: &Marker) -> Arc<[HeaderName]> {
    let is_ignored = |name: &HeaderName| query.vary_ignore.contains(name);
    if marker.names.iter().any(is_ignored) {
        marker.names.iter().filter(|name| !is_ignored(name)).cloned().collect()
    } else {
        Arc::clone(&marker.names)
    }
}

const fn found(response: Arc<StoredResponse>, tier: Tier, must_validate: bool) -> Found {
    Found { response, tier, must_validate, uncacheable: false }
}
