//! The purge ledger: a time-stamped Bloom filter of fixed size, which a purge writes and every lookup reads.
//!
//! With Redis the ledger lives there and each process mirrors it. What this process purged and Redis has not recorded
//! yet stands beside the mirror in arrays of its own, numbered by a sequence that means nothing elsewhere: so it is
//! obeyed at once, and what is fetched after it is good, without a number that could hide another process' purge.

mod filter;
mod mirror;
mod synced;
mod unrecorded;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::Timestamp;
use crate::key::Tag;
use crate::route::ConfiguredTags;
use crate::stored::{Epoch, Provenance, PurgeNumber};
pub use filter::Position;
use filter::{Filter, Place};
pub use mirror::{Head, Header, Message, Mirror, Record, SLOTS_AT, Standing, Told};
pub use synced::{Recorded, Synced};
pub use unrecorded::Batch;
use unrecorded::Unrecorded;

/// The slots of the arrays for what is not recorded yet, at most: few at a time, while Redis answers.
const OWN_SLOTS_MAX: u32 = 1 << 18;

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
    /// Softly purged, or perhaps purged while the ledger cannot be followed: to be validated before use.
    MustValidate,
    /// Purged, or of another epoch.
    Dead,
}

/// When each tag was last purged, as far as the slots tell it; forgets nothing, may take one tag for another.
///
/// A response that was fetched when all purges up to S were known is valid iff for each of its tags the lesser of the
/// tag's two slots is at most S: each purge of the tag wrote both.
pub struct Ledger {
    /// Moves with every change, so that what was judged is not judged again: one load decides.
    stamp: AtomicU64,
    mirror: Filter,
    /// The highest number in the mirror's slots. Stored after them (Release); readers load it first (Acquire).
    newest: AtomicU64,
    /// The number up to which every purge is in the mirror.
    complete: AtomicU64,
    /// The epoch that new responses are stored under. 0 while it changes.
    epoch: AtomicU64,
    /// An epoch that is as good: this process' own before Redis was reached. 0: none.
    alias: AtomicU64,
    /// Purges of this process by its sequence.
    own: Filter,
    own_last: AtomicU64,
    own_recorded: AtomicU64,
    /// The highest number met anywhere: the next purge is above it.
    floor: AtomicU64,
    /// When the poll was sent that last proved the mirror complete, in milliseconds.
    proven: AtomicU64,
    /// How long after it the mirror is believed; none: there is nothing to follow.
    residence: Option<Duration>,
    /// Guards this process' purges until they are recorded, and orders them.
    unrecorded: Mutex<Unrecorded>,
    /// Told when one is added.
    pub added: Notify,
    /// Tells those who wait for one.
    pub recorded: watch::Sender<Recorded>,
}

impl Ledger {
    /// An empty ledger of a new random epoch. With `residence` it mirrors one that other processes write too, and is
    /// believed so long after the last proof; without, it is the only one.
    pub fn new(slots: u32, residence: Option<Duration>) -> Self {
        Self {
            stamp: AtomicU64::new(1),
            mirror: Filter::new(slots),
            newest: AtomicU64::new(0),
            complete: AtomicU64::new(0),
            epoch: AtomicU64::new(fastrand::u64(1..)),
            alias: AtomicU64::new(0),
            own: Filter::new(slots.min(OWN_SLOTS_MAX)),
            own_last: AtomicU64::new(0),
            own_recorded: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            residence,
            unrecorded: Mutex::default(),
            added: Notify::new(),
            recorded: watch::Sender::new(Recorded::default()),
        }
    }

    /// The slots of one array.
    pub fn slots(&self) -> u64 {
        u64::from(self.mirror.slots())
    }

    /// What a fetch that begins now is stored with.
    pub fn synced(&self) -> Synced {
        let own = self.own_last.load(Ordering::Acquire);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            let to = self.complete.load(Ordering::Acquire);
            if epoch != 0 && epoch == self.epoch.load(Ordering::Acquire) {
                return Synced { to: PurgeNumber(to), epoch: Epoch(epoch), own };
            }
            std::hint::spin_loop();
        }
    }

    /// The epoch under which other processes know a response of this one.
    pub fn epoch_of(&self, provenance: &Provenance) -> Epoch {
        if self.knows(provenance.epoch) { self.synced().epoch } else { provenance.epoch }
    }

    /// Whether a number met in another process' record is known here. One that is not comes before its message, or
    /// from a ledger that Redis has lost: purges below it may be on their way. The next purge is above it.
    pub fn has_reached(&self, number: PurgeNumber) -> bool {
        if number.0 <= self.newest.load(Ordering::Acquire) {
            return true;
        }
        self.floor.fetch_max(number.0, Ordering::AcqRel);
        false
    }

    /// Purges where there is no Redis: recorded at once.
    pub fn purge_alone(&self, tags: &[Tag], kind: PurgeKind, now: Timestamp) -> Head {
        let _unrecorded = self.unrecorded();
        let Synced { to: PurgeNumber(before), epoch, .. } = self.synced();
        let above = self.newest.load(Ordering::Relaxed).max(self.floor.load(Ordering::Relaxed));
        let number = now.as_millis().saturating_mul(1000).max(above.saturating_add(1));
        self.raise(self.positions(tags, kind), number);
        self.complete_to(number);
        Head { epoch, before, number }
    }

    /// Purges in this process, to be recorded in Redis; returns its place in this process' sequence. With `shared`,
    /// every process was told the same: Redis is asked only after that delay, and only if no other process has.
    pub fn purge_here(&self, tags: &[Tag], kind: PurgeKind, shared: Option<Duration>) -> u64 {
        self.add(self.positions(tags, kind), shared)
    }

    /// The same for slots that Redis has lost.
    fn purge_again(&self, positions: Vec<Position>) {
        self.add(positions, None);
    }

    fn add(&self, positions: Vec<Position>, shared: Option<Duration>) -> u64 {
        let mut unrecorded = self.unrecorded();
        let sequence = self.own_last.load(Ordering::Relaxed) + 1;
        positions.iter().for_each(|position| self.own.raise(self.own.folded(*position, self.mirror.slots()), sequence));
        let shared = shared.map(|delay| (Instant::now() + delay, self.newest.load(Ordering::Acquire)));
        let everything = || self.positions(&[Tag::All], PurgeKind::Hard);
        unrecorded.add(sequence, positions, shared, everything);
        self.own_last.store(sequence, Ordering::Release);
        self.moved();
        drop(unrecorded);
        self.added.notify_one();
        sequence
    }

    /// Judges a stored response that was fetched at `fetched`. `checked` remembers when this copy was last found valid:
    /// while the ledger has not moved since, or not since the response was fetched, no tag is derived.
    pub fn judge(
        &self,
        provenance: &Provenance,
        fetched: Timestamp,
        checked: &AtomicU64,
        tags: &ConfiguredTags<'_>,
        now: Timestamp,
    ) -> Verdict {
        self.judge_places(provenance, fetched, checked, now, || places(provenance, tags))
    }

    fn judge_places(
        &self,
        provenance: &Provenance,
        fetched: Timestamp,
        checked: &AtomicU64,
        now: Timestamp,
        places: impl FnOnce() -> Vec<Place>,
    ) -> Verdict {
        let stamp = self.stamp.load(Ordering::Acquire);
        if checked.load(Ordering::Relaxed) != stamp {
            match self.verdict(provenance, places) {
                Verdict::Valid => checked.store(stamp, Ordering::Relaxed),
                verdict => return verdict,
            }
        }
        if self.is_believed(fetched, now) { Verdict::Valid } else { Verdict::MustValidate }
    }

    fn verdict(&self, provenance: &Provenance, places: impl FnOnce() -> Vec<Place>) -> Verdict {
        if !self.knows(provenance.epoch) {
            return Verdict::Dead;
        }
        // What is recorded is in the mirror: this first, then the mirror.
        let own = provenance.own.max(self.own_recorded.load(Ordering::Acquire));
        let synced_to = provenance.synced_to.0;
        if self.newest.load(Ordering::Acquire) <= synced_to && self.own_last.load(Ordering::Acquire) <= own {
            return Verdict::Valid;
        }
        let places = places();
        let is_purged = |kind| {
            let since = |place| self.mirror.last(place, kind) > synced_to || self.own.last(place, kind) > own;
            places.iter().any(since)
        };
        if is_purged(PurgeKind::Hard) {
            Verdict::Dead
        } else if is_purged(PurgeKind::Soft) {
            Verdict::MustValidate
        } else {
            Verdict::Valid
        }
    }

    /// Whether no purge can be unknown for longer than the residence: counted from the fetch, or from the last proof.
    fn is_believed(&self, fetched: Timestamp, now: Timestamp) -> bool {
        let Some(residence) = self.residence else { return true };
        let within = |then: u64| u128::from(now.as_millis().abs_diff(then)) <= residence.as_millis();
        within(self.proven.load(Ordering::Relaxed)) || within(fetched.as_millis())
    }

    /// Whether responses of this epoch are valid as far as the epoch goes.
    fn knows(&self, epoch: Epoch) -> bool {
        // The epoch first: whoever sees the adopted one then sees the alias too.
        epoch.0 != 0 && (epoch.0 == self.epoch.load(Ordering::Acquire) || epoch.0 == self.alias.load(Ordering::Acquire))
    }

    /// The last purge known.
    pub fn last(&self) -> PurgeNumber {
        PurgeNumber(self.newest.load(Ordering::Acquire))
    }

    /// The highest number known.
    fn highest(&self) -> u64 {
        self.newest.load(Ordering::Acquire).max(self.floor.load(Ordering::Acquire))
    }

    /// The part of lookups that take a response stored at `number` for purged though nobody purged it; an estimate.
    pub fn false_rate(&self, number: PurgeNumber) -> f64 {
        self.mirror.false_rate(number.0)
    }

    /// How many slots wait to be recorded.
    pub fn waiting(&self) -> usize {
        self.unrecorded().positions()
    }

    /// What is to be recorded now; none: nothing.
    pub fn take(&self, now: Instant) -> Option<Batch> {
        self.unrecorded().take(now, |position| self.mirror.get(position))
    }

    /// When what is not due yet will be.
    pub fn due(&self) -> Option<Instant> {
        self.unrecorded().due()
    }

    /// What was taken could not be recorded.
    fn give_back(&self, batch: Batch) {
        self.unrecorded().give_back(batch);
    }

    /// What was taken is recorded, and in the mirror.
    fn settle(&self, last: Option<Head>) {
        let unrecorded = self.unrecorded();
        let upto = unrecorded.first().map_or_else(|| self.own_last.load(Ordering::Relaxed), |first| first - 1);
        self.own_recorded.store(upto, Ordering::Release);
        self.moved();
        drop(unrecorded);
        self.recorded.send_replace(Recorded { upto, number: self.last(), last });
    }

    /// Takes the epoch that Redis holds for the first time. What was stored under this process' own stays valid, as far
    /// as the mirror's slots allow.
    fn adopt_epoch(&self, epoch: Epoch) {
        let own = self.epoch.load(Ordering::Acquire);
        self.alias.store(own, Ordering::Release);
        self.epoch.store(epoch.0, Ordering::Release);
        self.moved();
    }

    /// Takes a new epoch: all that was stored before is invalid, and its purges are forgotten.
    fn change_epoch(&self, epoch: Epoch) {
        self.epoch.store(0, Ordering::SeqCst);
        self.alias.store(0, Ordering::SeqCst);
        self.mirror.clear();
        self.newest.store(0, Ordering::SeqCst);
        self.complete.store(0, Ordering::SeqCst);
        self.epoch.store(epoch.0, Ordering::SeqCst);
        self.moved();
    }

    /// Raises slots of the mirror: whatever was stored under them before `number` is dead from now on.
    fn raise(&self, positions: impl IntoIterator<Item = Position>, number: u64) {
        positions.into_iter().for_each(|position| self.mirror.raise(position, number));
        self.newest.fetch_max(number, Ordering::AcqRel);
        self.moved();
    }

    /// The same for one slot of many: [`Self::moved`] is to follow.
    fn raise_quietly(&self, position: Position, number: u64) {
        self.mirror.raise(position, number);
        self.newest.fetch_max(number, Ordering::AcqRel);
    }

    /// Every purge up to `number` is in the mirror.
    fn complete_to(&self, number: u64) {
        self.newest.fetch_max(number, Ordering::AcqRel);
        self.complete.fetch_max(number, Ordering::AcqRel);
    }

    /// A poll sent at that time proved the mirror complete.
    pub fn prove(&self, sent: Timestamp) {
        self.proven.store(sent.as_millis(), Ordering::Relaxed);
    }

    fn moved(&self) {
        self.stamp.fetch_add(1, Ordering::AcqRel);
    }

    fn positions(&self, tags: &[Tag], kind: PurgeKind) -> Vec<Position> {
        tags.iter().flat_map(|tag| self.mirror.positions(&Place::of(tag), kind)).collect()
    }

    fn unrecorded(&self) -> MutexGuard<'_, Unrecorded> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of all of a response's tags: those that derive from configuration and URL, and the origin's.
fn places(provenance: &Provenance, tags: &ConfiguredTags<'_>) -> Vec<Place> {
    let mut places: Vec<Place> = tags.tags().iter().map(Place::of).collect();
    places.extend(provenance.tags.iter().map(|tag| Place::of(&Tag::Surrogate(tag.clone()))));
    places
}

#[cfg(test)]
mod tests;
