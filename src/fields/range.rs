//! Byte ranges (RFC 9110 §14): what a request asks for and what a part covers.

use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

/// The bound on the number of ranges in one request; above it `Range` is ignored (CVE-2011-3192).
pub const RANGES_MAX: usize = 16;

/// One requested range, before the representation's length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last`, both inclusive.
    FromTo(u64, u64),
    /// `first-`.
    From(u64),
    /// `-length`: the last `length` bytes.
    Suffix(u64),
}

impl RangeSpec {
    /// The bytes `first..=last` it selects of a representation of `length` bytes; none when unsatisfiable.
    pub fn resolve(self, length: u64) -> Option<(u64, u64)> {
        let last = length.checked_sub(1)?;
        match self {
            Self::FromTo(first, to) => (first <= last).then(|| (first, to.min(last))),
            Self::From(first) => (first <= last).then_some((first, last)),
            Self::Suffix(0) => None,
            Self::Suffix(suffix) => Some((length.saturating_sub(suffix), last)),
        }
    }
}

/// The byte ranges a request asks for: none when `Range` is absent, invalid, of another unit or over the bound
/// (RFC 9110 §14.2 lets a recipient ignore it).
pub fn requested(fields: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let mut lines = fields.get_all(RANGE).iter();
    let (line, None) = (lines.next()?.to_str().ok()?, lines.next()) else { return None };
    let (unit, list) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let members = list.split(',').map(str::trim).filter(|member| !member.is_empty());
    let specs: Option<Vec<RangeSpec>> = members.map(spec).collect();
    specs.filter(|specs| (1..=RANGES_MAX).contains(&specs.len()))
}

fn spec(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", suffix) => offset(suffix).map(RangeSpec::Suffix),
        (first, "") => offset(first).map(RangeSpec::From),
        (first, last) => {
            let (first, last) = (offset(first)?, offset(last)?);
            (first <= last).then_some(RangeSpec::FromTo(first, last))
        }
    }
}

/// Digits alone; more than fit are as good as the greatest.
fn offset(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// A valid `Content-Range: bytes first-last/complete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte's offset.
    pub first: u64,
    /// The last byte's offset, inclusive.
    pub last: u64,
    /// The length of the whole representation; none for `*`.
    pub complete: Option<u64>,
}

impl ContentRange {
    /// The valid `Content-Range` of a response.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        let text = fields.get(CONTENT_RANGE)?.to_str().ok()?;
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, complete) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (offset(first.trim())?, offset(last.trim())?);
        let complete = match complete.trim() {
            "*" => None,
            length => Some(offset(length)?),
        };
        let is_valid = unit.eq_ignore_ascii_case("bytes") && first <= last && complete.is_none_or(|it| last < it);
        is_valid.then_some(Self { first, last, complete })
    }

    /// How many bytes it covers.
    pub const fn length(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// As a field value.
    pub fn to_value(self) -> HeaderValue {
        let Self { first, last, .. } = self;
        match self.complete {
            Some(complete) => value(&format!("bytes {first}-{last}/{complete}")),
            None => value(&format!("bytes {first}-{last}/*")),
        }
    }
}

/// `bytes */length`, for 416.
pub fn unsatisfied(length: u64) -> HeaderValue {
    value(&format!("bytes */{length}"))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_ignored_as_a_whole() {
        use RangeSpec::{From, FromTo, Suffix};
        let check = |text: &str, expected: Option<&[RangeSpec]>| {
            let mut fields = HeaderMap::new();
            fields.insert(RANGE, HeaderValue::from_str(text).unwrap());
            assert_eq!(requested(&fields).as_deref(), expected, "{text}");
        };
        check("bytes=0-4", Some(&[FromTo(0, 4)]));
        check("BYTES=5-", Some(&[From(5)]));
        check("bytes=-3", Some(&[Suffix(3)]));
        check("bytes=0-0, 2-3 ,-1", Some(&[FromTo(0, 0), FromTo(2, 3), Suffix(1)]));
        check("bytes=", None);
        check("bytes=4-0", None);
        check("bytes=0-4,x", None);
        check("bytes=--1", None);
        check("items=0-4", None);
        check(&format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1)), None);
    }

    #[test]
    fn a_range_resolves_within_the_length() {
        let check =
            |spec: RangeSpec, length, expected| assert_eq!(spec.resolve(length), expected, "{spec:?} of {length}");
        check(RangeSpec::FromTo(0, 99), 10, Some((0, 9)));
        check(RangeSpec::FromTo(10, 11), 10, None);
        check(RangeSpec::From(9), 10, Some((9, 9)));
        check(RangeSpec::Suffix(3), 10, Some((7, 9)));
        check(RangeSpec::Suffix(30), 10, Some((0, 9)));
        check(RangeSpec::Suffix(0), 10, None);
        check(RangeSpec::From(0), 0, None);
    }

    #[test]
    fn only_a_valid_content_range_counts() {
        let check = |text: &str, expected: Option<(u64, u64, Option<u64>)>| {
            let mut fields = HeaderMap::new();
            fields.insert(CONTENT_RANGE, HeaderValue::from_str(text).unwrap());
            let found = ContentRange::of(&fields);
            assert_eq!(found.map(|it| (it.first, it.last, it.complete)), expected, "{text}");
            if let Some(found) = found {
                assert_eq!(found.to_value(), text);
            }
        };
        check("bytes 0-4/10", Some((0, 4, Some(10))));
        check("bytes 0-4/*", Some((0, 4, None)));
        check("bytes 5-4/10", None);
        check("bytes 0-10/10", None);
        check("bytes */10", None);
    }
}
