//! Targeted cache control (RFC 9213): the first valid field of a list replaces `Cache-Control` and `Expires`.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::cache_control::{CacheControl, Qualified};

/// The directives of the first of `names` that is present and a valid Structured Field dictionary.
/// An empty or invalid one is ignored (RFC 9213 §2.2).
pub fn targeted(fields: &HeaderMap, names: &[HeaderName]) -> Option<CacheControl> {
    names.iter().filter(|name| fields.contains_key(*name)).find_map(|name| directives(fields, name))
}

fn directives(fields: &HeaderMap, name: &HeaderName) -> Option<CacheControl> {
    let lines: Vec<&[u8]> = fields.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
    let dictionary: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
    if dictionary.is_empty() {
        return None;
    }
    let mut directives = CacheControl::default();
    for (key, member) in &dictionary {
        if let ListEntry::Item(item) = member {
            add(&mut directives, key.as_str(), &item.bare_item);
        }
    }
    Some(directives)
}

/// A directive whose value is not of its type is ignored (RFC 9213 §2.1).
fn add(directives: &mut CacheControl, name: &str, value: &BareItem) {
    let is_set = *value == BareItem::Boolean(true);
    let seconds = match value {
        BareItem::Integer(seconds) => u64::try_from(i64::from(*seconds)).ok().map(Duration::from_secs),
        _ => None,
    };
    // A list of field names comes as a string; the whole response is meant, to be safe.
    let is_named = is_set || matches!(value, BareItem::String(_) | BareItem::Token(_));
    match name {
        "no-store" => directives.no_store |= is_set,
        "no-cache" if is_named => directives.no_cache = Qualified::Whole,
        "private" if is_named => directives.private = Qualified::Whole,
        "public" => directives.public |= is_set,
        "must-revalidate" => directives.must_revalidate |= is_set,
        "proxy-revalidate" => directives.proxy_revalidate |= is_set,
        "must-understand" => directives.must_understand |= is_set,
        "no-transform" => directives.no_transform |= is_set,
        "immutable" => directives.immutable |= is_set,
        "max-age" => directives.max_age = seconds,
        "s-maxage" => directives.s_maxage = seconds,
        "stale-while-revalidate" => directives.stale_while_revalidate = seconds,
        "stale-if-error" => directives.stale_if_error = seconds,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_a_valid_dictionary_counts() {
        let check = |value: &str, expected: Option<Option<u64>>| {
            let mut fields = HeaderMap::new();
            fields.insert("cdn-cache-control", HeaderValue::from_str(value).unwrap());
            let found = targeted(&fields, &[HeaderName::from_static("cdn-cache-control")]);
            assert_eq!(found.map(|it| it.max_age.map(|age| age.as_secs())), expected, "{value}");
        };
        check("max-age=60", Some(Some(60)));
        check("max-age=60;a=b, foo", Some(Some(60)));
        check("max-age=\"60\"", Some(None));
        check("max-age=60.5", Some(None));
        check("max-age=-5", Some(None));
        check("max-age=1, max-age=2", Some(Some(2)));
        check("max-age=60,", None);
        check("MAX-AGE=60", None);
        check("", None);
        check("max-age=60 foo", None);
    }

    #[test]
    fn the_first_valid_field_of_the_list_wins() {
        let mut fields = HeaderMap::new();
        fields.insert("a", HeaderValue::from_static("&&"));
        fields.insert("b", HeaderValue::from_static("no-store"));
        let names = ["a", "b"].map(HeaderName::from_static);
        assert!(targeted(&fields, &names).is_some_and(|it| it.no_store));
    }
}
