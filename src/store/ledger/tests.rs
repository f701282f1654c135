//! The ledger as readers and one process's purges use it.

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const RESIDENCE: Duration = Duration::from_secs(5);

pub(super) fn tag(seed: u64) -> Tag {
    let text = seed.to_string().into();
    if seed.is_multiple_of(3) { Tag::Url(text) } else { Tag::Surrogate(text) }
}

pub(super) fn fetched_now(ledger: &Ledger) -> Provenance {
    let Synced { to, epoch, own } = ledger.synced();
    Provenance { synced_to: to, epoch, own, tags: Box::default() }
}

/// The verdict on a response with these tags, but for the residence.
pub(super) fn verdict(ledger: &Ledger, provenance: &Provenance, tags: &[u64]) -> Verdict {
    ledger.verdict(provenance, || tags.iter().map(|seed| Place::of(&tag(*seed))).collect())
}

fn alone() -> Ledger {
    Ledger::new(1 << 20, None)
}

fn purge(ledger: &Ledger, seed: u64, kind: PurgeKind) -> PurgeNumber {
    PurgeNumber(ledger.purge_alone(&[tag(seed)], kind, NOW).number)
}

#[test]
fn a_fill_begun_before_a_purge_is_dead_and_one_begun_after_it_is_valid() {
    let ledger = alone();
    let before = fetched_now(&ledger);
    assert_eq!(verdict(&ledger, &before, &[1]), Verdict::Valid);
    purge(&ledger, 1, PurgeKind::Hard);
    let after = fetched_now(&ledger);
    assert_eq!(verdict(&ledger, &before, &[2, 1]), Verdict::Dead);
    assert_eq!(verdict(&ledger, &before, &[2]), Verdict::Valid);
    assert_eq!(verdict(&ledger, &after, &[2, 1]), Verdict::Valid);
}

#[test]
fn what_waits_to_be_recorded_is_obeyed_like_what_is() {
    let ledger = Ledger::new(1 << 20, Some(RESIDENCE));
    let before = fetched_now(&ledger);
    ledger.purge_here(&[tag(1)], PurgeKind::Hard, None);
    let after = fetched_now(&ledger);
    ledger.purge_here(&[tag(2)], PurgeKind::Soft, None);
    assert_eq!(verdict(&ledger, &before, &[1]), Verdict::Dead);
    assert_eq!(verdict(&ledger, &after, &[1]), Verdict::Valid);
    assert_eq!(verdict(&ledger, &after, &[1, 2]), Verdict::MustValidate);
    assert_eq!((after.synced_to, ledger.waiting()), (PurgeNumber(0), 4));
}

#[test]
fn a_soft_purge_asks_for_validation_and_a_hard_one_wins_over_it() {
    let ledger = alone();
    let before = fetched_now(&ledger);
    purge(&ledger, 1, PurgeKind::Soft);
    assert_eq!(verdict(&ledger, &before, &[1]), Verdict::MustValidate);
    purge(&ledger, 4, PurgeKind::Hard);
    assert_eq!(verdict(&ledger, &before, &[1, 4]), Verdict::Dead);
}

#[test]
fn numbers_rise_when_the_clock_stands_or_goes_back() {
    let ledger = alone();
    let first = purge(&ledger, 1, PurgeKind::Hard);
    assert_eq!(first, PurgeNumber(NOW.as_millis() * 1000));
    let before = fetched_now(&ledger);
    let second = PurgeNumber(ledger.purge_alone(&[tag(1)], PurgeKind::Hard, Timestamp::from_millis(5)).number);
    assert_eq!(second, PurgeNumber(first.0 + 1));
    assert_eq!(verdict(&ledger, &before, &[1]), Verdict::Dead);
    assert!(ledger.has_reached(second));
    assert!(!ledger.has_reached(PurgeNumber(second.0 + 10)));
    assert_eq!(ledger.purge_alone(&[], PurgeKind::Hard, NOW).number, second.0 + 11);
}

#[test]
fn a_copy_found_valid_is_not_checked_again_until_something_changes() {
    let ledger = alone();
    let (provenance, checked) = (fetched_now(&ledger), AtomicU64::new(0));
    purge(&ledger, 1, PurgeKind::Hard);
    let judge = |places: &dyn Fn() -> Vec<Place>| ledger.judge_places(&provenance, NOW, &checked, NOW, places);
    let own = || vec![Place::of(&tag(2))];
    assert_eq!(judge(&own), Verdict::Valid);
    assert_eq!(judge(&|| panic!("the tags were derived again")), Verdict::Valid);
    purge(&ledger, 2, PurgeKind::Hard);
    assert_eq!(judge(&own), Verdict::Dead);
}

#[test]
fn responses_of_another_epoch_are_dead() {
    let ledger = Ledger::new(1 << 20, Some(RESIDENCE));
    let own = fetched_now(&ledger);
    ledger.adopt_epoch(Epoch(7));
    let adopted = fetched_now(&ledger);
    assert_eq!((adopted.epoch, ledger.epoch_of(&own)), (Epoch(7), Epoch(7)));
    assert_eq!(verdict(&ledger, &own, &[]), Verdict::Valid);
    assert_eq!(verdict(&ledger, &adopted, &[]), Verdict::Valid);
    ledger.change_epoch(Epoch(8));
    assert_eq!(verdict(&ledger, &own, &[]), Verdict::Dead);
    assert_eq!(verdict(&ledger, &adopted, &[]), Verdict::Dead);
    assert_eq!(ledger.epoch_of(&adopted), Epoch(7));
    assert_eq!(verdict(&ledger, &Provenance { epoch: Epoch(0), ..own }, &[]), Verdict::Dead);
}

#[test]
fn unfollowed_it_is_believed_for_the_residence_after_the_fetch_or_the_last_proof() {
    let ledger = Ledger::new(1 << 10, Some(RESIDENCE));
    let (provenance, checked) = (fetched_now(&ledger), AtomicU64::new(0));
    let check = |after_secs: u64, expected| {
        let now = NOW.plus(Duration::from_secs(after_secs));
        assert_eq!(ledger.judge_places(&provenance, NOW, &checked, now, Vec::new), expected, "{after_secs}");
    };
    check(5, Verdict::Valid);
    check(6, Verdict::MustValidate);
    ledger.prove(NOW.plus(Duration::from_secs(100)));
    check(6, Verdict::MustValidate);
    check(99, Verdict::Valid);
    check(105, Verdict::Valid);
    check(106, Verdict::MustValidate);
    let alone = alone();
    let (provenance, late) = (fetched_now(&alone), NOW.plus(Duration::from_secs(1 << 30)));
    assert_eq!(alone.judge_places(&provenance, NOW, &AtomicU64::new(0), late, Vec::new), Verdict::Valid);
}

#[test]
fn purges_from_several_threads_hide_none_of_each_other() {
    for ledger in [alone(), Ledger::new(1 << 20, Some(RESIDENCE))] {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for step in 0..2_000 {
                        let seed = thread * 10_000 + step;
                        let (provenance, checked) = (fetched_now(ledger), AtomicU64::new(0));
                        let place = || vec![Place::of(&tag(seed))];
                        ledger.judge_places(&provenance, NOW, &checked, NOW, place);
                        if ledger.residence.is_none() {
                            purge(ledger, seed, PurgeKind::Hard);
                        } else {
                            ledger.purge_here(&[tag(seed)], PurgeKind::Hard, None);
                        }
                        let judged = ledger.judge_places(&provenance, NOW, &checked, NOW, place);
                        assert_eq!(judged, Verdict::Dead);
                    }
                });
            }
        });
    }
}
