//! May a stored response answer this request, and how (RFC 9111 §4, RFC 5861).

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::RANGE;
use http::request::Parts;

use super::{ClientCacheControl, Rules, partial};
use crate::clock::Timestamp;
use crate::fields::cache_control::{CacheControl, MaxStale, Qualified};
use crate::stored::{StaleUse, StoredResponse};

/// What to do with a request, given what is stored.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Answer from the stored response.
    Serve(Arc<StoredResponse>, Use),
    /// Answer from it, and validate it in the background.
    ServeWhileRevalidating(Arc<StoredResponse>),
    /// Ask the upstream on the stored response's conditions, or complete the stored part.
    Validate(Arc<StoredResponse>, Why),
    /// Ask the upstream as if nothing were stored.
    Forward(Why),
    /// `only-if-cached` and nothing usable stored: 504 (RFC 9111 §5.2.1.7).
    GatewayTimeout,
}

/// In what state a stored response is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Fresh.
    Fresh,
    /// Stale, as the client's `max-stale` allows.
    Stale,
}

/// Why the upstream is asked: the `fwd` parameter of RFC 9211 §2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Not looked up: `bypass`.
    Bypass,
    /// The method is not one that a cache answers: `method`.
    Method,
    /// Nothing stored for the URI: `uri-miss`.
    UriMiss,
    /// Stored for the URI, but not for these selecting fields: `vary-miss`.
    VaryMiss,
    /// Nothing stored, no distinction made: `miss`.
    Miss,
    /// A fresh one is stored, but the request's directives refuse it: `request`.
    Request,
    /// Stored, but stale or to be validated: `stale`.
    Stale,
    /// Only a part is stored, and not all that is asked for: `partial`.
    Partial,
}

/// Decides. `must_validate` tells that the ledger allows it only after validation (soft purge); `miss` is why the
/// upstream is asked where nothing is stored.
pub fn decide(
    request: &Parts,
    stored: Option<Arc<StoredResponse>>,
    must_validate: bool,
    miss: Why,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    let directives = CacheControl::of_request(&request.headers);
    let decision = match stored {
        None => Decision::Forward(miss),
        Some(stored) if !partial::covers(&request.method, &request.headers, &stored) => beyond_part(request, stored),
        Some(stored) => reuse(&directives, stored, must_validate, rules, now),
    };
    let needs_upstream = matches!(decision, Decision::Validate(..) | Decision::Forward(_));
    // RFC 9111 §5.2.1.7.
    if directives.only_if_cached && needs_upstream { Decision::GatewayTimeout } else { decision }
}

/// The stored part is not enough: its rest is asked for where the two can be combined, else everything.
fn beyond_part(request: &Parts, stored: Arc<StoredResponse>) -> Decision {
    let asks_for_whole = request.method == Method::GET && !request.headers.contains_key(RANGE);
    if asks_for_whole && partial::is_completable(&stored) {
        Decision::Validate(stored, Why::Partial)
    } else {
        Decision::Forward(Why::Partial)
    }
}

fn reuse(
    directives: &CacheControl,
    stored: Arc<StoredResponse>,
    must_validate: bool,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    // RFC 9111 §5.2.2.4: no-cache responses are validated however fresh.
    if must_validate || stored.freshness.stale_use == StaleUse::AlwaysValidate {
        return Decision::Validate(stored, Why::Stale);
    }
    let respected = rules.client_cache_control == ClientCacheControl::Respect;
    if respected && refuses(directives, &stored, now) {
        return Decision::Validate(stored, Why::Request);
    }
    if stored.is_fresh(now) {
        return Decision::Serve(stored, Use::Fresh);
    }
    let StaleUse::Within { while_revalidate, max_stale, .. } = stored.freshness.stale_use else {
        return Decision::Validate(stored, Why::Stale);
    };
    let stale_for = stored.stale_for(now);
    if respected && max_stale && accepts_stale(directives, stale_for) {
        return Decision::Serve(stored, Use::Stale);
    }
    // RFC 5861 §3.
    if stale_for < while_revalidate {
        return Decision::ServeWhileRevalidating(stored);
    }
    Decision::Validate(stored, Why::Stale)
}

/// Whether a client's directives refuse what is stored (RFC 9111 §5.2.1.1, §5.2.1.3, §5.2.1.4).
fn refuses(directives: &CacheControl, stored: &StoredResponse, now: Timestamp) -> bool {
    directives.no_cache != Qualified::Absent
        || directives.max_age.is_some_and(|max_age| stored.age(now) > max_age || max_age.is_zero())
        || directives.min_fresh.is_some_and(|min_fresh| stored.fresh_for(now) < min_fresh)
}

/// RFC 9111 §5.2.1.2.
fn accepts_stale(directives: &CacheControl, stale_for: Duration) -> bool {
    match directives.max_stale {
        None => false,
        Some(MaxStale::Any) => true,
        Some(MaxStale::For(limit)) => stale_for <= limit,
    }
}

/// Whether the stored response may answer after the upstream failed (RFC 5861 §4), by its own window or the request's
/// `stale-if-error`. One that is still fresh may.
pub fn usable_on_error(request: &Parts, stored: &StoredResponse, now: Timestamp) -> bool {
    let asked = CacheControl::of_request(&request.headers).stale_if_error.unwrap_or_default();
    let in_time = match stored.freshness.stale_use {
        StaleUse::AlwaysValidate => false,
        StaleUse::Never => stored.is_fresh(now),
        StaleUse::Within { if_error, .. } => stored.is_fresh(now) || stored.stale_for(now) < if_error.max(asked),
    };
    in_time && partial::covers(&request.method, &request.headers, stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{NOW, request, stored_with};

    fn check(request_lines: &[(&'static str, &str)], response: &str, age: u64, rules: &Rules, expected: &str) {
        let stored = Arc::new(stored_with(&[("cache-control", response)], rules));
        let now = NOW.plus(Duration::from_secs(age));
        let decision = decide(&request("GET", request_lines), Some(stored), false, Why::UriMiss, rules, now);
        let found = match decision {
            Decision::Serve(_, Use::Fresh) => "fresh",
            Decision::Serve(_, Use::Stale) => "stale",
            Decision::ServeWhileRevalidating(_) => "revalidating",
            Decision::Validate(_, Why::Request) => "request",
            Decision::Validate(..) => "validate",
            Decision::Forward(_) => "forward",
            Decision::GatewayTimeout => "timeout",
        };
        assert_eq!(found, expected, "{request_lines:?} {response} at {age} s");
    }

    #[test]
    fn a_fresh_response_is_served_and_a_stale_one_validated() {
        let rules = Rules::default();
        check(&[], "max-age=10", 9, &rules, "fresh");
        check(&[], "max-age=10", 10, &rules, "validate");
        check(&[], "max-age=10, no-cache", 1, &rules, "validate");
        check(&[], "max-age=10, stale-while-revalidate=5", 14, &rules, "revalidating");
        check(&[], "max-age=10, stale-while-revalidate=5", 15, &rules, "validate");
        check(&[], "max-age=10, stale-while-revalidate=5, must-revalidate", 14, &rules, "validate");
        check(&[], "s-maxage=10, stale-while-revalidate=5", 14, &rules, "revalidating");
    }

    #[test]
    fn a_clients_directives_count_only_where_they_are_respected() {
        let respect = Rules { client_cache_control: ClientCacheControl::Respect, ..Rules::default() };
        let both = |directive: &str, response: &str, age, expected: &str, ignored: &str| {
            check(&[("cache-control", directive)], response, age, &respect, expected);
            check(&[("cache-control", directive)], response, age, &Rules::default(), ignored);
        };
        both("no-cache", "max-age=10", 1, "request", "fresh");
        both("max-age=5", "max-age=10", 6, "request", "fresh");
        both("max-age=0", "max-age=10", 0, "request", "fresh");
        both("min-fresh=5", "max-age=10", 6, "request", "fresh");
        both("max-stale=5", "max-age=10", 15, "stale", "validate");
        both("max-stale=5", "max-age=10", 16, "validate", "validate");
        both("max-stale", "max-age=10", 40, "stale", "validate");
        both("max-stale", "max-age=10, must-revalidate", 11, "validate", "validate");
        both("only-if-cached", "max-age=10", 11, "timeout", "timeout");
        both("nothing-to-see-here", "max-age=10", 1, "fresh", "fresh");
    }

    #[test]
    fn a_failing_upstream_is_bridged_within_the_window() {
        let check = |response: &str, asked: &str, age: u64, expected: bool| {
            let stored = stored_with(&[("cache-control", response)], &Rules::default());
            let request = request("GET", &[("cache-control", asked)]);
            let found = usable_on_error(&request, &stored, NOW.plus(Duration::from_secs(age)));
            assert_eq!(found, expected, "{response} / {asked} at {age} s");
        };
        check("max-age=10", "", 69, true);
        check("max-age=10", "", 70, false);
        check("max-age=10", "stale-if-error=100", 100, true);
        check("max-age=10, stale-if-error=5", "", 15, false);
        check("max-age=10, must-revalidate", "stale-if-error=100", 11, false);
        check("max-age=10, no-cache", "", 1, false);
        check("s-maxage=10", "", 11, false);
    }
}
