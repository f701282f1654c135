//! What becomes of a response from the upstream (RFC 9111 §3, §4.3.3 to §4.3.5).

use std::sync::Arc;

use http::header::{
    AGE, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, RANGE, SET_COOKIE,
};
use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::lifetime::{self, Directives, Received};
use super::reuse::usable_on_error;
use super::validate::Conditional;
use super::{Rules, SetCookie};
use crate::clock::Timestamp;
use crate::fields::cache_control::{CacheControl, Qualified};
use crate::fields::range::ContentRange;
use crate::fields::validators::{EntityTag, Validators};
use crate::fields::vary::SelectingFields;
use crate::fields::{date, hop_by_hop};
use crate::stored::{Provenance, StaleUse, StoredResponse};

/// A request sent to the upstream and the head that came back.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The client's request (its own conditions and range, not those sent to the upstream).
    pub request: &'a RequestParts,
    /// How the upstream was asked.
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
    /// A part that completes the stored part: the two combined, once the body is there (RFC 9111 §3.4).
    Combine(Box<StoredResponse>),
    /// The upstream failed (5xx) and the stored response may be used (stale-if-error).
    UseStale(Arc<StoredResponse>),
    /// A 304 or 206 that does not fit what is stored: ask again without conditions.
    Refetch,
    /// Pass it on and do not store it.
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
    NoFreshness,
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
    pub const ALL: [Self; 18] = [
        Self::RequestMethod,
        Self::RequestNoStore,
        Self::ResponseNoStore,
        Self::Private,
        Self::Authorization,
        Self::SetCookie,
        Self::VaryAny,
        Self::StatusNotCacheable,
        Self::NoFreshness,
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
            Self::NoFreshness => "no-freshness",
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

    /// Whether it tells of the resource, so that hit-for-miss is set; a client's own `no-store` and
    /// trouble in transit do not.
    pub const fn is_of_resource(self) -> bool {
        !matches!(self, Self::RequestMethod | Self::RequestNoStore | Self::Truncated | Self::FillingLimit)
    }
}

/// Fields that describe the stored content, and so outlive a 304 (RFC 9111 §3.2; the entity tag chose the response).
const KEPT_OVER_304: [HeaderName; 5] =
    [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName::from_static("content-md5")];

impl Exchange<'_> {
    const fn received<'a>(&self, fields: &'a HeaderMap) -> Received<'a> {
        Received {
            status: self.response.status,
            fields,
            request_time: self.request_time,
            response_time: self.response_time,
            jitter: self.jitter,
        }
    }
}

/// Settles a response against what was stored.
pub fn settle(exchange: &Exchange<'_>, stored: Option<&Arc<StoredResponse>>, rules: &Rules) -> Settlement {
    let status = exchange.response.status;
    if status == StatusCode::NOT_MODIFIED {
        return match stored.filter(|stored| is_selected(exchange, stored)) {
            Some(stored) => Settlement::Freshen(Arc::new(freshened(exchange, stored, rules))),
            None => Settlement::Refetch,
        };
    }
    if let Some(stored) = stored.filter(|_| is_failure(status))
        && usable_on_error(exchange.request, stored, exchange.response_time)
    {
        return Settlement::UseStale(Arc::clone(stored));
    }
    if exchange.conditional == Conditional::Completing && status != StatusCode::OK {
        return completed(exchange, rules);
    }
    match why_not(exchange, rules) {
        Some(reason) => Settlement::Pass(reason),
        None => Settlement::Store(Box::new(received_response(exchange, rules))),
    }
}

/// A stored GET response updated by a HEAD answer, or nothing when the answer shows it outdated (RFC 9111 §4.3.5):
/// then it is to be invalidated.
pub fn updated_by_head(exchange: &Exchange<'_>, stored: &StoredResponse, rules: &Rules) -> Option<StoredResponse> {
    let fields = &exchange.response.headers;
    let (new, old) = (Validators::of(fields), Validators::of(&stored.fields));
    let same_tag = new.etag.is_none() || new.etag == old.etag;
    let same_date = new.last_modified.is_none() || new.last_modified == old.last_modified;
    let length = fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let same_length = length.is_none_or(|length| length == stored.body.len() as u64);
    (same_tag && same_date && same_length).then(|| freshened(exchange, stored, rules))
}

/// RFC 5861 §4.
const fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether a 304 speaks of the stored response: its strong validator is the same, or it has none (RFC 9111 §4.3.4).
fn is_selected(exchange: &Exchange<'_>, stored: &StoredResponse) -> bool {
    if exchange.conditional != Conditional::Validating {
        return false;
    }
    match (EntityTag::of(&exchange.response.headers), EntityTag::of(&stored.fields)) {
        (Some(new), Some(old)) if new.is_strong() => new.matches_strongly(&old),
        (Some(new), Some(old)) => new.matches_weakly(&old),
        (Some(new), None) => !new.is_strong(),
        (None, _) => true,
    }
}

/// The stored response with the fields, times and freshness of the answer that confirms it (RFC 9111 §3.2, §4.3.4).
fn freshened(exchange: &Exchange<'_>, stored: &StoredResponse, rules: &Rules) -> StoredResponse {
    let mut news = storable_fields(exchange, rules);
    for name in &KEPT_OVER_304 {
        news.remove(name);
    }
    if rules.set_cookie != SetCookie::Store {
        news.remove(SET_COOKIE);
    }
    let mut fields = stored.fields.clone();
    for name in news.keys() {
        fields.remove(name);
    }
    for (name, value) in &news {
        fields.append(name, value.clone());
    }
    // Age is the answer's own; what was stored never has one.
    let mut judged = fields.clone();
    judged.remove(AGE);
    judged.extend(exchange.response.headers.get(AGE).map(|age| (AGE, age.clone())));
    let directives = Directives::of(&judged, rules);
    let received = Received { status: stored.status, ..exchange.received(&judged) };
    let mut freshness = lifetime::freshness(&received, &directives, rules);
    if directives.cache_control.no_store || directives.cache_control.private == Qualified::Whole {
        freshness.stale_use = StaleUse::AlwaysValidate;
    }
    StoredResponse {
        fields,
        freshness,
        request_time: exchange.request_time,
        response_time: exchange.response_time,
        ..stored.clone()
    }
}

/// The answer to a request for the rest of a stored part.
fn completed(exchange: &Exchange<'_>, rules: &Rules) -> Settlement {
    let is_part = exchange.response.status == StatusCode::PARTIAL_CONTENT;
    let part = ContentRange::of(&exchange.response.headers).filter(|_| is_part);
    match part {
        Some(_) => Settlement::Combine(Box::new(received_response(exchange, rules))),
        None => Settlement::Refetch,
    }
}

/// The response as it is to be stored: fields cleaned, freshness decided, without body and provenance.
fn received_response(exchange: &Exchange<'_>, rules: &Rules) -> StoredResponse {
    let received = exchange.received(&exchange.response.headers);
    let directives = Directives::of(received.fields, rules);
    let status = exchange.response.status;
    let is_part = status == StatusCode::PARTIAL_CONTENT;
    let part = ContentRange::of(received.fields).filter(|_| is_part);
    StoredResponse {
        status,
        fields: storable_fields(exchange, rules),
        request_time: exchange.request_time,
        response_time: exchange.response_time,
        freshness: lifetime::freshness(&received, &directives, rules),
        selecting: SelectingFields::of(received.fields),
        part,
        provenance: Provenance::default(),
        body: bytes::Bytes::new(),
    }
}

/// The fields without those of the connection, `Age`, and what `no-cache`, `private` and the route keep out.
fn storable_fields(exchange: &Exchange<'_>, rules: &Rules) -> HeaderMap {
    let mut fields = exchange.response.headers.clone();
    let directives = Directives::of(&fields, rules).cache_control;
    hop_by_hop::remove(&mut fields);
    fields.remove(AGE);
    if rules.set_cookie == SetCookie::Strip {
        fields.remove(SET_COOKIE);
    }
    for qualified in [directives.no_cache, directives.private] {
        if let Qualified::Fields(names) = qualified {
            for name in names {
                fields.remove(name);
            }
        }
    }
    // RFC 9110 §6.6.1: a recipient that caches a response without Date adds it.
    if date::date(&fields).is_none() {
        fields.insert(DATE, date::format(exchange.response_time));
    }
    fields
}

/// Why the response is not stored (RFC 9111 §3); none: it is.
fn why_not(exchange: &Exchange<'_>, rules: &Rules) -> Option<NotStored> {
    let directives = Directives::of(&exchange.response.headers, rules);
    forbidden(exchange, &directives.cache_control, rules)
        .or_else(|| not_whole(exchange))
        .or_else(|| not_worth(exchange, &directives, rules))
}

/// What request and response forbid, field by field of RFC 9111 §3.
fn forbidden(exchange: &Exchange<'_>, directives: &CacheControl, rules: &Rules) -> Option<NotStored> {
    let (request, response) = (exchange.request, exchange.response);
    if request.method == Method::HEAD {
        return Some(NotStored::RequestMethod);
    }
    // RFC 9111 §5.2.1.5.
    if CacheControl::of_request(&request.headers).no_store {
        return Some(NotStored::RequestNoStore);
    }
    // RFC 9111 §5.2.2.3: understood, must-understand takes the place of no-store.
    if directives.must_understand && !is_understood(response.status) {
        return Some(NotStored::NotUnderstood);
    }
    if directives.no_store && !directives.must_understand {
        return Some(NotStored::ResponseNoStore);
    }
    if directives.private == Qualified::Whole {
        return Some(NotStored::Private);
    }
    // RFC 9111 §3.5.
    let is_shared = directives.public || directives.s_maxage.is_some() || directives.must_revalidate;
    if request.headers.contains_key(AUTHORIZATION) && !rules.authorization_keyed && !is_shared {
        return Some(NotStored::Authorization);
    }
    if rules.set_cookie == SetCookie::Bypass && response.headers.contains_key(SET_COOKIE) {
        return Some(NotStored::SetCookie);
    }
    (SelectingFields::of(&response.headers) == SelectingFields::Any).then_some(NotStored::VaryAny)
}

/// What could be incomplete, or is not what was asked for.
fn not_whole(exchange: &Exchange<'_>) -> Option<NotStored> {
    let status = exchange.response.status;
    if exchange.framing == Framing::Close && !has_no_content(status) {
        return Some(NotStored::CloseDelimited);
    }
    // These speak of this request's conditions and range alone.
    if status.is_informational() || matches!(status.as_u16(), 412 | 416 | 417) {
        return Some(NotStored::StatusNotCacheable);
    }
    if status != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    if !exchange.request.headers.contains_key(RANGE) {
        return Some(NotStored::Unsolicited);
    }
    let length = ContentRange::of(&exchange.response.headers).map(ContentRange::length);
    // A part whose length is not that of its Content-Range cannot be trusted to be either (RFC 9110 §14.4).
    let is_consistent = length.is_some_and(|length| exchange.framing == Framing::Length(length));
    (!is_consistent).then_some(NotStored::Partial)
}

/// What could never be used: neither fresh, nor usable stale, nor to be validated.
fn not_worth(exchange: &Exchange<'_>, directives: &Directives, rules: &Rules) -> Option<NotStored> {
    let received = exchange.received(&exchange.response.headers);
    let lifetime = lifetime::lifetime(&received, directives, rules);
    let status = exchange.response.status;
    if lifetime.is_none() && !lifetime::is_heuristically_cacheable(status) && !directives.cache_control.public {
        return Some(NotStored::StatusNotCacheable);
    }
    let can_be_validated = !Validators::of(received.fields).is_empty();
    let freshness = lifetime::freshness(&received, directives, rules);
    let is_fresh = freshness.lifetime > freshness.initial_age;
    let is_usable = match freshness.stale_use {
        StaleUse::AlwaysValidate => false,
        StaleUse::Never => is_fresh,
        StaleUse::Within { while_revalidate, .. } => {
            is_fresh || lifetime.is_some() && freshness.initial_age < freshness.lifetime + while_revalidate
        }
    };
    (!is_usable && !can_be_validated).then_some(NotStored::NoFreshness)
}

/// Responses that end with their head (RFC 9112 §6.3).
const fn has_no_content(status: StatusCode) -> bool {
    matches!(status.as_u16(), 204 | 304)
}

/// The statuses whose caching this cache understands (RFC 9111 §5.2.2.3).
const fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203
            | 204
            | 206
            | 300
            | 301
            | 302
            | 303
            | 307
            | 308
            | 400
            | 401
            | 403
            | 404
            | 405
            | 410
            | 414
            | 500
            | 501
            | 502
            | 503
            | 504
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{NOW, fields, request, stored_with};
    use std::time::Duration;

    struct Case<'a> {
        request: &'a [(&'static str, &'a str)],
        status: u16,
        response: &'a [(&'static str, &'a str)],
        framing: Framing,
        conditional: Conditional,
    }

    const PLAIN: Case<'_> = Case {
        request: &[],
        status: 200,
        response: &[("cache-control", "max-age=60")],
        framing: Framing::Length(10),
        conditional: Conditional::Plain,
    };

    fn settled(case: &Case<'_>, stored: Option<StoredResponse>, rules: &Rules) -> Settlement {
        let request = request("GET", case.request);
        let mut response = http::Response::new(()).into_parts().0;
        response.status = StatusCode::from_u16(case.status).unwrap();
        response.headers = fields(case.response);
        let exchange = Exchange {
            request: &request,
            conditional: case.conditional,
            response: &response,
            request_time: NOW,
            response_time: NOW,
            framing: case.framing,
            jitter: 0.0,
        };
        settle(&exchange, stored.map(Arc::new).as_ref(), rules)
    }

    fn check_with(rules: &Rules, case: &Case<'_>, expected: Option<NotStored>) {
        let found = match settled(case, None, rules) {
            Settlement::Store(_) => None,
            Settlement::Pass(reason) => Some(reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{:?} -> {} {:?}", case.request, case.status, case.response);
    }

    fn check(case: &Case<'_>, expected: Option<NotStored>) {
        check_with(&Rules::default(), case, expected);
    }

    #[test]
    fn what_the_response_forbids_is_not_stored() {
        let response = |value| Case { response: &[], ..PLAIN }.with("cache-control", value);
        check(&response("max-age=60"), None);
        check(&response("max-age=60, no-store"), Some(NotStored::ResponseNoStore));
        check(&response("max-age=60, private"), Some(NotStored::Private));
        check(&response("max-age=60, private=\"x-a\""), None);
        check(&response("max-age=60, no-store, must-understand"), None);
        check(&response("max-age=0"), Some(NotStored::NoFreshness));
        check(&response("max-age=0, stale-while-revalidate=5"), None);
        check(&response("no-cache"), Some(NotStored::NoFreshness));
        check(&response("public"), Some(NotStored::NoFreshness));
    }

    impl<'a> Case<'a> {
        fn with(mut self, name: &'static str, value: &'a str) -> Self {
            self.response = Box::leak(Box::new([(name, value)]));
            self
        }
    }

    #[test]
    fn what_must_be_validated_is_stored_when_it_can_be() {
        check(&Case { response: &[("cache-control", "no-cache"), ("etag", "\"a\"")], ..PLAIN }, None);
        check(&Case { response: &[("cache-control", "max-age=0"), ("etag", "\"a\"")], ..PLAIN }, None);
        check(&Case { response: &[("etag", "\"a\"")], ..PLAIN }, None);
        let found = Case { status: 302, response: &[("etag", "\"a\"")], ..PLAIN };
        check(&found, Some(NotStored::StatusNotCacheable));
    }

    #[test]
    fn any_final_status_with_explicit_freshness_is_stored() {
        for status in [200, 204, 299, 302, 404, 418, 500, 599] {
            check(&Case { status, ..PLAIN }, None);
        }
        check(&Case { status: 404, response: &[], ..PLAIN }, Some(NotStored::NoFreshness));
        check(&Case { status: 500, response: &[], ..PLAIN }, Some(NotStored::StatusNotCacheable));
        check(&Case { status: 416, ..PLAIN }, Some(NotStored::StatusNotCacheable));
    }

    #[test]
    fn credentials_and_cookies_are_kept_apart() {
        let authorization = [("authorization", "x")];
        let with = |response| Case { request: &authorization, response, ..PLAIN };
        check(&with(&[("cache-control", "max-age=60")]), Some(NotStored::Authorization));
        check(&with(&[("cache-control", "max-age=60, public")]), None);
        check(&with(&[("cache-control", "s-maxage=60")]), None);
        check(&with(&[("cache-control", "max-age=60, must-revalidate")]), None);
        let keyed = Rules { authorization_keyed: true, ..Rules::default() };
        check_with(&keyed, &with(&[("cache-control", "max-age=60")]), None);
        let cookie = Case { response: &[("cache-control", "max-age=60"), ("set-cookie", "a=b")], ..PLAIN };
        check(&cookie, Some(NotStored::SetCookie));
        let strip = Rules { set_cookie: SetCookie::Strip, ..Rules::default() };
        let Settlement::Store(stored) = settled(&cookie, None, &strip) else { panic!("stored") };
        assert!(!stored.fields.contains_key(SET_COOKIE));
    }

    #[test]
    fn what_may_be_incomplete_is_not_stored() {
        check(&Case { framing: Framing::Close, ..PLAIN }, Some(NotStored::CloseDelimited));
        let part = [("cache-control", "max-age=60"), ("content-range", "bytes 0-4/10")];
        let range = [("range", "bytes=0-4")];
        let partial = Case { request: &range, status: 206, response: &part, framing: Framing::Length(5), ..PLAIN };
        check(&partial, None);
        check(&Case { framing: Framing::Length(6), ..partial }, Some(NotStored::Partial));
        check(&Case { request: &[], framing: Framing::Length(5), ..partial }, Some(NotStored::Unsolicited));
    }

    #[test]
    fn a_304_freshens_what_it_speaks_of_and_nothing_else() {
        let old = [("etag", "\"a\""), ("x-a", "1"), ("content-length", "10"), ("cache-control", "max-age=1")];
        let stored = || Some(stored_with(&old, &Rules::default()));
        let new = [("etag", "\"a\""), ("x-a", "2"), ("content-length", "99"), ("cache-control", "max-age=60")];
        let case = Case { status: 304, response: &new, conditional: Conditional::Validating, ..PLAIN };
        let Settlement::Freshen(freshened) = settled(&case, stored(), &Rules::default()) else { panic!("freshened") };
        assert_eq!(freshened.freshness.lifetime, Duration::from_secs(60));
        assert_eq!(
            (&freshened.fields["x-a"], &freshened.fields["content-length"]),
            (&"2".parse().unwrap(), &"10".parse().unwrap())
        );
        let other = Case { response: &[("etag", "\"b\"")], ..case };
        assert!(matches!(settled(&other, stored(), &Rules::default()), Settlement::Refetch));
        let plain = Case { conditional: Conditional::Plain, ..PLAIN };
        assert!(matches!(settled(&Case { status: 304, ..plain }, stored(), &Rules::default()), Settlement::Refetch));
    }

    #[test]
    fn a_failure_leaves_what_is_stored_in_use() {
        let stored = || Some(stored_with(&[("cache-control", "max-age=60")], &Rules::default()));
        let case = |status| Case { status, response: &[], ..PLAIN };
        assert!(matches!(settled(&case(503), stored(), &Rules::default()), Settlement::UseStale(_)));
        assert!(matches!(settled(&case(404), stored(), &Rules::default()), Settlement::Pass(_)));
    }

    #[test]
    fn a_head_answer_updates_or_outdates() {
        let stored = stored_with(&[("etag", "\"a\""), ("cache-control", "max-age=1")], &Rules::default());
        let check = |lines: &[(&'static str, &str)], expected: bool| {
            let request = request("HEAD", &[]);
            let mut response = http::Response::new(()).into_parts().0;
            response.headers = fields(lines);
            let exchange = Exchange {
                request: &request,
                conditional: Conditional::Plain,
                response: &response,
                request_time: NOW,
                response_time: NOW,
                framing: Framing::Length(0),
                jitter: 0.0,
            };
            assert_eq!(updated_by_head(&exchange, &stored, &Rules::default()).is_some(), expected, "{lines:?}");
        };
        check(&[("etag", "\"a\""), ("content-length", "10")], true);
        check(&[], true);
        check(&[("etag", "\"b\"")], false);
        check(&[("content-length", "11")], false);
    }
}
