//! Parts of a representation: which ranges a stored response can answer, and how parts combine (RFC 9111 §3.3, §3.4).

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::ranges::{self, Coverage};
use crate::fields::range::ContentRange;
use crate::fields::validators::EntityTag;
use crate::stored::StoredResponse;

/// Whether the stored response holds all that the request asks for: a whole always, a part only where every range lies
/// within it.
pub fn covers(method: &Method, fields: &HeaderMap, stored: &StoredResponse) -> bool {
    ranges::coverage(method, fields, stored) != Coverage::Outside
}

/// Whether a request for the rest can be combined with the stored part: it is the beginning, its whole length is known,
/// and it has a strong validator (RFC 9110 §15.3.7.3).
pub fn is_completable(stored: &StoredResponse) -> bool {
    let is_beginning = stored.part.is_some_and(|part| part.first == 0 && part.complete.is_some());
    is_beginning && strong_tag(stored).is_some()
}

/// Two parts of one representation as one stored response, `new` having its body: they overlap or touch and share
/// a strong validator (RFC 9111 §3.4). The fields are the newer ones. None: they cannot be combined.
pub fn combine(stored: &StoredResponse, new: &StoredResponse) -> Option<StoredResponse> {
    let (old, rest) = (stored.part?, new.part?);
    let complete = rest.complete.or(old.complete)?;
    let same = strong_tag(stored)?.matches_strongly(&strong_tag(new)?) && old.complete == Some(complete);
    let adjoins = old.first <= rest.first && rest.first <= old.last + 1 && rest.last >= old.last;
    if !same || !adjoins || new.body.len() as u64 != rest.length() {
        return None;
    }
    let kept = usize::try_from(rest.first - old.first).ok()?;
    let body: Bytes = [stored.body.get(..kept)?, &new.body].concat().into();
    let mut combined = StoredResponse { body, ..new.clone() };
    let whole = ContentRange { first: old.first, last: rest.last, complete: Some(complete) };
    combined.fields.remove(CONTENT_RANGE);
    combined.fields.insert(CONTENT_LENGTH, HeaderValue::from(whole.length()));
    combined.part = None;
    combined.status = StatusCode::OK;
    if whole.length() != complete {
        combined.part = Some(whole);
        combined.status = StatusCode::PARTIAL_CONTENT;
        combined.fields.insert(CONTENT_RANGE, whole.to_value());
    }
    Some(combined)
}

fn strong_tag(stored: &StoredResponse) -> Option<EntityTag> {
    EntityTag::of(&stored.fields).filter(EntityTag::is_strong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rules;
    use crate::policy::tests::{request, stored_with};

    fn part(first: u64, tag: &str, body: &'static str) -> StoredResponse {
        let last = first + body.len() as u64 - 1;
        let range = format!("bytes {first}-{last}/10");
        let mut stored = stored_with(&[("etag", tag), ("content-range", &range)], &Rules::default());
        stored.status = StatusCode::PARTIAL_CONTENT;
        stored.part = ContentRange::of(&stored.fields);
        stored.body = Bytes::from_static(body.as_bytes());
        stored
    }

    #[test]
    fn a_part_covers_the_ranges_within_it() {
        let check = |range: Option<&str>, expected: bool| {
            let lines: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
            assert_eq!(
                covers(&Method::GET, &request("GET", &lines).headers, &part(2, "\"a\"", "2345")),
                expected,
                "{range:?}"
            );
        };
        check(Some("bytes=2-5"), true);
        check(Some("bytes=3-4"), true);
        check(Some("bytes=2-2,5-5"), true);
        check(Some("bytes=2-6"), false);
        check(Some("bytes=2-"), false);
        check(Some("bytes=-8"), false);
        check(None, false);
    }

    #[test]
    fn parts_combine_only_with_one_strong_validator_and_without_a_gap() {
        let check = |old: &StoredResponse, new: &StoredResponse, expected: Option<(&str, u16)>| {
            let found = combine(old, new);
            let found = found.as_ref().map(|it| (std::str::from_utf8(&it.body).unwrap(), it.status.as_u16()));
            assert_eq!(found, expected);
        };
        let beginning = part(0, "\"a\"", "01234");
        check(&beginning, &part(5, "\"a\"", "56789"), Some(("0123456789", 200)));
        check(&beginning, &part(3, "\"a\"", "3456789"), Some(("0123456789", 200)));
        check(&beginning, &part(5, "\"a\"", "567"), Some(("01234567", 206)));
        check(&beginning, &part(6, "\"a\"", "6789"), None);
        check(&beginning, &part(5, "\"b\"", "56789"), None);
        check(&part(0, "W/\"a\"", "01234"), &part(5, "W/\"a\"", "56789"), None);
    }
}
