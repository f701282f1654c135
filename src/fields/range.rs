//! Byte ranges (RFC 9110 §14): what a request asks for and what a part covers.

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
        todo!("{self:?} {length}")
    }
}

/// The byte ranges a request asks for: none when `Range` is absent, invalid, of another unit or over the bound
/// (RFC 9110 §14.2 lets a recipient ignore it).
pub fn requested(fields: &HeaderMap) -> Option<Vec<RangeSpec>> {
    todo!("{fields:?}")
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
        todo!("{fields:?}")
    }

    /// As a field value.
    pub fn to_value(self) -> HeaderValue {
        todo!("{self:?}")
    }
}

/// `bytes */length`, for 416.
pub fn unsatisfied(length: u64) -> HeaderValue {
    todo!("{length}")
}
