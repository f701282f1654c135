//! Parts of a representation: which are stored, which are combined (RFC 9111 §3.3, §3.4).

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_RANGE, CONTENT_TYPE};

use super::settle::{Exchange, Framing};
use crate::fields::range::ContentRange;
use crate::fields::validators::EntityTag;
use crate::stored::StoredResponse;

/// The part that a 206 holds; none when it holds several, does not say, or its length is not the one it says
/// (RFC 9110 §14.4: what does not fit its `Content-Range` must not be put in its place).
pub fn of_exchange(exchange: &Exchange<'_>) -> Option<ContentRange> {
    let fields = &exchange.response.headers;
    let content_type = fields.get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase()).unwrap_or_default();
    let part = ContentRange::of(fields).filter(|_| !content_type.starts_with(b"multipart/byteranges"))?;
    (exchange.framing == Framing::Length(length(part)?)).then_some(part)
}

/// Whether two parts may be combined: they overlap or touch and share a strong entity tag (RFC 9111 §3.4,
/// RFC 9110 §15.3.7.3), and their lengths agree.
pub fn may_combine(stored: &StoredResponse, new: &StoredResponse) -> bool {
    let (Some(old_part), Some(new_part)) = (stored.part, new.part) else { return false };
    let (Some(old_tag), Some(new_tag)) = (EntityTag::of(&stored.fields.to_map()), EntityTag::of(&new.fields.to_map()))
    else {
        return false;
    };
    let touch = old_part.first <= new_part.last.saturating_add(1) && new_part.first <= old_part.last.saturating_add(1);
    let complete_agrees = match (old_part.complete, new_part.complete) {
        (Some(old), Some(new)) => old == new,
        (Some(_), None) | (None, Some(_)) | (None, None) => true,
    };
    old_tag.matches_strongly(&new_tag) && touch && complete_agrees
}

/// Two parts of one representation as one stored response, once `new` has its body; a whole one when nothing is
/// missing. None: keep `new` alone.
pub fn combine(stored: &StoredResponse, new: &StoredResponse) -> Option<StoredResponse> {
    let (old_part, new_part) = (stored.part?, new.part?);
    let is_exact = |part, body: &Bytes| length(part) == Some(body.len() as u64);
    if !may_combine(stored, new) || !is_exact(old_part, &stored.body) || !is_exact(new_part, &new.body) {
        return None;
    }
    let part = ContentRange {
        first: old_part.first.min(new_part.first),
        last: old_part.last.max(new_part.last),
        complete: old_part.complete.or(new_part.complete),
    };
    let mut combined =
        StoredResponse { body: joined(stored, old_part, new, new_part)?, part: Some(part), ..new.clone() };
    let mut fields = new.fields.to_map();
    // RFC 9111 §3.4: the new response's fields replace those of the stored one.
    for (name, value) in stored.fields.iter().filter(|(name, _)| new.fields.get(name).is_none()) {
        fields.append(name.clone(), value.clone());
    }
    if part.first == 0 && part.complete == length(part) {
        combined.status = StatusCode::OK;
        combined.part = None;
        fields.remove(CONTENT_RANGE);
    } else {
        fields.insert(CONTENT_RANGE, part.to_value());
    }
    combined.fields = fields.into();
    Some(combined)
}

fn joined(old: &StoredResponse, old_part: ContentRange, new: &StoredResponse, new_part: ContentRange) -> Option<Bytes> {
    let (head, head_part, tail, tail_part) =
        if old_part.first <= new_part.first { (old, old_part, new, new_part) } else { (new, new_part, old, old_part) };
    if tail_part.last <= head_part.last {
        return Some(head.body.clone());
    }
    let kept = usize::try_from(tail_part.first.checked_sub(head_part.first)?).ok()?;
    let mut body = BytesMut::with_capacity(kept.checked_add(tail.body.len())?);
    body.extend_from_slice(head.body.get(..kept)?);
    body.extend_from_slice(&tail.body);
    Some(body.freeze())
}

fn length(part: ContentRange) -> Option<u64> {
    part.last.checked_sub(part.first)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{NOW, stored, text};

    fn part(range: &str, tag: &str, version: &str, body: &'static str) -> StoredResponse {
        let head = format!("206 | cache-control: max-age=60 | etag: {tag} | {version} | content-range: bytes {range}");
        stored(&head, body)
    }

    #[test]
    fn parts_that_touch_or_overlap_become_one() {
        let check = |old: (&str, &'static str), new: (&str, &'static str), expected: Option<(u16, &str, &str)>| {
            let combined =
                combine(&part(old.0, "\"a\"", "v: 1", old.1), &part(new.0, "\"a\"", "v: 2", new.1)).map(|combined| {
                    let range = combined.part.map_or(String::new(), |part| format!("{}-{}", part.first, part.last));
                    assert_eq!(combined.fields.get(&CONTENT_RANGE).is_some(), combined.part.is_some());
                    (combined.status.as_u16(), range, String::from_utf8(combined.body.to_vec()).unwrap())
                });
            let expected = expected.map(|(status, range, body)| (status, range.to_owned(), body.to_owned()));
            assert_eq!(combined, expected, "{old:?} {new:?}");
        };
        check(("0-4/10", "01234"), ("5-9/10", "56789"), Some((200, "", "0123456789")));
        check(("5-9/10", "56789"), ("0-4/10", "01234"), Some((200, "", "0123456789")));
        check(("0-4/10", "01234"), ("3-9/10", "3456789"), Some((200, "", "0123456789")));
        check(("0-4/10", "01234"), ("5-7/10", "567"), Some((206, "0-7", "01234567")));
        check(("0-4/*", "01234"), ("5-9/10", "56789"), Some((200, "", "0123456789")));
        check(("0-4/*", "01234"), ("5-9/*", "56789"), Some((206, "0-9", "0123456789")));
        check(("2-7/10", "234567"), ("3-4/10", "34"), Some((206, "2-7", "234567")));
        check(("3-4/10", "34"), ("2-7/10", "234567"), Some((206, "2-7", "234567")));
        check(("0-4/10", "01234"), ("6-9/10", "6789"), None);
        check(("6-9/10", "6789"), ("0-4/10", "01234"), None);
        check(("0-4/10", "01234"), ("5-9/11", "56789"), None);
        // A body that is not as long as its part says.
        check(("0-4/10", "01234"), ("5-9/10", "5678"), None);
        check(("0-4/10", "0123"), ("5-9/10", "56789"), None);
    }

    #[test]
    fn only_a_strong_tag_in_common_lets_parts_combine() {
        let check = |old, new, expected| {
            let combined = combine(&part("0-4/10", old, "v: 1", "01234"), &part("5-9/10", new, "v: 2", "56789"));
            assert_eq!(combined.is_some(), expected, "{old} {new}");
        };
        check("\"a\"", "\"a\"", true);
        check("\"a\"", "\"b\"", false);
        check("W/\"a\"", "W/\"a\"", false);
        check("\"a\"", "W/\"a\"", false);
        let undated = stored("206 | last-modified: {-9} | content-range: bytes 0-4/10", "01234");
        let rest = stored("206 | last-modified: {-9} | content-range: bytes 5-9/10", "56789");
        assert_eq!(combine(&undated, &rest), None);
        let whole = stored("200 | etag: \"a\"", "0123456789");
        assert_eq!(combine(&whole, &part("5-9/10", "\"a\"", "v: 2", "56789")), None);
    }

    #[test]
    fn the_new_parts_fields_win_and_the_others_stay() {
        let old = part("0-4/10", "\"a\"", "a: 1 | a: 2 | b: 1", "01234");
        let new = part("5-9/10", "\"a\"", "b: 2 | c: 3", "56789");
        let combined = combine(&old, &new).unwrap();
        let expected =
            "a: 1 | a: 2 | b: 2 | c: 3 | cache-control: max-age=60 | date: Thu, 01 Jan 2026 00:00:00 GMT | etag: \"a\"";
        assert_eq!(text(&combined.fields.to_map()), expected);
        assert!(combined.is_fresh(NOW));
    }
}
