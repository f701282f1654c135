//! Routes: which request is handled by which rules.

mod pattern;
mod table;
mod tags;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use smallvec::SmallVec;

pub use self::pattern::pattern_params;
pub use self::table::{Conflict, Match, Matched, RouteTable};
pub use self::tags::{BadTemplate, ConfiguredTags, TagTemplate};
use crate::key::KeyRules;
use crate::policy::Rules;

/// A route: what matches it and everything decided for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name, unique.
    pub name: Arc<str>,
    /// The host it is limited to, normalised as [`crate::target::Authority`] without port.
    pub host: Option<Box<str>>,
    /// Literal segments, `{param}`, `{*rest}`.
    pub path: Box<str>,
    /// The methods it answers.
    pub methods: Box<[Method]>,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// Taken off the path before the upstream's base path is put in front; empty for nothing.
    pub strip_prefix: Box<str>,
    /// Edits of the request before the upstream gets it.
    pub request_headers: FieldEdits,
    /// Edits of the response before the client gets it.
    pub response_headers: FieldEdits,
    /// Which of the client's fields reach the upstream.
    pub forward_headers: ForwardFields,
    /// The bound on a request's content, in bytes; above it 413.
    pub request_body_max: u64,
    /// Over the upstream's own, where set.
    pub first_byte_timeout: Option<Duration>,
    /// The `Upgrade` tokens that pass, lower case.
    pub upgrade: Box<[Box<str>]>,
    /// Whether and how it caches; none: proxy only.
    pub caching: Option<Caching>,
}

/// How a route caches.
#[derive(Clone, Debug, PartialEq)]
pub struct Caching {
    /// What the pure policy is told.
    pub rules: Rules,
    /// What makes the key.
    pub key: KeyRules,
    /// What requests with cookies do.
    pub cookies: Cookies,
    /// Requests carrying one of these fields bypass the cache, unless keyed.
    pub credential_headers: Arc<[HeaderName]>,
    /// Requests with one of these fields bypass the cache.
    pub bypass: Box<[HeaderName]>,
    /// The bound on a stored body, in bytes.
    pub max_object: u64,
    /// Which concurrent requests for one key share a fetch.
    pub collapse: Collapse,
    /// The bound on waiting in collapse, per request.
    pub collapse_wait: Duration,
    /// How many may wait for one key's fetch in this process; above it 503, or what is stale.
    pub collapse_waiters: usize,
    /// How long an uncacheable answer is remembered (hit-for-miss).
    pub uncacheable_for: Duration,
    /// The tags of its responses, beside the origin's.
    pub tags: Box<[TagTemplate]>,
    /// The tags that a successful unsafe request purges.
    pub invalidates: Box<[TagTemplate]>,
    /// The bound on variants of one key.
    pub max_variants: usize,
    /// Names taken out of `Vary`.
    pub vary_ignore: Box<[HeaderName]>,
}

/// Which requests share a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// None: each fetches for itself.
    Off,
    /// Those of one process.
    Local,
    /// Those of all processes that share a Redis.
    Cluster,
}

/// What a request with `Cookie` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// It bypasses the cache, unless only keyed cookies are present.
    Bypass,
    /// Unkeyed cookies are not forwarded.
    Ignore,
}

/// Fields set and removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldEdits {
    /// Set to these values.
    pub set: Box<[(HeaderName, HeaderValue)]>,
    /// Removed, before setting.
    pub remove: Box<[HeaderName]>,
}

impl FieldEdits {
    /// Removes, then sets.
    pub fn apply(&self, fields: &mut http::HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
    }
}

/// Which of the client's fields reach the upstream.
#[derive(Clone, Debug, PartialEq)]
pub enum ForwardFields {
    /// All.
    All,
    /// Only these, what the key names, and what HTTP needs.
    Only(Box<[HeaderName]>),
}

/// Where the values of a path's parameters lie in the path of one request, in the order of the route's pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(SmallVec<[Range<usize>; 2]>);

impl Params {
    /// Of values that are slices of `path`.
    pub fn of<'p>(path: &'p str, values: impl Iterator<Item = &'p str>) -> Self {
        let start = path.as_ptr().addr();
        let range = |value: &str| {
            let from = value.as_ptr().addr().wrapping_sub(start);
            from..from.wrapping_add(value.len())
        };
        Self(values.map(range).collect())
    }

    /// The value of the parameter at `place`; empty where the pattern matched without it.
    pub fn value<'p>(&self, place: usize, path: &'p str) -> &'p str {
        self.0.get(place).and_then(|range| path.get(range.clone())).unwrap_or_default()
    }
}
