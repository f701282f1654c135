//! Keeps and removes responses in both tiers, with the marker of a key whose responses vary.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use http::HeaderName;

use super::redis::Waiting;
use super::slot::{Marker, Slot, placed};
use super::{MARKER_LOCKS, Put, PutLimits, Query, Store, WorkerId};
use crate::clock::Timestamp;
use crate::fields::vary::SelectingFields;
use crate::key::{Address, CacheKey};
use crate::stored::StoredResponse;

impl Store {
    /// Stores a response under its variant's address, then the marker that leads to it; with the response as it is stored.
    pub(super) fn put_variant(
        &self,
        worker: WorkerId,
        query: &Query<'_>,
        names: &[HeaderName],
        response: StoredResponse,
        limits: PutLimits,
    ) -> (Put, Arc<StoredResponse>) {
        let base = query.address;
        let _change = self.marker_lock(&base.key);
        let known = self.known_marker(query);
        let names = known.names_with(names, query.vary_ignore);
        let variant = base.variant(query.request, &names);
        let Some(variants) = self.variants_with(&known, &names, variant.key, query.now, limits) else {
            return (Put::TooManyVariants, Arc::new(response));
        };
        let response = Arc::new(placed(&variant, response));
        if self.keep(worker, base, variant.key, Slot::Response(Arc::clone(&response))) == Put::NoRoom {
            return (Put::NoRoom, response);
        }
        let mut marker = Marker { material: Bytes::copy_from_slice(&base.material), names, variants };
        marker.variants.insert(variant.key, response.place.useless_after);
        (self.keep(worker, base, base.key, Slot::Marker(Arc::new(marker))), response)
    }

    /// Whether a response that these fields select would be one variant too many.
    pub fn admits_variant(&self, query: &Query<'_>, selecting: &SelectingFields, limits: PutLimits) -> bool {
        let SelectingFields::Names(names) = selecting else { return true };
        if names.is_empty() {
            return true;
        }
        let known = self.known_marker(query);
        let names = known.names_with(names, query.vary_ignore);
        let variant = query.address.variant(query.request, &names);
        self.variants_with(&known, &names, variant.key, query.now, limits).is_some()
    }

    fn known_marker(&self, query: &Query<'_>) -> Arc<Marker> {
        match self.slot(query.address, query.now) {
            Some(Slot::Marker(marker)) => marker,
            Some(Slot::Response(_)) | None => Arc::new(Marker::new(query.address, Arc::default())),
        }
    }

    /// Puts a value into both tiers, where each takes it.
    pub(super) fn keep(&self, worker: WorkerId, base: &Address, key: CacheKey, slot: Slot) -> Put {
        // Memory last: what a lookup that began before puts there in between is replaced.
        let in_redis = self.redis.as_ref().is_some_and(|redis| {
            redis.admits(&slot) && redis.change(worker, base.key, key, Waiting::Store(slot.clone()))
        });
        let in_memory = self.memory.put(key, slot);
        self.reads.outdate(&key);
        if in_memory || in_redis { Put::Stored } else { Put::NoRoom }
    }

    /// Forgets a key in both tiers.
    pub(super) fn remove_key(&self, worker: WorkerId, base: &Address, key: CacheKey) {
        if let Some(redis) = &self.redis {
            redis.change(worker, base.key, key, Waiting::Unlink);
            // Once more: a read that began since the removal was first counted may have missed that the key is to be deleted.
            self.removals.fetch_add(1, Ordering::AcqRel);
        }
        self.memory.remove(&key);
    }

    /// Guards the change of a key's marker.
    pub(super) fn marker_lock(&self, base: &CacheKey) -> MutexGuard<'_, ()> {
        let lock = usize::from(base.as_bytes()[0]) % MARKER_LOCKS;
        self.markers[lock].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The known variants that still count beside `key`; none when there are too many for one more.
    fn variants_with(
        &self,
        known: &Marker,
        names: &[HeaderName],
        key: CacheKey,
        now: Timestamp,
        limits: PutLimits,
    ) -> Option<BTreeMap<CacheKey, Timestamp>> {
        // Selected by other fields, they are found no more.
        let mut variants = if *known.names == *names { known.variants.clone() } else { BTreeMap::new() };
        variants.retain(|_, useless_after| now <= *useless_after);
        let is_full = |variants: &BTreeMap<_, _>| !variants.contains_key(&key) && variants.len() >= limits.max_variants;
        // What memory evicted is gone, unless Redis has it.
        if is_full(&variants) && self.redis.is_none() {
            variants.retain(|key, _| self.memory.get(key).is_some());
        }
        if is_full(&variants) { None } else { Some(variants) }
    }
}
