//! Freshness lifetime and initial age (RFC 9111 §4.2, RFC 9213), with the route's ttl on top.

use std::time::Duration;

use http::header::LAST_MODIFIED;
use http::{HeaderMap, StatusCode};

use super::{Rules, TtlMode};
use crate::clock::Timestamp;
use crate::fields::cache_control::{CacheControl, Qualified};
use crate::fields::{age, date, targeted};
use crate::stored::{Freshness, StaleUse};

/// A response's head and when it was asked for and received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as received.
    pub fields: &'a HeaderMap,
    /// When the request was sent.
    pub request_time: Timestamp,
    /// When the head was received.
    pub response_time: Timestamp,
    /// A number in 0..1, for `ttl_jitter`.
    pub jitter: f64,
}

/// The directives that count for this cache, and whether they come from a targeted field (RFC 9213 §2.2).
#[derive(Clone, Debug)]
pub struct Directives {
    /// The directives, less those that the route ignores.
    pub cache_control: CacheControl,
    targeted: bool,
}

/// Who gave a freshness lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The origin, explicitly (RFC 9111 §4.2.1).
    Origin,
    /// The route's `status_ttl` or `ttl`.
    Route,
    /// Nobody: calculated from `Last-Modified` (RFC 9111 §4.2.2).
    Heuristic,
}

impl Directives {
    /// The first valid targeted field, else `Cache-Control`.
    pub fn of(fields: &HeaderMap, rules: &Rules) -> Self {
        let target = targeted::targeted(fields, &rules.targeted_fields);
        let targeted = target.is_some();
        let mut cache_control = target.unwrap_or_else(|| CacheControl::of_response(fields));
        let ignored = rules.ignore_origin;
        cache_control.no_store &= !ignored.no_store;
        if ignored.private {
            cache_control.private = Qualified::Absent;
        }
        if ignored.no_cache {
            cache_control.no_cache = Qualified::Absent;
        }
        Self { cache_control, targeted }
    }

    /// The origin's explicit freshness lifetime (RFC 9111 §4.2.1).
    pub fn explicit_lifetime(&self, received: &Received<'_>) -> Option<Duration> {
        let directives = &self.cache_control;
        directives.s_maxage.or(directives.max_age).or_else(|| {
            // A targeted field replaces Expires as well (RFC 9213 §2.2).
            let expires = date::expires(received.fields).filter(|_| !self.targeted)?;
            Some(expires.since(date_value(received)))
        })
    }
}

/// How long the response is fresh and who says so; none where nobody does.
pub fn lifetime(received: &Received<'_>, directives: &Directives, rules: &Rules) -> Option<(Duration, Source)> {
    let origin = directives.explicit_lifetime(received).map(|lifetime| (lifetime, Source::Origin));
    let route = route_lifetime(received, rules).map(|lifetime| (lifetime, Source::Route));
    let heuristic = || heuristic_lifetime(received, directives, rules).map(|lifetime| (lifetime, Source::Heuristic));
    match rules.ttl_mode {
        TtlMode::Override => route.or(origin).or_else(heuristic),
        TtlMode::Default => origin.or(route).or_else(heuristic),
        TtlMode::Cap => match (origin, route) {
            (Some(origin), Some(route)) if origin.0 <= route.0 => Some(origin),
            (_, route @ Some(_)) => route,
            (origin, None) => origin.or_else(heuristic),
        },
    }
}

/// Everything about the use of a stored response.
pub fn freshness(received: &Received<'_>, directives: &Directives, rules: &Rules) -> Freshness {
    let lifetime = lifetime(received, directives, rules).map_or(Duration::ZERO, |(lifetime, _)| lifetime);
    Freshness {
        lifetime,
        initial_age: initial_age(received),
        stale_use: stale_use(&directives.cache_control, rules),
        keep: rules.keep,
    }
}

/// RFC 9111 §4.2.3: `corrected_initial_age`.
fn initial_age(received: &Received<'_>) -> Duration {
    let apparent_age = received.response_time.since(date_value(received));
    let response_delay = received.response_time.since(received.request_time);
    apparent_age.max(age::age(received.fields) + response_delay)
}

/// The route's ttl counts from the response's arrival, so the age it comes with is added. Jitter only shortens.
fn route_lifetime(received: &Received<'_>, rules: &Rules) -> Option<Duration> {
    let by_status = rules.status_ttl.iter().find(|(status, _)| *status == received.status).map(|(_, ttl)| *ttl);
    let by_ttl = || rules.ttl.filter(|_| matches!(received.status.as_u16(), 200 | 203 | 204 | 301 | 308));
    let ttl = by_status.or_else(by_ttl)?;
    let shortened = ttl.mul_f64(1.0 - rules.ttl_jitter * received.jitter);
    Some(shortened + initial_age(received))
}

/// RFC 9111 §4.2.2, for statuses that are heuristically cacheable, or any that is `public`.
fn heuristic_lifetime(received: &Received<'_>, directives: &Directives, rules: &Rules) -> Option<Duration> {
    let is_allowed = is_heuristically_cacheable(received.status) || directives.cache_control.public;
    if rules.heuristic <= 0.0 || !is_allowed {
        return None;
    }
    let modified = date::parse(received.fields.get(LAST_MODIFIED)?)?;
    Some(date_value(received).since(modified).mul_f64(rules.heuristic))
}

/// RFC 9110 §15.1.
pub const fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The origin's explicit windows win over the `proxy-revalidate` that `s-maxage` implies, never over an explicit one
/// (a deviation from RFC 9111 §5.2.2.10, as CDNs do it); the route's windows yield to `s-maxage` too.
fn stale_use(directives: &CacheControl, rules: &Rules) -> StaleUse {
    if directives.no_cache == Qualified::Whole {
        return StaleUse::AlwaysValidate;
    }
    if directives.must_revalidate || directives.proxy_revalidate {
        return StaleUse::Never;
    }
    let (while_revalidate, if_error) = (directives.stale_while_revalidate, directives.stale_if_error);
    if directives.s_maxage.is_none() {
        return StaleUse::Within {
            while_revalidate: while_revalidate.unwrap_or(rules.stale_while_revalidate),
            if_error: if_error.unwrap_or(rules.stale_if_error),
            max_stale: true,
        };
    }
    if while_revalidate.is_none() && if_error.is_none() {
        return StaleUse::Never;
    }
    StaleUse::Within {
        while_revalidate: while_revalidate.unwrap_or_default(),
        if_error: if_error.unwrap_or_default(),
        max_stale: false,
    }
}

/// `Date`, or the time of arrival where there is no valid one (RFC 9110 §6.6.1).
fn date_value(received: &Received<'_>) -> Timestamp {
    date::date(received.fields).unwrap_or(received.response_time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const NOW: Timestamp = Timestamp::from_secs(784_111_777);

    fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    fn found(status: u16, lines: &[(&'static str, &str)], rules: &Rules) -> Freshness {
        let fields = fields(lines);
        let status = StatusCode::from_u16(status).unwrap();
        let received = Received { status, fields: &fields, request_time: NOW, response_time: NOW, jitter: 0.5 };
        freshness(&received, &Directives::of(&fields, rules), rules)
    }

    #[test]
    fn the_origins_lifetime_comes_from_the_most_specific_place() {
        let check = |lines: &[(&'static str, &str)], seconds: u64| {
            assert_eq!(found(200, lines, &Rules::default()).lifetime.as_secs(), seconds, "{lines:?}");
        };
        check(&[("cache-control", "max-age=5")], 5);
        check(&[("cache-control", "max-age=5, s-maxage=7")], 7);
        check(&[("cache-control", "max-age=5"), ("cdn-cache-control", "max-age=9")], 9);
        check(&[("cache-control", "max-age=5"), ("cdn-cache-control", "MAX-AGE")], 5);
        check(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")], 60);
        check(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT"), ("cdn-cache-control", "public")], 0);
        check(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT"), ("date", "Sun, 06 Nov 1994 08:50:27 GMT")], 10);
        check(&[("expires", "0")], 0);
        check(&[], 0);
    }

    #[test]
    fn the_routes_ttl_meets_the_origins_by_its_mode() {
        let check = |mode: TtlMode, origin: &str, status: u16, seconds: u64| {
            let ttl = Some(Duration::from_secs(100));
            let status_ttl = Box::new([(StatusCode::NOT_FOUND, Duration::from_secs(10))]);
            let rules = Rules { ttl, ttl_mode: mode, status_ttl, ttl_jitter: 0.0, ..Rules::default() };
            let lifetime = found(status, &[("cache-control", origin)], &rules).lifetime.as_secs();
            assert_eq!(lifetime, seconds, "{mode:?} {origin} {status}");
        };
        check(TtlMode::Default, "", 200, 100);
        check(TtlMode::Default, "", 404, 10);
        check(TtlMode::Default, "", 302, 0);
        check(TtlMode::Default, "max-age=5", 200, 5);
        check(TtlMode::Default, "max-age=5", 404, 5);
        check(TtlMode::Override, "max-age=5", 200, 100);
        check(TtlMode::Override, "max-age=5", 302, 5);
        check(TtlMode::Cap, "max-age=5", 200, 5);
        check(TtlMode::Cap, "max-age=500", 200, 100);
        check(TtlMode::Cap, "", 200, 100);
    }

    #[test]
    fn jitter_only_shortens_and_only_what_the_route_decided() {
        let rules = Rules { ttl: Some(Duration::from_secs(100)), ttl_jitter: 0.2, ..Rules::default() };
        assert_eq!(found(200, &[], &rules).lifetime.as_secs(), 90);
        assert_eq!(found(200, &[("cache-control", "max-age=100")], &rules).lifetime.as_secs(), 100);
    }

    #[test]
    fn a_routes_ttl_counts_from_arrival_and_the_origins_from_generation() {
        let rules = Rules { ttl: Some(Duration::from_secs(100)), ttl_jitter: 0.0, ..Rules::default() };
        let by_route = found(200, &[("age", "30")], &rules);
        assert_eq!((by_route.lifetime.as_secs(), by_route.initial_age.as_secs()), (130, 30));
        let by_origin = found(200, &[("age", "30"), ("cache-control", "max-age=40")], &rules);
        assert_eq!((by_origin.lifetime.as_secs(), by_origin.initial_age.as_secs()), (40, 30));
    }

    #[test]
    fn the_age_is_the_greater_of_apparent_and_received() {
        let check = |lines: &[(&'static str, &str)], seconds: u64| {
            assert_eq!(found(200, lines, &Rules::default()).initial_age.as_secs(), seconds, "{lines:?}");
        };
        check(&[], 0);
        check(&[("date", "Sun, 06 Nov 1994 08:49:27 GMT")], 10);
        check(&[("date", "Sun, 06 Nov 1994 08:49:27 GMT"), ("age", "25")], 25);
        check(&[("date", "Sun, 06 Nov 1994 08:59:27 GMT"), ("age", "5")], 5);
    }

    #[test]
    fn heuristics_are_off_unless_asked_for() {
        let modified = [("last-modified", "Sun, 06 Nov 1994 08:48:57 GMT")];
        let rules = Rules { heuristic: 0.1, ..Rules::default() };
        assert_eq!(found(200, &modified, &Rules::default()).lifetime.as_secs(), 0);
        assert_eq!(found(200, &modified, &rules).lifetime.as_secs(), 4);
        assert_eq!(found(302, &modified, &rules).lifetime.as_secs(), 0);
        assert_eq!(found(302, &[modified[0], ("cache-control", "public")], &rules).lifetime.as_secs(), 4);
    }

    #[test]
    fn explicit_revalidation_forbids_stale_use_and_s_maxage_yields_to_explicit_windows() {
        let within = |while_revalidate, if_error, max_stale| StaleUse::Within {
            while_revalidate: Duration::from_secs(while_revalidate),
            if_error: Duration::from_secs(if_error),
            max_stale,
        };
        let check = |origin: &str, expected: StaleUse| {
            let rules = Rules { stale_while_revalidate: Duration::from_secs(7), ..Rules::default() };
            assert_eq!(found(200, &[("cache-control", origin)], &rules).stale_use, expected, "{origin}");
        };
        check("max-age=1", within(7, 60, true));
        check("max-age=1, stale-while-revalidate=3, stale-if-error=0", within(3, 0, true));
        check("no-cache", StaleUse::AlwaysValidate);
        check("must-revalidate, stale-if-error=3", StaleUse::Never);
        check("proxy-revalidate, s-maxage=1, stale-if-error=3", StaleUse::Never);
        check("s-maxage=1", StaleUse::Never);
        check("s-maxage=1, stale-if-error=3", within(0, 3, false));
    }
}
