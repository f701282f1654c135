//! The client's answer, made from a stored response: conditions, ranges, `Age` (RFC 9111 §4, RFC 9110 §13, §14).

use std::fmt::Write;

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::clock::Timestamp;
use crate::fields::date;
use crate::fields::range::{ContentRange, unsatisfied};
use crate::fields::validators::{Condition, evaluate};
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
    let age = HeaderValue::from(stored.age(now).as_secs());
    // RFC 9110 §13.2.2: If-None-Match and If-Modified-Since come before Range.
    if is_not_modified(request, stored.status, &stored.fields, stored.response_time) {
        let mut fields = not_modified_fields(&stored.fields);
        fields.insert(AGE, age);
        return (head(StatusCode::NOT_MODIFIED, fields), ReplyBody::Empty);
    }
    let covered = coverage(&request.method, &request.headers, stored);
    if let Coverage::Unsatisfiable(complete) = covered {
        return unsatisfiable(stored, complete);
    }
    let mut fields = stored.fields.clone();
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
        .then(|| head(StatusCode::NOT_MODIFIED, not_modified_fields(&response.headers)))
}

/// RFC 9111 §4.3.2: conditions are evaluated against stored 200 and 206 responses.
fn is_not_modified(request: &Parts, status: StatusCode, fields: &HeaderMap, received: Timestamp) -> bool {
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    let is_representation = matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_read || !is_representation {
        return false;
    }
    let date = fields.get(DATE).and_then(date::parse).unwrap_or(received);
    evaluate(&request.headers, fields, date) == Condition::NotModified
}

/// RFC 9110 §15.4.5: everything but what describes content that is not sent; `Last-Modified` where it is the only
/// validator.
fn not_modified_fields(fields: &HeaderMap) -> HeaderMap {
    let mut fields = fields.clone();
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
    if let Some(date) = stored.fields.get(DATE) {
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
        fields.insert(CONTENT_LENGTH, HeaderValue::from(stored.body.len()));
    }
    let has_content = request.method != Method::HEAD && !stored.body.is_empty();
    let body = if has_content { ReplyBody::Whole(stored.body.clone()) } else { ReplyBody::Empty };
    (head(stored.status, fields), body)
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
