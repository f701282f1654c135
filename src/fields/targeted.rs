//! Targeted cache control (RFC 9213): the first valid field of a list replaces `Cache-Control` and `Expires`.

use http::{HeaderMap, HeaderName};

use super::cache_control::CacheControl;

/// The directives of the first of `names` that is present and a valid Structured Field dictionary.
/// An empty or invalid one is ignored (RFC 9213 §2.2).
pub fn targeted(fields: &HeaderMap, names: &[HeaderName]) -> Option<CacheControl> {
    todo!("{fields:?} {names:?}")
}
