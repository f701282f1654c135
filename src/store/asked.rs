//! Which keys were asked for lately, and asked for again: counted in a fixed space.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::key::CacheKey;

/// Counts of one half; together the two take 4 MiB, once a route needs them.
const SLOTS: usize = 1 << 21;
/// Slots that a key counts in.
const SLOTS_OF_KEY: usize = 3;
/// Keys that a half takes before the older half is forgotten: one in 30 is then taken for asked again by mistake.
const KEYS_MAX: usize = 1 << 17;
/// How long a half takes keys, at most.
const SPAN: Duration = Duration::from_secs(600);
/// More than this is not told apart.
const COUNT_MAX: u8 = 2;

/// How often keys were asked for, in two halves: the newer one counts, and after a while takes the place of the older.
/// What is asked for twice within one span and at most two, and fewer than [`KEYS_MAX`] keys, is known to be.
#[derive(Debug, Default)]
pub struct Asked {
    halves: OnceLock<[Box<[AtomicU8]>; 2]>,
    /// Which half counts.
    newer: AtomicUsize,
    /// The keys that it took.
    keys: AtomicUsize,
    /// Since when; held while halves change places.
    since: Mutex<Timestamp>,
}

impl Asked {
    /// Counts a request for `key`.
    pub fn count(&self, key: &CacheKey, now: Timestamp) {
        let halves = self.halves.get_or_init(|| [half(), half()]);
        self.age(halves, now);
        let newer = &halves[self.newer.load(Relaxed)];
        let mut is_new = false;
        for slot in slots(key) {
            let before = newer[slot].load(Relaxed);
            is_new |= before == 0;
            if before < COUNT_MAX {
                newer[slot].store(before + 1, Relaxed);
            }
        }
        if is_new {
            self.keys.fetch_add(1, Relaxed);
        }
    }

    /// Whether `key` was counted at least twice.
    pub fn is_asked_again(&self, key: &CacheKey) -> bool {
        let Some([one, other]) = self.halves.get() else { return false };
        slots(key).all(|slot| one[slot].load(Relaxed) + other[slot].load(Relaxed) >= COUNT_MAX)
    }

    /// Forgets the older half when the newer one is full or old. Who finds another at it does not wait.
    fn age(&self, halves: &[Box<[AtomicU8]>; 2], now: Timestamp) {
        let Ok(mut since) = self.since.try_lock() else { return };
        if self.keys.load(Relaxed) < KEYS_MAX && now.since(*since) < SPAN {
            return;
        }
        let older = 1 - self.newer.load(Relaxed);
        halves[older].iter().for_each(|count| count.store(0, Relaxed));
        self.newer.store(older, Relaxed);
        self.keys.store(0, Relaxed);
        *since = now;
    }
}

fn half() -> Box<[AtomicU8]> {
    std::iter::repeat_with(AtomicU8::default).take(SLOTS).collect()
}

/// A key is a hash: its bytes are as good as any other's.
fn slots(key: &CacheKey) -> impl Iterator<Item = usize> {
    let (words, _) = key.as_bytes().as_chunks::<4>();
    words.iter().take(SLOTS_OF_KEY).map(|word| u32::from_le_bytes(*word) as usize % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> CacheKey {
        CacheKey::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_772_323_200_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_key_is_asked_again_with_its_second_request() {
        let asked = Asked::default();
        assert!(!asked.is_asked_again(&key(1)));
        asked.count(&key(1), at(0));
        assert!(!asked.is_asked_again(&key(1)));
        asked.count(&key(1), at(1));
        assert!(asked.is_asked_again(&key(1)) && !asked.is_asked_again(&key(2)));
    }

    #[test]
    fn what_was_asked_long_ago_is_forgotten() {
        let asked = Asked::default();
        asked.count(&key(1), at(0));
        asked.count(&key(1), at(599));
        asked.count(&key(2), at(601));
        assert!(asked.is_asked_again(&key(1)));
        asked.count(&key(3), at(1202));
        assert!(!asked.is_asked_again(&key(1)));
        asked.count(&key(2), at(1203));
        assert!(asked.is_asked_again(&key(2)));
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_room_and_few_of_them_for_asked_again() {
        let asked = Asked::default();
        (0..1_000_000).for_each(|number| asked.count(&key(number), at(0)));
        let mistaken = (900_000..1_000_000).filter(|number| asked.is_asked_again(&key(*number))).count();
        assert!(mistaken < 5_000, "{mistaken} of 100,000");
        asked.count(&key(0), at(1));
        asked.count(&key(0), at(1));
        assert!(asked.is_asked_again(&key(0)));
    }
}
