//! Cookies by name: the ones a key is made of, and whether there are others.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// The value of `Cookie` reduced to the cookies in `names`; none if it has none of them.
///
/// The order is that of `names`, so that the value depends on nothing that is not in the key. A repeated cookie
/// keeps all its values in their order.
pub fn keyed_cookies(fields: &HeaderMap, names: &[Box<str>]) -> Option<HeaderValue> {
    let mut kept = Vec::new();
    for wanted in names {
        for (name, value) in pairs(fields).filter_map(pair_parts).filter(|(name, _)| *name == wanted.as_bytes()) {
            if !kept.is_empty() {
                kept.extend_from_slice(b"; ");
            }
            kept.extend_from_slice(name);
            kept.push(b'=');
            kept.extend_from_slice(value);
        }
    }
    if kept.is_empty() { None } else { HeaderValue::from_maybe_shared(bytes::Bytes::from(kept)).ok() }
}

/// Whether `Cookie` has a cookie that is not in `names`; false without `Cookie`. One without `=` counts as such.
pub fn has_unkeyed_cookie(fields: &HeaderMap, names: &[Box<str>]) -> bool {
    let keyed = |name: &[u8]| names.iter().any(|wanted| wanted.as_bytes() == name);
    pairs(fields).any(|pair| !pair_parts(pair).is_some_and(|(name, _)| keyed(name)))
}

fn pairs(fields: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = fields.get_all(COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

fn pair_parts(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((pair[..equals].trim_ascii_end(), pair[equals + 1..].trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&'static str], keyed: Option<&str>, unkeyed: bool) {
        let fields: HeaderMap = lines.iter().map(|line| (COOKIE, HeaderValue::from_static(line))).collect();
        let names: [Box<str>; 2] = ["lang".into(), "cur".into()];
        let kept = keyed_cookies(&fields, &names);
        assert_eq!(kept.as_ref().map(|value| value.to_str().unwrap()), keyed, "{lines:?}");
        assert_eq!(has_unkeyed_cookie(&fields, &names), unkeyed, "{lines:?}");
    }

    #[test]
    fn only_named_cookies_are_kept() {
        check(&[], None, false);
        check(&["  ;"], None, false);
        check(&["lang=de"], Some("lang=de"), false);
        check(&["cur=eur;lang=de; "], Some("lang=de; cur=eur"), false);
        check(&["sid=1; lang=de"], Some("lang=de"), true);
        check(&["lang=de", "lang = en=x"], Some("lang=de; lang=en=x"), false);
        check(&["lang"], None, true);
        check(&["Lang=de"], None, true);
        check(&["sid=1"], None, true);
    }
}
