//! Stored responses updated by a 304 or by the answer to a HEAD (RFC 9111 §4.3.4, §4.3.5).

use http::header::{AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::Rules;
use super::settle::Exchange;
use super::storable::{Draft, draft};
use crate::clock::Timestamp;
use crate::fields::validators::Validators;
use crate::fields::{date, hop_by_hop};
use crate::stored::StoredResponse;

/// What the answer to a HEAD means for the stored GET response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadUpdate {
    /// It is still the same: these are its new fields and freshness.
    Updated(Box<StoredResponse>),
    /// It has changed: to be invalidated.
    Outdated,
    /// Nothing.
    Unrelated,
}

/// Whether a 304 says that `stored` still holds (RFC 9111 §4.3.4). Its validators are those that were sent.
///
/// Two deviations, both because we name one stored response alone, so that a 304 can mean no other: a 304 without
/// validators selects it; and a strong tag selects a stored weak one of the same text, for nginx weakens the tags of
/// what it compresses, but not those of its 304s.
pub fn is_selected(stored: &StoredResponse, response: &HeaderMap) -> bool {
    let ours = Validators::of(&stored.fields.to_map());
    let theirs = Validators::of(response);
    match (&theirs.etag, &ours.etag) {
        (Some(theirs), Some(ours)) if theirs.is_strong() && ours.is_strong() => theirs.matches_strongly(ours),
        (Some(theirs), Some(ours)) => theirs.matches_weakly(ours),
        (Some(_), None) => false,
        (None, _) => theirs.last_modified.is_none() || theirs.last_modified == ours.last_modified,
    }
}

/// The stored response with the fields, times and freshness that the answer gives it.
pub fn freshened(exchange: &Exchange<'_>, stored: &StoredResponse, rules: &Rules) -> Draft {
    let fields = updated(stored.fields.to_map(), &exchange.response.headers, exchange.response_time);
    let Draft { response, refusal } = draft(exchange, stored.status, &fields, rules);
    let response = StoredResponse {
        part: stored.part,
        provenance: stored.provenance.clone(),
        body: stored.body.clone(),
        ..response
    };
    Draft { response, refusal }
}

/// A stored GET response in the light of a HEAD's answer (RFC 9111 §4.3.5).
pub fn updated_by_head(exchange: &Exchange<'_>, stored: &StoredResponse, rules: &Rules) -> HeadUpdate {
    if exchange.request.method != Method::HEAD || exchange.response.status != StatusCode::OK {
        return HeadUpdate::Unrelated;
    }
    let is_representation = matches!(stored.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_representation || !is_same(stored, &exchange.response.headers) {
        return HeadUpdate::Outdated;
    }
    let Draft { response, refusal } = freshened(exchange, stored, rules);
    refusal.map_or_else(|| HeadUpdate::Updated(Box::new(response)), |_| HeadUpdate::Outdated)
}

/// Every validator received, and the length, are the stored response's.
fn is_same(stored: &StoredResponse, head: &HeaderMap) -> bool {
    let ours = Validators::of(&stored.fields.to_map());
    let theirs = Validators::of(head);
    let same_tag = theirs.etag.is_none() || theirs.etag == ours.etag;
    let same_date = theirs.last_modified.is_none() || theirs.last_modified == ours.last_modified;
    let length = stored.part.map_or(Some(stored.body.len() as u64), |part| part.complete);
    let received = head.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let same_length = received.is_none() || length.is_none() || received == length;
    same_tag && same_date && same_length
}

/// Fields replaced by those received (RFC 9111 §3.2), besides those that the stored content depends on: a 304 does not
/// change its length, coding, digest, range or tag.
fn updated(mut fields: HeaderMap, received: &HeaderMap, received_at: Timestamp) -> HeaderMap {
    const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
    let mut received = received.clone();
    hop_by_hop::remove(&mut received);
    for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_MD5, CONTENT_RANGE, ETAG] {
        received.remove(name);
    }
    // The age received before is not that of what is validated now; nor is the date.
    fields.remove(AGE);
    if received.get(DATE).and_then(date::parse).is_none() {
        received.insert(DATE, date::format(received_at));
    }
    for name in received.keys() {
        fields.remove(name);
    }
    for (name, value) in &received {
        fields.append(name.clone(), value.clone());
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{NOW, at, exchange, request, response, stored, text};
    use crate::policy::validate::Conditional;

    fn freshened_by(stored_as: &str, answered: &str) -> StoredResponse {
        let (request, response) = (request("GET"), response(answered));
        let mut exchange = exchange(&request, &response, Conditional::Validating);
        exchange.request_time = at(100);
        exchange.response_time = at(100);
        freshened(&exchange, &stored(stored_as, "body"), &Rules::default()).response
    }

    #[test]
    fn fields_received_replace_those_stored_but_what_the_content_depends_on() {
        let check = |stored_as: &str, answered: &str, expected: &str| {
            let mut fields = freshened_by(&format!("200 | {stored_as}"), &format!("304 | {answered}")).fields.to_map();
            fields.remove(DATE);
            assert_eq!(text(&fields), expected, "{stored_as}: {answered}");
        };
        check("a: 1 | b: 2", "b: 3 | c: 4", "a: 1 | b: 3 | c: 4");
        check("a: 1 | a: 2", "a: 3", "a: 3");
        check("a: 1", "a: 2 | a: 3", "a: 2 | a: 3");
        check("content-type: a/b", "content-type: c/d", "content-type: c/d");
        check("content-encoding: gzip", "content-encoding: br", "content-encoding: gzip");
        check("content-md5: a", "content-md5: b", "content-md5: a");
        check("content-range: a", "content-range: b", "content-range: a");
        check("etag: \"a\"", "etag: W/\"a\"", "etag: \"a\"");
        check("a: 1", "content-length: 0", "a: 1");
        check("a: 1", "connection: b | b: 2 | keep-alive: x | transfer-encoding: chunked", "a: 1");
        check("vary: a", "vary: b", "vary: b");
    }

    #[test]
    fn its_age_begins_anew() {
        let check = |stored_as: &str, answered: &str, age, lifetime| {
            let stored = freshened_by(&format!("200 | {stored_as}"), &format!("304 | {answered}"));
            let seen = (stored.age(at(100)).as_secs(), stored.freshness.lifetime.as_secs());
            assert_eq!(seen, (age, lifetime), "{stored_as}: {answered}");
        };
        check("cache-control: max-age=9 | date: {0} | age: 500", "etag: \"a\"", 0, 9);
        check("cache-control: max-age=9 | date: {0}", "date: {100} | age: 3", 3, 9);
        check("cache-control: max-age=9", "cache-control: max-age=20", 0, 20);
        check("expires: {9} | date: {0}", "expires: {150} | date: {100}", 0, 50);
        check("expires: {9} | date: {0}", "date: {100}", 0, 0);
    }

    #[test]
    fn its_content_part_and_status_stay() {
        let stored = freshened_by("206 | etag: \"a\" | content-range: bytes 2-5/10", "304 | etag: \"a\"");
        assert_eq!((stored.status, &stored.body[..]), (StatusCode::PARTIAL_CONTENT, &b"body"[..]));
        assert_eq!(stored.part.map(|part| (part.first, part.last)), Some((2, 5)));
        assert_eq!((stored.request_time, stored.response_time), (at(100), at(100)));
    }

    #[test]
    fn a_head_updates_what_is_the_same_and_outdates_what_is_not() {
        let check = |stored_as: &str, answered: &str, expected: &str| {
            let (request, response) = (request("HEAD"), response(answered));
            let exchange = exchange(&request, &response, Conditional::Plain);
            let stored = stored(&format!("200 | v: 1 | {stored_as}"), "body");
            let seen = match updated_by_head(&exchange, &stored, &Rules::default()) {
                HeadUpdate::Updated(updated) => {
                    assert_eq!(updated.body, stored.body);
                    format!("v{} {}", updated.fields.to_map()["v"].to_str().unwrap(), updated.fresh_for(NOW).as_secs())
                }
                HeadUpdate::Outdated => "outdated".into(),
                HeadUpdate::Unrelated => "unrelated".into(),
            };
            assert_eq!(seen, expected, "{stored_as}: {answered}");
        };
        let fresh = "cache-control: max-age=9";
        check(fresh, "200 | cache-control: max-age=60", "v1 60");
        check(fresh, "200 | v: 2 | content-length: 4", "v2 9");
        check(fresh, "200 | content-length: 5", "outdated");
        check(fresh, "200 | etag: \"a\"", "outdated");
        check("cache-control: max-age=9 | etag: \"a\"", "200 | etag: \"a\"", "v1 9");
        check("cache-control: max-age=9 | etag: \"a\"", "200 | etag: \"b\"", "outdated");
        check("cache-control: max-age=9 | last-modified: {-9}", "200 | last-modified: {-8}", "outdated");
        check(fresh, "200 | cache-control: no-store", "outdated");
        check(fresh, "200 | set-cookie: a=b", "outdated");
        for status in [304, 404, 410, 500, 503] {
            check(fresh, &format!("{status} | cache-control: max-age=60"), "unrelated");
        }
    }
}
