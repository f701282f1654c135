//! Routes: which request is handled by which rules.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use crate::key::{KeyRules, Tag};
use crate::policy::Rules;
use crate::target::Target;

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
    /// Whether concurrent requests for one key share a fetch.
    pub collapse: bool,
    /// The bound on waiting in collapse, per request.
    pub collapse_wait: Duration,
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

/// A tag with `{param}` from the route's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTemplate(Box<[TagPart]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TagPart {
    Literal(Box<str>),
    Param(Box<str>),
}

/// A tag template that cannot be parsed, and why; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTemplate(pub String);

impl TagTemplate {
    /// Parses `product:{id}`; every `{param}` must be one of the path's `params`.
    pub fn parse(text: &str, params: &[&str]) -> Result<Self, BadTemplate> {
        todo!("{text} {params:?}")
    }

    /// The tag for the parameters of one request.
    pub fn expand(&self, params: &Params) -> Box<str> {
        todo!("{params:?}")
    }
}

/// The values of a path's parameters in one request.
pub type Params = smallvec::SmallVec<[(Box<str>, Box<str>); 2]>;

/// The route that a request matched, with its parameters.
#[derive(Debug)]
pub struct Match<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// Its place in the table, for counters.
    pub index: usize,
    /// Its parameters' values.
    pub params: Params,
}

/// All routes of a configuration, ready to be searched.
pub struct RouteTable {
    routes: Box<[Arc<Route>]>,
    // private search structure: per host a `matchit::Router`
}

/// Two routes that match the same requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The index of the route that could not be added.
    pub index: usize,
    /// Why, for people.
    pub reason: String,
}

impl RouteTable {
    /// Builds the table; all conflicts (same host, path shape and a common method; bad patterns) at once.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<Conflict>> {
        todo!("{routes:?}")
    }

    /// The routes in the order of the file.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The route for a request: its host's routes before those of any host, most specific path, then method.
    pub fn find(&self, target: &Target, method: &Method) -> Option<Match<'_>> {
        todo!("{target:?} {method}")
    }

    /// Whether a route that caches covers the GET of this target (for invalidation).
    pub fn caches(&self, target: &Target) -> bool {
        todo!("{target:?}")
    }
}

/// The parameter names of a path pattern, or why it is not one.
pub fn pattern_params(path: &str) -> Result<Vec<&str>, String> {
    todo!("{path}")
}

/// The tags of a request that derive from configuration and URL, made only when the ledger must be asked.
pub struct ConfiguredTags<'a> {
    /// Its route.
    pub route: &'a Route,
    /// Its parameters' values.
    pub params: &'a Params,
    /// Its target.
    pub target: &'a Target,
}

impl ConfiguredTags<'_> {
    /// Every tag: all, route, host, URL, path prefixes (up to 8), and the route's own.
    pub fn tags(&self) -> Vec<Tag> {
        todo!()
    }
}
