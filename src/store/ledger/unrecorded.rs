//! This process' purges until Redis has recorded them: bounded, kept through every failure.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::Position;

/// The bound on the slots that wait. Past it everything is purged in their place.
const POSITIONS_MAX: usize = 1 << 20;

/// The purges that wait, in this process' order.
#[derive(Default)]
pub(super) struct Unrecorded {
    entries: VecDeque<Entry>,
    positions: usize,
}

struct Entry {
    /// The earliest purge in it.
    first: u64,
    positions: Vec<Position>,
    /// That every process was told of it: when it is due, and the newest number when it came. Slots above that were
    /// recorded by another process.
    shared: Option<(Instant, u64)>,
}

/// What is being recorded.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    first: u64,
    /// The slots, each once.
    pub positions: Vec<Position>,
}

impl Unrecorded {
    /// Adds a purge. `everything` gives the slots that stand for all.
    pub(super) fn add(
        &mut self,
        sequence: u64,
        positions: Vec<Position>,
        shared: Option<(Instant, u64)>,
        everything: impl FnOnce() -> Vec<Position>,
    ) {
        self.positions += positions.len();
        self.entries.push_back(Entry { first: sequence, positions, shared });
        if self.positions > POSITIONS_MAX {
            let first = self.entries.iter().map(|entry| entry.first).min().unwrap_or(sequence);
            let positions = everything();
            self.positions = positions.len();
            self.entries = VecDeque::from([Entry { first, positions, shared: None }]);
        }
    }

    /// Takes what is due, without what `newest` shows another process to have recorded. Only one batch at a time.
    pub(super) fn take(&mut self, now: Instant, newest: impl Fn(Position) -> u64) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        let mut later = VecDeque::new();
        for entry in self.entries.drain(..) {
            match entry.shared {
                Some((due, _)) if due > now => later.push_back(entry),
                shared => {
                    let batch = batch.get_or_insert_with(|| Batch { first: entry.first, positions: Vec::new() });
                    batch.first = batch.first.min(entry.first);
                    let is_recorded = |mark| entry.positions.iter().all(|position| newest(*position) > mark);
                    if !shared.is_some_and(|(_, mark)| is_recorded(mark)) {
                        batch.positions.extend(&entry.positions);
                    }
                }
            }
        }
        self.entries = later;
        self.positions = self.entries.iter().map(|entry| entry.positions.len()).sum();
        let mut batch = batch?;
        batch.positions.sort_unstable();
        batch.positions.dedup();
        Some(batch)
    }

    /// Keeps what could not be recorded for another try.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.positions += batch.positions.len();
        self.entries.push_front(Entry { first: batch.first, positions: batch.positions, shared: None });
    }

    /// The earliest purge that still waits, once what was taken is recorded.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.first).min()
    }

    /// When the next is due, where none is yet.
    pub(super) fn due(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.shared.map(|(due, _)| due)).min()
    }

    pub(super) const fn positions(&self) -> usize {
        self.positions
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn add(unrecorded: &mut Unrecorded, sequence: u64, positions: &[Position], shared: Option<(Instant, u64)>) {
        unrecorded.add(sequence, positions.to_vec(), shared, || vec![0, 1]);
    }

    #[test]
    fn what_is_taken_is_taken_once_and_what_is_given_back_again() {
        let (mut unrecorded, now) = (Unrecorded::default(), Instant::now());
        assert_eq!(unrecorded.take(now, |_| 0), None);
        add(&mut unrecorded, 1, &[5, 3], None);
        add(&mut unrecorded, 2, &[3, 9], None);
        let batch = unrecorded.take(now, |_| 0).unwrap();
        assert_eq!(batch, Batch { first: 1, positions: vec![3, 5, 9] });
        assert_eq!((unrecorded.take(now, |_| 0), unrecorded.first()), (None, None));
        add(&mut unrecorded, 3, &[7], None);
        unrecorded.give_back(batch);
        assert_eq!((unrecorded.first(), unrecorded.positions()), (Some(1), 4));
        assert_eq!(unrecorded.take(now, |_| 0).unwrap().positions, [3, 5, 7, 9]);
    }

    #[test]
    fn what_every_process_was_told_waits_and_is_left_to_the_first() {
        let (mut unrecorded, now) = (Unrecorded::default(), Instant::now());
        let due = now + Duration::from_millis(20);
        add(&mut unrecorded, 1, &[1, 2], Some((due, 10)));
        add(&mut unrecorded, 2, &[3], None);
        assert_eq!(unrecorded.take(now, |_| 0).unwrap().positions, [3]);
        assert_eq!((unrecorded.first(), unrecorded.due()), (Some(1), Some(due)));
        assert_eq!(unrecorded.take(due, |_| 11).unwrap(), Batch { first: 1, positions: vec![] });
        add(&mut unrecorded, 3, &[1, 2], Some((due, 11)));
        assert_eq!(unrecorded.take(due, |position| 11 + u64::from(position == 1)).unwrap().positions, [1, 2]);
    }

    #[test]
    fn too_many_become_a_purge_of_everything() {
        let mut unrecorded = Unrecorded::default();
        let many: Vec<Position> = (100..100 + (POSITIONS_MAX as Position)).collect();
        add(&mut unrecorded, 1, &many, None);
        assert_eq!(unrecorded.positions(), POSITIONS_MAX);
        add(&mut unrecorded, 2, &[5], None);
        assert_eq!(unrecorded.take(Instant::now(), |_| 0).unwrap(), Batch { first: 1, positions: vec![0, 1] });
    }
}
