//! Messages written as one line of text, for tests: `"200 | cache-control: max-age=60 | date: {-10}"`.

use bytes::Bytes;
use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

use super::Rules;
use super::settle::{Exchange, Framing};
use super::storable::draft;
use super::validate::Conditional;
use crate::clock::Timestamp;
use crate::fields::date;
use crate::stored::StoredResponse;

/// When every test begins: Thu, 01 Jan 2026 00:00:00 GMT.
pub const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

/// `secs` after [`NOW`], or before.
pub fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW.as_secs().checked_add_signed(secs).unwrap())
}

/// A request, its method first.
pub fn request(text: &str) -> RequestParts {
    let (method, fields) = split(text);
    let mut request = Request::builder().method(method).uri("http://origin.test/a").body(()).unwrap();
    *request.headers_mut() = fields;
    request.into_parts().0
}

/// A response, its status first.
pub fn response(text: &str) -> ResponseParts {
    let (status, fields) = split(text);
    let mut response = Response::builder().status(status).body(()).unwrap();
    *response.headers_mut() = fields;
    response.into_parts().0
}

/// Fields; `{n}` as a value is the date `n` seconds from [`NOW`].
pub fn fields(text: &str) -> HeaderMap {
    text.split(" | ").filter(|line| !line.is_empty()).map(field).collect()
}

/// An exchange at [`NOW`] that took no time.
pub fn exchange<'a>(request: &'a RequestParts, response: &'a ResponseParts, conditional: Conditional) -> Exchange<'a> {
    let length = response.headers.get("content-length").map_or(4, |value| value.to_str().unwrap().parse().unwrap());
    Exchange {
        request,
        conditional,
        response,
        request_time: NOW,
        response_time: NOW,
        framing: Framing::Length(length),
        jitter: 0.0,
        is_asked_again: true,
    }
}

/// What is stored of a response to a plain GET at [`NOW`], whether or not it should be.
pub fn stored_by(rules: &Rules, text: &str, body: &'static str) -> StoredResponse {
    let (request, response) = (request("GET"), response(text));
    let exchange = exchange(&request, &response, Conditional::Plain);
    let part = crate::fields::range::ContentRange::of(&response.headers);
    let part = part.filter(|_| response.status == http::StatusCode::PARTIAL_CONTENT);
    let drafted = draft(&exchange, response.status, &response.headers, rules).response;
    StoredResponse { part, body: Bytes::from_static(body.as_bytes()), ..drafted }
}

/// As [`stored_by`] the default rules.
pub fn stored(text: &str, body: &'static str) -> StoredResponse {
    stored_by(&Rules::default(), text, body)
}

/// The fields of a message as one line, sorted.
pub fn text(fields: &HeaderMap) -> String {
    let mut lines: Vec<_> =
        fields.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
    lines.sort();
    lines.join(" | ")
}

fn split(text: &str) -> (&str, HeaderMap) {
    let (first, rest) = text.split_once(" | ").unwrap_or((text, ""));
    (first, fields(rest))
}

fn field(line: &str) -> (HeaderName, HeaderValue) {
    let (name, value) = line.split_once(':').unwrap();
    let value = value.trim();
    let secs = value.strip_prefix('{').and_then(|value| value.strip_suffix('}'));
    let value =
        secs.map_or_else(|| HeaderValue::from_str(value).unwrap(), |secs| date::format(at(secs.parse().unwrap())));
    (name.parse().unwrap(), value)
}
