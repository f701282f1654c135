//! Targeted cache control (RFC 9213): the first valid field of a list replaces `Cache-Control` and `Expires`.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use super::cache_control::{Argument, CacheControl};

/// The directives of the first of `names` that is present and a valid Structured Field dictionary.
/// An empty or invalid one is ignored (RFC 9213 §2.2).
pub fn targeted(fields: &HeaderMap, names: &[HeaderName]) -> Option<CacheControl> {
    names.iter().find_map(|name| directives(fields, name))
}

fn directives(fields: &HeaderMap, name: &HeaderName) -> Option<CacheControl> {
    let mut dictionary = Dictionary::new();
    for line in fields.get_all(name) {
        dictionary = Parser::new(line.as_bytes()).parse_dictionary_with_visitor(dictionary).ok()?;
    }
    if dictionary.is_empty() {
        return None;
    }
    let mut directives = CacheControl::default();
    for (name, member) in &dictionary {
        add(&mut directives, name.as_str(), member);
    }
    Some(directives)
}

/// A directive's value has the type that RFC 9213 §2.1 infers: true, an integer, or a string of field names.
/// One of another type is not consumed, and the directive is read in the most restrictive way: origins that
/// write `max-age="60"` get no freshness rather than a route's. Parameters are ignored.
fn add(directives: &mut CacheControl, name: &str, member: &ListEntry) {
    let argument = match member {
        ListEntry::Item(Item { bare_item, .. }) => match bare_item {
            BareItem::Boolean(false) => return,
            BareItem::Boolean(true) => Argument::Absent,
            BareItem::Integer(number) => Argument::Text(Cow::Owned(number.to_string().into_bytes())),
            BareItem::String(text) if takes_names(name) => Argument::Text(Cow::Borrowed(text.as_str().as_bytes())),
            BareItem::Token(text) if takes_names(name) => Argument::Text(Cow::Borrowed(text.as_str().as_bytes())),
            _ => Argument::Malformed,
        },
        ListEntry::InnerList(_) => Argument::Malformed,
    };
    directives.add(name.as_bytes(), &argument);
}

fn takes_names(directive: &str) -> bool {
    matches!(directive, "no-cache" | "private")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use http::header::SET_COOKIE;

    use super::*;
    use crate::fields::cache_control::Qualified;

    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");
    const OWN: HeaderName = HeaderName::from_static("aside-cache-control");

    fn of(lines: &[&str]) -> Option<CacheControl> {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(CDN, HeaderValue::from_str(line).unwrap());
        }
        targeted(&fields, &[OWN, CDN])
    }

    fn with_max_age(seconds: u64) -> CacheControl {
        CacheControl { max_age: Some(Duration::from_secs(seconds)), ..CacheControl::default() }
    }

    #[test]
    fn a_valid_dictionary_gives_directives() {
        assert_eq!(of(&["max-age=60"]), Some(with_max_age(60)));
        assert_eq!(of(&["max-age=60;p=1, unknown"]), Some(with_max_age(60)));
        assert_eq!(of(&["max-age=1, max-age=60"]), Some(with_max_age(60)));
        assert_eq!(of(&["unknown=(1 2)", "max-age=60"]), Some(with_max_age(60)));
        assert_eq!(of(&["max-age=99999999999"]), Some(with_max_age(1 << 31)));
        assert_eq!(of(&["no-store"]), Some(CacheControl { no_store: true, ..CacheControl::default() }));
        assert_eq!(of(&["no-store=?0"]), Some(CacheControl::default()));
    }

    #[test]
    fn qualified_directives_take_strings() {
        let private = |line| of(&[line]).unwrap().private;
        assert_eq!(private("private=\"set-cookie\""), Qualified::Fields(vec![SET_COOKIE]));
        assert_eq!(private("private"), Qualified::Whole);
        assert_eq!(private("private=(a b)"), Qualified::Whole);
        assert_eq!(private("private=1.5"), Qualified::Whole);
    }

    #[test]
    fn an_empty_or_invalid_field_is_ignored() {
        for line in ["", " ", "max-age=10000, &&&&&", "MaX-aGe=60", "max-age =60", "max-age= 60", "max-age=60,"] {
            assert_eq!(of(&[line]), None, "{line}");
        }
        assert_eq!(of(&["max-age=60", "!"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_value_of_the_wrong_type_gives_no_freshness() {
        for value in ["\"10000\"", "10.0", "-1", "x", "(1)", "?1"] {
            assert_eq!(of(&[&format!("max-age={value}")]), Some(with_max_age(0)), "{value}");
        }
    }

    #[test]
    fn the_first_valid_name_wins() {
        let mut fields = HeaderMap::new();
        fields.insert(CDN, HeaderValue::from_static("max-age=1"));
        fields.insert(OWN, HeaderValue::from_static("max-age=2"));
        assert_eq!(targeted(&fields, &[OWN, CDN]), Some(with_max_age(2)));
        assert_eq!(targeted(&fields, &[CDN, OWN]), Some(with_max_age(1)));
        fields.insert(OWN, HeaderValue::from_static("!"));
        assert_eq!(targeted(&fields, &[OWN, CDN]), Some(with_max_age(1)));
        assert_eq!(targeted(&fields, &[]), None);
    }
}
