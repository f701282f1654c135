//! What may be stored, reused, validated and must be forgotten (RFC 9111, 5861, 9213): pure functions over values.

pub mod freshen;
#[cfg(test)]
pub mod given;
pub mod invalidate;
pub mod lifetime;
pub mod parts;
pub mod ranges;
pub mod reuse;
pub mod settle;
pub mod storable;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

/// A route's caching rules, as the policy sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The route's freshness lifetime for 200, 203, 204, 301 and 308.
    pub ttl: Option<Duration>,
    /// How it meets the origin's.
    pub ttl_mode: TtlMode,
    /// The freshness lifetime by status; before `ttl`.
    pub status_ttl: Box<[(StatusCode, Duration)]>,
    /// The greatest fraction, 0 to 1, by which a route's ttl is shortened.
    pub ttl_jitter: f64,
    /// Directives of the origin that do not count.
    pub ignore_origin: IgnoreOrigin,
    /// When a response is worth storing.
    pub admission: Admission,
    /// How long past all use a response with a validator is kept.
    pub keep: Duration,
    /// Where the origin does not say.
    pub stale_while_revalidate: Duration,
    /// Where the origin does not say.
    pub stale_if_error: Duration,
    /// The fraction of `Last-Modified`'s age (RFC 9111 §4.2.2); zero: off.
    pub heuristic: f64,
    /// What becomes of responses with `Set-Cookie`.
    pub set_cookie: SetCookie,
    /// Whether a client's `no-cache` and `max-age` count.
    pub client_cache_control: ClientCacheControl,
    /// Targeted fields, first match wins (RFC 9213).
    pub targeted_fields: Arc<[HeaderName]>,
    /// Whether the key has `Authorization`, so that RFC 9111 §3.5 is met by the key.
    pub authorization_keyed: bool,
}

/// How a route's ttl meets the origin's freshness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TtlMode {
    /// Where the origin gives none.
    #[default]
    Default,
    /// Instead of the origin's.
    Override,
    /// As default, never above it.
    Cap,
}

/// When a response is worth storing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// With the first request for its key.
    #[default]
    First,
    /// Once its key was asked for before, so that a flood of keys that nobody asks for again displaces nothing.
    Second,
}

/// Directives of the origin that a route ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the directive of its name")]
pub struct IgnoreOrigin {
    pub no_store: bool,
    pub private: bool,
    pub no_cache: bool,
}

/// What becomes of responses with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCookie {
    /// Not stored.
    #[default]
    Bypass,
    /// Stored without it.
    Strip,
    /// Stored with it (RFC 9111 §7.3).
    Store,
}

/// Whether a client's cache directives may force a fetch (RFC 9111 §5.2.1: advisory).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCacheControl {
    /// They may not; `no-store` and `only-if-cached` still count.
    #[default]
    Ignore,
    /// They may.
    Respect,
}

impl Default for Rules {
    /// No ttl: the origin decides alone; stale for a minute where the upstream fails; the rest off.
    fn default() -> Self {
        Self {
            ttl: None,
            ttl_mode: TtlMode::Default,
            status_ttl: Box::default(),
            ttl_jitter: 0.1,
            ignore_origin: IgnoreOrigin::default(),
            admission: Admission::default(),
            keep: Duration::from_secs(60),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::from_secs(60),
            heuristic: 0.0,
            set_cookie: SetCookie::default(),
            client_cache_control: ClientCacheControl::default(),
            targeted_fields: Arc::from([HeaderName::from_static("cdn-cache-control")]),
            authorization_keyed: false,
        }
    }
}
