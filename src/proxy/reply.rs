//! The client's answer, made from a stored response: conditions, ranges, `Age` (RFC 9111 §4, RFC 9110 §13, §14).

use std::fmt::Write;

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::clock::Timestamp;
use crate::fields::age::DELTA_SECONDS_MAX;
use crate::fields::range::{ContentRange, unsatisfied};
use crate::fields::validators::{Condition, evaluate};
use crate::fields::{date, has_any};
use crate::policy::ranges::{Coverage, coverage};
use crate::stored::StoredResponse;

/// The content of an answer from the store: slices of what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// None.
    Empty,
    /// All of it in one piece.
    Whole(Bytes),
    /// The pieces of several ranges, in order.
    Parts(Vec<Bytes>),
}

/// Answers a request from a stored response that [`crate::policy::reuse::decide`] found to hold what is asked for.
pub fn from_stored(request: &Parts, stored: &StoredResponse, now: Timestamp) -> (Response<()>, ReplyBody) {
    let age = number(stored.age(now).as_secs().min(DELTA_SECONDS_MAX));
    let mut fields = stored.fields.to_map();
    // RFC 9110 §13.2.2: If-None-Match and If-Modified-Since come before Range.
    if is_not_modified(request, stored.status, &fields, stored.response_time) {
        let mut fields = not_modified_fields(fields);
        fields.insert(AGE, age);
        return (head(StatusCode::NOT_MODIFIED, fields), ReplyBody::Empty);
    }
    let covered = coverage(&request.method, &request.headers, stored);
    if let Coverage::Unsatisfiable(complete) = covered {
        return unsatisfiable(stored, complete);
    }
    fields.insert(AGE, age);
    match covered {
        Coverage::Ranges(ranges) if ranges.len() > 1 => multipart(&ranges, fields, stored),
        Coverage::Ranges(ranges) => single(ranges.first().copied().unwrap_or_default(), fields, stored),
        Coverage::Whole | Coverage::Outside | Coverage::Unsatisfiable(_) => whole(request, fields, stored),
    }
}

/// The 304 in place of a 200 that has just come from the upstream, where the client's own condition, which was not sent
/// on, makes it one. `received` is when the 200 came.
pub fn not_modified(request: &Parts, response: &http::response::Parts, received: Timestamp) -> Option<Response<()>> {
    is_not_modified(request, response.status, &response.headers, received)
        .then(|| head(StatusCode::NOT_MODIFIED, not_modified_fields(response.headers.clone())))
}

/// RFC 9111 §4.3.2: conditions are evaluated against stored 200 and 206 responses.
fn is_not_modified(request: &Parts, status: StatusCode, fields: &HeaderMap, received: Timestamp) -> bool {
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    let is_representation = matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_read || !is_representation || !has_any(&request.headers, &[IF_NONE_MATCH, IF_MODIFIED_SINCE]) {
        return false;
    }
    let date = fields.get(DATE).and_then(date::parse).unwrap_or(received);
    evaluate(&request.headers, fields, date) == Condition::NotModified
}

/// RFC 9110 §15.4.5: everything but what describes content that is not sent; `Last-Modified` where it is the only
/// validator.
fn not_modified_fields(mut fields: HeaderMap) -> HeaderMap {
    for name in [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE] {
        fields.remove(name);
    }
    if fields.contains_key(ETAG) {
        fields.remove(LAST_MODIFIED);
    }
    fields
}

/// RFC 9110 §15.5.17.
fn unsatisfiable(stored: &StoredResponse, complete: u64) -> (Response<()>, ReplyBody) {
    let mut fields = HeaderMap::new();
    if let Some(date) = stored.fields.get(&DATE) {
        fields.insert(DATE, date.clone());
    }
    fields.insert(CONTENT_RANGE, unsatisfied(complete));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(0));
    (head(StatusCode::RANGE_NOT_SATISFIABLE, fields), ReplyBody::Empty)
}

fn whole(request: &Parts, mut fields: HeaderMap, stored: &StoredResponse) -> (Response<()>, ReplyBody) {
    // A part is never sent as anything but a part (RFC 9111 §3.3).
    if let Some(part) = stored.part {
        fields.insert(CONTENT_RANGE, part.to_value());
    }
    // RFC 9110 §8.6: a 204 has no Content-Length.
    if stored.status != StatusCode::NO_CONTENT {
        fields.insert(CONTENT_LENGTH, number(stored.body.len() as u64));
    }
    let has_content = request.method != Method::HEAD && !stored.body.is_empty();
    let body = if has_content { ReplyBody::Whole(stored.body.clone()) } else { ReplyBody::Empty };
    (head(stored.status, fields), body)
}

/// A number as a field's value: with one allocation, where the conversion that comes with the type has three.
fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number)).unwrap_or_else(|_| HeaderValue::from(number))
}

fn single(range: (u64, u64), mut fields: HeaderMap, stored: &StoredResponse) -> (Response<()>, ReplyBody) {
    let body = slice(stored, range);
    fields.insert(CONTENT_RANGE, content_range(stored, range).to_value());
    fields.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    (head(StatusCode::PARTIAL_CONTENT, fields), ReplyBody::Whole(body))
}

/// RFC 9110 §14.6.
fn multipart(ranges: &[(u64, u64)], mut fields: HeaderMap, stored: &StoredResponse) -> (Response<()>, ReplyBody) {
    let boundary = boundary(stored);
    let content_type = fields.remove(CONTENT_TYPE);
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for (index, range) in ranges.iter().enumerate() {
        let mut delimiter = Vec::with_capacity(160);
        delimiter.extend_from_slice(if index == 0 { b"--" } else { b"\r\n--" });
        delimiter.extend_from_slice(boundary.as_bytes());
        if let Some(value) = &content_type {
            delimiter.extend_from_slice(b"\r\nContent-Type: ");
            delimiter.extend_from_slice(value.as_bytes());
        }
        delimiter.extend_from_slice(b"\r\nContent-Range: ");
        delimiter.extend_from_slice(content_range(stored, *range).to_value().as_bytes());
        delimiter.extend_from_slice(b"\r\n\r\n");
        parts.push(Bytes::from(delimiter));
        parts.push(slice(stored, *range));
    }
    parts.push(Bytes::from(format!("\r\n--{boundary}--\r\n")));
    let length: usize = parts.iter().map(Bytes::len).sum();
    fields.remove(CONTENT_RANGE);
    fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(value) = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}")) {
        fields.insert(CONTENT_TYPE, value);
    }
    (head(StatusCode::PARTIAL_CONTENT, fields), ReplyBody::Parts(parts))
}

/// A text that whoever made the content could not foresee: a digest over when it came, and over the content's end.
fn boundary(stored: &StoredResponse) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stored.request_time.as_millis().to_le_bytes());
    hasher.update(&stored.response_time.as_millis().to_le_bytes());
    hasher.update(&stored.body[stored.body.len().saturating_sub(1024)..]);
    let mut text = String::with_capacity(32);
    for byte in &hasher.finalize().as_bytes()[..16] {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn content_range(stored: &StoredResponse, (first, last): (u64, u64)) -> ContentRange {
    let complete = stored.part.map_or(Some(stored.body.len() as u64), |part| part.complete);
    ContentRange { first, last, complete }
}

/// The bytes of the representation `first..=last`, which the stored response holds.
fn slice(stored: &StoredResponse, (first, last): (u64, u64)) -> Bytes {
    let offset = stored.part.map_or(0, |part| part.first);
    let length = stored.body.len();
    let start = usize::try_from(first.saturating_sub(offset)).unwrap_or(length).min(length);
    let end = usize::try_from(last.saturating_sub(offset).saturating_add(1)).unwrap_or(length).min(length);
    stored.body.slice(start..end.max(start))
}

fn head(status: StatusCode, fields: HeaderMap) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields;
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{at, request, response, stored, text};

    /// Status, the fields named, and content.
    fn check(stored_as: &str, body: &'static str, asked: &str, expected: (u16, &str, &str)) {
        let (head, content) = from_stored(&request(asked), &stored(stored_as, body), at(3));
        let mut fields = head.headers().clone();
        fields.remove(DATE);
        let content = match content {
            ReplyBody::Empty => Vec::new(),
            ReplyBody::Whole(bytes) => bytes.to_vec(),
            ReplyBody::Parts(parts) => parts.concat(),
        };
        let seen = (head.status().as_u16(), text(&fields), String::from_utf8(content).unwrap());
        assert_eq!(seen, (expected.0, expected.1.to_owned(), expected.2.to_owned()), "{stored_as}: {asked}");
    }

    #[test]
    fn the_whole_is_answered_with_its_age_and_length() {
        check("200 | a: 1", "body", "GET", (200, "a: 1 | age: 3 | content-length: 4", "body"));
        check("200 | age: 30", "body", "GET", (200, "age: 33 | content-length: 4", "body"));
        check("200", "", "GET", (200, "age: 3 | content-length: 0", ""));
        check("200 | a: 1", "body", "HEAD", (200, "a: 1 | age: 3 | content-length: 4", ""));
        check("204", "", "GET", (204, "age: 3", ""));
        check("404", "gone", "GET", (404, "age: 3 | content-length: 4", "gone"));
    }

    #[test]
    fn date_stays_that_of_the_response() {
        let (head, _) = from_stored(&request("GET"), &stored("200 | date: {-5}", "body"), at(100));
        assert_eq!(head.headers()[DATE], "Wed, 31 Dec 2025 23:59:55 GMT");
    }

    #[test]
    fn a_condition_that_holds_is_answered_with_304() {
        let stored_as = "200 | etag: \"a\" | cache-control: max-age=9 | vary: x | content-type: a/b | expires: x \
             | content-location: /c | content-encoding: gzip | content-language: de | last-modified: {-9}";
        let fields = "age: 3 | cache-control: max-age=9 | content-location: /c | etag: \"a\" | expires: x | vary: x";
        let not_modified = |asked| check(stored_as, "body", asked, (304, fields, ""));
        not_modified("GET | if-none-match: \"a\"");
        not_modified("HEAD | if-none-match: \"a\"");
        not_modified("GET | if-none-match: \"x\", W/\"a\"");
        not_modified("GET | if-none-match: *");
        not_modified("GET | if-modified-since: {-9}");
        not_modified("GET | if-modified-since: {0}");
        not_modified("GET | if-none-match: \"a\" | if-modified-since: {-99}");
        not_modified("GET | if-none-match: \"a\" | range: bytes=0-1");
    }

    #[test]
    fn a_304_keeps_last_modified_where_it_is_the_only_validator() {
        let date = "age: 3 | last-modified: Wed, 31 Dec 2025 23:59:51 GMT";
        check("200 | last-modified: {-9}", "body", "GET | if-modified-since: {-9}", (304, date, ""));
        // RFC 9111 §4.3.2: without Last-Modified, Date counts.
        check("200 | date: {0}", "body", "GET | if-modified-since: {0}", (304, "age: 3", ""));
    }

    #[test]
    fn a_condition_that_fails_gets_the_whole() {
        let whole = |stored_as, asked, fields| check(stored_as, "body", asked, (200, fields, "body"));
        let tagged = "age: 3 | content-length: 4 | etag: \"a\"";
        whole("200 | etag: \"a\"", "GET | if-none-match: \"b\"", tagged);
        whole("200 | etag: \"a\"", "GET | if-none-match: \"b\" | if-modified-since: {9}", tagged);
        whole("200 | etag: \"a\"", "GET | if-match: \"b\"", tagged);
        whole("200 | date: {0}", "GET | if-modified-since: {-1}", "age: 3 | content-length: 4");
        whole("200 | etag: \"a\"", "POST | if-none-match: \"a\"", tagged);
        check("404 | etag: \"a\"", "gone", "GET | if-none-match: \"a\"", (404, tagged, "gone"));
    }

    #[test]
    fn one_range_is_answered_with_its_bytes() {
        let ten = |asked, content_range: &str, body: &str| {
            let fields = format!("age: 3 | content-length: {} | content-range: bytes {content_range}", body.len());
            check("200", "0123456789", asked, (206, &fields, body));
        };
        ten("GET | range: bytes=0-1", "0-1/10", "01");
        ten("GET | range: bytes=1-", "1-9/10", "123456789");
        ten("GET | range: bytes=-1", "9-9/10", "9");
        ten("GET | range: bytes=0-", "0-9/10", "0123456789");
        ten("GET | range: bytes=0-4,3-6", "0-6/10", "0123456");
        let whole = (200, "age: 3 | content-length: 10", "0123456789");
        check("200", "0123456789", "GET | range: bytes=0-1 | if-range: \"x\"", whole);
        check("200", "0123456789", "HEAD | range: bytes=0-1", (200, "age: 3 | content-length: 10", ""));
    }

    #[test]
    fn a_stored_part_is_answered_as_a_part() {
        let part = "206 | content-range: bytes 4-7/10";
        let fields = "age: 3 | content-length: 2 | content-range: bytes 5-6/10";
        check(part, "4567", "GET | range: bytes=5-6", (206, fields, "56"));
        let fields = "age: 3 | content-length: 2 | content-range: bytes 5-6/*";
        check("206 | content-range: bytes 4-7/*", "4567", "GET | range: bytes=5-6", (206, fields, "56"));
    }

    #[test]
    fn a_range_beyond_the_end_is_not_satisfiable() {
        let fields = "content-length: 0 | content-range: bytes */10";
        check("200 | a: 1", "0123456789", "GET | range: bytes=10-", (416, fields, ""));
    }

    #[test]
    fn several_ranges_are_answered_as_multipart() {
        let stored = stored("200 | content-type: a/b", "0123456789");
        let (head, content) = from_stored(&request("GET | range: bytes=8-9,0-1"), &stored, at(3));
        let ReplyBody::Parts(parts) = content else { panic!("{content:?}") };
        let content = String::from_utf8(parts.concat()).unwrap();
        let content_type = head.headers()[CONTENT_TYPE].to_str().unwrap();
        let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let expected = format!(
            "--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n--{boundary}--\r\n"
        );
        assert_eq!(content, expected);
        assert_eq!(head.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(head.headers()[CONTENT_LENGTH], content.len().to_string());
        assert!(!head.headers().contains_key(CONTENT_RANGE));
    }

    #[test]
    fn ranges_are_slices_of_what_is_stored() {
        let stored = stored("200", "0123456789");
        let (_, content) = from_stored(&request("GET | range: bytes=2-4"), &stored, at(3));
        let ReplyBody::Whole(bytes) = content else { panic!("{content:?}") };
        assert_eq!(bytes.as_ptr(), stored.body[2..].as_ptr());
    }

    #[test]
    fn a_200_just_received_becomes_a_304_for_who_has_it() {
        let check = |asked: &str, answered: &str, expected: Option<&str>| {
            let head = not_modified(&request(asked), &response(answered), at(0));
            let head = head.map(|head| (head.status().as_u16(), text(head.headers())));
            assert_eq!(head, expected.map(|fields| (304, fields.to_owned())), "{asked}: {answered}");
        };
        check("GET | if-none-match: \"a\"", "200 | etag: \"a\" | content-type: a/b", Some("etag: \"a\""));
        check("GET | if-none-match: \"b\"", "200 | etag: \"a\"", None);
        check("GET", "200 | etag: \"a\"", None);
        check("GET | if-none-match: \"a\"", "404 | etag: \"a\"", None);
        check("PUT | if-none-match: \"a\"", "200 | etag: \"a\"", None);
    }
}
