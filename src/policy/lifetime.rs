//! Freshness lifetime and initial age (RFC 9111 §4.2, RFC 9213), with the route's ttl on top.

use std::time::Duration;

use http::header::LAST_MODIFIED;
use http::{HeaderMap, StatusCode};

use super::{Rules, TtlMode};
use crate::clock::Timestamp;
use crate::fields::age::age;
use crate::fields::cache_control::{CacheControl, Qualified};
use crate::fields::date;
use crate::fields::targeted::targeted;
use crate::stored::{Freshness, StaleUse};

/// The greatest heuristic lifetime: an origin that gives none is asked at least daily.
pub const HEURISTIC_MAX: Duration = Duration::from_hours(24);

/// What the origin says of a response's caching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The directives of the targeted field where there is a valid one, else of `Cache-Control` (RFC 9213 §2.1).
    pub control: CacheControl,
    /// Its `Date`, where that is valid.
    pub date: Option<Timestamp>,
    /// A targeted field replaces `Expires` too.
    is_targeted: bool,
}

/// When a response was asked for and received.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When the request was sent.
    pub request: Timestamp,
    /// When the head was received.
    pub response: Timestamp,
}

/// Who gave a response its freshness lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The origin, explicitly.
    Origin,
    /// The route.
    Route,
    /// `Last-Modified` (RFC 9111 §4.2.2).
    Heuristic,
    /// Nobody: the lifetime is zero.
    Nobody,
}

impl Origin {
    /// Reads the fields of a response.
    pub fn of(fields: &HeaderMap, rules: &Rules) -> Self {
        let targeted = targeted(fields, &rules.targeted_fields);
        let is_targeted = targeted.is_some();
        let control = targeted.unwrap_or_else(|| CacheControl::of_response(fields));
        Self { control, date: date::date(fields), is_targeted }
    }

    /// The explicit freshness lifetime (RFC 9111 §4.2.1).
    pub fn explicit_lifetime(&self, fields: &HeaderMap, received: Timestamp) -> Option<Duration> {
        let directive = self.control.s_maxage.or(self.control.max_age);
        if directive.is_some() || self.is_targeted {
            return directive;
        }
        date::expires(fields).map(|expires| expires.since(self.date.unwrap_or(received)))
    }
}

/// The freshness of a response, and who gave it. `fields` are those that are stored, `jitter` is in 0..1.
///
/// A lifetime that the route grants counts from reception, so it is put on top of the initial age: `Age` and the
/// freshness that is left both stay true.
pub fn freshness(
    status: StatusCode,
    fields: &HeaderMap,
    origin: &Origin,
    times: Times,
    jitter: f64,
    rules: &Rules,
) -> (Freshness, Source) {
    let initial_age = initial_age(fields, origin, times);
    let explicit = origin.explicit_lifetime(fields, times.response);
    let granted = route_ttl(status, rules).map(|ttl| shortened(ttl, jitter * rules.ttl_jitter) + initial_age);
    let heuristic = || heuristic_lifetime(status, fields, origin, times.response, rules);
    let (lifetime, source) = match (rules.ttl_mode, explicit, granted) {
        (TtlMode::Override, _, Some(granted)) => (granted, Source::Route),
        (TtlMode::Cap, Some(explicit), Some(granted)) if granted < explicit => (granted, Source::Origin),
        (_, Some(explicit), _) => (explicit, Source::Origin),
        (_, None, Some(granted)) => (granted, Source::Route),
        (_, None, None) => {
            heuristic().map_or((Duration::ZERO, Source::Nobody), |lifetime| (lifetime, Source::Heuristic))
        }
    };
    let stale_use = stale_use(&origin.control, lifetime, rules);
    (Freshness { lifetime, initial_age, stale_use, keep: rules.keep }, source)
}

/// Whether heuristics may give responses of this status a lifetime (RFC 9110 §15.1).
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The route's ttl for a status: by status, else the one for 200, 203, 204, 301 and 308.
pub fn route_ttl(status: StatusCode, rules: &Rules) -> Option<Duration> {
    // A part is stored as if it were an incomplete 200 (RFC 9111 §3.3).
    let status = if status == StatusCode::PARTIAL_CONTENT { StatusCode::OK } else { status };
    let by_status = rules.status_ttl.iter().find(|(named, _)| *named == status).map(|(_, ttl)| *ttl);
    let by_default = || rules.ttl.filter(|_| matches!(status.as_u16(), 200 | 203 | 204 | 301 | 308));
    by_status.or_else(by_default)
}

fn shortened(ttl: Duration, fraction: f64) -> Duration {
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
    ttl.saturating_sub(ttl.mul_f64(fraction))
}

/// A fraction of the time since `Last-Modified` (RFC 9111 §4.2.2), for responses that may have one.
fn heuristic_lifetime(
    status: StatusCode,
    fields: &HeaderMap,
    origin: &Origin,
    received: Timestamp,
    rules: &Rules,
) -> Option<Duration> {
    if rules.heuristic <= 0.0 || !(is_heuristically_cacheable(status) || origin.control.public) {
        return None;
    }
    let modified = date::parse(fields.get(LAST_MODIFIED)?)?;
    let unmodified_for = origin.date.unwrap_or(received).since(modified);
    let lifetime = unmodified_for.mul_f64(rules.heuristic.min(1.0)).min(HEURISTIC_MAX);
    (!lifetime.is_zero()).then_some(lifetime)
}

/// The corrected initial age (RFC 9111 §4.2.3).
fn initial_age(fields: &HeaderMap, origin: &Origin, times: Times) -> Duration {
    // `Date` names a whole second, of which the response may come from the very end: what lies within it is not age.
    let apparent =
        origin.date.map_or(Duration::ZERO, |date| times.response.since(date.plus(Duration::from_millis(999))));
    let corrected = age(fields) + times.response.since(times.request);
    apparent.max(corrected)
}

fn stale_use(control: &CacheControl, lifetime: Duration, rules: &Rules) -> StaleUse {
    if control.no_cache == Qualified::Whole && !rules.ignore_origin.no_cache {
        return StaleUse::AlwaysValidate;
    }
    // RFC 9111 §5.2.2.2, §5.2.2.8: never stale.
    if control.must_revalidate || control.proxy_revalidate {
        return StaleUse::Never;
    }
    let (while_revalidate, if_error) = (control.stale_while_revalidate, control.stale_if_error);
    if control.s_maxage.is_some() {
        // RFC 9111 §5.2.2.10: s-maxage implies proxy-revalidate. Deviation: not where the origin gives explicit
        // windows beside it, for then it means them. The route's windows and a client's max-stale do yield.
        if while_revalidate.is_none() && if_error.is_none() {
            return StaleUse::Never;
        }
        return StaleUse::Within {
            while_revalidate: while_revalidate.unwrap_or_default(),
            if_error: if_error.unwrap_or_default(),
            max_stale: false,
        };
    }
    // What never was fresh is not made fresh by the route's stale-while-revalidate.
    let by_route = if lifetime.is_zero() { Duration::ZERO } else { rules.stale_while_revalidate };
    StaleUse::Within {
        while_revalidate: while_revalidate.unwrap_or(by_route),
        if_error: if_error.unwrap_or(rules.stale_if_error),
        max_stale: true,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::policy::given::{NOW, at, fields};
    use crate::policy::{IgnoreOrigin, Rules};

    fn rules(change: impl FnOnce(&mut Rules)) -> Rules {
        let mut rules = Rules { ttl_jitter: 0.0, ..Rules::default() };
        change(&mut rules);
        rules
    }

    fn check_with(rules: &Rules, status: u16, text: &str) -> (Freshness, Source) {
        let fields = fields(text);
        let times = Times { request: NOW, response: NOW };
        let status = StatusCode::from_u16(status).unwrap();
        freshness(status, &fields, &Origin::of(&fields, rules), times, 0.5, rules)
    }

    fn lifetime(rules: &Rules, status: u16, text: &str) -> (u64, Source) {
        let (freshness, source) = check_with(rules, status, text);
        (freshness.lifetime.as_secs(), source)
    }

    #[test]
    fn the_origins_freshness_is_the_first_of_targeted_field_s_maxage_max_age_and_expires() {
        let check = |text, expected: Option<u64>| {
            let expected = expected.map_or((0, Source::Nobody), |secs| (secs, Source::Origin));
            assert_eq!(lifetime(&rules(|_| ()), 200, text), expected, "{text}");
        };
        check("", None);
        check("cache-control: public", None);
        check("cache-control: max-age=60", Some(60));
        check("cache-control: max-age=60, s-maxage=7", Some(7));
        check("cache-control: s-maxage=7 | cache-control: max-age=60", Some(7));
        check("cache-control: max-age=60 | expires: {500} | date: {0}", Some(60));
        check("cache-control: max-age=0 | expires: {500} | date: {0}", Some(0));
        check("expires: {500} | date: {0}", Some(500));
        check("expires: {500} | date: {100}", Some(400));
        check("expires: {300} | date: {400}", Some(0));
        check("expires: {0} | date: {0}", Some(0));
        check("expires: 0 | date: {0}", Some(0));
        check("expires: {500} | date: nonsense", Some(500));
        check("expires: {500}", Some(500));
        check("expires: {500} | expires: {500} | date: {0}", Some(0));
        check("expires: {500} | expires: {600} | date: {0}", Some(0));
        check("cdn-cache-control: max-age=9 | cache-control: max-age=60 | expires: {500}", Some(9));
        check("cdn-cache-control: public | cache-control: max-age=60 | expires: {500}", None);
        check("cdn-cache-control: max-age=9, & | cache-control: max-age=60", Some(60));
        check("surrogate-control: max-age=9 | cache-control: max-age=60", Some(60));
    }

    #[test]
    fn the_targeted_fields_are_those_of_the_list_in_its_order() {
        let rules = rules(|rules| {
            rules.targeted_fields =
                ["aside-cache-control", "cdn-cache-control"].map(HeaderName::from_static).into_iter().collect();
        });
        let text = "cdn-cache-control: max-age=2 | aside-cache-control: max-age=1 | cache-control: max-age=3";
        assert_eq!(lifetime(&rules, 200, text), (1, Source::Origin));
        assert_eq!(lifetime(&rules, 200, "cdn-cache-control: max-age=2"), (2, Source::Origin));
    }

    #[test]
    fn the_routes_ttl_meets_the_origins_by_its_mode() {
        let check = |mode, ttl: u64, text, expected| {
            let rules = rules(|rules| {
                rules.ttl = Some(Duration::from_secs(ttl));
                rules.ttl_mode = mode;
            });
            assert_eq!(lifetime(&rules, 200, text), expected, "{mode:?} {ttl} {text}");
        };
        check(TtlMode::Default, 30, "", (30, Source::Route));
        check(TtlMode::Default, 30, "cache-control: max-age=60", (60, Source::Origin));
        check(TtlMode::Default, 30, "cache-control: max-age=0", (0, Source::Origin));
        check(TtlMode::Override, 30, "cache-control: max-age=60", (30, Source::Route));
        check(TtlMode::Override, 30, "cache-control: max-age=1", (30, Source::Route));
        check(TtlMode::Override, 30, "", (30, Source::Route));
        check(TtlMode::Cap, 30, "cache-control: max-age=60", (30, Source::Origin));
        check(TtlMode::Cap, 30, "cache-control: max-age=10", (10, Source::Origin));
        check(TtlMode::Cap, 30, "", (30, Source::Route));
    }

    #[test]
    fn the_routes_ttl_covers_its_statuses_and_status_ttl_goes_before() {
        let rules = rules(|rules| {
            rules.ttl = Some(Duration::from_secs(30));
            rules.status_ttl = Box::new([
                (StatusCode::NOT_FOUND, Duration::from_secs(5)),
                (StatusCode::MOVED_PERMANENTLY, Duration::from_secs(90)),
            ]);
        });
        let granted = [(200, 30), (203, 30), (204, 30), (206, 30), (301, 90), (308, 30), (404, 5)];
        for (status, secs) in granted {
            assert_eq!(lifetime(&rules, status, ""), (secs, Source::Route), "{status}");
        }
        for status in [201, 302, 307, 403, 410, 500, 503] {
            assert_eq!(lifetime(&rules, status, ""), (0, Source::Nobody), "{status}");
        }
    }

    #[test]
    fn jitter_only_shortens_and_only_what_the_route_decided() {
        let check = |jitter_max, mode, text, expected| {
            let rules = rules(|rules| {
                rules.ttl = Some(Duration::from_secs(100));
                rules.ttl_mode = mode;
                rules.ttl_jitter = jitter_max;
            });
            assert_eq!(lifetime(&rules, 200, text).0, expected, "{jitter_max} {mode:?} {text}");
        };
        check(0.0, TtlMode::Default, "", 100);
        check(0.1, TtlMode::Default, "", 95);
        check(1.0, TtlMode::Default, "", 50);
        check(f64::NAN, TtlMode::Default, "", 100);
        check(0.1, TtlMode::Default, "cache-control: max-age=60", 60);
        check(0.1, TtlMode::Cap, "cache-control: max-age=600", 95);
        check(0.1, TtlMode::Cap, "cache-control: max-age=10", 10);
    }

    #[test]
    fn a_ttl_of_the_route_counts_from_reception() {
        let rules = rules(|rules| rules.ttl = Some(Duration::from_secs(30)));
        let (freshness, _) = check_with(&rules, 200, "age: 1000");
        assert_eq!(freshness.initial_age, Duration::from_secs(1000));
        assert_eq!(freshness.lifetime, Duration::from_secs(1030));
    }

    #[test]
    fn heuristics_are_a_fraction_of_the_time_since_last_modified_for_those_who_may_have_one() {
        let check = |heuristic, status, text, expected| {
            let rules = rules(|rules| rules.heuristic = heuristic);
            assert_eq!(lifetime(&rules, status, text), expected, "{heuristic} {status} {text}");
        };
        let day_old = "last-modified: {-86400} | date: {0}";
        check(0.0, 200, day_old, (0, Source::Nobody));
        for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
            check(0.1, status, day_old, (8640, Source::Heuristic));
        }
        for status in [201, 202, 302, 403, 502, 503, 504, 599] {
            check(0.1, status, day_old, (0, Source::Nobody));
        }
        check(0.1, 599, "last-modified: {-86400} | date: {0} | cache-control: public", (8640, Source::Heuristic));
        check(0.1, 200, "last-modified: {-86400} | cache-control: max-age=1", (1, Source::Origin));
        check(0.1, 200, "last-modified: {-86400} | expires: 0", (0, Source::Origin));
        check(0.1, 200, "last-modified: {50} | date: {0}", (0, Source::Nobody));
        check(0.1, 200, "date: {0}", (0, Source::Nobody));
        check(1.0, 200, "last-modified: {-864000} | date: {0}", (86_400, Source::Heuristic));
    }

    #[test]
    fn the_initial_age_is_the_greater_of_apparent_and_corrected_age() {
        let check = |text, delay: i64, expected| {
            let fields = fields(text);
            let times = Times { request: at(-delay), response: NOW };
            assert_eq!(
                initial_age(&fields, &Origin::of(&fields, &Rules::default()), times).as_millis(),
                expected,
                "{text} {delay}"
            );
        };
        check("", 0, 0);
        check("", 3, 3_000);
        check("age: 30", 0, 30_000);
        check("age: 30", 3, 33_000);
        check("date: {0}", 0, 0);
        check("date: {-1}", 0, 1);
        check("date: {-100}", 3, 99_001);
        check("date: {-100} | age: 200", 0, 200_000);
        check("date: {100}", 0, 0);
        check("date: nonsense | age: 7", 0, 7_000);
        // RFC 9111 §5.1: the first member counts, and what is no number does not.
        check("age: 7200,0", 0, 7_200_000);
        check("age: 0, 7200", 0, 0);
        check("age: 7 | age: 9", 0, 7_000);
        check("age: abc", 0, 0);
        check("age: -7200", 0, 0);
        check("age: 7200.0", 0, 0);
        check("age: 7200;foo=bar", 0, 0);
        check("age:", 0, 0);
        check("age: 99999999999999999999999", 0, (1_u128 << 31) * 1000);
    }

    #[test]
    fn what_may_happen_once_stale_is_the_origins_word_before_the_routes() {
        let within = |while_revalidate, if_error, max_stale| StaleUse::Within {
            while_revalidate: Duration::from_secs(while_revalidate),
            if_error: Duration::from_secs(if_error),
            max_stale,
        };
        let rules = rules(|rules| {
            rules.stale_while_revalidate = Duration::from_secs(5);
            rules.stale_if_error = Duration::from_secs(60);
        });
        let check = |control: &str, expected| {
            let (freshness, _) = check_with(&rules, 200, &format!("cache-control: {control}"));
            assert_eq!(freshness.stale_use, expected, "{control}");
        };
        check("max-age=1", within(5, 60, true));
        check("max-age=1, stale-while-revalidate=7", within(7, 60, true));
        check("max-age=1, stale-if-error=8", within(5, 8, true));
        check("max-age=1, stale-if-error=0, stale-while-revalidate=0", within(0, 0, true));
        check("max-age=1, must-revalidate, stale-if-error=8", StaleUse::Never);
        check("max-age=1, proxy-revalidate, stale-while-revalidate=8", StaleUse::Never);
        check("s-maxage=1", StaleUse::Never);
        check("s-maxage=1, max-age=5", StaleUse::Never);
        check("s-maxage=1, stale-if-error=8", within(0, 8, false));
        check("s-maxage=1, stale-while-revalidate=8", within(8, 0, false));
        check("s-maxage=1, stale-while-revalidate=8, must-revalidate", StaleUse::Never);
        check("max-age=1, no-cache, stale-if-error=8", StaleUse::AlwaysValidate);
        check("max-age=1, no-cache=\"set-cookie\"", within(5, 60, true));
        // Never fresh: the route's window does not make it so, the origin's own does.
        check("max-age=0", within(0, 60, true));
        check("max-age=0, stale-while-revalidate=7", within(7, 60, true));
    }

    #[test]
    fn a_no_cache_that_the_route_ignores_does_not_count() {
        let ignore_origin = IgnoreOrigin { no_cache: true, ..IgnoreOrigin::default() };
        let rules = rules(|rules| rules.ignore_origin = ignore_origin);
        let (freshness, _) = check_with(&rules, 200, "cache-control: no-cache, max-age=9");
        assert!(matches!(freshness.stale_use, StaleUse::Within { .. }));
        assert_eq!(freshness.lifetime.as_secs(), 9);
    }
}
