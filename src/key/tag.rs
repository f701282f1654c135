//! Purge tags and their places in the ledger.

use std::fmt;

use super::KeyRules;
use crate::target::{Target, normalised_query};

/// The most segments of a path prefix that can be purged.
pub const MAX_PREFIX_SEGMENTS: usize = 8;

/// A purge tag's two places in the ledger's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TagHash(pub u64, pub u64);

/// A tag of the purge ledger. URL tags live in an array of their own.
///
/// A response whose key has no host answers for every host, so its tags have none either.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// Everything.
    All,
    /// A route by name.
    Route(Box<str>),
    /// A host, normalised, without port; empty: what answers for every host.
    Host(Box<str>),
    /// A URL without scheme: `host[:port]/path?query`, normalised, or without host; all its variants. The ports 80 and 443
    /// are left out, whatever the scheme: TLS may end before us, or not.
    Url(Box<str>),
    /// A path prefix with its host: `host[:port]/segment/`, or without host; it ends with `/`.
    Prefix(Box<str>),
    /// A surrogate key.
    Surrogate(Box<str>),
}

impl Tag {
    /// The tag of a target's URL with the query as it is.
    pub fn url(target: &Target) -> Self {
        Self::url_with(target, target.query())
    }

    /// The tag of a target's URL as the key sees it: with the keyed query, and without a host that is not keyed.
    pub fn keyed_url(target: &Target, rules: &KeyRules) -> Self {
        let url = Self::url_with(target, rules.query(target.query()).as_deref());
        if rules.host { url } else { url.without_host() }
    }

    fn url_with(target: &Target, query: Option<&str>) -> Self {
        let (authority, path) = (authority(target), target.path());
        Self::Url(match query.map(normalised_query) {
            Some(query) if !query.is_empty() => format!("{authority}{path}?{query}").into(),
            _ => format!("{authority}{path}").into(),
        })
    }

    /// The tag of a target's host, whatever its port.
    pub fn host(target: &Target) -> Self {
        Self::Host(target.authority.host().into())
    }

    /// The tags of a target's path prefixes: `host/`, `host/a/`, `host/a/b/` up to [`MAX_PREFIX_SEGMENTS`].
    /// `/a/b` has the prefix `/a/b/` too.
    pub fn prefixes(target: &Target) -> impl Iterator<Item = Self> {
        let mut prefix = authority(target);
        prefix.push('/');
        let path = target.path();
        let inner = path.strip_prefix('/').unwrap_or(path);
        let bound = if inner.is_empty() { 0 } else { MAX_PREFIX_SEGMENTS };
        let segments = inner.strip_suffix('/').unwrap_or(inner).split('/').take(bound);
        let root = Self::Prefix(prefix.as_str().into());
        std::iter::once(root).chain(segments.map(move |segment| {
            prefix.push_str(segment);
            prefix.push('/');
            Self::Prefix(prefix.as_str().into())
        }))
    }

    /// The tag of the prefix that a target's path is; none where the path does not end with `/`, or has more segments
    /// than [`MAX_PREFIX_SEGMENTS`].
    pub fn prefix(target: &Target) -> Option<Self> {
        let path = target.path();
        let is_prefix = path.ends_with('/') && path.matches('/').count() <= MAX_PREFIX_SEGMENTS + 1;
        is_prefix.then(|| Self::Prefix(format!("{}{path}", authority(target)).into()))
    }

    /// The tag that the same response has where its key has no host; the same where the tag has none anyway.
    #[must_use]
    pub fn without_host(self) -> Self {
        let path = |text: &str| text.find('/').map_or("", |slash| &text[slash..]).into();
        match self {
            Self::Host(_) => Self::Host("".into()),
            Self::Url(text) => Self::Url(path(&text)),
            Self::Prefix(text) => Self::Prefix(path(&text)),
            Self::All | Self::Route(_) | Self::Surrogate(_) => self,
        }
    }

    /// Whether it is a URL's, and so in the URLs' array.
    pub const fn is_url(&self) -> bool {
        matches!(self, Self::Url(_))
    }

    /// Its places, from blake3 over its kind and text.
    pub fn hash(&self) -> TagHash {
        let (kind, text) = match self {
            Self::All => (b'*', ""),
            Self::Route(text) => (b'r', &**text),
            Self::Host(text) => (b'h', &**text),
            Self::Url(text) => (b'u', &**text),
            Self::Prefix(text) => (b'p', &**text),
            Self::Surrogate(text) => (b's', &**text),
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind]).update(text.as_bytes());
        let mut places = [[0; 8]; 2];
        hasher.finalize_xof().fill(places.as_flattened_mut());
        TagHash(u64::from_le_bytes(places[0]), u64::from_le_bytes(places[1]))
    }
}

/// A target's authority without a port that is the default of http or https.
fn authority(target: &Target) -> String {
    match target.authority.port() {
        Some(80 | 443) => target.authority.host().to_owned(),
        _ => target.authority.to_string(),
    }
}

/// As an operator reads it.
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Route(name) => write!(f, "route {name}"),
            Self::Host(host) if host.is_empty() => f.write_str("any host"),
            Self::Host(host) => write!(f, "host {host}"),
            Self::Url(url) => write!(f, "url {url}"),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Self::Surrogate(tag) => write!(f, "tag {tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{BodyRule, QueryRule};
    use crate::target::{Authority, Scheme};

    fn target(path: &str, query: Option<&str>) -> Target {
        Target::new(Scheme::Http, Authority::parse("Shop.example:81", Scheme::Http).unwrap(), path, query).unwrap()
    }

    #[test]
    fn a_url_tag_has_no_scheme() {
        assert_eq!(Tag::url(&target("/a", None)), Tag::Url("shop.example:81/a".into()));
        assert_eq!(Tag::url(&target("/a", Some("b=1"))), Tag::Url("shop.example:81/a?b=1".into()));
        assert_eq!(Tag::host(&target("/a", None)), Tag::Host("shop.example".into()));
    }

    #[test]
    fn a_url_tag_has_what_the_key_has() {
        let check = |query: QueryRule, sort_query, host, sent, expected: &str| {
            let rules = KeyRules {
                route: "route".into(),
                query,
                sort_query,
                host,
                headers: Box::new([]),
                cookies: Box::new([]),
                body: BodyRule::None,
                body_max: 0,
            };
            assert_eq!(Tag::keyed_url(&target("/a", sent), &rules), Tag::Url(expected.into()), "{sent:?}");
        };
        check(QueryRule::All, true, true, Some("y=2&x=1"), "shop.example:81/a?x=1&y=2");
        check(QueryRule::All, false, true, Some("y=2&x=1"), "shop.example:81/a?y=2&x=1");
        check(QueryRule::Deny(Box::new(["utm_*".into()])), true, true, Some("utm_source=x"), "shop.example:81/a");
        check(QueryRule::None, true, false, Some("x=1"), "/a");
        check(QueryRule::All, true, false, Some("x=1"), "/a?x=1");
    }

    #[test]
    fn without_host_a_tag_stands_for_every_host() {
        let check = |tag: Tag, expected| assert_eq!(tag.without_host(), expected);
        check(Tag::host(&target("/", None)), Tag::Host("".into()));
        check(Tag::url(&target("/a/b", Some("c=/"))), Tag::Url("/a/b?c=/".into()));
        check(Tag::Prefix("shop.example:81/".into()), Tag::Prefix("/".into()));
        check(Tag::Surrogate("a/b".into()), Tag::Surrogate("a/b".into()));
    }

    #[test]
    fn only_a_path_of_few_segments_that_ends_with_a_slash_is_a_prefix() {
        let check = |path, expected| assert_eq!(Tag::prefix(&target(path, None)).is_some(), expected, "{path}");
        check("/", true);
        check("/a/", true);
        check("/a", false);
        check("/1/2/3/4/5/6/7/8/", true);
        check("/1/2/3/4/5/6/7/8/9/", false);
        let deep = target("/1/2/3/4/5/6/7/8/", None);
        assert_eq!(Tag::prefix(&deep), Tag::prefixes(&deep).last());
    }

    #[test]
    fn prefixes_end_at_segments_and_are_bounded() {
        let check = |path, expected: &[&str]| {
            let tags: Vec<Tag> = Tag::prefixes(&target(path, None)).collect();
            let expected: Vec<Tag> =
                expected.iter().map(|path| Tag::Prefix(format!("shop.example:81{path}").into())).collect();
            assert_eq!(tags, expected, "{path}");
        };
        check("/", &["/"]);
        check("/a", &["/", "/a/"]);
        check("/a/b/", &["/", "/a/", "/a/b/"]);
        check("//", &["/", "//"]);
        assert_eq!(Tag::prefixes(&target("/1/2/3/4/5/6/7/8/9/10", None)).count(), 1 + MAX_PREFIX_SEGMENTS);
    }

    #[test]
    fn kinds_with_one_text_have_different_places() {
        let tags = [Tag::Route("a".into()), Tag::Host("a".into()), Tag::Surrogate("a".into()), Tag::All];
        let places: std::collections::HashSet<TagHash> = tags.iter().map(Tag::hash).collect();
        assert_eq!(places.len(), tags.len());
        assert_eq!(Tag::Route("a".into()).hash(), tags[0].hash());
        assert!(Tag::Url("a".into()).is_url() && !Tag::All.is_url());
    }
}
