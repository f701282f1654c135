//! Which responses are refused: their framing could be read in two ways, or their head is beyond all bounds.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode, Version};

/// Bytes of a head, and its fields; hyper's own bounds are wider, and HTTP/2 has none on the number.
const HEAD_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 100;

/// What is wrong with a response's head, where hyper lets it through. `asked_upgrade`: the request had Upgrade.
///
/// RFC 9112 §6.3 would let a recipient prefer Transfer-Encoding to Content-Length. Refusing is stricter: whoever sends
/// both may be splitting responses, and what is stored is seen by many.
pub(super) fn fault<B>(response: &Response<B>, asked_upgrade: bool) -> Option<&'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asked_upgrade {
        return Some("101 (Switching Protocols) to a request without Upgrade");
    }
    // RFC 9110 §15: a status of a class that does not exist is invalid.
    if response.status().as_u16() >= 600 {
        return Some("the status is not one");
    }
    let fields = response.headers();
    if fields.len() > FIELDS_MAX {
        return Some("too many fields");
    }
    if fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() > HEAD_MAX {
        return Some("the head is too large");
    }
    if fields.get_all(CONTENT_LENGTH).iter().count() > 1 || has_odd_length(fields) {
        return Some("Content-Length is not one number");
    }
    if !fields.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    if response.version() != Version::HTTP_11 {
        return Some("Transfer-Encoding outside of HTTP/1.1");
    }
    if fields.contains_key(CONTENT_LENGTH) {
        return Some("both Transfer-Encoding and Content-Length");
    }
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    (!is_chunked || codings.next().is_some()).then_some("Transfer-Encoding is not exactly chunked")
}

fn has_odd_length(fields: &HeaderMap) -> bool {
    fields.get(CONTENT_LENGTH).is_some_and(|value| {
        let digits = value.as_bytes().trim_ascii();
        digits.is_empty() || !digits.iter().all(u8::is_ascii_digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, version: Version, fields: &[(&str, &str)], expected: Option<&str>) {
        let mut response = Response::builder().status(status).version(version);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        assert_eq!(fault(&response.body(()).expect("a response"), false), expected, "{fields:?}");
    }

    #[test]
    fn framing_with_one_reading_passes() {
        check(200, Version::HTTP_11, &[], None);
        check(200, Version::HTTP_11, &[("content-length", "5")], None);
        check(200, Version::HTTP_11, &[("transfer-encoding", "Chunked")], None);
        check(200, Version::HTTP_2, &[("content-length", "0")], None);
    }

    #[test]
    fn framing_with_two_readings_is_refused() {
        let both = [("transfer-encoding", "chunked"), ("content-length", "5")];
        check(200, Version::HTTP_11, &both, Some("both Transfer-Encoding and Content-Length"));
        let not_chunked = Some("Transfer-Encoding is not exactly chunked");
        check(200, Version::HTTP_11, &[("transfer-encoding", "gzip")], not_chunked);
        check(200, Version::HTTP_11, &[("transfer-encoding", "chunked, gzip")], not_chunked);
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        check(200, Version::HTTP_11, &twice, not_chunked);
        let outside = Some("Transfer-Encoding outside of HTTP/1.1");
        check(200, Version::HTTP_10, &[("transfer-encoding", "chunked")], outside);
        let odd = Some("Content-Length is not one number");
        check(200, Version::HTTP_11, &[("content-length", "5, 5")], odd);
        check(200, Version::HTTP_11, &[("content-length", "5"), ("content-length", "5")], odd);
        check(200, Version::HTTP_11, &[("content-length", "+5")], odd);
    }

    #[test]
    fn a_head_beyond_all_bounds_is_refused() {
        check(599, Version::HTTP_11, &[], None);
        check(600, Version::HTTP_11, &[], Some("the status is not one"));
        check(999, Version::HTTP_2, &[], Some("the status is not one"));
        let large = "x".repeat(33 * 1024);
        check(200, Version::HTTP_2, &[("a", &large)], None);
        check(200, Version::HTTP_2, &[("a", &large), ("b", &large)], Some("the head is too large"));
        check(200, Version::HTTP_2, &[("a", "1"); 100], None);
        check(200, Version::HTTP_2, &[("a", "1"); 101], Some("too many fields"));
    }

    #[test]
    fn protocols_are_switched_only_on_request() {
        let response = Response::builder().status(101).body(()).expect("a response");
        assert_eq!(fault(&response, true), None);
        assert_eq!(fault(&response, false), Some("101 (Switching Protocols) to a request without Upgrade"));
    }
}
