//! What becomes of a response from the upstream (RFC 9111 §3, §4.3.3 to §4.3.5).

use std::sync::Arc;

use http::header::{CONTENT_LOCATION, RANGE};
use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{Method, StatusCode, Uri};

pub use super::freshen::{HeadUpdate, updated_by_head};
use super::invalidate::{is_same_origin, resolve};
use super::lifetime::Origin;
pub use super::parts::combine;
use super::reuse::usable_on_error;
pub use super::storable::is_of_one_request;
use super::storable::{Draft, draft};
use super::validate::Conditional;
use super::{Rules, freshen, parts};
use crate::clock::Timestamp;
use crate::stored::StoredResponse;

/// A request sent to the upstream and the head that came back.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The client's request (its own conditions and range, not those sent to the upstream).
    pub request: &'a RequestParts,
    /// On which conditions the upstream was asked, as [`super::validate::upstream_conditions`] said.
    pub conditional: Conditional,
    /// The head received.
    pub response: &'a ResponseParts,
    /// When the request was sent.
    pub request_time: Timestamp,
    /// When the head was received.
    pub response_time: Timestamp,
    /// How the body's end is known.
    pub framing: Framing,
    /// A number in 0..1, drawn by the caller, for `ttl_jitter`.
    pub jitter: f64,
    /// Whether the key was asked for before this request, or something is stored for it.
    pub is_asked_again: bool,
}

/// How the end of a response's body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By `Content-Length`.
    Length(u64),
    /// By chunked coding or an HTTP/2 stream's end.
    Delimited,
    /// By the connection's end: truncation cannot be told, so it is never stored.
    Close,
}

/// What becomes of the response.
#[derive(Debug)]
pub enum Settlement {
    /// Stream it to the client and store it: all but body and provenance is filled in.
    Store(Box<StoredResponse>),
    /// 304: the stored response with updated fields, freshness and times; serve that, store that.
    Freshen(Arc<StoredResponse>),
    /// As `Freshen`, but the updated fields forbid to store it: serve it this once, and forget what is stored.
    FreshenOnce(Arc<StoredResponse>, NotStored),
    /// A part that fits the stored part: to be combined with it once its body is there (RFC 9111 §3.4).
    Combine(Box<StoredResponse>),
    /// The upstream failed (5xx) and the stored response may be used (stale-if-error).
    UseStale(Arc<StoredResponse>),
    /// A 304 or 206 that does not fit what is stored: ask again without conditions.
    Refetch,
    /// Pass it on and do not store it. A 304 passed so (`Unsolicited`) answers none of our conditions: where the client
    /// gave none either, it is a fault of the upstream.
    Pass(NotStored),
}

/// Why a response is not stored: a closed list, for Cache-Status details, log and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is its own sentence")]
pub enum NotStored {
    RequestMethod,
    RequestNoStore,
    ResponseNoStore,
    Private,
    Authorization,
    SetCookie,
    VaryAny,
    StatusNotCacheable,
    Precondition,
    NoFreshness,
    AskedOnce,
    NotUnderstood,
    Partial,
    Unsolicited,
    CloseDelimited,
    TooLarge,
    TooManyTags,
    TooManyVariants,
    Truncated,
    FillingLimit,
}

impl NotStored {
    /// Every reason, in the order of its counter.
    pub const ALL: [Self; 20] = [
        Self::RequestMethod,
        Self::RequestNoStore,
        Self::ResponseNoStore,
        Self::Private,
        Self::Authorization,
        Self::SetCookie,
        Self::VaryAny,
        Self::StatusNotCacheable,
        Self::Precondition,
        Self::NoFreshness,
        Self::AskedOnce,
        Self::NotUnderstood,
        Self::Partial,
        Self::Unsolicited,
        Self::CloseDelimited,
        Self::TooLarge,
        Self::TooManyTags,
        Self::TooManyVariants,
        Self::Truncated,
        Self::FillingLimit,
    ];

    /// Its name in Cache-Status, log and `/cache-stats`: kebab-case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestMethod => "request-method",
            Self::RequestNoStore => "request-no-store",
            Self::ResponseNoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::StatusNotCacheable => "status",
            Self::Precondition => "precondition",
            Self::NoFreshness => "no-freshness",
            Self::AskedOnce => "asked-once",
            Self::NotUnderstood => "not-understood",
            Self::Partial => "partial",
            Self::Unsolicited => "unsolicited",
            Self::CloseDelimited => "close-delimited",
            Self::TooLarge => "too-large",
            Self::TooManyTags => "too-many-tags",
            Self::TooManyVariants => "too-many-variants",
            Self::Truncated => "truncated",
            Self::FillingLimit => "filling-limit",
        }
    }

    /// Whether it tells of the resource, so that hit-for-miss is set. What one client's `no-store`, range or condition
    /// caused, and trouble in transit, tells nothing of what the next will get.
    pub const fn is_of_resource(self) -> bool {
        match self {
            Self::ResponseNoStore
            | Self::Private
            | Self::Authorization
            | Self::SetCookie
            | Self::VaryAny
            | Self::StatusNotCacheable
            | Self::NoFreshness
            | Self::NotUnderstood
            | Self::CloseDelimited
            | Self::TooLarge
            | Self::TooManyTags
            | Self::TooManyVariants => true,
            Self::RequestMethod
            | Self::RequestNoStore
            | Self::Precondition
            | Self::AskedOnce
            | Self::Partial
            | Self::Unsolicited
            | Self::Truncated
            | Self::FillingLimit => false,
        }
    }
}

/// Settles a response against what was stored. `stored` is what the request to the upstream was made with.
///
/// A POST or QUERY is to be settled only where the route keys the content; see [`storable_for_get`] for the rest.
/// A HEAD is passed on; [`updated_by_head`] tells what it means for what is stored.
pub fn settle(exchange: &Exchange<'_>, stored: Option<&Arc<StoredResponse>>, rules: &Rules) -> Settlement {
    let status = exchange.response.status;
    if let Some(stored) = stored
        && is_failure(status)
        && usable_on_error(exchange.request, stored, exchange.response_time)
    {
        return Settlement::UseStale(Arc::clone(stored));
    }
    match (status, stored) {
        (StatusCode::NOT_MODIFIED, Some(stored)) => not_modified(exchange, stored, rules),
        (StatusCode::NOT_MODIFIED, None) => Settlement::Pass(NotStored::Unsolicited),
        (StatusCode::PARTIAL_CONTENT, stored) => partial(exchange, stored, rules),
        // The rest of a part does not exist: it is not what the upstream has now.
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) if exchange.conditional == Conditional::Completing => {
            Settlement::Refetch
        }
        _ => store(draft(exchange, status, &exchange.response.headers, rules), exchange),
    }
}

/// A POST response that later GET and HEAD requests for its target may be answered with: one with explicit freshness
/// and a `Content-Location` that is the target, `target`, itself (RFC 9110 §9.3.3). To be stored after the POST has
/// invalidated what was stored before.
pub fn storable_for_get(exchange: &Exchange<'_>, target: &Uri, rules: &Rules) -> Option<Box<StoredResponse>> {
    let fields = &exchange.response.headers;
    let location = fields.get(CONTENT_LOCATION)?.to_str().ok()?;
    let location = resolve(target, location)?;
    let is_target = is_same_origin(&location, target) && location.path_and_query() == target.path_and_query();
    if exchange.request.method != Method::POST || exchange.response.status != StatusCode::OK || !is_target {
        return None;
    }
    Origin::of(fields, rules).explicit_lifetime(fields, exchange.response_time)?;
    let Draft { response, refusal } = draft(exchange, StatusCode::OK, fields, rules);
    (refusal.is_none() && exchange.framing != Framing::Close).then(|| Box::new(response))
}

/// RFC 5861 §4: the statuses that count as an error of the upstream.
pub fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn store(draft: Draft, exchange: &Exchange<'_>) -> Settlement {
    let Draft { response, refusal } = draft;
    let is_reused = matches!(exchange.request.method.as_str(), "GET" | "POST" | "QUERY");
    match refusal {
        _ if !is_reused => Settlement::Pass(NotStored::RequestMethod),
        Some(why) => Settlement::Pass(why),
        None if exchange.framing == Framing::Close => Settlement::Pass(NotStored::CloseDelimited),
        None => Settlement::Store(Box::new(response)),
    }
}

fn not_modified(exchange: &Exchange<'_>, stored: &Arc<StoredResponse>, rules: &Rules) -> Settlement {
    match exchange.conditional {
        Conditional::Plain => return Settlement::Pass(NotStored::Unsolicited),
        Conditional::Completing => return Settlement::Refetch,
        Conditional::Validating => {}
    }
    if !freshen::is_selected(stored, &exchange.response.headers) {
        return Settlement::Refetch;
    }
    let Draft { response, refusal } = freshen::freshened(exchange, stored, rules);
    match refusal {
        None => Settlement::Freshen(Arc::new(response)),
        Some(why) => Settlement::FreshenOnce(Arc::new(response), why),
    }
}

fn partial(exchange: &Exchange<'_>, stored: Option<&Arc<StoredResponse>>, rules: &Rules) -> Settlement {
    let has_asked = exchange.request.method == Method::GET && exchange.request.headers.contains_key(RANGE);
    let part = parts::of_exchange(exchange);
    let mut draft = draft(exchange, StatusCode::PARTIAL_CONTENT, &exchange.response.headers, rules);
    draft.response.part = part;
    let combines = stored.is_some_and(|stored| parts::may_combine(stored, &draft.response));
    if combines && draft.refusal.is_none() {
        return Settlement::Combine(Box::new(draft.response));
    }
    match part {
        // The client asked for the whole: a part is nothing to it.
        _ if !has_asked && exchange.conditional != Conditional::Plain => Settlement::Refetch,
        _ if !has_asked => Settlement::Pass(NotStored::Unsolicited),
        Some(_) => store(draft, exchange),
        None => Settlement::Pass(NotStored::Partial),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{exchange, request, response, stored, text};

    /// A settlement with what it stores or serves: status, part, and one field that tells old from new.
    fn name(settlement: &Settlement) -> String {
        let shown = |response: &StoredResponse| {
            let part = response.part.map_or(String::new(), |part| format!(" {}-{}", part.first, part.last));
            let version =
                response.fields.get(&http::HeaderName::from_static("v")).map_or("-", |value| value.to_str().unwrap());
            format!("{}{part} v{version}", response.status.as_u16())
        };
        match settlement {
            Settlement::Store(response) => format!("store {}", shown(response)),
            Settlement::Freshen(response) => format!("freshen {}", shown(response)),
            Settlement::FreshenOnce(response, why) => format!("freshen once {} {why:?}", shown(response)),
            Settlement::Combine(response) => format!("combine {}", shown(response)),
            Settlement::UseStale(response) => format!("use stale {}", shown(response)),
            Settlement::Refetch => "refetch".into(),
            Settlement::Pass(why) => format!("pass {why:?}"),
        }
    }

    fn settled(asked: &str, conditional: Conditional, stored_as: Option<&str>, answered: &str) -> String {
        let (request, response) = (request(asked), response(answered));
        let stored = stored_as.map(|text| Arc::new(stored(text, "01234")));
        let exchange = exchange(&request, &response, conditional);
        name(&settle(&exchange, stored.as_ref(), &Rules::default()))
    }

    #[test]
    fn what_may_be_stored_is_and_the_rest_is_passed_on() {
        let check = |asked: &str, answered: &str, expected: &str| {
            assert_eq!(settled(asked, Conditional::Plain, None, answered), expected, "{asked}: {answered}");
        };
        check("GET", "200 | cache-control: max-age=60", "store 200 v-");
        check("GET | range: bytes=0-1", "200 | cache-control: max-age=60", "store 200 v-");
        check("POST", "200 | cache-control: max-age=60", "store 200 v-");
        check("QUERY", "200 | cache-control: max-age=60", "store 200 v-");
        check("HEAD", "200 | cache-control: max-age=60", "pass RequestMethod");
        check("PUT", "200 | cache-control: max-age=60", "pass RequestMethod");
        check("GET", "200 | cache-control: no-store", "pass ResponseNoStore");
        check("GET", "304 | cache-control: max-age=60", "pass Unsolicited");
    }

    #[test]
    fn a_body_that_ends_with_its_connection_is_never_stored() {
        let (request, response) = (request("GET"), response("200 | cache-control: max-age=60"));
        let exchange = Exchange { framing: Framing::Close, ..exchange(&request, &response, Conditional::Plain) };
        assert_eq!(name(&settle(&exchange, None, &Rules::default())), "pass CloseDelimited");
    }

    #[test]
    fn a_304_freshens_what_it_speaks_of_and_nothing_else() {
        let check = |stored_as: &str, answered: &str, expected: &str| {
            let stored_as = format!("200 | v: 1 | cache-control: max-age=9 | {stored_as}");
            let answered = format!("304 | v: 2 | {answered}");
            let seen = settled("GET", Conditional::Validating, Some(&stored_as), &answered);
            assert_eq!(seen, expected, "{stored_as}: {answered}");
        };
        check("etag: \"a\"", "etag: \"a\"", "freshen 200 v2");
        check("etag: \"a\"", "etag: \"b\"", "refetch");
        check("etag: \"a\"", "etag: W/\"a\"", "freshen 200 v2");
        check("etag: W/\"a\"", "etag: \"a\"", "freshen 200 v2");
        check("etag: W/\"a\"", "etag: W/\"b\"", "refetch");
        check("etag: \"a\"", "date: {0}", "freshen 200 v2");
        check("etag: \"a\" | last-modified: {-9}", "last-modified: {-9}", "freshen 200 v2");
        check("etag: \"a\" | last-modified: {-9}", "last-modified: {-8}", "refetch");
        check("etag: \"a\" | last-modified: {-9}", "etag: \"a\" | last-modified: {-8}", "freshen 200 v2");
        check("last-modified: {-9}", "last-modified: {-9}", "freshen 200 v2");
        check("last-modified: {-9}", "etag: \"a\"", "refetch");
    }

    #[test]
    fn a_304_that_forbids_to_store_is_served_once() {
        let check = |asked: &str, answered: &str, expected: &str| {
            let stored_as = "200 | v: 1 | etag: \"a\" | cache-control: max-age=9";
            let answered = format!("304 | v: 2 | {answered}");
            assert_eq!(settled(asked, Conditional::Validating, Some(stored_as), &answered), expected, "{answered}");
        };
        check("GET", "cache-control: no-store", "freshen once 200 v2 ResponseNoStore");
        check("GET", "cache-control: private", "freshen once 200 v2 Private");
        check("GET", "vary: *", "freshen once 200 v2 VaryAny");
        check("GET", "set-cookie: a=b", "freshen once 200 v2 SetCookie");
        check("GET | authorization: x", "date: {0}", "freshen once 200 v2 Authorization");
        check("GET | authorization: x", "cache-control: public, max-age=9", "freshen 200 v2");
    }

    #[test]
    fn a_304_to_no_condition_of_ours_is_unsolicited() {
        let stored_as = Some("200 | etag: \"a\" | cache-control: max-age=9");
        assert_eq!(settled("GET", Conditional::Plain, stored_as, "304 | etag: \"a\""), "pass Unsolicited");
        assert_eq!(settled("GET", Conditional::Completing, stored_as, "304 | etag: \"a\""), "refetch");
    }

    #[test]
    fn a_full_answer_to_a_validation_replaces_what_is_stored() {
        let stored_as = Some("200 | v: 1 | etag: \"a\" | cache-control: max-age=0, stale-if-error=0");
        let check = |answered, expected| {
            assert_eq!(settled("GET", Conditional::Validating, stored_as, answered), expected, "{answered}");
        };
        check("200 | v: 2 | cache-control: max-age=60", "store 200 v2");
        check("404 | v: 2", "pass NoFreshness");
        check("503 | v: 2", "pass StatusNotCacheable");
    }

    #[test]
    fn an_upstream_error_leaves_what_is_stored_in_use_within_its_window() {
        let check = |control: &str, answered: &str, expected: &str| {
            let stored_as = format!("200 | v: 1 | cache-control: {control}");
            let seen = settled("GET", Conditional::Plain, Some(&stored_as), answered);
            assert_eq!(seen, expected, "{control}: {answered}");
        };
        for status in [500, 502, 503, 504] {
            check("max-age=0", &format!("{status} | cache-control: max-age=60"), "use stale 200 v1");
        }
        check("max-age=0", "501 | cache-control: max-age=60", "store 501 v-");
        check("max-age=0", "404 | cache-control: max-age=60", "store 404 v-");
        check("max-age=0, must-revalidate", "503 | cache-control: max-age=60", "store 503 v-");
        check("max-age=0, stale-if-error=0", "503", "pass StatusNotCacheable");
    }

    #[test]
    fn a_206_is_stored_as_the_part_it_says_it_is() {
        let check = |asked: &str, answered: &str, expected: &str| {
            let answered = format!("206 | cache-control: max-age=60 | {answered}");
            assert_eq!(settled(asked, Conditional::Plain, None, &answered), expected, "{asked}: {answered}");
        };
        let ranged = "GET | range: bytes=4-7";
        check(ranged, "content-range: bytes 4-7/10 | content-length: 4", "store 206 4-7 v-");
        check(ranged, "content-range: bytes 4-7/* | content-length: 4", "store 206 4-7 v-");
        check(ranged, "content-range: bytes 4-9/10 | content-length: 5", "pass Partial");
        check(ranged, "content-range: bytes 7-4/10 | content-length: 4", "pass Partial");
        check(ranged, "content-range: lines 4-7/10 | content-length: 4", "pass Partial");
        check(ranged, "content-length: 4", "pass Partial");
        check(ranged, "content-type: multipart/byteranges; boundary=x | content-length: 4", "pass Partial");
        check("GET", "content-range: bytes 4-7/10 | content-length: 4", "pass Unsolicited");
        let (request, response) = (request(ranged), response("206 | content-range: bytes 4-7/10 | etag: \"a\""));
        let exchange = Exchange { framing: Framing::Delimited, ..exchange(&request, &response, Conditional::Plain) };
        assert_eq!(name(&settle(&exchange, None, &Rules::default())), "pass Partial");
    }

    #[test]
    fn the_rest_of_a_part_is_combined_when_it_fits() {
        let check = |answered: &str, expected: &str| {
            let stored_as =
                "206 | v: 1 | etag: \"a\" | cache-control: max-age=9, stale-if-error=0 | content-range: bytes 0-4/10";
            let seen = settled("GET", Conditional::Completing, Some(stored_as), answered);
            assert_eq!(seen, expected, "{answered}");
        };
        let rest = "content-range: bytes 5-9/10 | content-length: 5";
        check(&format!("206 | v: 2 | etag: \"a\" | {rest}"), "combine 206 5-9 v2");
        check(&format!("206 | etag: \"b\" | {rest}"), "refetch");
        check(&format!("206 | etag: W/\"a\" | {rest}"), "refetch");
        check(&format!("206 | {rest}"), "refetch");
        check(&format!("206 | etag: \"a\" | cache-control: no-store | {rest}"), "refetch");
        check("206 | etag: \"a\" | content-range: bytes 6-9/10 | content-length: 4", "refetch");
        check("206 | etag: \"a\" | content-range: bytes 5-9/11 | content-length: 5", "refetch");
        check("206 | etag: \"a\" | content-range: bytes 5-9/10 | content-length: 4", "refetch");
        check("416 | content-range: bytes */5", "refetch");
        check("200 | v: 2 | etag: \"b\" | cache-control: max-age=9", "store 200 v2");
    }

    #[test]
    fn a_clients_range_is_combined_with_what_it_touches_and_else_stored_alone() {
        let check = |answered: &str, expected: &str| {
            let stored_as = "206 | etag: \"a\" | cache-control: max-age=9 | content-range: bytes 0-4/10";
            let seen = settled("GET | range: bytes=3-7", Conditional::Plain, Some(stored_as), answered);
            assert_eq!(seen, expected, "{answered}");
        };
        check("206 | etag: \"a\" | content-range: bytes 3-7/10 | content-length: 5", "combine 206 3-7 v-");
        check("206 | etag: \"a\" | content-range: bytes 7-8/10 | content-length: 2", "store 206 7-8 v-");
        check("206 | etag: \"b\" | content-range: bytes 3-7/10 | content-length: 5", "store 206 3-7 v-");
    }

    #[test]
    fn a_post_is_stored_for_get_when_it_says_that_it_is_its_targets() {
        let target = Uri::from_static("http://origin.test/a?b");
        let check = |asked: &str, answered: &str, expected| {
            let (request, response) = (request(asked), response(answered));
            let exchange = exchange(&request, &response, Conditional::Plain);
            let stored = storable_for_get(&exchange, &target, &Rules { heuristic: 0.1, ..Rules::default() });
            assert_eq!(stored.is_some(), expected, "{asked}: {answered}");
        };
        check("POST", "200 | content-location: /a?b | expires: {60}", true);
        check("POST", "200 | content-location: http://origin.test/a?b | cache-control: max-age=60", true);
        check("POST", "200 | content-location: /a | expires: {60}", false);
        check("POST", "200 | content-location: //other.test/a?b | expires: {60}", false);
        check("POST", "200 | expires: {60}", false);
        check("POST", "200 | content-location: /a?b | last-modified: {-600}", false);
        check("POST", "200 | content-location: /a?b | cache-control: max-age=60, private", false);
        check("POST", "201 | content-location: /a?b | expires: {60}", false);
        check("PUT", "200 | content-location: /a?b | expires: {60}", false);
    }

    #[test]
    fn what_one_request_caused_does_not_tell_of_the_resource() {
        let of_one_request: Vec<_> = NotStored::ALL.into_iter().filter(|why| !why.is_of_resource()).collect();
        let expected = [
            NotStored::RequestMethod,
            NotStored::RequestNoStore,
            NotStored::Precondition,
            NotStored::AskedOnce,
            NotStored::Partial,
            NotStored::Unsolicited,
            NotStored::Truncated,
            NotStored::FillingLimit,
        ];
        assert_eq!(of_one_request, expected);
    }

    #[test]
    fn every_reason_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = NotStored::ALL.iter().map(|why| why.as_str()).collect();
        assert_eq!(names.len(), NotStored::ALL.len());
    }

    #[test]
    fn a_stored_response_is_drafted_from_its_exchange() {
        let (request, response) = (request("GET"), response("200 | cache-control: max-age=60 | vary: Accept | a: 1"));
        let exchange = exchange(&request, &response, Conditional::Plain);
        let Settlement::Store(stored) = settle(&exchange, None, &Rules::default()) else { panic!("not stored") };
        assert_eq!(
            text(&stored.fields.to_map()),
            "a: 1 | cache-control: max-age=60 | date: Thu, 01 Jan 2026 00:00:00 GMT | vary: Accept"
        );
        assert_eq!(stored.response_time, exchange.response_time);
        assert_eq!(stored.freshness.lifetime.as_secs(), 60);
        let names = crate::fields::vary::SelectingFields::Names(Box::new([http::header::ACCEPT]));
        assert_eq!(stored.selecting, names);
    }
}
