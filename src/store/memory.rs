//! The memory tier: bounded by bytes, holding what is ready to serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, UnitWeighter, Weighter};

use super::slot::Slot;
use crate::clock::Timestamp;
use crate::key::CacheKey;

/// What a shard has at least, where the tier is that large: a stored response must fit into one shard.
const SHARD_BYTES_MIN: u64 = 64 << 20;
/// A shard holds at least this many of the largest responses, so that one of them does not empty it.
const LARGEST_PER_SHARD: u64 = 16;
/// The bound on shards: beyond it a lock less contended gains nothing.
const SHARDS_MAX: u64 = 64;
/// Markers are kept even where the tier is off: they save a round trip to Redis.
const MARKERS_BYTES: u64 = 1 << 20;
/// The share of a shard for what was used more than once; nothing heavier than it is admitted.
const HOT_SHARE: f64 = 0.97;
/// The share of the largest weight admitted: somewhat below [`HOT_SHARE`], for rounding.
const LARGEST_PERCENT: u64 = 96;
/// The expected weight of a stored response, for the number of remembered evicted keys.
const TYPICAL_BYTES: u64 = 16 << 10;
/// The bound on keys remembered as uncacheable.
const UNCACHEABLE_MAX: usize = 1 << 16;

/// The memory tier.
pub struct Memory {
    slots: Cache<CacheKey, Slot, BytesHeld, DefaultHashBuilder, Counted>,
    counts: Arc<Counts>,
    max_size: u64,
    weight_max: u64,
    body_max: Option<u64>,
}

/// The keys that are known to be uncacheable, and until when (hit-for-miss).
pub struct Uncacheable {
    until: Cache<CacheKey, Timestamp, UnitWeighter, DefaultHashBuilder, DefaultLifecycle<CacheKey, Timestamp>>,
}

#[derive(Clone)]
struct BytesHeld;

#[derive(Clone)]
struct Counted(Arc<Counts>);

#[derive(Default)]
struct Counts {
    responses: AtomicU64,
    evictions: AtomicU64,
}

impl Memory {
    /// An empty tier of `max_size` bytes (0: only markers are kept), taking bodies up to `body_max` (none: any that
    /// fits into a shard).
    pub fn new(max_size: u64, body_max: Option<u64>) -> Self {
        let capacity = if max_size == 0 { MARKERS_BYTES } else { max_size };
        let shards = shards(capacity, body_max);
        let counts = Arc::new(Counts::default());
        let responses = usize::try_from(capacity / TYPICAL_BYTES).unwrap_or(usize::MAX);
        let shards_usize = usize::try_from(shards).unwrap_or(1);
        let options = OptionsBuilder::new()
            .shards(shards_usize)
            // Fewer than 32 per shard would lower the number of shards.
            .estimated_items_capacity(responses.max(32 * shards_usize))
            .weight_capacity(capacity / shards * shards)
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are given");
        let lifecycle = Counted(Arc::clone(&counts));
        let slots = Cache::with_options(options, BytesHeld, DefaultHashBuilder::default(), lifecycle);
        let weight_max = slots.shard_capacity() / 100 * LARGEST_PERCENT;
        Self { slots, counts, max_size, weight_max, body_max }
    }

    /// What is held under a key.
    pub fn get(&self, key: &CacheKey) -> Option<Slot> {
        self.slots.get(key)
    }

    /// Whether the tier takes bodies of this length.
    pub fn admits_body(&self, length: usize) -> bool {
        let length = length as u64;
        self.max_size > 0 && length < self.weight_max && self.body_max.is_none_or(|max| length <= max)
    }

    /// Whether the tier takes it.
    pub fn admits(&self, slot: &Slot) -> bool {
        debug_assert!(slot.weight() > 0, "a response gets its place before it is held");
        let allowed = match slot {
            Slot::Response(response) => self.admits_body(response.body.len()),
            Slot::Marker(_) => true,
        };
        allowed && slot.weight() <= self.weight_max
    }

    /// Holds it, where the tier takes it: readable on return. Otherwise what the key held is forgotten, for it is
    /// outdated, and the answer is false.
    pub fn put(&self, key: CacheKey, slot: Slot) -> bool {
        if !self.admits(&slot) {
            self.remove(&key);
            return false;
        }
        self.insert(key, slot.clone());
        // Room for a heavier replacement is made after it came in, and may be made of it; a new key is never so.
        if !self.slots.contains_key(&key) {
            self.slots.remove(&key);
            self.insert(key, slot);
        }
        true
    }

    /// Holds it where the key still holds what was `seen` and `may` agrees, which is asked when no other change of the key
    /// can come between any more: one that does leaves nothing of this.
    pub fn put_over(&self, key: &CacheKey, seen: Option<&Slot>, slot: Slot, may: impl Fn() -> bool) {
        if !self.admits(&slot) {
            return;
        }
        let decide = |_: &CacheKey, held: &mut Slot| {
            if seen.is_some_and(|seen| held.is(seen)) && may() {
                EntryAction::ReplaceWithGuard
            } else {
                EntryAction::Retain(())
            }
        };
        let place = match self.slots.entry(key, Some(Duration::ZERO), decide) {
            EntryResult::Replaced(place, left) => {
                self.counts.gone(&left);
                place
            }
            EntryResult::Vacant(place) if seen.is_none() && may() => place,
            // Another lookup is about to put what it found, or the key has changed.
            EntryResult::Vacant(_) | EntryResult::Retained(()) | EntryResult::Removed(..) | EntryResult::Timeout => {
                return;
            }
        };
        self.counts.came(&slot);
        // A change of the key since takes the place away.
        if let Err(slot) = place.insert(slot) {
            self.counts.gone(&slot);
        }
    }

    /// Forgets what a key holds.
    pub fn remove(&self, key: &CacheKey) {
        if let Some((_, slot)) = self.slots.remove(key) {
            self.counts.gone(&slot);
        }
    }

    /// Forgets what a key holds, while it is this.
    pub fn remove_same(&self, key: &CacheKey, seen: &Slot) {
        if let Some((_, slot)) = self.slots.remove_if(key, |held| held.is(seen)) {
            self.counts.gone(&slot);
        }
    }

    /// The stored responses held.
    pub fn objects(&self) -> u64 {
        self.counts.responses.load(Ordering::Relaxed)
    }

    /// The bytes held, all in.
    pub fn bytes(&self) -> u64 {
        self.slots.weight()
    }

    /// The bound on them; 0: the tier is off.
    pub const fn max_bytes(&self) -> u64 {
        self.max_size
    }

    /// How many were evicted for room.
    pub fn evictions(&self) -> u64 {
        self.counts.evictions.load(Ordering::Relaxed)
    }

    fn insert(&self, key: CacheKey, slot: Slot) {
        self.counts.came(&slot);
        self.slots.insert(key, slot);
    }
}

/// As many shards as leave each one room for the largest responses; a power of two.
fn shards(capacity: u64, body_max: Option<u64>) -> u64 {
    let largest = body_max.map_or(SHARD_BYTES_MIN, |max| max.saturating_mul(LARGEST_PER_SHARD).max(1 << 20));
    let fitting = (capacity / largest).clamp(1, SHARDS_MAX);
    1 << fitting.ilog2()
}

impl Uncacheable {
    /// Nothing known.
    pub fn new() -> Self {
        Self { until: Cache::new(UNCACHEABLE_MAX) }
    }

    /// Remembers a key.
    pub fn put(&self, key: CacheKey, until: Timestamp) {
        self.until.insert(key, until);
    }

    /// Whether a key is remembered.
    pub fn holds(&self, key: &CacheKey, now: Timestamp) -> bool {
        match self.until.get(key) {
            Some(until) if now < until => true,
            Some(until) => {
                self.until.remove_if(key, |held| *held == until);
                false
            }
            None => false,
        }
    }

    /// Forgets a key: it has been stored.
    pub fn remove(&self, key: &CacheKey) {
        if self.until.peek(key).is_some() {
            self.until.remove(key);
        }
    }
}

impl Default for Uncacheable {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    fn came(&self, slot: &Slot) {
        if matches!(slot, Slot::Response(_)) {
            self.responses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn gone(&self, slot: &Slot) {
        if matches!(slot, Slot::Response(_)) {
            self.responses.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Weighter<CacheKey, Slot> for BytesHeld {
    fn weight(&self, _: &CacheKey, slot: &Slot) -> u64 {
        slot.weight()
    }
}

impl Lifecycle<CacheKey, Slot> for Counted {
    /// What left, dropped once the shard is unlocked.
    type RequestState = Vec<Slot>;

    /// Called for what is evicted for room, not for what is replaced.
    fn before_evict(&self, _: &mut Vec<Slot>, _: &CacheKey, _: &mut Slot) {
        self.0.evictions.fetch_add(1, Ordering::Relaxed);
    }

    /// Called for what is evicted and for what is replaced.
    fn on_evict(&self, left: &mut Vec<Slot>, _: CacheKey, slot: Slot) {
        self.0.gone(&slot);
        left.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;
    use smallvec::SmallVec;

    use super::*;
    use crate::fields::vary::SelectingFields;
    use crate::key::Address;
    use crate::store::slot::{Marker, placed};
    use crate::stored::{Freshness, Place, Provenance, StaleUse, StoredFields, StoredResponse};

    fn key(n: u64) -> CacheKey {
        CacheKey::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn slot(n: u64, body: usize) -> Slot {
        let response = StoredResponse {
            place: Place::default(),
            status: StatusCode::OK,
            fields: StoredFields::default(),
            request_time: Timestamp::default(),
            response_time: Timestamp::default(),
            freshness: Freshness {
                lifetime: Duration::from_secs(60),
                initial_age: Duration::ZERO,
                stale_use: StaleUse::Never,
                keep: Duration::ZERO,
            },
            selecting: SelectingFields::Names(Box::default()),
            part: None,
            provenance: Provenance::default(),
            body: Bytes::from(vec![0; body]),
        };
        let address = Address { key: key(n), material: SmallVec::from_slice(b"material") };
        Slot::Response(Arc::new(placed(&address, response)))
    }

    #[test]
    fn whatever_is_admitted_is_readable_at_once() {
        let mut random = fastrand::Rng::with_seed(5);
        for (max_size, body_max) in [(1 << 20, None), (1 << 20, Some(1 << 20)), (64 << 10, None), (8 << 20, Some(4096))]
        {
            let memory = Memory::new(max_size, body_max);
            for _ in 0..4000 {
                let (n, body) = (random.u64(0..60), random.usize(0..usize::try_from(max_size).unwrap() * 11 / 10));
                let body = if random.bool() { body } else { body / 100 };
                let put = slot(n, body);
                let admitted = memory.put(key(n), put.clone());
                assert_eq!(memory.get(&key(n)).is_some_and(|held| held.is(&put)), admitted, "{body} of {max_size}");
                assert!(memory.bytes() <= max_size, "{} of {max_size}", memory.bytes());
                memory.get(&key(random.u64(0..60)));
            }
        }
    }

    #[test]
    fn the_largest_allowed_response_fits() {
        let memory = Memory::new(256 << 20, Some(1 << 20));
        assert!(memory.put(key(1), slot(1, 1 << 20)));
        assert!(!memory.put(key(2), slot(2, (1 << 20) + 1)));
        let memory = Memory::new(256 << 20, None);
        assert!(memory.put(key(1), slot(1, 60 << 20)));
    }

    #[test]
    fn bytes_and_responses_are_counted_exactly() {
        let memory = Memory::new(1 << 20, None);
        let (one, other) = (slot(1, 1000), slot(2, 5000));
        memory.put(key(1), one.clone());
        memory.put(key(2), other.clone());
        assert_eq!((memory.objects(), memory.bytes()), (2, one.weight() + other.weight()));
        memory.put(key(2), slot(2, 700));
        assert_eq!((memory.objects(), memory.bytes()), (2, one.weight() + slot(2, 700).weight()));
        memory.remove_same(&key(1), &other);
        assert_eq!(memory.objects(), 2);
        memory.remove_same(&key(1), &one);
        memory.remove(&key(2));
        assert_eq!((memory.objects(), memory.bytes(), memory.evictions()), (0, 0, 0));
    }

    #[test]
    fn what_leaves_for_room_is_counted() {
        let memory = Memory::new(1 << 20, None);
        (0..100).for_each(|n| assert!(memory.put(key(n), slot(n, 100_000))));
        assert_eq!(memory.evictions() + memory.objects(), 100);
        assert!(memory.objects() >= 9);
    }

    #[test]
    fn what_is_put_over_must_be_there_still() {
        let memory = Memory::new(1 << 20, None);
        let (older, newer) = (slot(1, 10), slot(1, 20));
        let check = |seen: Option<&Slot>, slot: &Slot, may: &dyn Fn() -> bool, expected: Option<&Slot>| {
            memory.put_over(&key(1), seen, slot.clone(), may);
            let held = memory.get(&key(1));
            match (&held, expected) {
                (Some(held), Some(expected)) => assert!(held.is(expected)),
                (held, expected) => assert!(held.is_none() && expected.is_none()),
            }
            assert_eq!(memory.objects(), u64::from(held.is_some()));
        };
        check(None, &older, &|| false, None);
        check(Some(&newer), &older, &|| true, None);
        check(None, &older, &|| true, Some(&older));
        check(None, &newer, &|| true, Some(&older));
        check(Some(&older), &newer, &|| false, Some(&older));
        check(Some(&older), &newer, &|| true, Some(&newer));
        memory.remove(&key(1));
        // Changes that come between the question and the answer.
        let put = || memory.put(key(1), newer.clone());
        check(None, &older, &put, Some(&newer));
        memory.remove(&key(1));
        let removed = || {
            memory.remove(&key(1));
            true
        };
        check(None, &older, &removed, None);
    }

    #[test]
    fn without_a_size_only_markers_are_held() {
        let memory = Memory::new(0, None);
        let address = Address { key: key(1), material: SmallVec::from_slice(b"m") };
        assert!(!memory.put(key(2), slot(2, 1)));
        assert!(memory.put(key(1), Slot::Marker(Arc::new(Marker::new(&address, Arc::default())))));
        assert_eq!((memory.objects(), memory.max_bytes()), (0, 0));
    }

    #[test]
    fn a_response_too_large_replaces_the_outdated_one_by_nothing() {
        let memory = Memory::new(1 << 20, Some(1000));
        assert!(memory.put(key(1), slot(1, 1000)));
        assert!(!memory.put(key(1), slot(1, 1001)));
        assert!(memory.get(&key(1)).is_none());
    }

    #[test]
    fn an_uncacheable_key_is_remembered_for_its_time() {
        let uncacheable = Uncacheable::new();
        uncacheable.put(key(1), Timestamp::from_secs(10));
        assert!(uncacheable.holds(&key(1), Timestamp::from_secs(9)));
        assert!(!uncacheable.holds(&key(2), Timestamp::from_secs(9)));
        assert!(!uncacheable.holds(&key(1), Timestamp::from_secs(10)));
        uncacheable.put(key(1), Timestamp::from_secs(10));
        uncacheable.remove(&key(1));
        assert!(!uncacheable.holds(&key(1), Timestamp::from_secs(1)));
    }
}
