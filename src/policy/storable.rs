//! May a response be stored, and as what (RFC 9111 §3).

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CONTENT_LENGTH, DATE, ORIGIN, SET_COOKIE};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::lifetime::{Origin, Source, Times, freshness, is_heuristically_cacheable};
use super::settle::{Exchange, NotStored};
use super::{Admission, Rules, SetCookie};
use crate::clock::Timestamp;
use crate::fields::cache_control::{CacheControl, Qualified};
use crate::fields::validators::Validators;
use crate::fields::vary::SelectingFields;
use crate::fields::{date, hop_by_hop};
use crate::stored::{Freshness, Place, Provenance, StaleUse, StoredFields, StoredResponse};

/// A response as it would be stored, without body and provenance.
#[derive(Debug)]
pub struct Draft {
    /// What would be stored.
    pub response: StoredResponse,
    /// Why it must not be.
    pub refusal: Option<NotStored>,
}

/// Drafts the response of an exchange with the status and fields given: its own, or those of a stored response that it
/// updates.
pub fn draft(exchange: &Exchange<'_>, status: StatusCode, fields: &HeaderMap, rules: &Rules) -> Draft {
    let origin = Origin::of(fields, rules);
    let selecting = SelectingFields::of(fields).with(allowed_origin(fields));
    let times = Times { request: exchange.request_time, response: exchange.response_time };
    let (freshness, source) = freshness(status, fields, &origin, times, exchange.jitter, rules);
    // By all fields, also those that are not stored: `Connection: cache-control` must not unlock what it says.
    let refusal = forbidden(exchange, status, fields, &origin.control, &selecting, rules)
        .or_else(|| useless(exchange, status, fields, &origin.control, &freshness, source))
        .or_else(|| is_asked_once(exchange, rules).then_some(NotStored::AskedOnce));
    let response = StoredResponse {
        place: Place::default(),
        status,
        fields: stored_fields(fields, &origin, exchange.response_time, rules),
        request_time: exchange.request_time,
        response_time: exchange.response_time,
        freshness,
        selecting,
        part: None,
        provenance: Provenance::default(),
        body: Bytes::new(),
    };
    Draft { response, refusal }
}

/// `Origin`, where the response lets one origin alone read it (Fetch, "CORS protocol and HTTP caches"): it is for that
/// one, whether `Vary` says so or not.
fn allowed_origin(fields: &HeaderMap) -> Option<HeaderName> {
    let allowed = fields.get_all(ACCESS_CONTROL_ALLOW_ORIGIN).iter();
    allowed.map(|value| value.as_bytes().trim_ascii()).any(|value| value != b"*").then_some(ORIGIN)
}

/// What RFC 9111 §3 and the route forbid.
fn forbidden(
    exchange: &Exchange<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    control: &CacheControl,
    selecting: &SelectingFields,
    rules: &Rules,
) -> Option<NotStored> {
    let request = &exchange.request.headers;
    let ignored = rules.ignore_origin;
    // RFC 9111 §5.2.2.3: who understands the status ignores a no-store beside must-understand.
    let no_store = control.no_store && !control.must_understand && !ignored.no_store;
    let is_authorized = request.contains_key(AUTHORIZATION) && !rules.authorization_keyed;
    // RFC 9111 §3.5.
    let is_for_all = control.public || control.must_revalidate || control.s_maxage.is_some();
    let sets_cookie = rules.set_cookie == SetCookie::Bypass && fields.contains_key(SET_COOKIE);
    [
        (CacheControl::of_request(request).no_store, NotStored::RequestNoStore),
        (is_of_condition(status), NotStored::Precondition),
        (is_of_one_request(status), NotStored::StatusNotCacheable),
        (status.is_informational() || status == StatusCode::NOT_MODIFIED, NotStored::StatusNotCacheable),
        (control.must_understand && !is_understood(status), NotStored::NotUnderstood),
        (no_store, NotStored::ResponseNoStore),
        (control.private == Qualified::Whole && !ignored.private, NotStored::Private),
        (is_authorized && !is_for_all, NotStored::Authorization),
        (sets_cookie, NotStored::SetCookie),
        // A response that never matches could be validated at best: not worth its place.
        (*selecting == SelectingFields::Any, NotStored::VaryAny),
    ]
    .into_iter()
    .find_map(|(applies, why)| applies.then_some(why))
}

/// What may be stored, but would never be of use; and what only explicit freshness would allow.
fn useless(
    exchange: &Exchange<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    control: &CacheControl,
    freshness: &Freshness,
    source: Source,
) -> Option<NotStored> {
    let is_explicit = matches!(source, Source::Origin | Source::Route);
    // RFC 9110 §9.3.3: POST only with explicit freshness.
    if exchange.request.method == Method::POST && !is_explicit {
        return Some(NotStored::NoFreshness);
    }
    if source == Source::Nobody && !(is_heuristically_cacheable(status) || control.public) {
        return Some(NotStored::StatusNotCacheable);
    }
    let usable_for = freshness.lifetime + explicit_window(control, freshness.stale_use, source);
    if freshness.stale_use != StaleUse::AlwaysValidate && usable_for > freshness.initial_age {
        return None;
    }
    // What is stale or `no-cache` from the start is of use to be validated; an error is not worth that.
    let is_error = status.is_client_error() || status.is_server_error();
    (is_error || Validators::of(fields).is_empty()).then_some(NotStored::NoFreshness)
}

/// Whether the route waits with storing until its key is asked for again.
fn is_asked_once(exchange: &Exchange<'_>, rules: &Rules) -> bool {
    rules.admission == Admission::Second && !exchange.is_asked_again
}

/// The stale windows that the origin gave with a lifetime: with `max-age=0, stale-while-revalidate=60` it means a
/// response to be used that is stale from the start.
fn explicit_window(control: &CacheControl, stale_use: StaleUse, source: Source) -> std::time::Duration {
    let given = control.stale_while_revalidate.max(control.stale_if_error).unwrap_or_default();
    match stale_use {
        StaleUse::Within { .. } if source != Source::Nobody => given,
        StaleUse::Within { .. } | StaleUse::AlwaysValidate | StaleUse::Never => std::time::Duration::ZERO,
    }
}

/// Statuses that answer a condition, range, expectation or proxy credential of one request, which the key does not have.
fn is_of_condition(status: StatusCode) -> bool {
    matches!(status.as_u16(), 407 | 412 | 416 | 417)
}

/// Statuses that judge one request, its syntax, size, time or sender, and tell nothing of the resource: stored, one
/// client's malformed field would be everybody's error. RFC 6585 forbids to store 428, 429, 431 and 511.
pub fn is_of_one_request(status: StatusCode) -> bool {
    is_of_condition(status) || matches!(status.as_u16(), 400 | 408 | 413 | 414 | 425 | 428 | 429 | 431 | 511)
}

/// The statuses whose caching requirements are met here (RFC 9111 §5.2.2.3): those of RFC 9110 §15 but 304, which is
/// never stored, and what RFC 6585, RFC 7725 and RFC 8470 add without any.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=206 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 425 | 426 | 428 | 429 | 431 | 451 | 500..=505 | 511
    )
}

/// What is stored of the fields (RFC 9111 §3.1). `Age` stays as received, for those who read the response while it is
/// being stored; every answer from the store replaces it.
fn stored_fields(fields: &HeaderMap, origin: &Origin, received: Timestamp, rules: &Rules) -> StoredFields {
    let named_by_connection = hop_by_hop::named(fields);
    // RFC 9111 §5.2.2.4, §5.2.2.7: without the named fields it may be stored and reused.
    let without = [
        (&origin.control.no_cache, rules.ignore_origin.no_cache),
        (&origin.control.private, rules.ignore_origin.private),
    ];
    let is_named = |name: &HeaderName| {
        without.iter().any(
            |(directive, ignored)| matches!(directive, Qualified::Fields(names) if !ignored && names.contains(name)),
        )
    };
    let is_left_out = |name: &HeaderName| {
        // With what a proxy was told about itself: `Proxy-Authenticate` and the like. The length of content is known from
        // the content.
        hop_by_hop::is_own(name)
            || *name == CONTENT_LENGTH
            || (*name == SET_COOKIE && rules.set_cookie == SetCookie::Strip)
            || (*name == DATE && origin.date.is_none())
            || named_by_connection.contains(name)
            || is_named(name)
    };
    let kept = || fields.iter().filter(|(name, _)| !is_left_out(name));
    // RFC 9110 §6.6.1: a response without a valid date, or whose date is not to be stored, gets the time of its reception.
    let is_dated = kept().any(|(name, _)| *name == DATE);
    let date = (!is_dated).then(|| (DATE, date::format(received)));
    // Counted first: what is longer than what comes would be allocated, and copied, once more.
    let mut stored = Vec::with_capacity(kept().count() + usize::from(!is_dated));
    stored.extend(kept().map(|(name, value)| (name.clone(), value.clone())));
    stored.extend(date);
    stored.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::IgnoreOrigin;
    use crate::policy::given::{exchange, fields, request, response, text};
    use crate::policy::validate::Conditional;

    fn drafted(rules: &Rules, asked: &str, answered: &str) -> Draft {
        let (request, response) = (request(asked), response(answered));
        let exchange = exchange(&request, &response, Conditional::Plain);
        draft(&exchange, response.status, &response.headers, rules)
    }

    fn check_with(rules: &Rules, asked: &str, answered: &str, expected: Option<NotStored>) {
        assert_eq!(drafted(rules, asked, answered).refusal, expected, "{asked}: {answered}");
    }

    fn check(asked: &str, answered: &str, expected: Option<NotStored>) {
        check_with(&Rules::default(), asked, answered, expected);
    }

    #[test]
    fn what_the_response_forbids_is_not_stored() {
        let check = |control: &str, expected| check("GET", &format!("200 | cache-control: {control}"), expected);
        check("max-age=60", None);
        check("max-age=60, no-store", Some(NotStored::ResponseNoStore));
        check("max-age=60, No-StOrE", Some(NotStored::ResponseNoStore));
        check("max-age=60, private", Some(NotStored::Private));
        check("max-age=60, private=\"set-cookie\"", None);
        check("max-age=60, no-cache=\"set-cookie\"", None);
        check("max-age=60 | cdn-cache-control: no-store", Some(NotStored::ResponseNoStore));
        check("max-age=60 | cdn-cache-control: private", Some(NotStored::Private));
        check("no-store | cdn-cache-control: max-age=60", None);
        check("private | cdn-cache-control: max-age=60", None);
        check("no-store | cdn-cache-control: max-age=60, &", Some(NotStored::ResponseNoStore));
        check("max-age=60 | vary: *", Some(NotStored::VaryAny));
        check("max-age=60 | vary: accept, *", Some(NotStored::VaryAny));
        check("max-age=60 | vary: accept", None);
    }

    #[test]
    fn where_the_second_request_counts_the_first_stores_nothing() {
        let (request, response) = (request("GET"), response("200 | cache-control: max-age=60"));
        let check = |admission, is_asked_again, expected| {
            let exchange = Exchange { is_asked_again, ..exchange(&request, &response, Conditional::Plain) };
            let rules = Rules { admission, ..Rules::default() };
            let drafted = draft(&exchange, response.status, &response.headers, &rules);
            assert_eq!(drafted.refusal, expected, "{admission:?} {is_asked_again}");
        };
        check(Admission::First, false, None);
        check(Admission::Second, false, Some(NotStored::AskedOnce));
        check(Admission::Second, true, None);
    }

    #[test]
    fn connection_cannot_hide_what_forbids_to_store() {
        check(
            "GET",
            "200 | connection: cache-control | cache-control: no-store | expires: {60}",
            Some(NotStored::ResponseNoStore),
        );
        check(
            "GET",
            "200 | connection: set-cookie | set-cookie: a=b | cache-control: max-age=60",
            Some(NotStored::SetCookie),
        );
    }

    #[test]
    fn what_the_request_forbids_is_not_stored() {
        check("GET | cache-control: no-store", "200 | cache-control: max-age=60", Some(NotStored::RequestNoStore));
        check("GET | cache-control: no-cache", "200 | cache-control: max-age=60", None);
    }

    #[test]
    fn must_understand_asks_for_a_known_status_and_takes_the_place_of_no_store() {
        let check = |status, control: &str, expected| {
            check("GET", &format!("{status} | cache-control: {control}"), expected);
        };
        check(200, "max-age=60, must-understand, no-store", None);
        check(200, "max-age=60, must-understand", None);
        check(599, "max-age=60, must-understand", Some(NotStored::NotUnderstood));
        check(599, "max-age=60, must-understand, no-store", Some(NotStored::NotUnderstood));
        check(299, "max-age=60, must-understand", Some(NotStored::NotUnderstood));
    }

    #[test]
    fn an_authorized_request_needs_a_response_that_is_for_all() {
        let check = |control: &str, expected| {
            check("GET | authorization: x", &format!("200 | cache-control: {control}"), expected);
        };
        check("max-age=60", Some(NotStored::Authorization));
        check("max-age=60, public", None);
        check("max-age=60, must-revalidate", None);
        check("s-maxage=60", None);
        check("max-age=60, proxy-revalidate", Some(NotStored::Authorization));
        let keyed = Rules { authorization_keyed: true, ..Rules::default() };
        check_with(&keyed, "GET | authorization: x", "200 | cache-control: max-age=60", None);
        let ttl = Rules { ttl: Some(Duration::from_secs(9)), ..Rules::default() };
        check_with(&ttl, "GET | authorization: x", "200", Some(NotStored::Authorization));
    }

    #[test]
    fn the_route_says_what_becomes_of_set_cookie() {
        let answered = "200 | cache-control: max-age=60 | set-cookie: a=b";
        let check = |set_cookie, expected, is_kept| {
            let rules = Rules { set_cookie, ..Rules::default() };
            let draft = drafted(&rules, "GET", answered);
            let kept = draft.response.fields.get(&SET_COOKIE).is_some();
            assert_eq!((draft.refusal, kept), (expected, is_kept), "{set_cookie:?}");
        };
        check(SetCookie::Bypass, Some(NotStored::SetCookie), true);
        check(SetCookie::Strip, None, false);
        check(SetCookie::Store, None, true);
    }

    #[test]
    fn the_route_may_ignore_what_a_framework_says_on_everything() {
        let ttl = Some(Duration::from_secs(9));
        let check = |ignore_origin, control: &str, expected| {
            let rules = Rules { ttl, ignore_origin, ..Rules::default() };
            check_with(&rules, "GET", &format!("200 | cache-control: {control}"), expected);
        };
        let none = IgnoreOrigin::default();
        check(none, "no-store", Some(NotStored::ResponseNoStore));
        check(none, "private", Some(NotStored::Private));
        check(none, "no-cache", Some(NotStored::NoFreshness));
        check(IgnoreOrigin { no_store: true, ..none }, "no-store", None);
        check(IgnoreOrigin { no_store: true, ..none }, "no-store, private", Some(NotStored::Private));
        check(IgnoreOrigin { private: true, ..none }, "private", None);
        check(IgnoreOrigin { no_cache: true, ..none }, "no-cache", None);
    }

    #[test]
    fn any_final_status_with_explicit_freshness_is_stored_but_those_of_one_request() {
        for status in [200, 201, 203, 204, 299, 301, 302, 303, 307, 308, 401, 404, 410, 499, 500, 503, 504, 599] {
            check("GET", &format!("{status} | cache-control: max-age=60"), None);
            check("GET", &format!("{status} | expires: {{60}} | date: {{0}}"), None);
        }
        for status in [407, 412, 416, 417] {
            check("GET", &format!("{status} | cache-control: max-age=60"), Some(NotStored::Precondition));
        }
        for status in [100, 103, 304, 400, 408, 413, 414, 425, 428, 429, 431, 511] {
            check("GET", &format!("{status} | cache-control: max-age=60"), Some(NotStored::StatusNotCacheable));
        }
    }

    #[test]
    fn what_one_origin_may_read_is_for_that_one() {
        let check = |head: &str, expected: &str| {
            let selecting = drafted(&Rules::default(), "GET", &format!("200 | {head}")).response.selecting;
            let names = match selecting {
                SelectingFields::Any => "*".to_owned(),
                SelectingFields::Names(names) => names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(" "),
            };
            assert_eq!(names, expected, "{head}");
        };
        check("vary: b, x", "b x");
        check("vary: b, x | access-control-allow-origin: *", "b x");
        check("vary: b, x | access-control-allow-origin: https://a.test", "b origin x");
        check("vary: origin | access-control-allow-origin: null", "origin");
        check("vary: * | access-control-allow-origin: https://a.test", "*");
    }

    #[test]
    fn without_a_lifetime_only_what_can_be_validated_is_stored_and_no_error() {
        check("GET", "200", Some(NotStored::NoFreshness));
        check("GET", "200 | cache-control: public", Some(NotStored::NoFreshness));
        check("GET", "200 | etag: \"a\"", None);
        check("GET", "200 | last-modified: {-60}", None);
        check("GET", "301 | etag: \"a\"", None);
        check("GET", "302 | etag: \"a\"", Some(NotStored::StatusNotCacheable));
        check("GET", "302 | etag: \"a\" | cache-control: public", None);
        check("GET", "404 | etag: \"a\"", Some(NotStored::NoFreshness));
        check("GET", "500 | etag: \"a\"", Some(NotStored::StatusNotCacheable));
        check("POST", "200 | etag: \"a\"", Some(NotStored::NoFreshness));
        check("QUERY", "200 | etag: \"a\"", None);
    }

    #[test]
    fn what_is_stale_from_the_start_is_stored_when_it_has_a_use() {
        let check = |head: &str, expected| check("GET", &format!("200 | {head}"), expected);
        check("cache-control: max-age=0", Some(NotStored::NoFreshness));
        check("cache-control: max-age=60 | age: 60", Some(NotStored::NoFreshness));
        check("cache-control: max-age=60 | age: 59", None);
        check("cache-control: max-age=0 | etag: \"a\"", None);
        check("cache-control: no-cache, max-age=60", Some(NotStored::NoFreshness));
        check("cache-control: no-cache | etag: \"a\"", None);
        check("cache-control: max-age=0, stale-while-revalidate=9", None);
        check("cache-control: max-age=0, stale-if-error=9", None);
        check("cache-control: max-age=0, stale-if-error=9, must-revalidate", Some(NotStored::NoFreshness));
        check("cache-control: stale-if-error=9", Some(NotStored::NoFreshness));
        check("cache-control: max-age=1, stale-if-error=9 | age: 10", Some(NotStored::NoFreshness));
        check("expires: 0 | date: {0}", Some(NotStored::NoFreshness));
    }

    #[test]
    fn fields_of_the_connection_the_proxy_and_the_framing_are_not_stored() {
        let answered = "200 | cache-control: max-age=60 | date: {0} | connection: a, close | a: 1 | b: 2 \
             | keep-alive: x | proxy-authenticate: x | proxy-authentication-info: x | proxy-authorization: x \
             | proxy-connection: x | te: x | trailer: x | transfer-encoding: chunked | upgrade: x | content-length: 4";
        let kept = "b: 2 | cache-control: max-age=60 | date: Thu, 01 Jan 2026 00:00:00 GMT";
        assert_eq!(text(&drafted(&Rules::default(), "GET", answered).response.fields.to_map()), kept);
    }

    #[test]
    fn named_fields_of_no_cache_and_private_are_not_stored() {
        let answered = "200 | cache-control: max-age=60, no-cache=\"a\", private=\"b\" | a: 1 | b: 2 | c: 3";
        let mut stored = drafted(&Rules::default(), "GET", answered).response.fields.to_map();
        assert!(stored.remove("cache-control").is_some() && stored.remove(DATE).is_some());
        assert_eq!(stored, fields("c: 3"));
    }

    #[test]
    fn a_missing_or_invalid_date_becomes_the_time_of_reception() {
        let check = |answered: &str, expected: &str| {
            assert_eq!(drafted(&Rules::default(), "GET", answered).response.fields.to_map()[DATE], expected);
        };
        check("200", "Thu, 01 Jan 2026 00:00:00 GMT");
        check("200 | date: foo", "Thu, 01 Jan 2026 00:00:00 GMT");
        check("200 | date: {-1}", "Wed, 31 Dec 2025 23:59:59 GMT");
        // One that is not to be stored is as good as none.
        check("200 | date: {-1} | connection: date", "Thu, 01 Jan 2026 00:00:00 GMT");
        check("200 | date: {-1} | cache-control: no-cache=date", "Thu, 01 Jan 2026 00:00:00 GMT");
    }
}
