//! Byte ranges (RFC 9110 §14): what a request asks for and what a part covers.

use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

use super::has_any;

/// The bound on the number of ranges in one request; above it `Range` is ignored (CVE-2011-3192).
pub const RANGES_MAX: usize = 256;

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
        let end = length.checked_sub(1)?;
        match self {
            Self::FromTo(first, last) if first <= end => Some((first, last.min(end))),
            Self::From(first) if first <= end => Some((first, end)),
            Self::Suffix(count) if count > 0 => Some((length.saturating_sub(count), end)),
            Self::FromTo(..) | Self::From(_) | Self::Suffix(_) => None,
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|&byte| byte == b'-')?;
        let (first, last) = (&text[..dash], &text[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, _) => Some(Self::Suffix(number(last)?)),
            (false, true) => Some(Self::From(number(first)?)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::FromTo(first, last))
            }
        }
    }
}

/// The byte ranges a request asks for: none when `Range` is absent, invalid, of another unit or over the bound
/// (RFC 9110 §14.2 lets a recipient ignore it).
pub fn requested(fields: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let set = after_unit(only(fields, RANGE)?.as_bytes(), b'=')?;
    let mut specs = Vec::new();
    for member in set.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        if member.is_empty() {
            continue;
        }
        if specs.len() == RANGES_MAX {
            return None;
        }
        specs.push(RangeSpec::parse(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

/// Whether `Range` names more ranges than `most`.
pub fn names_more_than(most: usize, fields: &HeaderMap) -> bool {
    if !has_any(fields, &[RANGE]) {
        return false;
    }
    let Some(set) = only(fields, RANGE).and_then(|value| after_unit(value.as_bytes(), b'=')) else { return false };
    let named = set.split(|&byte| byte == b',').filter(|member| !member.trim_ascii().is_empty());
    named.take(most + 1).count() > most
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
        let text = after_unit(only(fields, CONTENT_RANGE)?.as_bytes(), b' ')?.trim_ascii();
        let slash = text.iter().position(|&byte| byte == b'/')?;
        let RangeSpec::FromTo(first, last) = RangeSpec::parse(&text[..slash])? else { return None };
        let complete = match &text[slash + 1..] {
            b"*" => None,
            digits => Some(number(digits)?),
        };
        // RFC 9110 §14.4: invalid when the complete length is not above the last position.
        let fits = last < complete.unwrap_or(u64::MAX);
        fits.then_some(Self { first, last, complete })
    }

    /// How many bytes it covers.
    pub const fn length(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// As a field value.
    pub fn to_value(self) -> HeaderValue {
        let Self { first, last, .. } = self;
        value(&match self.complete {
            Some(complete) => format!("bytes {first}-{last}/{complete}"),
            None => format!("bytes {first}-{last}/*"),
        })
    }
}

/// `bytes */length`, for 416.
pub fn unsatisfied(length: u64) -> HeaderValue {
    value(&format!("bytes */{length}"))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits and punctuation")
}

/// The value of a field that is present once.
fn only(fields: &HeaderMap, name: http::HeaderName) -> Option<&HeaderValue> {
    let mut lines = fields.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn after_unit(text: &[u8], separator: u8) -> Option<&[u8]> {
    let (unit, rest) = text.split_at_checked(5)?;
    (unit.eq_ignore_ascii_case(b"bytes") && rest.first() == Some(&separator)).then(|| &rest[1..])
}

/// Digits alone; what is too large counts as the largest there is.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, &byte| {
        byte.is_ascii_digit().then(|| sum.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_ignored_as_a_whole() {
        fn check(value: &str, expected: Option<&[RangeSpec]>) {
            let mut fields = HeaderMap::new();
            fields.insert(RANGE, HeaderValue::from_str(value).unwrap());
            assert_eq!(requested(&fields).as_deref(), expected, "{value}");
        }
        use RangeSpec::{From, FromTo, Suffix};
        check("bytes=0-499", Some(&[FromTo(0, 499)]));
        check("Bytes=5-", Some(&[From(5)]));
        check("bytes=-5", Some(&[Suffix(5)]));
        check("bytes=-0", Some(&[Suffix(0)]));
        check("bytes=0-0, ,5-9 , -2", Some(&[FromTo(0, 0), FromTo(5, 9), Suffix(2)]));
        check("bytes=0-99999999999999999999999", Some(&[FromTo(0, u64::MAX)]));
        for invalid in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=1",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-1,x",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes= =1-2",
            "items=0-1",
            "bytes 0-1",
            "bytes=0 -1",
        ] {
            check(invalid, None);
        }
        check(&format!("bytes={}", ["0-0"; RANGES_MAX].join(",")), Some(&[FromTo(0, 0); RANGES_MAX]));
        check(&format!("bytes={}", ["0-0"; RANGES_MAX + 1].join(",")), None);
    }

    #[test]
    fn a_repeated_range_is_ignored() {
        let mut fields = HeaderMap::new();
        assert_eq!(requested(&fields), None);
        fields.append(RANGE, HeaderValue::from_static("bytes=0-1"));
        fields.append(RANGE, HeaderValue::from_static("bytes=0-1"));
        assert_eq!(requested(&fields), None);
    }

    #[test]
    fn ranges_resolve_within_the_representation() {
        fn check(spec: RangeSpec, length: u64, expected: Option<(u64, u64)>) {
            assert_eq!(spec.resolve(length), expected, "{spec:?} of {length}");
        }
        check(RangeSpec::FromTo(0, 4), 10, Some((0, 4)));
        check(RangeSpec::FromTo(0, u64::MAX), 10, Some((0, 9)));
        check(RangeSpec::FromTo(10, 11), 10, None);
        check(RangeSpec::From(9), 10, Some((9, 9)));
        check(RangeSpec::From(10), 10, None);
        check(RangeSpec::Suffix(3), 10, Some((7, 9)));
        check(RangeSpec::Suffix(30), 10, Some((0, 9)));
        check(RangeSpec::Suffix(0), 10, None);
        check(RangeSpec::Suffix(1), 0, None);
        check(RangeSpec::FromTo(0, 0), 0, None);
        check(RangeSpec::From(0), 0, None);
    }

    #[test]
    fn content_range_is_valid_or_none() {
        fn check(value: &str, expected: Option<(u64, u64, Option<u64>)>) {
            let mut fields = HeaderMap::new();
            fields.insert(CONTENT_RANGE, HeaderValue::from_str(value).unwrap());
            let expected = expected.map(|(first, last, complete)| ContentRange { first, last, complete });
            assert_eq!(ContentRange::of(&fields), expected, "{value}");
        }
        check("bytes 0-4/10", Some((0, 4, Some(10))));
        check("bytes 0-4/*", Some((0, 4, None)));
        check("bytes 0-9/10", Some((0, 9, Some(10))));
        for invalid in [
            "bytes */10",
            "bytes 0-10/10",
            "bytes 5-4/10",
            "bytes 0-4",
            "items 0-4/10",
            "bytes=0-4/10",
            "",
            "bytes -4/10",
        ] {
            check(invalid, None);
        }
    }

    #[test]
    fn values_read_back() {
        for complete in [Some(10), None] {
            let part = ContentRange { first: 2, last: 4, complete };
            let fields = HeaderMap::from_iter([(CONTENT_RANGE, part.to_value())]);
            assert_eq!(ContentRange::of(&fields), Some(part));
        }
        assert_eq!(unsatisfied(10), "bytes */10");
    }
}
