//! Validators and the conditions over them (RFC 9110 §8.8, §13.1).

use std::time::Duration;

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};

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
        let (tag, rest) = TagText::first(value)?;
        rest.trim_ascii().is_empty().then(|| tag.to_owned())
    }

    /// The `ETag` of a response.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        Self::parse(fields.get(ETAG)?.as_bytes())
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

/// An entity tag within a field value: its opaque text without quotes.
#[derive(Clone, Copy)]
struct TagText<'a> {
    opaque: &'a [u8],
    weak: bool,
}

impl<'a> TagText<'a> {
    /// The tag at the head of a list, and what follows it.
    fn first(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let text = text.trim_ascii();
        let (weak, text) = match text {
            [b'W' | b'w', b'/', rest @ ..] => (true, rest),
            text => (false, text),
        };
        let (opaque, rest) = match text {
            [b'"', quoted @ ..] => {
                let end = quoted.iter().position(|&byte| byte == b'"')?;
                (&quoted[..end], &quoted[end + 1..])
            }
            bare => {
                let end = bare.iter().position(|&byte| byte == b',').unwrap_or(bare.len());
                (bare[..end].trim_ascii(), &bare[end..])
            }
        };
        let empty = opaque.is_empty() && !text.starts_with(b"\"");
        (!empty).then_some((Self { opaque, weak }, rest))
    }

    fn to_owned(self) -> EntityTag {
        EntityTag { opaque: [b"\"", self.opaque, b"\""].concat().into(), weak: self.weak }
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
        Self { etag: EntityTag::of(fields), last_modified: date_of(fields, LAST_MODIFIED) }
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
/// `date` is the stored response's `Date`, used where it has no `Last-Modified`.
pub fn evaluate(request: &HeaderMap, stored: &HeaderMap, date: Timestamp) -> Condition {
    let not_modified = if request.contains_key(IF_NONE_MATCH) {
        if_none_match_names(request, stored)
    } else {
        // RFC 9110 §13.1.3: an invalid date, or more than one, is ignored.
        let Some(since) = only(request, IF_MODIFIED_SINCE).and_then(date::parse) else { return Condition::None };
        date_of(stored, LAST_MODIFIED).unwrap_or(date).as_secs() <= since.as_secs()
    };
    if not_modified { Condition::NotModified } else { Condition::Modified }
}

fn if_none_match_names(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if only(request, IF_NONE_MATCH).is_some_and(|value| value.as_bytes().trim_ascii() == b"*") {
        return true;
    }
    let Some((etag, _)) = stored.get(ETAG).and_then(|value| TagText::first(value.as_bytes())) else { return false };
    request.get_all(IF_NONE_MATCH).iter().any(|line| listed(line.as_bytes(), etag))
}

fn listed(mut line: &[u8], etag: TagText<'_>) -> bool {
    loop {
        line = line.trim_ascii_start();
        if let [b',', rest @ ..] = line {
            line = rest;
            continue;
        }
        match TagText::first(line) {
            Some((tag, _)) if tag.opaque == etag.opaque => return true,
            Some((_, rest)) => line = rest,
            None => return false,
        }
    }
}

/// Whether `If-Range` (absent counts as true) lets a range be answered from a stored response:
/// strong comparison of tags, exact comparison of dates (RFC 9110 §13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if !request.contains_key(IF_RANGE) {
        return true;
    }
    let Some(value) = only(request, IF_RANGE) else { return false };
    if let Some(date) = date::parse(value) {
        return date_of(stored, LAST_MODIFIED) == Some(date) && last_modified_is_strong(date, stored);
    }
    match (EntityTag::parse(value.as_bytes()), EntityTag::of(stored)) {
        (Some(asked), Some(stored)) => asked.matches_strongly(&stored),
        (None, _) | (_, None) => false,
    }
}

/// RFC 9110 §8.8.2.2: strong when the response is from at least a second later.
fn last_modified_is_strong(last_modified: Timestamp, stored: &HeaderMap) -> bool {
    date::date(stored).is_some_and(|date| date.since(last_modified) >= Duration::from_secs(1))
}

fn date_of(fields: &HeaderMap, name: HeaderName) -> Option<Timestamp> {
    fields.get(name).and_then(date::parse)
}

/// The value of a field that is present once.
fn only(fields: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = fields.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

#[cfg(test)]
mod tests {
    use http::header::DATE;

    use super::*;

    const EARLIER: &str = "Sun, 06 Nov 1994 08:00:00 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 09:00:00 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 10:00:00 GMT";

    fn of(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn time(text: &str) -> Timestamp {
        date::parse(&HeaderValue::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn entity_tags_are_parsed() {
        fn check(text: &str, expected: Option<(&str, bool)>) {
            let expected = expected.map(|(opaque, weak)| EntityTag { opaque: opaque.as_bytes().into(), weak });
            assert_eq!(EntityTag::parse(text.as_bytes()), expected, "{text}");
        }
        check("\"abc\"", Some(("\"abc\"", false)));
        check("\"\"", Some(("\"\"", false)));
        check(" W/\"abc\" ", Some(("\"abc\"", true)));
        check("w/\"abc\"", Some(("\"abc\"", true)));
        check("abc", Some(("\"abc\"", false)));
        check("\"a,b c\"", Some(("\"a,b c\"", false)));
        check("", None);
        check("W/", None);
        check("\"abc", None);
        check("\"a\", \"b\"", None);
        check("a, b", None);
    }

    #[test]
    fn weak_tags_match_only_weakly() {
        let tag = |text: &str| EntityTag::parse(text.as_bytes()).unwrap();
        let (strong, weak) = (tag("\"a\""), tag("W/\"a\""));
        assert!(strong.is_strong() && !weak.is_strong());
        assert!(strong.matches_strongly(&strong) && strong.matches_weakly(&weak) && weak.matches_weakly(&weak));
        assert!(!strong.matches_strongly(&weak) && !weak.matches_strongly(&weak));
        assert!(!strong.matches_weakly(&tag("\"b\"")));
    }

    #[test]
    fn if_none_match_compares_weakly_with_every_member() {
        fn check(lines: &[&str], etag: &str, expected: Condition) {
            let request: Vec<_> = lines.iter().map(|line| (IF_NONE_MATCH, *line)).collect();
            let stored = if etag.is_empty() { of(&[]) } else { of(&[(ETAG, etag)]) };
            assert_eq!(evaluate(&of(&request), &stored, Timestamp::default()), expected, "{lines:?} {etag}");
        }
        use Condition::{Modified, NotModified};
        check(&["\"a\""], "\"a\"", NotModified);
        check(&["\"b\""], "\"a\"", Modified);
        check(&["W/\"a\""], "\"a\"", NotModified);
        check(&["w/\"a\""], "W/\"a\"", NotModified);
        check(&["\"a\", \"1\", \"2\""], "\"a\"", NotModified);
        check(&["\"1\",\"a\" ,\"2\""], "\"a\"", NotModified);
        check(&["\"1\", , \"2\", \"a\""], "\"a\"", NotModified);
        check(&["\"1\"", "\"a\""], "\"a\"", NotModified);
        check(&["\"1,a\", \"2\""], "a", Modified);
        check(&["\"1,a\", \"2\""], "\"1,a\"", NotModified);
        check(&["a"], "\"a\"", NotModified);
        check(&["\"a\""], "a", NotModified);
        check(&["*"], "\"a\"", NotModified);
        check(&["*"], "", NotModified);
        check(&["\"a\""], "", Modified);
        check(&[""], "\"a\"", Modified);
        check(&["\"open"], "\"a\"", Modified);
        check(&["\"x\"\"a\""], "\"a\"", NotModified);
    }

    #[test]
    fn if_modified_since_counts_without_if_none_match() {
        fn check(request: &[(HeaderName, &str)], stored: &[(HeaderName, &str)], expected: Condition) {
            assert_eq!(evaluate(&of(request), &of(stored), time(MODIFIED)), expected, "{request:?} {stored:?}");
        }
        use Condition::{Modified, None, NotModified};
        let stored = [(LAST_MODIFIED, MODIFIED)];
        check(&[], &stored, None);
        check(&[(IF_MODIFIED_SINCE, MODIFIED)], &stored, NotModified);
        check(&[(IF_MODIFIED_SINCE, "Sunday, 06-Nov-94 09:00:00 GMT")], &stored, NotModified);
        check(&[(IF_MODIFIED_SINCE, LATER)], &stored, NotModified);
        check(&[(IF_MODIFIED_SINCE, EARLIER)], &stored, Modified);
        check(&[(IF_MODIFIED_SINCE, "yesterday")], &stored, None);
        check(&[(IF_MODIFIED_SINCE, LATER), (IF_MODIFIED_SINCE, LATER)], &stored, None);
        check(&[(IF_MODIFIED_SINCE, MODIFIED)], &[], NotModified);
        check(&[(IF_MODIFIED_SINCE, EARLIER)], &[], Modified);
        let both = [(LAST_MODIFIED, MODIFIED), (ETAG, "\"a\"")];
        check(&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, LATER)], &both, Modified);
        check(&[(IF_NONE_MATCH, "\"a\""), (IF_MODIFIED_SINCE, EARLIER)], &both, NotModified);
    }

    #[test]
    fn if_range_needs_a_strong_validator() {
        fn check(if_range: &str, expected: bool) {
            let stored = of(&[(ETAG, "\"a\""), (LAST_MODIFIED, MODIFIED), (DATE, LATER)]);
            assert_eq!(if_range_holds(&of(&[(IF_RANGE, if_range)]), &stored), expected, "{if_range}");
        }
        check("\"a\"", true);
        check("\"b\"", false);
        check("W/\"a\"", false);
        check(MODIFIED, true);
        check(LATER, false);
        check(EARLIER, false);
        check("", false);
        let request = of(&[(IF_RANGE, MODIFIED)]);
        assert!(!if_range_holds(&request, &of(&[(LAST_MODIFIED, MODIFIED), (DATE, MODIFIED)])));
        assert!(!if_range_holds(&request, &of(&[(LAST_MODIFIED, MODIFIED)])));
        assert!(!if_range_holds(&of(&[(IF_RANGE, "W/\"a\"")]), &of(&[(ETAG, "W/\"a\"")])));
        assert!(!if_range_holds(&of(&[(IF_RANGE, "\"a\""), (IF_RANGE, "\"a\"")]), &of(&[(ETAG, "\"a\"")])));
        assert!(if_range_holds(&of(&[]), &of(&[])));
    }

    #[test]
    fn validators_are_those_that_parse() {
        let fields = of(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, MODIFIED)]);
        let expected = Validators { etag: EntityTag::parse(b"W/\"a\""), last_modified: Some(time(MODIFIED)) };
        assert_eq!(Validators::of(&fields), expected);
        assert!(Validators::of(&of(&[(ETAG, ""), (LAST_MODIFIED, "0")])).is_empty());
    }
}
