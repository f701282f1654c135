//! The cache key: blake3 over length-framed fields, and the material it was made of.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};

use crate::stored::PurgeNumber;
use crate::target::Target;

/// A cache key: blake3 in `derive_key` mode over the key material.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// The key of some key material.
    pub fn of(material: &[u8]) -> Self {
        todo!("{material:?}")
    }

    /// From its bytes, as a store reads them.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A key and the length-framed material it was made of, compared on read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The key.
    pub key: CacheKey,
    /// What was hashed.
    pub material: Bytes,
}

impl Address {
    /// The address of the variant that `request` selects by the fields `names`: this material and
    /// each name with its normalised value.
    #[must_use]
    pub fn variant(&self, request: &HeaderMap, names: &[HeaderName]) -> Self {
        todo!("{request:?} {names:?}")
    }
}

/// What of a request makes its key (`[route.key]`).
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRules {
    /// Which query parameters.
    pub query: QueryRule,
    /// Stable sort by name; repeated names keep their order.
    pub sort_query: bool,
    /// Whether host and port are in the key.
    pub host: bool,
    /// Request fields.
    pub headers: Box<[KeyHeader]>,
    /// Cookies by name.
    pub cookies: Box<[Box<str>]>,
    /// Whether and how the request's content is.
    pub body: BodyRule,
    /// The bound on a keyed body, in bytes; above it the request bypasses.
    pub body_max: u64,
}

/// Which query parameters are keyed; a parameter that is not keyed does not reach the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryRule {
    /// All.
    All,
    /// None.
    None,
    /// Only these names.
    Allow(Box<[Box<str>]>),
    /// All but these names; `*` at the end of one matches the rest.
    Deny(Box<[Box<str>]>),
}

/// A request field in the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHeader {
    /// Its name.
    pub name: HeaderName,
    /// The values it is reduced to, and the default for any other; none: the value as is.
    pub choices: Option<Choices>,
}

/// A closed set of values for a keyed field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// The values that count, lower case. For fields with quality values (`Accept-*`) the client's most preferred one.
    pub values: Box<[Box<str>]>,
    /// What anything else counts as.
    pub default: Box<str>,
}

/// How a request's content is keyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyRule {
    /// Not at all: only GET and HEAD are cached.
    None,
    /// Its bytes.
    Raw,
    /// As canonical JSON (members sorted, no white space, numbers in one form).
    Json,
}

/// A body that cannot be keyed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnkeyedBody {
    /// Not JSON, or nested deeper than the bound.
    NotJson,
}

impl KeyRules {
    /// The address of a request. `body` is its whole content where `self.body` asks for it.
    /// HEAD has the address of GET.
    pub fn address(
        &self,
        method: &Method,
        target: &Target,
        fields: &HeaderMap,
        body: &[u8],
    ) -> Result<Address, UnkeyedBody> {
        todo!("{method} {target:?} {fields:?} {body:?}")
    }

    /// The query as keyed, which is also what the upstream is sent.
    pub fn query(&self, query: Option<&str>) -> Option<String> {
        todo!("{query:?}")
    }
}

/// A purge tag's two places in the ledger's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TagHash(pub u64, pub u64);

/// A tag of the purge ledger. URL tags live in an array of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// Everything.
    All,
    /// A route by name.
    Route(Box<str>),
    /// A host, normalised.
    Host(Box<str>),
    /// A URL without scheme: `host[:port]/path?query`, normalised; all its variants.
    Url(Box<str>),
    /// A path prefix with its host, ending at a segment.
    Prefix(Box<str>),
    /// A surrogate key.
    Surrogate(Box<str>),
}

impl Tag {
    /// url
    pub fn url(target: &Target) -> Self {
        todo!("{target:?}")
    }
    /// Its places, from blake3 over its kind and text.
    pub fn hash(&self) -> TagHash {
        todo!()
    }
}

/// The purge number that last named any of some tags.
pub type LastPurge = PurgeNumber;

/// stub
pub fn keyed_cookies(f: &HeaderMap, names: &[Box<str>]) -> Option<http::HeaderValue> {
    todo!("{f:?}{names:?}")
}
/// stub
pub fn has_unkeyed_cookie(f: &HeaderMap, names: &[Box<str>]) -> bool {
    todo!("{f:?}{names:?}")
}
