//! The ledger's arrays: slots that hold the number of the last purge that named them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PurgeKind;
use crate::key::{Tag, TagHash};

/// Hard and soft purges, each with an array for URLs, the frequent ones, and one for all other tags.
pub const ARRAYS: u32 = 4;
/// The slots that are allocated together: a purge touches at most two chunks of 8 KiB, and what was never purged
/// costs no memory.
const CHUNK_SLOTS: usize = 1 << 10;
/// Of so many chunks one is counted for the estimate.
const SAMPLE: usize = 64;
/// The tags of a typical response beside its URL: all, route, host, a few prefixes and its own.
const TYPICAL_TAGS: i32 = 10;

/// A slot among those of all arrays: `array * slots + slot`. It is what travels between processes.
pub type Position = u32;

/// A tag's place: which arrays, and its two slots there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    url: bool,
    hash: TagHash,
}

/// Fixed arrays of slots, shared by all threads without a lock. Slots only rise.
pub struct Filter {
    slots: u32,
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Place {
    /// The place of a tag.
    pub fn of(tag: &Tag) -> Self {
        Self { url: tag.is_url(), hash: tag.hash() }
    }
}

impl Filter {
    /// Empty arrays of `slots` slots each: a power of two, at least 2^10.
    pub fn new(slots: u32) -> Self {
        let chunks = ARRAYS as usize * slots as usize / CHUNK_SLOTS;
        Self { slots, chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    /// The slots of one array.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The two slots of a place.
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below `slots`")]
    pub fn positions(&self, place: &Place, kind: PurgeKind) -> [Position; 2] {
        let array = match (kind, place.url) {
            (PurgeKind::Hard, false) => 0,
            (PurgeKind::Hard, true) => 1,
            (PurgeKind::Soft, false) => 2,
            (PurgeKind::Soft, true) => 3,
        };
        [place.hash.0, place.hash.1].map(|hash| array * self.slots + (hash % u64::from(self.slots)) as u32)
    }

    /// Where a position of arrays with `slots` slots each, as many or more, lies in these.
    pub const fn folded(&self, position: Position, slots: u32) -> Position {
        // Both are powers of two, so that a hash's remainders agree.
        position / slots * self.slots + position % slots % self.slots
    }

    /// The last purge that may have named the place: the lesser of its slots, for each purge wrote both.
    pub fn last(&self, place: &Place, kind: PurgeKind) -> u64 {
        let [one, other] = self.positions(place, kind);
        self.get(one).min(self.get(other))
    }

    /// A slot's number; 0: never purged.
    pub fn get(&self, position: Position) -> u64 {
        let (chunk, slot) = Self::split(position);
        self.chunks.get(chunk).and_then(OnceLock::get).map_or(0, |chunk| chunk[slot].load(Ordering::Relaxed))
    }

    /// Raises a slot; positions beyond the arrays are ignored.
    pub fn raise(&self, position: Position, number: u64) {
        let (chunk, slot) = Self::split(position);
        if let Some(chunk) = self.chunks.get(chunk) {
            let chunk = chunk.get_or_init(|| (0..CHUNK_SLOTS).map(|_| AtomicU64::new(0)).collect());
            chunk[slot].fetch_max(number, Ordering::Relaxed);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for chunk in self.chunks.iter().filter_map(OnceLock::get) {
            chunk.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
        }
    }

    /// The positions from `from` on whose number is above `number`.
    #[allow(clippy::cast_possible_truncation, reason = "positions fit by construction")]
    pub fn above(&self, number: u64, from: Position) -> impl Iterator<Item = Position> {
        let allocated = self.chunks.iter().enumerate().filter_map(|(at, chunk)| Some((at, chunk.get()?)));
        let positions = allocated.flat_map(move |(at, chunk)| {
            let risen = move |(_, slot): &(usize, &AtomicU64)| slot.load(Ordering::Relaxed) > number;
            chunk.iter().enumerate().filter(risen).map(move |(slot, _)| (at * CHUNK_SLOTS + slot) as Position)
        });
        positions.filter(move |position| *position >= from)
    }

    /// The part of lookups that take a response stored at `number` for purged though nobody purged it; from a sample.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn false_rate(&self, number: u64) -> f64 {
        let per_array = self.slots as usize / CHUNK_SLOTS;
        let filled = |array: usize| {
            let chunks = self.chunks.iter().skip(array * per_array).take(per_array).step_by(SAMPLE.min(per_array));
            let counts = chunks.map(|chunk| {
                chunk.get().map_or(0, |chunk| chunk.iter().filter(|slot| slot.load(Ordering::Relaxed) > number).count())
            });
            let (risen, sampled) = counts.fold((0, 0), |(risen, of), count| (risen + count, of + CHUNK_SLOTS));
            risen as f64 / sampled as f64
        };
        let spared = |array: usize| 1.0 - filled(array).powi(2);
        1.0 - spared(1) * spared(3) * (spared(0) * spared(2)).powi(TYPICAL_TAGS)
    }

    const fn split(position: Position) -> (usize, usize) {
        let position = position as usize;
        (position / CHUNK_SLOTS, position % CHUNK_SLOTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seed: u64) -> Place {
        Place::of(&Tag::Url(format!("shop.example/{seed}").into()))
    }

    #[test]
    fn kinds_of_purges_and_of_tags_have_arrays_of_their_own() {
        let filter = Filter::new(1 << 10);
        let arrays: Vec<u32> = [Tag::All, Tag::Url("a".into())]
            .iter()
            .flat_map(|tag| {
                [PurgeKind::Hard, PurgeKind::Soft].map(|kind| filter.positions(&Place::of(tag), kind)[0] >> 10)
            })
            .collect();
        assert_eq!(arrays, [0, 2, 1, 3]);
    }

    #[test]
    fn a_place_is_found_where_its_positions_in_larger_arrays_fold_to() {
        let (large, small) = (Filter::new(1 << 16), Filter::new(1 << 12));
        for (seed, kind) in (0..100).flat_map(|seed| [(seed, PurgeKind::Hard), (seed, PurgeKind::Soft)]) {
            let folded = large.positions(&place(seed), kind).map(|position| small.folded(position, large.slots()));
            assert_eq!(folded, small.positions(&place(seed), kind));
        }
    }

    #[test]
    fn slots_rise_and_those_above_a_number_are_found() {
        let filter = Filter::new(1 << 10);
        filter.raise(5, 10);
        filter.raise(5, 7);
        filter.raise(4000, 8);
        filter.raise(1 << 20, 9);
        assert_eq!((filter.get(5), filter.get(4000), filter.get(6), filter.get(1 << 20)), (10, 8, 0, 0));
        assert_eq!(filter.above(7, 0).collect::<Vec<_>>(), [5, 4000]);
        assert_eq!(filter.above(8, 0).collect::<Vec<_>>(), [5]);
        assert_eq!(filter.above(7, 6).collect::<Vec<_>>(), [4000]);
        filter.clear();
        assert_eq!(filter.above(0, 0).count(), 0);
    }

    /// 100,000 purges of URLs in arrays of 2^20 slots: (1 - (1 - 2^-20)^200000)^2, about 3 %.
    #[test]
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    fn the_rate_of_false_invalidations_is_the_filters_arithmetic() {
        let filter = Filter::new(1 << 20);
        for seed in 0..100_000 {
            filter.positions(&place(seed), PurgeKind::Hard).iter().for_each(|at| filter.raise(*at, 1));
        }
        let others = 100_000..200_000;
        let (tried, hit) =
            (others.clone().count(), others.filter(|seed| filter.last(&place(*seed), PurgeKind::Hard) > 0).count());
        let expected = (1.0 - (1.0 - 1.0 / f64::from(1 << 20)).powi(200_000)).powi(2);
        let seen = hit as f64 / tried as f64;
        assert!((seen - expected).abs() < expected / 10.0, "{seen} instead of {expected}");
        let estimated = filter.false_rate(0);
        assert!((estimated - expected).abs() < expected / 5.0, "{estimated} instead of {expected}");
        assert!(filter.false_rate(1).abs() < f64::EPSILON);
    }
}
