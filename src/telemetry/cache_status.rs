//! How the cache took part in a request: one value, rendered as `Cache-Status` (RFC 9211), log and counters.

use http::{HeaderValue, StatusCode};

use crate::policy::reuse::Why;
use crate::policy::settle::NotStored;
use crate::store::Tier;

/// One request's cache status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// What happened.
    pub outcome: Outcome,
    /// Why so, from a closed list.
    pub detail: Option<Detail>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the store: `hit; ttl=…`.
    Hit {
        /// Seconds of freshness left; negative when stale (RFC 9211 §2.4).
        ttl: i64,
        /// Where it was.
        tier: Tier,
    },
    /// The upstream was asked: `fwd=…; fwd-status=…; stored; collapsed`.
    Forward {
        /// Why.
        why: Why,
        /// The upstream's status; none when it gave none.
        fwd_status: Option<StatusCode>,
        /// Whether the response was stored, or is being.
        stored: bool,
        /// Whether this request shared another's fetch.
        collapsed: bool,
        /// Whether a 304 let the stored response be served.
        revalidated: bool,
    },
    /// Stored but stale, served because the upstream failed: `hit; ttl=-…; detail=stale-if-error`.
    StaleOnError {
        /// Seconds, negative.
        ttl: i64,
    },
    /// Answered by the proxy itself (an error, `only-if-cached`): `aside; detail=…`.
    Generated,
}

/// Why so: the closed list of `detail=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Detail {
    // bypass reasons
    NoRoute,
    CacheOff,
    Cookie,
    Credentials,
    BypassHeader,
    RequestBody,
    Upgrade,
    Uncacheable,
    RedisUnavailable,
    CorruptRecord,
    Purged,
    // hits
    StaleWhileRevalidate,
    StaleIfError,
    MaxStale,
    // not stored
    NotStored(NotStored),
    // answered by the proxy
    OnlyIfCached,
    BadRequest,
    UnknownHost,
    UpstreamConnect,
    UpstreamTimeout,
    UpstreamProtocol,
    Overloaded,
    BodyTooLarge,
}

impl CacheStatus {
    /// The `Cache-Status` field value, beginning with `aside`.
    pub fn to_value(self) -> HeaderValue {
        todo!()
    }
}
