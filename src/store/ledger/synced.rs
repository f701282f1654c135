//! Where the ledger stands: up to which purge all are known, and up to which Redis has recorded them.

use super::Head;
use crate::stored::{Epoch, PurgeNumber};

/// Where the ledger stands when a fetch begins; stored with what it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The last purge up to which all are known.
    pub to: PurgeNumber,
    /// The ledger's epoch.
    pub epoch: Epoch,
    /// The last purge asked for in this process.
    pub own: u64,
}

impl Synced {
    /// Where the ledger stands after a purge that this process recorded at once; none where another came between.
    pub fn after(self, purge: Head) -> Option<Self> {
        let is_next = purge.before == self.to.0 && purge.epoch == self.epoch;
        is_next.then_some(Self { to: PurgeNumber(purge.number), ..self })
    }

    /// The same after this process' purge of the place `own` in its sequence, by what Redis has recorded since; none
    /// before it has, and where anything else may have been purged here or elsewhere.
    ///
    /// What was purged here before has stood in `self`, or was recorded together with this one. What was purged here
    /// since has a place of its own in the sequence, and what was purged elsewhere a number between.
    pub fn after_own(self, own: u64, recorded: &Recorded) -> Option<Self> {
        let is_only = recorded.upto == own && self.own + 1 == own;
        let after = recorded.last.filter(|_| is_only).and_then(|last| self.after(last))?;
        Some(Self { own, ..after })
    }
}

/// Up to which of this process' purges Redis has recorded them all, and the number of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// By this process' sequence.
    pub upto: u64,
    /// By the ledger's numbers.
    pub number: PurgeNumber,
    /// The last that Redis was asked for, which may be several of them.
    pub last: Option<Head>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);
    const BEFORE: Synced = Synced { to: PurgeNumber(10), epoch: EPOCH, own: 3 };

    #[test]
    fn only_a_purge_that_came_next_leads_from_where_the_ledger_stood() {
        let check = |epoch, before, expected| {
            let after = BEFORE.after(Head { epoch: Epoch(epoch), before, number: 15 });
            assert_eq!(after.is_some(), expected, "{epoch} {before}");
            assert!(after.is_none_or(|after| after == Synced { to: PurgeNumber(15), ..BEFORE }));
        };
        check(7, 10, true);
        check(7, 11, false);
        check(7, 9, false);
        check(8, 10, false);
    }

    #[test]
    fn a_purge_of_this_process_must_be_recorded_by_itself() {
        let check = |own, upto, before, expected| {
            let last = Some(Head { epoch: EPOCH, before, number: 15 });
            let after = BEFORE.after_own(own, &Recorded { upto, number: PurgeNumber(15), last });
            let own = Synced { to: PurgeNumber(15), epoch: EPOCH, own };
            assert_eq!(after, Some(own).filter(|_| expected), "{own:?} {upto} {before}");
        };
        check(4, 4, 10, true);
        check(4, 3, 10, false);
        check(4, 5, 10, false);
        check(5, 5, 10, false);
        check(4, 4, 12, false);
        assert_eq!(BEFORE.after_own(4, &Recorded { upto: 4, ..Recorded::default() }), None);
    }
}
