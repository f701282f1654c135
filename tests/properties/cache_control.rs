//! Cache-Control and its targeted kin: a further line never allows more, and the order of lines means nothing.

use std::time::Duration;

use aside::fields::cache_control::{CacheControl, Qualified};
use aside::fields::targeted::targeted;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};

const DELTA_MAX: Duration = Duration::from_secs(1 << 31);

/// Each line of the input is a field line.
pub fn check(data: &[u8]) {
    let lines: Vec<HeaderValue> =
        data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).take(16).collect();
    let all = read(lines.iter());
    let backwards = read(lines.iter().rev());
    assert_eq!(sorted(all.clone()), sorted(backwards), "the order of lines");
    for (nth, _) in lines.iter().enumerate() {
        let without = read(lines.iter().enumerate().filter(|(other, _)| *other != nth).map(|(_, line)| line));
        assert_no_looser(&without, &all);
    }
    let upper: Vec<HeaderValue> =
        lines.iter().map(|line| HeaderValue::from_bytes(&line.as_bytes().to_ascii_uppercase()).unwrap()).collect();
    assert_eq!(read(upper.iter()), all, "upper case");
    assert_bounded(&all);
    check_targeted(&lines);
}

fn check_targeted(lines: &[HeaderValue]) {
    let name = HeaderName::from_static("cdn-cache-control");
    let of = |lines: &[HeaderValue]| {
        let fields: HeaderMap = lines.iter().map(|line| (name.clone(), line.clone())).collect();
        targeted(&fields, std::slice::from_ref(&name))
    };
    let Some(control) = of(lines) else { return };
    assert_bounded(&control);
    // RFC 8941: a later member replaces an earlier one, so this one counts.
    let with_no_store = of(&[lines, &[HeaderValue::from_static("no-store, max-age=3")]].concat()).expect("valid still");
    assert!(with_no_store.no_store && with_no_store.max_age == Some(Duration::from_secs(3)));
}

fn read<'l>(lines: impl Iterator<Item = &'l HeaderValue>) -> CacheControl {
    let fields: HeaderMap = lines.map(|line| (CACHE_CONTROL, line.clone())).collect();
    let control = CacheControl::of_response(&fields);
    assert_eq!(CacheControl::of_request(&fields), control);
    control
}

fn sorted(mut control: CacheControl) -> CacheControl {
    for qualified in [&mut control.no_cache, &mut control.private] {
        if let Qualified::Fields(names) = qualified {
            names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        }
    }
    control
}

/// With one line more nothing is allowed that was not before. A client's `max-stale` and `only-if-cached`, and what
/// makes a response reusable (`public`, a lifetime where there was none), are granted by being there.
fn assert_no_looser(before: &CacheControl, after: &CacheControl) {
    let rank = |qualified: &Qualified| match qualified {
        Qualified::Absent => 0,
        Qualified::Fields(names) => 1 + names.len(),
        Qualified::Whole => usize::MAX,
    };
    let no_longer = |before: Option<Duration>, after: Option<Duration>| {
        before.is_none_or(|before| after.is_some_and(|after| after <= before))
    };
    assert!(!before.no_store || after.no_store);
    assert!(rank(&after.no_cache) >= rank(&before.no_cache) && rank(&after.private) >= rank(&before.private));
    assert!(!before.must_revalidate || after.must_revalidate);
    assert!(!before.proxy_revalidate || after.proxy_revalidate);
    assert!(!before.must_understand || after.must_understand);
    assert!(!before.no_transform || after.no_transform);
    assert!(no_longer(before.max_age, after.max_age) && no_longer(before.s_maxage, after.s_maxage));
    assert!(no_longer(before.stale_while_revalidate, after.stale_while_revalidate));
    assert!(no_longer(before.stale_if_error, after.stale_if_error));
    assert!(after.min_fresh >= before.min_fresh);
}

fn assert_bounded(control: &CacheControl) {
    let durations =
        [control.max_age, control.s_maxage, control.stale_while_revalidate, control.stale_if_error, control.min_fresh];
    assert!(durations.into_iter().flatten().all(|duration| duration <= DELTA_MAX));
}
