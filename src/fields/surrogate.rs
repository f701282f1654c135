//! Surrogate keys: the tags an origin gives a response (`Surrogate-Key`, `Cache-Tag`, RFC 9875 `Cache-Groups`).

use std::fmt::Display;

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, List, ListEntry, Parser};

/// The bound on a tag's length, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

/// The fields that [`tags`] looks at.
pub const TAGGING: [HeaderName; 3] = [SURROGATE_KEY, CACHE_TAG, CACHE_GROUPS];

const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// The origin named more or longer tags than are kept; the response is not stored, so that no purge falls short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverTagLimits;

/// The origin's tags: `Surrogate-Key` split at spaces, `Cache-Tag` at commas, each as is;
/// `Cache-Groups` members prefixed with `group:` and `origin` (their scope is the origin, RFC 9875 §2). At most `most`.
pub fn tags(fields: &HeaderMap, origin: impl Display, most: usize) -> Result<Box<[Box<str>]>, OverTagLimits> {
    let mut tags = Vec::new();
    for line in fields.get_all(SURROGATE_KEY) {
        for tag in line.as_bytes().split(u8::is_ascii_whitespace) {
            add(&mut tags, tag, most)?;
        }
    }
    for line in fields.get_all(CACHE_TAG) {
        for tag in line.as_bytes().split(|&byte| byte == b',') {
            add(&mut tags, tag.trim_ascii(), most)?;
        }
    }
    for group in groups(fields, &CACHE_GROUPS) {
        if group.len() > TAG_BYTES_MAX {
            return Err(OverTagLimits);
        }
        keep(&mut tags, group_tag(&origin, &group), most)?;
    }
    Ok(tags.into_boxed_slice())
}

/// The groups that `Cache-Group-Invalidation` names, in the form that [`tags`] gives them (RFC 9875 §3).
pub fn invalidated_groups(fields: &HeaderMap, origin: &str) -> Vec<Box<str>> {
    groups(fields, &CACHE_GROUP_INVALIDATION).iter().map(|group| group_tag(origin, group)).collect()
}

/// Whether a tag is a cache group's, in the form that [`tags`] gives it.
pub fn is_group(tag: &str) -> bool {
    tag.strip_prefix("group:http").is_some_and(|rest| rest.contains("://") && rest.contains(' '))
}

fn add(tags: &mut Vec<Box<str>>, tag: &[u8], most: usize) -> Result<(), OverTagLimits> {
    match tag.len() {
        0 => Ok(()),
        1..=TAG_BYTES_MAX => keep(tags, String::from_utf8_lossy(tag).into(), most),
        _ => Err(OverTagLimits),
    }
}

fn keep(tags: &mut Vec<Box<str>>, tag: Box<str>, most: usize) -> Result<(), OverTagLimits> {
    if tags.contains(&tag) {
        return Ok(());
    }
    if tags.len() >= most {
        return Err(OverTagLimits);
    }
    tags.push(tag);
    Ok(())
}

/// The strings of a list (RFC 9875 §2: an sf-list of Strings); none when it is not one. Members of other types and
/// parameters are ignored.
fn groups(fields: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut list = List::new();
    for line in fields.get_all(name) {
        let Ok(longer) = Parser::new(line.as_bytes()).parse_list_with_visitor(list) else { return Vec::new() };
        list = longer;
    }
    let strings = list.into_iter().filter_map(|member| match member {
        ListEntry::Item(item) => match item.bare_item {
            BareItem::String(text) => Some(String::from(text)),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    });
    strings.collect()
}

/// A space cannot be in a surrogate key, so that none can be taken for another origin's group.
fn group_tag(origin: impl Display, group: &str) -> Box<str> {
    format!("group:{origin} {group}").into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TAGS_MAX: usize = 64;

    fn of(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn check(fields: &[(&'static str, &str)], expected: Result<&[&str], OverTagLimits>) {
        let expected = expected.map(|tags| tags.iter().map(|tag| Box::from(*tag)).collect());
        assert_eq!(tags(&of(fields), "https://a.test", TAGS_MAX), expected, "{fields:?}");
    }

    #[test]
    fn tags_come_from_three_fields() {
        check(&[], Ok(&[]));
        check(&[("surrogate-key", " a  b:1 a,c ")], Ok(&["a", "b:1", "a,c"]));
        check(&[("surrogate-key", "a"), ("surrogate-key", "b a")], Ok(&["a", "b"]));
        check(&[("cache-tag", "a, b c ,, a")], Ok(&["a", "b c"]));
        check(&[("cache-groups", "\"x\", \"Y z\";p=1")], Ok(&["group:https://a.test x", "group:https://a.test Y z"]));
        check(
            &[("cache-groups", "\"x\""), ("cache-groups", "\"y\""), ("surrogate-key", "k")],
            Ok(&["k", "group:https://a.test x", "group:https://a.test y"]),
        );
    }

    #[test]
    fn invalid_groups_are_ignored() {
        check(&[("cache-groups", "x")], Ok(&[]));
        check(&[("cache-groups", "\"x\", y, (\"z\")")], Ok(&["group:https://a.test x"]));
        check(&[("cache-groups", "\"x")], Ok(&[]));
        check(&[("cache-groups", "(\"x\")")], Ok(&[]));
    }

    #[test]
    fn over_the_limits_there_are_no_tags() {
        let longest = "x".repeat(TAG_BYTES_MAX);
        check(&[("surrogate-key", &longest)], Ok(&[&longest]));
        check(&[("cache-tag", &format!("{longest}x"))], Err(OverTagLimits));
        check(&[("cache-groups", &format!("\"{longest}x\""))], Err(OverTagLimits));
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(tags(&of(&[("surrogate-key", &many(TAGS_MAX))]), "", TAGS_MAX).map(|tags| tags.len()), Ok(TAGS_MAX));
        check(&[("surrogate-key", &many(TAGS_MAX + 1))], Err(OverTagLimits));
        assert_eq!(
            tags(&of(&[("surrogate-key", &many(TAGS_MAX)), ("cache-tag", "0, 1")]), "", TAGS_MAX)
                .map(|tags| tags.len()),
            Ok(TAGS_MAX)
        );
    }

    #[test]
    fn invalidated_groups_have_the_form_of_tags() {
        let fields = of(&[("cache-group-invalidation", "\"x\", \"y\"")]);
        let expected: [Box<str>; 2] = ["group:http://a x".into(), "group:http://a y".into()];
        assert_eq!(invalidated_groups(&fields, "http://a"), expected);
        assert!(expected.iter().all(|tag| is_group(tag)));
        assert!(!is_group("group:a b") && !is_group("group:http://a"));
        assert!(invalidated_groups(&HeaderMap::new(), "o").is_empty());
    }
}
