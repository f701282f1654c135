//! `Cache-Control` (RFC 9111 §5.2, RFC 5861) of requests and responses.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// A directive that may be limited to named fields: `no-cache`, `private`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Qualified {
    /// Not present.
    #[default]
    Absent,
    /// Present without a list: the whole response is meant.
    Whole,
    /// Present with a list of field names.
    Fields(Vec<HeaderName>),
}

/// What a client says about stale responses with `max-stale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxStale {
    /// However stale.
    Any,
    /// Stale by at most this much.
    For(Duration),
}

/// The directives of one message. Repeated or odd values are read in the most restrictive way:
/// an invalid `max-age` is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the directive of its name")]
#[allow(clippy::struct_excessive_bools, reason = "each is a directive of its own")]
pub struct CacheControl {
    pub no_store: bool,
    pub no_cache: Qualified,
    pub private: Qualified,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
    pub max_age: Option<Duration>,
    pub s_maxage: Option<Duration>,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    pub only_if_cached: bool,
    pub min_fresh: Option<Duration>,
    pub max_stale: Option<MaxStale>,
}

impl CacheControl {
    /// The directives of a response's `Cache-Control`.
    pub fn of_response(fields: &HeaderMap) -> Self {
        todo!("{fields:?}")
    }

    /// The directives of a request; `Pragma: no-cache` counts where there is no `Cache-Control`
    /// (RFC 9111 §5.4).
    pub fn of_request(fields: &HeaderMap) -> Self {
        todo!("{fields:?}")
    }
}
