//! The cache key: blake3 over length-framed fields, and the material it was made of.

mod choices;
mod cookies;
mod json;
mod query;
mod tag;

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method};
use smallvec::SmallVec;

pub use self::cookies::{has_unkeyed_cookie, keyed_cookies};
pub use self::query::TRACKING;
pub use self::tag::{MAX_PREFIX_SEGMENTS, Tag, TagHash};
use crate::fields::vary;
use crate::target::Target;

/// Sets keys apart from any other use of blake3. A keyed hash costs one block for it less than `derive_key`, a fifth of a
/// typical key.
const CONTEXT: &[u8; 32] = b"aside cache key: framed material";
/// Changes whenever the material's layout does, or how it is hashed.
const FORMAT: u8 = 3;
/// What a key's material takes without an allocation.
const MATERIAL_INLINE: usize = 120;

/// A cache key: blake3, keyed with a constant, over the key material. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

/// A table by cache keys. Its hash is seeded anew by each process, and cheaper than SipHash.
pub type KeyMap<V> = HashMap<CacheKey, V, foldhash::fast::RandomState>;

impl CacheKey {
    /// The key of some key material.
    pub fn of(material: &[u8]) -> Self {
        Self(*blake3::keyed_hash(CONTEXT, material).as_bytes())
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

impl Hash for CacheKey {
    /// Some of its bytes: they are a digest's, and what they go through is keyed. All 32 take twice the instructions.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key and the length-framed material it was made of, compared on read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The key.
    pub key: CacheKey,
    /// What was hashed.
    pub material: Material,
}

/// Key material, as it is made for a request.
pub type Material = SmallVec<[u8; MATERIAL_INLINE]>;

impl Address {
    fn of(material: Material) -> Self {
        Self { key: CacheKey::of(&material), material }
    }

    /// The address of the variant that `request` selects by the fields `names`: this material and
    /// each name with its normalised value.
    #[must_use]
    pub fn variant(&self, request: &HeaderMap, names: &[HeaderName]) -> Self {
        let mut values = Vec::with_capacity(64 * names.len());
        let mut material = self.material.clone();
        material.push(Part::Variant as u8);
        for name in names {
            push_frame(name.as_str().as_bytes(), &mut material);
            values.clear();
            vary::normalise_into(request, name, &mut values);
            material.extend_from_slice(&values);
        }
        Self::of(material)
    }
}

/// What of a request makes its key (`[route.key]`).
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRules {
    /// The route's name, in the key where the host is not: another route may have another upstream for the same path.
    pub route: Box<str>,
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
    /// The address of a request. `claims` is what a trusted proxy says of it, `body` its whole content where `self.body`
    /// asks for it. HEAD has the address of GET.
    pub fn address(
        &self,
        method: &Method,
        target: &Target,
        fields: &HeaderMap,
        claims: &[(&HeaderName, Vec<u8>)],
        body: &[u8],
    ) -> Result<Address, UnkeyedBody> {
        let mut out = Material::new();
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        out.push(FORMAT);
        push_frame(target.scheme.as_str().as_bytes(), &mut out);
        push_frame(method.as_str().as_bytes(), &mut out);
        push_frame(target.path().as_bytes(), &mut out);
        if self.host {
            out.push(Part::Host as u8);
            push_frame(target.authority.host().as_bytes(), &mut out);
            push_number(target.authority.port().map_or(0, usize::from), &mut out);
        } else {
            out.push(Part::Route as u8);
            push_frame(self.route.as_bytes(), &mut out);
        }
        if let Some(query) = self.query.apply(target.query(), self.sort_query) {
            out.push(Part::Query as u8);
            push_frame(query.as_bytes(), &mut out);
        }
        for header in &self.headers {
            push_values(&header.name, |each| header.for_each_value(fields, each), &mut out);
        }
        if let Some(cookies) = keyed_cookies(fields, &self.cookies) {
            out.push(Part::Cookies as u8);
            push_frame(cookies.as_bytes(), &mut out);
        }
        for (name, value) in claims {
            out.push(Part::Claim as u8);
            push_frame(name.as_str().as_bytes(), &mut out);
            push_frame(value, &mut out);
        }
        self.push_body(fields, body, &mut out)?;
        Ok(Address::of(out))
    }

    /// The digest of the content with the fields that say how to read it. No content counts as none, in JSON too.
    fn push_body(&self, fields: &HeaderMap, body: &[u8], out: &mut Material) -> Result<(), UnkeyedBody> {
        let (part, digest) = match self.body {
            _ if body.is_empty() => return Ok(()),
            BodyRule::None => return Ok(()),
            BodyRule::Raw => (Part::RawBody, blake3::hash(body)),
            BodyRule::Json => (Part::JsonBody, blake3::hash(&json::canonical(body)?)),
        };
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            let values = fields.get_all(&name).into_iter();
            push_values(&name, |each| values.for_each(|value| each(value.as_bytes())), out);
        }
        out.push(part as u8);
        push_frame(digest.as_bytes(), out);
        Ok(())
    }

    /// Reduces in a request's own fields what the key reduces, so that key, `Vary` and upstream see the same values.
    pub fn reduce(&self, fields: &mut HeaderMap) {
        self.headers.iter().for_each(|header| header.reduce(fields));
    }

    /// The query as keyed, which is also what the upstream is sent.
    pub fn query(&self, query: Option<&str>) -> Option<String> {
        self.query.apply(query, self.sort_query).map(Into::into)
    }
}

/// The byte before each part of the material that may be absent.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Part {
    Host = b'a',
    Route = b'n',
    Query = b'q',
    Header = b'h',
    HeaderValue = b'=',
    Cookies = b'c',
    RawBody = b'r',
    JsonBody = b'j',
    Claim = b'f',
    Variant = b'v',
}

/// Appends a field's name and each of the values that `values` calls its argument with.
fn push_values(name: &HeaderName, values: impl FnOnce(&mut dyn FnMut(&[u8])), out: &mut Material) {
    out.push(Part::Header as u8);
    push_frame(name.as_str().as_bytes(), out);
    values(&mut |value| {
        out.push(Part::HeaderValue as u8);
        push_frame(value, out);
    });
}

/// Appends `bytes` with their length before them, so that no value can look like the beginning of the next.
fn push_frame(bytes: &[u8], out: &mut Material) {
    push_number(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends a number in groups of seven bits, the lowest first.
fn push_number(mut number: usize, out: &mut Material) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::target::{Authority, Scheme};

    fn rules() -> KeyRules {
        KeyRules {
            route: "one".into(),
            query: QueryRule::All,
            sort_query: true,
            host: true,
            headers: Box::new([]),
            cookies: Box::new([]),
            body: BodyRule::None,
            body_max: 1024,
        }
    }

    fn target(authority: &str, path: &str, query: &str) -> Target {
        let authority = Authority::parse(authority, Scheme::Http).unwrap();
        Target::new(Scheme::Http, authority, path, Some(query)).unwrap()
    }

    fn get(rules: &KeyRules, target: &Target) -> Address {
        rules.address(&Method::GET, target, &HeaderMap::new(), &[], b"").unwrap()
    }

    #[test]
    fn requests_that_differ_have_different_keys() {
        let base = target("a.example", "/p", "x=1");
        let same = target("A.example.:80", "/%70", "x=1");
        assert_eq!(get(&rules(), &base), get(&rules(), &same));
        let others = [("b.example", "/p", "x=1"), ("a.example:81", "/p", "x=1"), ("a.example", "/p", "x=2")];
        for (authority, path, query) in others {
            assert_ne!(get(&rules(), &base).key, get(&rules(), &target(authority, path, query)).key);
        }
        let hostless = KeyRules { host: false, ..rules() };
        assert_eq!(get(&hostless, &base), get(&hostless, &target("b.example", "/p", "x=1")));
        let of_another_route = KeyRules { route: "other".into(), ..hostless.clone() };
        assert_ne!(get(&hostless, &base).key, get(&of_another_route, &base).key);
    }

    #[test]
    fn head_has_the_address_of_get_and_post_has_not() {
        let target = target("a", "/", "");
        let of = |method| rules().address(&method, &target, &HeaderMap::new(), &[], b"").unwrap();
        assert_eq!(of(Method::HEAD), of(Method::GET));
        assert_ne!(of(Method::POST).key, of(Method::GET).key);
    }

    #[test]
    fn only_keyed_fields_and_cookies_count() {
        let header = KeyHeader { name: HeaderName::from_static("x-tenant"), choices: None };
        let rules = KeyRules { headers: Box::new([header]), cookies: Box::new(["lang".into()]), ..rules() };
        let target = target("a", "/", "");
        let of = |list: &[(&'static str, &'static str)]| {
            let pairs =
                list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            rules.address(&Method::GET, &target, &pairs.collect(), &[], b"").unwrap().key
        };
        assert_eq!(of(&[("x-other", "1"), ("cookie", "sid=1")]), of(&[]));
        assert_eq!(of(&[("cookie", "sid=1; lang=de")]), of(&[("cookie", "lang=de")]));
        assert_ne!(of(&[("cookie", "lang=de")]), of(&[]));
        assert_ne!(of(&[("x-tenant", "")]), of(&[]));
        assert_ne!(of(&[("x-tenant", "a"), ("x-tenant", "b")]), of(&[("x-tenant", "a, b")]));
    }

    #[test]
    fn content_counts_as_its_rule_says() {
        let target = target("a", "/", "");
        let of = |body, content: &str| {
            let rules = KeyRules { body, ..rules() };
            rules.address(&Method::POST, &target, &HeaderMap::new(), &[], content.as_bytes()).map(|address| address.key)
        };
        assert_eq!(of(BodyRule::None, "a"), of(BodyRule::None, "b"));
        assert_ne!(of(BodyRule::Raw, "a"), of(BodyRule::Raw, "b"));
        assert_eq!(of(BodyRule::Json, r#"{"a":1,"b":2}"#), of(BodyRule::Json, r#"{ "b":2, "a":1 }"#));
        assert_ne!(of(BodyRule::Json, "[1]"), of(BodyRule::Raw, "[1]"));
        assert_eq!(of(BodyRule::Json, "{"), Err(UnkeyedBody::NotJson));
    }

    #[test]
    fn a_variant_has_another_key_than_its_base() {
        let base = get(&rules(), &target("a", "/", ""));
        assert_ne!(base.variant(&HeaderMap::new(), &[]).key, base.key);
    }

    #[test]
    fn a_key_is_shown_in_hexadecimal() {
        let key = CacheKey::from_bytes([0xa5; 32]);
        assert_eq!(key.to_string(), "a5".repeat(32));
        assert_eq!(format!("{key:?}"), "a5".repeat(32));
    }
}
