//! Surrogate keys: the tags an origin gives a response (`Surrogate-Key`, `Cache-Tag`, RFC 9875 `Cache-Groups`).

use http::HeaderMap;
use sfv::{BareItem, List, ListEntry, Parser};

/// The bound on an origin's tags per response.
pub const TAGS_MAX: usize = 64;
/// The bound on a tag's length, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

/// The origin named more or longer tags than are kept; the response is not stored, so that no purge falls short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverTagLimits;

/// The origin's tags: `Surrogate-Key` split at spaces, `Cache-Tag` at commas, each as is;
/// `Cache-Groups` members prefixed with `group:` and `origin` (their scope is the origin, RFC 9875 §2).
pub fn tags(fields: &HeaderMap, origin: &str) -> Result<Box<[Box<str>]>, OverTagLimits> {
    let mut tags: Vec<Box<str>> = Vec::new();
    for line in lines(fields, "surrogate-key") {
        tags.extend(line.split_ascii_whitespace().map(Box::from));
    }
    for line in lines(fields, "cache-tag") {
        tags.extend(line.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(Box::from));
    }
    if tags.iter().any(|tag| tag.len() > TAG_BYTES_MAX) {
        return Err(OverTagLimits);
    }
    tags.extend(groups(fields, "cache-groups", origin));
    if tags.len() > TAGS_MAX { Err(OverTagLimits) } else { Ok(tags.into()) }
}

/// The groups that `Cache-Group-Invalidation` names, in the form that [`tags`] gives them (RFC 9875 §3).
pub fn invalidated_groups(fields: &HeaderMap, origin: &str) -> Vec<Box<str>> {
    groups(fields, "cache-group-invalidation", origin)
}

fn lines<'a>(fields: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    fields.get_all(name).iter().filter_map(|line| line.to_str().ok())
}

/// The strings of a Structured Field list; an invalid one has none, members of other types are skipped.
fn groups(fields: &HeaderMap, name: &'static str, origin: &str) -> Vec<Box<str>> {
    if !fields.contains_key(name) {
        return Vec::new();
    }
    let text = lines(fields, name).collect::<Vec<_>>().join(", ");
    let Ok(list) = Parser::new(&text).parse::<List>() else { return Vec::new() };
    let strings = list.iter().filter_map(|member| match member {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::String(group) => Some(format!("group:{origin}:{}", group.as_str()).into()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    });
    strings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn each_field_has_its_own_syntax() {
        let check = |name: &'static str, value: &str, expected: &[&str]| {
            let mut fields = HeaderMap::new();
            fields.insert(name, HeaderValue::from_str(value).unwrap());
            let found = tags(&fields, "https://a").unwrap();
            assert_eq!(found.iter().map(|tag| &**tag).collect::<Vec<_>>(), expected, "{name}: {value}");
        };
        check("surrogate-key", "a b:1  c,d", &["a", "b:1", "c,d"]);
        check("cache-tag", "a, b:1,,c d", &["a", "b:1", "c d"]);
        check("cache-groups", "\"x\", \"y\";p, z", &["group:https://a:x", "group:https://a:y"]);
        check("cache-groups", "\"x", &[]);
        check("vary", "a", &[]);
    }

    #[test]
    fn too_many_or_too_long_tags_are_an_error() {
        let check = |value: &str| {
            let mut fields = HeaderMap::new();
            fields.insert("surrogate-key", HeaderValue::from_str(value).unwrap());
            assert_eq!(tags(&fields, ""), Err(OverTagLimits));
        };
        check(&"a ".repeat(TAGS_MAX + 1));
        check(&"a".repeat(TAG_BYTES_MAX + 1));
    }
}
