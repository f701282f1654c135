//! The purge ledger: a time-stamped Bloom filter of fixed size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::clock::Timestamp;
use crate::key::{Tag, TagHash};
use crate::route::ConfiguredTags;
use crate::stored::{Epoch, Provenance, PurgeNumber};

/// The slots of one array. 100,000 URL purges within a TTL falsely invalidate about 3 % of lookups.
const SLOTS: usize = 1 << 20;
/// The slots that are allocated together: a purge touches at most two chunks of 8 KiB, and what was never purged
/// costs no memory.
const CHUNK_SLOTS: usize = 1 << 10;

/// Whether purged responses are dead or to be validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeKind {
    /// Dead.
    Hard,
    /// To be validated before the next use.
    Soft,
}

/// What the ledger says of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing purged it.
    Valid,
    /// Softly purged: to be validated before use.
    MustValidate,
    /// Purged, or of another epoch.
    Dead,
}

/// When each tag was last purged, as far as 2^20 slots tell it; forgets nothing, may take one tag for another.
///
/// A response that was fetched after the purge numbered S is valid iff for each of its tags the lesser of the tag's
/// two slots is at most S: each purge of the tag wrote both.
pub struct Ledger {
    /// The last number given out. Stored after its slots (Release); readers load it first (Acquire).
    last: AtomicU64,
    hard: Arrays,
    soft: Arrays,
    /// The epoch that new responses are stored under.
    epoch: AtomicU64,
    /// An epoch that is as good: this process' own before Redis was reached. 0: none.
    alias: AtomicU64,
    /// Orders purges: guards that every slot of a number is stored before a later number shows.
    purging: Mutex<()>,
}

/// The slots of one kind of purge. URL purges, the frequent ones, do not crowd the others' array.
#[derive(Default)]
struct Arrays {
    urls: Slots,
    others: Slots,
}

/// A tag's place: its array and its two slots there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    url: bool,
    hash: TagHash,
}

struct Slots(Box<[OnceLock<Box<[AtomicU64]>>]>);

impl Ledger {
    /// An empty ledger of a new random epoch.
    pub fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            hard: Arrays::default(),
            soft: Arrays::default(),
            epoch: AtomicU64::new(fastrand::u64(1..)),
            alias: AtomicU64::new(0),
            purging: Mutex::new(()),
        }
    }

    /// The last purge known and the epoch: what a fetch that begins now is stored with.
    pub fn synced(&self) -> (PurgeNumber, Epoch) {
        (PurgeNumber(self.last.load(Ordering::Acquire)), Epoch(self.epoch.load(Ordering::Acquire)))
    }

    /// Takes the epoch that Redis holds for the first time. What was stored under this process' own stays valid:
    /// every purge that could concern it is in this ledger.
    pub fn adopt_epoch(&self, epoch: Epoch) {
        let own = self.epoch.load(Ordering::Acquire);
        self.alias.store(own, Ordering::Release);
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// Takes a new epoch: all that was stored before is invalid.
    pub fn change_epoch(&self, epoch: Epoch) {
        self.alias.store(0, Ordering::Release);
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// Whether responses of this epoch are valid as far as the epoch goes.
    pub fn knows(&self, epoch: Epoch) -> bool {
        // The epoch first: whoever sees the adopted one then sees the alias too.
        epoch.0 == self.epoch.load(Ordering::Acquire) || (epoch.0 != 0 && epoch.0 == self.alias.load(Ordering::Acquire))
    }

    /// Raises the ledger to a number met in a record of another process, so that the next purge is above it.
    pub fn observe(&self, number: PurgeNumber) {
        if number.0 <= self.last.load(Ordering::Acquire) {
            return;
        }
        let _purging = self.purging.lock().unwrap_or_else(PoisonError::into_inner);
        if number.0 > self.last.load(Ordering::Relaxed) {
            self.last.store(number.0, Ordering::Release);
        }
    }

    /// Purges by tags; returns the purge's number.
    pub fn purge(&self, tags: &[Tag], kind: PurgeKind, now: Timestamp) -> PurgeNumber {
        self.record(tags.iter().map(Place::of), kind, now)
    }

    /// Judges a stored response. `checked` is the number at which this copy was last found valid: while the ledger
    /// has not moved since, or not since the response was fetched, one load decides and no tag is derived.
    pub fn judge(&self, provenance: &Provenance, checked: &AtomicU64, tags: &ConfiguredTags<'_>) -> Verdict {
        self.judge_places(provenance, checked, || places(provenance, tags))
    }

    fn judge_places(
        &self,
        provenance: &Provenance,
        checked: &AtomicU64,
        places: impl FnOnce() -> Vec<Place>,
    ) -> Verdict {
        if !self.knows(provenance.epoch) {
            return Verdict::Dead;
        }
        let last = self.last.load(Ordering::Acquire);
        if last <= provenance.synced_to.0 || last == checked.load(Ordering::Relaxed) {
            return Verdict::Valid;
        }
        let verdict = self.verdict(&places(), provenance.synced_to);
        if verdict == Verdict::Valid {
            checked.store(last, Ordering::Relaxed);
        }
        verdict
    }

    fn verdict(&self, places: &[Place], synced_to: PurgeNumber) -> Verdict {
        if places.iter().any(|place| self.hard.last(place) > synced_to.0) {
            Verdict::Dead
        } else if places.iter().any(|place| self.soft.last(place) > synced_to.0) {
            Verdict::MustValidate
        } else {
            Verdict::Valid
        }
    }

    fn record(&self, places: impl Iterator<Item = Place>, kind: PurgeKind, now: Timestamp) -> PurgeNumber {
        let arrays = match kind {
            PurgeKind::Hard => &self.hard,
            PurgeKind::Soft => &self.soft,
        };
        let _purging = self.purging.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.last.load(Ordering::Relaxed);
        let number = now.as_millis().saturating_mul(1000).max(last.saturating_add(1));
        for place in places {
            arrays.store(&place, number);
        }
        self.last.store(number, Ordering::Release);
        PurgeNumber(number)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Arrays {
    /// The latest purge that may have named the tag.
    fn last(&self, place: &Place) -> u64 {
        let slots = self.of(place);
        slots.load(place.hash.0).min(slots.load(place.hash.1))
    }

    fn store(&self, place: &Place, number: u64) {
        let slots = self.of(place);
        slots.store(place.hash.0, number);
        slots.store(place.hash.1, number);
    }

    const fn of(&self, place: &Place) -> &Slots {
        if place.url { &self.urls } else { &self.others }
    }
}

impl Place {
    fn of(tag: &Tag) -> Self {
        Self { url: matches!(tag, Tag::Url(_)), hash: tag.hash() }
    }
}

/// The places of all of a response's tags: those that derive from configuration and URL, and the origin's.
fn places(provenance: &Provenance, tags: &ConfiguredTags<'_>) -> Vec<Place> {
    let mut places: Vec<Place> = tags.tags().iter().map(Place::of).collect();
    places.extend(provenance.tags.iter().map(|tag| Place::of(&Tag::Surrogate(tag.clone()))));
    places
}

impl Slots {
    fn load(&self, hash: u64) -> u64 {
        let (chunk, slot) = Self::split(hash);
        self.0[chunk].get().map_or(0, |chunk| chunk[slot].load(Ordering::Relaxed))
    }

    fn store(&self, hash: u64, number: u64) {
        let (chunk, slot) = Self::split(hash);
        let chunk = self.0[chunk].get_or_init(|| (0..CHUNK_SLOTS).map(|_| AtomicU64::new(0)).collect());
        chunk[slot].store(number, Ordering::Relaxed);
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 2^20")]
    const fn split(hash: u64) -> (usize, usize) {
        let slot = (hash % SLOTS as u64) as usize;
        (slot / CHUNK_SLOTS, slot % CHUNK_SLOTS)
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self((0..SLOTS / CHUNK_SLOTS).map(|_| OnceLock::new()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn place(seed: u64) -> Place {
        let hash = blake3::hash(&seed.to_le_bytes());
        let word = |at: usize| u64::from_le_bytes(hash.as_bytes()[at..at + 8].try_into().unwrap());
        Place { url: seed.is_multiple_of(3), hash: TagHash(word(0), word(8)) }
    }

    fn fetched_now(ledger: &Ledger) -> Provenance {
        let (synced_to, epoch) = ledger.synced();
        Provenance { synced_to, epoch, tags: Box::default() }
    }

    fn judge(ledger: &Ledger, provenance: &Provenance, places: &[Place]) -> Verdict {
        ledger.judge_places(provenance, &AtomicU64::new(0), || places.to_vec())
    }

    #[test]
    fn a_fill_begun_before_a_purge_is_dead_and_one_begun_after_it_is_valid() {
        let ledger = Ledger::new();
        let before = fetched_now(&ledger);
        assert_eq!(judge(&ledger, &before, &[place(1)]), Verdict::Valid);
        ledger.record([place(1)].into_iter(), PurgeKind::Hard, NOW);
        let after = fetched_now(&ledger);
        assert_eq!(judge(&ledger, &before, &[place(2), place(1)]), Verdict::Dead);
        assert_eq!(judge(&ledger, &before, &[place(2)]), Verdict::Valid);
        assert_eq!(judge(&ledger, &after, &[place(2), place(1)]), Verdict::Valid);
    }

    #[test]
    fn a_soft_purge_asks_for_validation_and_a_hard_one_wins_over_it() {
        let ledger = Ledger::new();
        let before = fetched_now(&ledger);
        ledger.record([place(1)].into_iter(), PurgeKind::Soft, NOW);
        assert_eq!(judge(&ledger, &before, &[place(1)]), Verdict::MustValidate);
        ledger.record([place(4)].into_iter(), PurgeKind::Hard, NOW);
        assert_eq!(judge(&ledger, &before, &[place(1), place(4)]), Verdict::Dead);
    }

    #[test]
    fn numbers_rise_when_the_clock_stands_or_goes_back() {
        let ledger = Ledger::new();
        let first = ledger.record([place(1)].into_iter(), PurgeKind::Hard, NOW);
        assert_eq!(first, PurgeNumber(NOW.as_millis() * 1000));
        let before = fetched_now(&ledger);
        let second = ledger.record([place(1)].into_iter(), PurgeKind::Hard, Timestamp::from_millis(5));
        assert_eq!(second, PurgeNumber(first.0 + 1));
        assert_eq!(judge(&ledger, &before, &[place(1)]), Verdict::Dead);
        ledger.observe(PurgeNumber(second.0 + 10));
        assert_eq!(ledger.record([].into_iter(), PurgeKind::Hard, NOW), PurgeNumber(second.0 + 11));
    }

    #[test]
    fn a_copy_found_valid_is_not_checked_again_until_the_next_purge() {
        let ledger = Ledger::new();
        let provenance = fetched_now(&ledger);
        let checked = AtomicU64::new(0);
        let number = ledger.record([place(1)].into_iter(), PurgeKind::Hard, NOW);
        assert_eq!(ledger.judge_places(&provenance, &checked, || vec![place(2)]), Verdict::Valid);
        assert_eq!(checked.load(Ordering::Relaxed), number.0);
        let unasked = || panic!("the tags were derived again");
        assert_eq!(ledger.judge_places(&provenance, &checked, unasked), Verdict::Valid);
        ledger.record([place(2)].into_iter(), PurgeKind::Hard, NOW);
        assert_eq!(ledger.judge_places(&provenance, &checked, || vec![place(2)]), Verdict::Dead);
    }

    #[test]
    fn responses_of_another_epoch_are_dead() {
        let ledger = Ledger::new();
        let own = fetched_now(&ledger);
        ledger.adopt_epoch(Epoch(7));
        let adopted = fetched_now(&ledger);
        assert_eq!(adopted.epoch, Epoch(7));
        assert_eq!(judge(&ledger, &own, &[]), Verdict::Valid);
        assert_eq!(judge(&ledger, &adopted, &[]), Verdict::Valid);
        ledger.change_epoch(Epoch(8));
        assert_eq!(judge(&ledger, &own, &[]), Verdict::Dead);
        assert_eq!(judge(&ledger, &adopted, &[]), Verdict::Dead);
        assert_eq!(judge(&ledger, &Provenance { epoch: Epoch(0), ..own }, &[]), Verdict::Dead);
    }

    #[test]
    fn no_purge_is_ever_missed() {
        let mut random = fastrand::Rng::with_seed(1);
        let ledger = Ledger::new();
        let mut responses: Vec<(Provenance, Vec<u64>, AtomicU64, bool)> = Vec::new();
        for step in 0..20_000_u64 {
            let now = Timestamp::from_millis(1_000_000 + random.u64(0..2000));
            if random.u8(..) < 40 {
                let tags: Vec<u64> = (0..random.usize(1..3)).map(|_| random.u64(0..300)).collect();
                ledger.record(tags.iter().map(|tag| place(*tag)), PurgeKind::Hard, now);
                for (_, named, _, purged) in &mut responses {
                    *purged |= named.iter().any(|tag| tags.contains(tag));
                }
            } else if step % 4 == 0 {
                let tags = (0..5).map(|_| random.u64(0..300)).collect();
                responses.push((fetched_now(&ledger), tags, AtomicU64::new(0), false));
            } else if !responses.is_empty() {
                let (provenance, tags, checked, purged) = &responses[random.usize(0..responses.len())];
                let places = || tags.iter().map(|tag| place(*tag)).collect();
                let verdict = ledger.judge_places(provenance, checked, places);
                assert!(!*purged || verdict == Verdict::Dead, "step {step}");
            }
            if responses.len() > 200 {
                responses.remove(0);
            }
        }
    }

    #[test]
    fn purges_from_several_threads_hide_none_of_each_other() {
        let ledger = Ledger::new();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for step in 0..2_000 {
                        let tag = place(thread * 10_000 + step);
                        let (provenance, checked) = (fetched_now(ledger), AtomicU64::new(0));
                        ledger.judge_places(&provenance, &checked, || vec![tag]);
                        ledger.record([tag].into_iter(), PurgeKind::Hard, NOW);
                        assert_eq!(ledger.judge_places(&provenance, &checked, || vec![tag]), Verdict::Dead);
                    }
                });
            }
        });
    }
}
