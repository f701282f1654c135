//! Finds what answers a query: in memory, among what waits to be written, in Redis.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;

use super::codec::Record;
use super::ledger::Verdict;
use super::redis::{RedisTier, Waiting};
use super::slot::{Held, Marker, Slot};
use super::{Found, Lookup, Missing, Query, Store, Tier, WorkerId};
use crate::clock::Timestamp;
use crate::key::{Address, CacheKey};
use crate::stored::StoredResponse;

/// A record from further in the future was numbered by a clock that is none, and could hide purges.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(86_400);

/// What is known when nothing was found in this process.
pub(super) struct Absent {
    /// Why.
    pub(super) why: Missing,
    /// Whether Redis may know more.
    pub(super) ask_redis: bool,
    /// Where a response would be, by the marker known here.
    variant: Option<Address>,
}

impl Store {
    /// Looks into memory and what waits to be written.
    pub(super) fn find_local(&self, query: &Query<'_>) -> Result<Found, Absent> {
        let found = self.select_local(query);
        let key = &query.address.key;
        match &found {
            Ok(found) if found.response.is_fresh(query.now) => {}
            Ok(_) | Err(_) if self.uncacheable.holds(key, query.now) => {
                return Err(Absent { why: Missing::Uncacheable, ask_redis: false, variant: None });
            }
            Ok(_) | Err(_) => {}
        }
        found
    }

    fn select_local(&self, query: &Query<'_>) -> Result<Found, Absent> {
        let absent = |why, key: CacheKey, variant| Absent { why, ask_redis: !self.is_deleted(&key), variant };
        match self.slot(query.address, query.now) {
            None => Err(absent(Missing::Key, query.address.key, None)),
            Some(slot @ Slot::Response(_)) => {
                self.judge(slot, &query.address.key, query).map_err(|why| absent(why, query.address.key, None))
            }
            Some(Slot::Marker(marker)) => {
                let names = selecting(query, &marker);
                let variant = query.address.variant(query.request, &names);
                let found = match self.slot(&variant, query.now) {
                    Some(slot @ Slot::Response(_)) => self.judge(slot, &variant.key, query),
                    Some(Slot::Marker(_)) | None => Err(Missing::Variant(names)),
                };
                found.map_err(|why| absent(why, variant.key, Some(variant)))
            }
        }
    }

    /// Asks Redis: the variant where one is known, else the base key, and its variant if that holds a marker.
    pub(super) async fn find_in_redis(
        &self,
        redis: &RedisTier,
        worker: WorkerId,
        query: &Query<'_>,
        absent: Absent,
    ) -> Lookup {
        match self.select_in_redis(redis, worker, query, absent).await {
            Ok(found) => Lookup::Found(found),
            Err(why) => Lookup::Missing(why),
        }
    }

    /// Asks Redis for something newer than what was found here.
    pub(super) async fn find_newer(
        &self,
        redis: &RedisTier,
        worker: WorkerId,
        query: &Query<'_>,
        found: Found,
    ) -> Lookup {
        let variant = match self.slot(query.address, query.now) {
            Some(Slot::Marker(marker)) => Some(query.address.variant(query.request, &selecting(query, &marker))),
            Some(Slot::Response(_)) | None => None,
        };
        let key = variant.as_ref().map_or(query.address.key, |variant| variant.key);
        // What is still to be written is the newest.
        if redis.waiting(&key).is_some() {
            return Lookup::Found(found);
        }
        let absent = Absent { why: Missing::Key, ask_redis: true, variant };
        match self.select_in_redis(redis, worker, query, absent).await {
            Ok(newer) if newer.response.response_time > found.response.response_time => Lookup::Found(newer),
            Ok(_) | Err(_) => Lookup::Found(found),
        }
    }

    async fn select_in_redis(
        &self,
        redis: &RedisTier,
        worker: WorkerId,
        query: &Query<'_>,
        absent: Absent,
    ) -> Result<Found, Missing> {
        let removals = self.removals.load(Ordering::Acquire);
        let base = query.address;
        if let Some(variant) = &absent.variant
            && let Some(Record::Response { response, .. }) = redis.read(worker, &base.key, variant).await?
        {
            return self.admit(variant, response, removals, query);
        }
        // Another process may have replaced the marker known here.
        let marker = match redis.read(worker, &base.key, base).await? {
            None => return Err(absent.why),
            Some(Record::Response { response, .. }) => return self.admit(base, response, removals, query),
            Some(Record::Marker(marker)) => self.learn(base, marker, removals),
        };
        let names = selecting(query, &marker);
        let variant = base.variant(query.request, &names);
        if absent.variant.is_some_and(|tried| tried.key == variant.key) {
            return Err(absent.why);
        }
        match redis.read(worker, &base.key, &variant).await? {
            Some(Record::Response { response, .. }) => self.admit(&variant, response, removals, query),
            Some(Record::Marker(_)) | None => Err(Missing::Variant(names)),
        }
    }

    /// What this process holds under an address and is not past its use.
    pub(super) fn slot(&self, address: &Address, now: Timestamp) -> Option<Slot> {
        let usable = |slot: &Slot| now <= slot.useless_after();
        if let Some(slot) = self.memory.get(&address.key) {
            if !usable(&slot) {
                self.memory.remove_same(&address.key, &slot);
            } else if slot.material() == &address.material {
                return Some(slot);
            }
        }
        match self.redis.as_ref()?.waiting(&address.key)? {
            Waiting::Store(slot) => Some(slot).filter(|slot| usable(slot) && slot.material() == &address.material),
            Waiting::Unlink => None,
        }
    }

    /// Whether the key waits to be deleted: until it is, what Redis holds does not count.
    fn is_deleted(&self, key: &CacheKey) -> bool {
        let waiting = self.redis.as_ref().and_then(|redis| redis.waiting(key));
        matches!(waiting, Some(Waiting::Unlink))
    }

    fn verdict(&self, held: &Held, query: &Query<'_>) -> Verdict {
        let response = &held.response;
        self.ledger.judge(&response.provenance, response.request_time, &held.checked, query.tags, query.now)
    }

    /// Holds a response against the ledger; what it shows dead is forgotten.
    fn judge(&self, slot: Slot, key: &CacheKey, query: &Query<'_>) -> Result<Found, Missing> {
        let Slot::Response(held) = &slot else { return Err(Missing::Key) };
        match self.verdict(held, query) {
            Verdict::Valid => Ok(found(held, Tier::Memory, false)),
            Verdict::MustValidate => Ok(found(held, Tier::Memory, true)),
            Verdict::Dead => {
                self.memory.remove_same(key, &slot);
                Err(Missing::Purged)
            }
        }
    }

    /// Takes a response that Redis held: into memory where it fits, in a copy, for what fred returns pins its buffer.
    fn admit(
        &self,
        address: &Address,
        mut response: Box<StoredResponse>,
        removals: u64,
        query: &Query<'_>,
    ) -> Result<Found, Missing> {
        let latest = query.now.plus(CLOCK_SKEW_MAX).as_millis().saturating_mul(1000);
        if response.provenance.synced_to.0 > latest || query.now > response.useless_after() {
            return Err(Missing::Purged);
        }
        if !self.ledger.has_reached(response.provenance.synced_to) {
            return Err(Missing::Unavailable);
        }
        let into_memory = self.memory.admits_body(response.body.len());
        if into_memory {
            response.body = Bytes::copy_from_slice(&response.body);
        }
        let held = Arc::new(Held::new(address, Arc::from(response)));
        let must_validate = match self.verdict(&held, query) {
            Verdict::Valid => false,
            Verdict::MustValidate => true,
            Verdict::Dead => return Err(Missing::Purged),
        };
        if into_memory && self.may_admit(address, removals, held.response.response_time) {
            self.memory.put(address.key, Slot::Response(Arc::clone(&held)));
        }
        Ok(found(&held, Tier::Redis, must_validate))
    }

    /// Takes a marker that Redis held, with the variants that were known here.
    fn learn(&self, base: &Address, mut marker: Marker, removals: u64) -> Arc<Marker> {
        let _change = self.marker_lock(&base.key);
        if let Some(Slot::Marker(known)) = self.memory.get(&base.key)
            && known.names == marker.names
        {
            marker.variants.extend(known.variants.iter().map(|(key, until)| (*key, *until)));
        }
        let marker = Arc::new(marker);
        if self.may_admit(base, removals, Timestamp::default()) {
            self.memory.put(base.key, Slot::Marker(Arc::clone(&marker)));
        }
        marker
    }

    /// Whether what Redis held may enter memory: nothing was removed meanwhile, nothing newer came.
    fn may_admit(&self, address: &Address, removals: u64, response_time: Timestamp) -> bool {
        let is_newer = |slot: &Slot| match slot {
            Slot::Response(held) => held.response.response_time > response_time,
            Slot::Marker(_) => false,
        };
        self.removals.load(Ordering::Acquire) == removals
            && self.redis.as_ref().is_none_or(|redis| redis.waiting(&address.key).is_none())
            && !self.memory.get(&address.key).is_some_and(|slot| is_newer(&slot))
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

fn found(held: &Held, tier: Tier, must_validate: bool) -> Found {
    Found { response: Arc::clone(&held.response), tier, must_validate }
}
