//! Surrogate keys: the tags an origin gives a response (`Surrogate-Key`, `Cache-Tag`, RFC 9875 `Cache-Groups`).

use http::HeaderMap;

/// The bound on an origin's tags per response.
pub const TAGS_MAX: usize = 64;
/// The bound on a tag's length, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

/// The origin named more or longer tags than are kept; the response is not stored, so that no purge falls short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverTagLimits;

/// The origin's tags: `Surrogate-Key` split at spaces, `Cache-Tag` at commas, each as is;
/// `Cache-Groups` members prefixed with `group:` and `origin` (their scope is the origin, RFC 9875 §2).
pub fn tags(fields: &HeaderMap, origin: &str) -> Result<Box<[Box<str>]>, OverTagLimits> {
    todo!("{fields:?} {origin}")
}

/// The groups that `Cache-Group-Invalidation` names, in the form that [`tags`] gives them (RFC 9875 §3).
pub fn invalidated_groups(fields: &HeaderMap, origin: &str) -> Vec<Box<str>> {
    todo!("{fields:?} {origin}")
}
