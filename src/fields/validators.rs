//! Validators and the conditions over them (RFC 9110 §8.8, §13.1).

use http::HeaderMap;
use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED};

use super::date;
use crate::clock::Timestamp;

/// An entity tag: its opaque text with quotes, and whether it is weak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityTag {
    opaque: Box<[u8]>,
    weak: bool,
}

impl EntityTag {
    /// Parses one entity tag; lenient about a missing pair of quotes, as origins are.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let (weak, opaque) = match value.strip_prefix(b"W/") {
            Some(opaque) => (true, opaque),
            None => (false, value),
        };
        (!opaque.is_empty()).then(|| Self { opaque: opaque.into(), weak })
    }

    /// The `ETag` of a response.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        fields.get(ETAG).and_then(|value| Self::parse(value.as_bytes()))
    }

    /// Whether the tag is strong.
    pub fn is_strong(&self) -> bool {
        !self.weak
    }

    /// Weak comparison (RFC 9110 §8.8.3.2).
    pub fn matches_weakly(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }

    /// Strong comparison (RFC 9110 §8.8.3.2).
    pub fn matches_strongly(&self, other: &Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }
}

/// The validators of a stored response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// Its `ETag`.
    pub etag: Option<EntityTag>,
    /// Its `Last-Modified`.
    pub last_modified: Option<Timestamp>,
}

impl Validators {
    /// The validators among a response's fields.
    pub fn of(fields: &HeaderMap) -> Self {
        let last_modified = fields.get(LAST_MODIFIED).and_then(date::parse);
        Self { etag: EntityTag::of(fields), last_modified }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

/// What a request's conditions say of a selected stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No condition that a cache evaluates.
    None,
    /// `If-None-Match` matches or `If-Modified-Since` holds: answer 304.
    NotModified,
    /// The condition asks for the full response.
    Modified,
}

/// Evaluates `If-None-Match`, else `If-Modified-Since` (RFC 9111 §4.3.2, RFC 9110 §13.2.2).
/// `date` is when the stored response was generated, used where it has no `Last-Modified`.
pub fn evaluate(request: &HeaderMap, stored: &HeaderMap, date: Timestamp) -> Condition {
    if request.contains_key(IF_NONE_MATCH) {
        return evaluate_none_match(request, stored);
    }
    let Some(since) = request.get(IF_MODIFIED_SINCE).and_then(date::parse) else { return Condition::None };
    let modified = stored.get(LAST_MODIFIED).and_then(date::parse).unwrap_or(date);
    if modified.as_secs() <= since.as_secs() { Condition::NotModified } else { Condition::Modified }
}

fn evaluate_none_match(request: &HeaderMap, stored: &HeaderMap) -> Condition {
    let own = EntityTag::of(stored);
    let mut listed = request.get_all(IF_NONE_MATCH).iter().flat_map(|line| members(line.as_bytes()));
    let is_match = listed.any(|member| {
        member == b"*"
            || own.as_ref().is_some_and(|own| EntityTag::parse(member).is_some_and(|it| it.matches_weakly(own)))
    });
    if is_match { Condition::NotModified } else { Condition::Modified }
}

/// The members of a list of entity tags; commas within quotes belong to a tag.
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|member| !member.is_empty())
}

/// Whether `If-Range` (absent counts as true) lets a range be answered from a stored response:
/// strong comparison of tags, exact comparison of dates (RFC 9110 §13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    if let Some(since) = date::parse(condition) {
        return stored.get(LAST_MODIFIED).and_then(date::parse) == Some(since);
    }
    let (condition, own) = (EntityTag::parse(condition.as_bytes()), EntityTag::of(stored));
    condition.zip(own).is_some_and(|(condition, own)| condition.matches_strongly(&own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn conditions_are_evaluated_tags_first() {
        let check = |request: &[(&'static str, &str)], expected: Condition| {
            let stored = fields(&[("etag", "\"a,b\""), ("last-modified", EARLIER)]);
            assert_eq!(evaluate(&fields(request), &stored, Timestamp::default()), expected, "{request:?}");
        };
        check(&[], Condition::None);
        check(&[("if-none-match", "\"a,b\"")], Condition::NotModified);
        check(&[("if-none-match", "\"x\", W/\"a,b\"")], Condition::NotModified);
        check(&[("if-none-match", "\"x\""), ("if-none-match", "\"a,b\"")], Condition::NotModified);
        check(&[("if-none-match", "*")], Condition::NotModified);
        check(&[("if-none-match", "\"a\"")], Condition::Modified);
        check(&[("if-none-match", "\"a\""), ("if-modified-since", LATER)], Condition::Modified);
        check(&[("if-modified-since", LATER)], Condition::NotModified);
        check(&[("if-modified-since", EARLIER)], Condition::NotModified);
        check(&[("if-modified-since", "Sat, 05 Nov 1994 08:49:37 GMT")], Condition::Modified);
        check(&[("if-modified-since", "yesterday")], Condition::None);
    }

    #[test]
    fn if_range_compares_strongly() {
        let check = |condition: &str, expected: bool| {
            let stored = fields(&[("etag", "\"a\""), ("last-modified", EARLIER)]);
            assert_eq!(if_range_holds(&fields(&[("if-range", condition)]), &stored), expected, "{condition}");
        };
        check("\"a\"", true);
        check("W/\"a\"", false);
        check("\"b\"", false);
        check(EARLIER, true);
        check(LATER, false);
        assert!(if_range_holds(&HeaderMap::new(), &HeaderMap::new()));
        assert!(!if_range_holds(&fields(&[("if-range", "W/\"a\"")]), &fields(&[("etag", "W/\"a\"")])));
    }
}
