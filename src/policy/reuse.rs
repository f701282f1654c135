//! May a stored response answer this request, and how (RFC 9111 §4, RFC 5861).

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::ranges::{Coverage, coverage};
use super::{ClientCacheControl, Rules};
use crate::clock::Timestamp;
use crate::fields::cache_control::{CacheControl, MaxStale, Qualified};
use crate::fields::vary::SelectingFields;
use crate::stored::{StaleUse, StoredResponse};

/// What to do with a request, given what is stored.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Answer from the stored response.
    Serve(Arc<StoredResponse>, Use),
    /// Answer from it, and validate it in the background.
    ServeWhileRevalidating(Arc<StoredResponse>),
    /// Ask the upstream, on the stored response's conditions where it has validators, or for the rest of a stored part.
    /// What is stored may still be used if the upstream fails ([`usable_on_error`]).
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

/// Decides. With `must_validate` the ledger allows what is stored only after validation (soft purge, unsynced
/// residence). `miss` is why the upstream is asked where nothing is stored. A POST or QUERY is to be asked about only
/// where the route keys the content.
pub fn decide(
    request: &Parts,
    stored: Option<Arc<StoredResponse>>,
    must_validate: bool,
    miss: Why,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    let control = CacheControl::of_request(&request.headers);
    let decision = match stored {
        _ if !is_answered_by_caches(&request.method) => Decision::Forward(Why::Method),
        None => Decision::Forward(if control.no_store { Why::Request } else { miss }),
        // RFC 9111 §4.1: `Vary: *` never matches.
        Some(stored) if stored.selecting == SelectingFields::Any => Decision::Forward(Why::VaryMiss),
        Some(stored) => match judge(request, &control, stored, must_validate, rules, now) {
            Decision::Serve(stored, usage) => Decision::Serve(stored, usage),
            // RFC 9111 §5.2.1.5: nothing of the answer may be stored, so it is fetched for this request alone.
            _ if control.no_store => Decision::Forward(Why::Request),
            decision => decision,
        },
    };
    match decision {
        // RFC 9111 §5.2.1.7.
        Decision::Validate(..) | Decision::Forward(_) if control.only_if_cached => Decision::GatewayTimeout,
        decision => decision,
    }
}

fn judge(
    request: &Parts,
    control: &CacheControl,
    stored: Arc<StoredResponse>,
    must_validate: bool,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    // RFC 9111 §3.3: a part answers only requests for what lies within it.
    if coverage(&request.method, &request.headers, &stored) == Coverage::Outside {
        return Decision::Validate(stored, Why::Partial);
    }
    // RFC 9111 §5.2.2.4.
    if must_validate || stored.freshness.stale_use == StaleUse::AlwaysValidate {
        return Decision::Validate(stored, Why::Stale);
    }
    let respected = (rules.client_cache_control == ClientCacheControl::Respect).then_some(control);
    if respected.is_some_and(|control| is_refused(control, &stored, now)) {
        let why = if stored.is_fresh(now) { Why::Request } else { Why::Stale };
        return Decision::Validate(stored, why);
    }
    if stored.is_fresh(now) {
        return Decision::Serve(stored, Use::Fresh);
    }
    stale(respected, stored, now)
}

/// RFC 9111 §4.2.4: stale only where the origin, the route or the client allows it.
fn stale(respected: Option<&CacheControl>, stored: Arc<StoredResponse>, now: Timestamp) -> Decision {
    let stale_for = stored.stale_for(now);
    match stored.freshness.stale_use {
        StaleUse::Within { while_revalidate, max_stale, .. } => {
            // RFC 9111 §5.2.1.1: a client that gives a max-age without max-stale wants nothing stale.
            let wants_fresh = respected.is_some_and(|control| {
                (control.max_age.is_some() || control.min_fresh.is_some()) && control.max_stale.is_none()
            });
            if stale_for < while_revalidate && !wants_fresh {
                return Decision::ServeWhileRevalidating(stored);
            }
            if max_stale && respected.is_some_and(|control| allows_stale(control, stale_for)) {
                return Decision::Serve(stored, Use::Stale);
            }
            Decision::Validate(stored, Why::Stale)
        }
        StaleUse::AlwaysValidate | StaleUse::Never => Decision::Validate(stored, Why::Stale),
    }
}

/// Whether the stored response may answer after the upstream failed (RFC 5861 §4), by its own windows and the
/// request's `stale-if-error` and `max-stale`. A client's `no-cache` does not forbid it: it is advisory
/// (RFC 9111 §5.2.1), and the alternative is an error.
pub fn usable_on_error(request: &Parts, stored: &StoredResponse, now: Timestamp) -> bool {
    let StaleUse::Within { if_error, max_stale, .. } = stored.freshness.stale_use else { return false };
    if coverage(&request.method, &request.headers, stored) == Coverage::Outside {
        return false;
    }
    let stale_for = stored.stale_for(now);
    if stored.is_fresh(now) || stale_for < if_error {
        return true;
    }
    let control = CacheControl::of_request(&request.headers);
    max_stale && (control.stale_if_error.is_some_and(|window| stale_for < window) || allows_stale(&control, stale_for))
}

/// Whether responses to the method are reused: GET and HEAD, and POST and QUERY by their content.
fn is_answered_by_caches(method: &Method) -> bool {
    matches!(method.as_str(), "GET" | "HEAD" | "POST" | "QUERY")
}

/// Whether the client's directives refuse the stored response as it is (RFC 9111 §5.2.1).
fn is_refused(control: &CacheControl, stored: &StoredResponse, now: Timestamp) -> bool {
    // `max-age=0` is how a reload asks for validation, at whatever age.
    let too_old = control.max_age.is_some_and(|max_age| max_age.is_zero() || stored.age(now) > max_age);
    let not_fresh_enough = control.min_fresh.is_some_and(|min_fresh| stored.fresh_for(now) < min_fresh);
    control.no_store || control.no_cache != Qualified::Absent || too_old || not_fresh_enough
}

fn allows_stale(control: &CacheControl, stale_for: Duration) -> bool {
    match control.max_stale {
        Some(MaxStale::Any) => true,
        Some(MaxStale::For(bound)) => stale_for <= bound,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{at, request, stored, stored_by};

    /// A decision without the stored response.
    fn name(decision: &Decision) -> String {
        match decision {
            Decision::Serve(_, usage) => format!("serve {usage:?}"),
            Decision::ServeWhileRevalidating(_) => "serve and revalidate".into(),
            Decision::Validate(_, why) => format!("validate {why:?}"),
            Decision::Forward(why) => format!("forward {why:?}"),
            Decision::GatewayTimeout => "gateway timeout".into(),
        }
    }

    fn respecting() -> Rules {
        Rules { client_cache_control: ClientCacheControl::Respect, ..Rules::default() }
    }

    /// `after` seconds from when `stored_as` came.
    fn decided(rules: &Rules, stored_as: &str, asked: &str, after: i64) -> String {
        let stored = Some(Arc::new(stored_by(rules, stored_as, "0123456789")));
        name(&decide(&request(asked), stored, false, Why::UriMiss, rules, at(after)))
    }

    #[test]
    fn a_fresh_response_is_served_and_a_stale_one_validated() {
        let check = |stored_as, after, expected| {
            assert_eq!(decided(&Rules::default(), stored_as, "GET", after), expected, "{stored_as} {after}");
        };
        check("200 | cache-control: max-age=60", 0, "serve Fresh");
        check("200 | cache-control: max-age=60", 59, "serve Fresh");
        check("200 | cache-control: max-age=60", 60, "validate Stale");
        check("200 | cache-control: max-age=60 | age: 60", 0, "validate Stale");
        check("200 | cache-control: max-age=60, no-cache", 0, "validate Stale");
        check("200 | cache-control: max-age=60, must-revalidate", 59, "serve Fresh");
        check("200 | cache-control: max-age=60, must-revalidate", 60, "validate Stale");
        check("200 | cache-control: s-maxage=60, max-age=900", 60, "validate Stale");
        check("200 | cache-control: max-age=60 | vary: *", 0, "forward VaryMiss");
        check("206 | cache-control: max-age=60 | content-range: bytes 0-9/20", 0, "validate Partial");
    }

    #[test]
    fn stale_while_revalidate_serves_within_its_window() {
        let rules = Rules { stale_while_revalidate: Duration::from_secs(5), ..Rules::default() };
        let check = |stored_as, after, expected| {
            assert_eq!(decided(&rules, stored_as, "GET", after), expected, "{stored_as} {after}");
        };
        check("200 | cache-control: max-age=60", 59, "serve Fresh");
        check("200 | cache-control: max-age=60", 64, "serve and revalidate");
        check("200 | cache-control: max-age=60", 65, "validate Stale");
        check("200 | cache-control: max-age=60, stale-while-revalidate=9", 68, "serve and revalidate");
        check("200 | cache-control: max-age=60, stale-while-revalidate=0", 60, "validate Stale");
        check("200 | cache-control: s-maxage=60", 60, "validate Stale");
        check("200 | cache-control: s-maxage=60, stale-while-revalidate=9", 60, "serve and revalidate");
        check("200 | cache-control: max-age=60, must-revalidate", 60, "validate Stale");
        check("200 | etag: \"a\"", 0, "validate Stale");
        check("200 | etag: \"a\" | cache-control: max-age=0", 0, "validate Stale");
        check("200 | cache-control: max-age=0, stale-while-revalidate=9", 0, "serve and revalidate");
    }

    #[test]
    fn a_clients_directives_count_only_where_they_are_respected() {
        let check = |stored_as: &str, directives: &str, after, respected, ignored| {
            let (stored_as, asked) =
                (format!("200 | cache-control: {stored_as}"), format!("GET | cache-control: {directives}"));
            assert_eq!(decided(&respecting(), &stored_as, &asked, after), respected, "{stored_as} {asked} {after}");
            assert_eq!(decided(&Rules::default(), &stored_as, &asked, after), ignored, "{stored_as} {asked} {after}");
        };
        let fresh = "serve Fresh";
        check("max-age=60", "no-cache", 0, "validate Request", fresh);
        check("max-age=60", "max-age=0", 0, "validate Request", fresh);
        check("max-age=60", "max-age=10", 10, fresh, fresh);
        check("max-age=60", "max-age=10", 11, "validate Request", fresh);
        check("max-age=60", "min-fresh=60", 0, fresh, fresh);
        check("max-age=60", "min-fresh=60", 1, "validate Request", fresh);
        check("max-age=60", "max-stale", 70, "serve Stale", "validate Stale");
        check("max-age=60", "max-stale=10", 70, "serve Stale", "validate Stale");
        check("max-age=60", "max-stale=9", 70, "validate Stale", "validate Stale");
        check("max-age=60, must-revalidate", "max-stale", 70, "validate Stale", "validate Stale");
        check("max-age=60, stale-if-error=5, s-maxage=60", "max-stale", 70, "validate Stale", "validate Stale");
        check("max-age=60, no-cache", "max-stale", 0, "validate Stale", "validate Stale");
        let window = "max-age=60, stale-while-revalidate=9";
        check(window, "max-age=100", 62, "validate Stale", "serve and revalidate");
        check(window, "max-age=100, max-stale=1", 62, "serve and revalidate", "serve and revalidate");
        check("max-age=60", "nothing-to-see-here", 0, fresh, fresh);
    }

    #[test]
    fn no_store_counts_where_it_is_respected_and_where_it_would_be_stored() {
        let respect = Rules { client_cache_control: ClientCacheControl::Respect, ..Rules::default() };
        let check = |rules: &Rules, stored_as: &str, after, expected| {
            let asked = "GET | cache-control: no-store";
            assert_eq!(decided(rules, &format!("200 | cache-control: {stored_as}"), asked, after), expected);
        };
        check(&Rules::default(), "max-age=60", 0, "serve Fresh");
        check(&Rules::default(), "max-age=60", 60, "forward Request");
        check(&Rules::default(), "max-age=60, stale-while-revalidate=9", 62, "forward Request");
        check(&Rules::default(), "max-age=60, no-cache", 0, "forward Request");
        check(&respect, "max-age=60", 0, "forward Request");
    }

    #[test]
    fn only_if_cached_always_counts() {
        let check = |directives: &str, after, expected| {
            let asked = format!("GET | cache-control: {directives}");
            assert_eq!(
                decided(&Rules::default(), "200 | cache-control: max-age=60", &asked, after),
                expected,
                "{asked}"
            );
        };
        check("only-if-cached", 0, "serve Fresh");
        check("only-if-cached", 60, "gateway timeout");
        check("only-if-cached, no-store", 60, "gateway timeout");
        let nothing = decide(
            &request("GET | cache-control: only-if-cached"),
            None,
            false,
            Why::UriMiss,
            &Rules::default(),
            at(0),
        );
        assert_eq!(name(&nothing), "gateway timeout");
    }

    #[test]
    fn nothing_stored_is_forwarded_for_the_reason_given() {
        for why in [Why::UriMiss, Why::VaryMiss, Why::Miss] {
            let decision = decide(&request("GET"), None, false, why, &Rules::default(), at(0));
            assert_eq!(name(&decision), format!("forward {why:?}"));
        }
    }

    #[test]
    fn what_the_ledger_doubts_is_validated_however_fresh() {
        let stored = Some(Arc::new(stored("200 | cache-control: max-age=60", "body")));
        let decision = decide(&request("GET"), stored, true, Why::UriMiss, &Rules::default(), at(0));
        assert_eq!(name(&decision), "validate Stale");
    }

    #[test]
    fn only_reads_are_answered_from_the_store() {
        for method in ["GET", "HEAD", "POST", "QUERY"] {
            assert_eq!(decided(&Rules::default(), "200 | cache-control: max-age=60", method, 0), "serve Fresh");
        }
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "M-SEARCH"] {
            assert_eq!(decided(&Rules::default(), "200 | cache-control: max-age=60", method, 0), "forward Method");
        }
    }

    #[test]
    fn stale_if_error_bridges_a_failing_upstream_within_its_window() {
        let check = |control: &str, asked: &str, after, expected| {
            let stored = stored(&format!("200 | cache-control: {control}"), "body");
            assert_eq!(usable_on_error(&request(asked), &stored, at(after)), expected, "{control} {asked} {after}");
        };
        check("max-age=60", "GET", 0, true);
        check("max-age=60", "GET", 119, true);
        check("max-age=60", "GET", 120, false);
        check("max-age=60", "HEAD", 119, true);
        check("max-age=60, stale-if-error=5", "GET", 64, true);
        check("max-age=60, stale-if-error=5", "GET", 65, false);
        check("max-age=60, stale-if-error=0", "GET", 60, false);
        check("max-age=60, must-revalidate, stale-if-error=5", "GET", 60, false);
        check("max-age=60, proxy-revalidate", "GET", 60, false);
        check("s-maxage=60", "GET", 60, false);
        check("s-maxage=60, stale-if-error=5", "GET", 64, true);
        check("max-age=60, no-cache", "GET", 0, false);
        check("max-age=60", "GET | cache-control: stale-if-error=200", 250, true);
        check("max-age=60", "GET | cache-control: stale-if-error=200", 260, false);
        check("max-age=60", "GET | cache-control: max-stale=200", 250, true);
        check("max-age=60, must-revalidate", "GET | cache-control: stale-if-error=200", 60, false);
        check("max-age=60", "GET | cache-control: no-cache", 61, true);
    }

    #[test]
    fn a_part_bridges_only_requests_within_it() {
        let part = stored("206 | cache-control: max-age=60 | content-range: bytes 0-9/20", "0123456789");
        assert!(usable_on_error(&request("GET | range: bytes=2-3"), &part, at(61)));
        assert!(!usable_on_error(&request("GET"), &part, at(61)));
    }
}
