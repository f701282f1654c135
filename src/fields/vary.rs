//! `Vary` (RFC 9110 §12.5.5): the fields that selected a response, and their normalised values.

use http::{HeaderMap, HeaderName};

/// Which request fields select among the responses of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectingFields {
    /// `Vary: *`: something outside the request's fields; never matches.
    Any,
    /// These names: lower case, sorted, each once. Empty when there is no `Vary`.
    Names(Box<[HeaderName]>),
}

impl SelectingFields {
    /// The selecting fields of a response. A malformed member reads as `*`, the safe side.
    pub fn of(fields: &HeaderMap) -> Self {
        todo!("{fields:?}")
    }

    /// Without the names in `ignore` (the route's `vary.ignore`).
    #[must_use]
    pub fn without(self, ignore: &[HeaderName]) -> Self {
        todo!("{self:?} {ignore:?}")
    }
}

/// Appends the normalised, length-framed value of the request field `name` to `out`
/// (RFC 9111 §4.1: white space, order of members and case where the field's syntax allows).
/// Absent and empty differ. `Accept-Encoding` becomes the sorted set of known codings it accepts.
pub fn normalise_into(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    todo!("{request:?} {name:?} {out:?}")
}
