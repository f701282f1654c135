//! Purge tags and their places in the ledger.

use crate::target::Target;

/// The most segments of a path prefix that can be purged.
pub const MAX_PREFIX_SEGMENTS: usize = 8;

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
    /// A host, normalised, without port.
    Host(Box<str>),
    /// A URL without scheme: `host[:port]/path?query`, normalised; all its variants.
    Url(Box<str>),
    /// A path prefix with its host: `host[:port]/segment/`, ending with `/`.
    Prefix(Box<str>),
    /// A surrogate key.
    Surrogate(Box<str>),
}

impl Tag {
    /// The tag of a target's URL.
    pub fn url(target: &Target) -> Self {
        let authority = &target.authority;
        Self::Url(match target.query() {
            Some(query) => format!("{authority}{}?{query}", target.path()).into(),
            None => format!("{authority}{}", target.path()).into(),
        })
    }

    /// The tag of a target's host, whatever its port.
    pub fn host(target: &Target) -> Self {
        Self::Host(target.authority.host().into())
    }

    /// The tags of a target's path prefixes: `host/`, `host/a/`, `host/a/b/` up to [`MAX_PREFIX_SEGMENTS`].
    /// `/a/b` has the prefix `/a/b/` too.
    pub fn prefixes(target: &Target) -> impl Iterator<Item = Self> {
        let mut prefix = target.authority.to_string();
        prefix.push('/');
        let path = target.path();
        let inner = path.strip_prefix('/').unwrap_or(path);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let segments = inner.split('/').take(if inner.is_empty() { 0 } else { MAX_PREFIX_SEGMENTS });
        let root = Self::Prefix(prefix.as_str().into());
        std::iter::once(root).chain(segments.map(move |segment| {
            prefix.push_str(segment);
            prefix.push('/');
            Self::Prefix(prefix.as_str().into())
        }))
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

#[cfg(test)]
mod tests {
    use super::*;
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
