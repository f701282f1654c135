//! Validators and the conditions over them (RFC 9110 §8.8, §13.1).

use http::{HeaderMap, HeaderValue};

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
        todo!("{value:?}")
    }

    /// The `ETag` of a response.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        todo!("{fields:?}")
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
        todo!("{fields:?}")
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
    todo!("{request:?} {stored:?} {date:?}")
}

/// Whether `If-Range` (absent counts as true) lets a range be answered from a stored response:
/// strong comparison of tags, exact comparison of dates (RFC 9110 §13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    todo!("{request:?} {stored:?}")
}

/// The value as written of a stored response's `ETag`, fit for `If-None-Match`.
pub fn etag_value(fields: &HeaderMap) -> Option<&HeaderValue> {
    fields.get(http::header::ETAG)
}
