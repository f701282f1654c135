//! Request fields reduced to a closed set of values.

use http::header::{ACCEPT_LANGUAGE, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::{Choices, KeyHeader};

/// How well a member of an `Accept-*` field is liked: its quality in thousandths, then whether it names something.
type Preference = (u16, bool);

impl Choices {
    /// The listed value that the field `name` of a request counts as.
    pub(super) fn reduce(&self, name: &HeaderName, fields: &HeaderMap) -> &str {
        let mut values = fields.get_all(name).into_iter();
        let only = values.next().filter(|_| values.next().is_none());
        // What has been reduced is not reduced further, be the default a list that would name a value.
        if only.is_some_and(|only| only.as_bytes() == self.default.as_bytes()) {
            return &self.default;
        }
        let chosen = if has_quality_values(name) {
            self.preferred(name, fields)
        } else {
            only.and_then(text).and_then(|text| self.listed(text.trim()))
        };
        chosen.unwrap_or(&self.default)
    }

    /// The listed value of the member with the highest quality, the first of equals; none if that is `*`.
    fn preferred(&self, name: &HeaderName, fields: &HeaderMap) -> Option<&str> {
        let mut best: (Preference, Option<&str>) = ((0, false), None);
        let members = fields.get_all(name).into_iter().filter_map(text).flat_map(|text| text.split(','));
        for (range, quality) in members.filter_map(range_and_quality) {
            let chosen = if matches!(range, "*" | "*/*") { None } else { self.matching(name, range) };
            if chosen.is_none() && !range.starts_with('*') {
                continue;
            }
            let preference = (quality, chosen.is_some());
            if quality > 0 && preference > best.0 {
                best = (preference, chosen);
            }
        }
        best.1
    }

    /// The first listed value that a range names: itself, its language without subtags, or one of `type/*`.
    fn matching(&self, name: &HeaderName, range: &str) -> Option<&str> {
        if let Some(kind) = range.strip_suffix('*').filter(|kind| kind.ends_with('/')) {
            let of_kind = |value: &str| value.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind));
            return self.values.iter().map(AsRef::as_ref).find(|value| of_kind(value));
        }
        let mut range = range;
        loop {
            if let Some(value) = self.listed(range) {
                return Some(value);
            }
            range = range.rsplit_once('-').filter(|_| *name == ACCEPT_LANGUAGE)?.0;
        }
    }

    fn listed(&self, text: &str) -> Option<&str> {
        self.values.iter().map(AsRef::as_ref).find(|value: &&str| value.eq_ignore_ascii_case(text))
    }
}

impl KeyHeader {
    /// Puts the reduced value, where there are choices, in the place of all that the field has.
    pub(super) fn reduce(&self, fields: &mut HeaderMap) {
        let Some(choices) = &self.choices else { return };
        match HeaderValue::from_str(choices.reduce(&self.name, fields)) {
            Ok(value) => drop(fields.insert(&self.name, value)),
            // Without the field the default counts, and the upstream is sent nothing that does not.
            Err(_) => drop(fields.remove(&self.name)),
        }
    }

    /// Calls `each` with every value that is keyed: the reduced one, or all as they are.
    pub(super) fn for_each_value(&self, fields: &HeaderMap, mut each: impl FnMut(&[u8])) {
        match &self.choices {
            Some(choices) => each(choices.reduce(&self.name, fields).as_bytes()),
            None => fields.get_all(&self.name).into_iter().for_each(|value| each(value.as_bytes())),
        }
    }
}

fn has_quality_values(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "accept" || name.starts_with("accept-")
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// A member's range and its quality in thousandths (RFC 9110 §12.4.2); none where the quality is not one.
fn range_and_quality(member: &str) -> Option<(&str, u16)> {
    let mut parts = member.split(';').map(str::trim);
    let range = parts.next().filter(|range| !range.is_empty())?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some((range, weight.map_or(Some(1000), thousandths)?))
}

fn thousandths(weight: &str) -> Option<u16> {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = format!("{fraction:0<3}").parse().ok()?;
    match (whole, fraction) {
        ("0", fraction) => Some(fraction),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, values: &[&str], value: &'static str, expected: &str) {
        let values = values.iter().map(|value| Box::from(*value)).collect();
        let choices = Choices { values, default: "other".into() };
        let name = HeaderName::from_static(name);
        let mut fields = HeaderMap::new();
        if !value.is_empty() {
            fields.insert(&name, HeaderValue::from_static(value));
        }
        assert_eq!(choices.reduce(&name, &fields), expected, "{name}: {value}");
    }

    #[test]
    fn the_clients_preferred_language_counts() {
        let check = |value, expected| check("accept-language", &["en", "de", "pt-br"], value, expected);
        check("", "other");
        check("de, en", "de");
        check("de;q=0.5, en;q=0.8", "en");
        check("en-GB, de;q=0.9", "en");
        check("PT-BR", "pt-br");
        check("pt", "other");
        check("fr, de;q=0.1", "de");
        check("*", "other");
        check("*, de", "de");
        check("de;q=0, *", "other");
        check("de;q=2, en;q=0.1", "en");
    }

    #[test]
    fn the_clients_preferred_media_type_counts() {
        let check = |value, expected| check("accept", &["application/json", "text/html"], value, expected);
        check("text/html, */*;q=0.8", "text/html");
        check("text/*", "text/html");
        check("application/json;v=1;q=0.3, text/html;q=0.2", "application/json");
        check("*/*", "other");
        check("image/png", "other");
    }

    #[test]
    fn what_has_been_reduced_is_reduced_no_further() {
        let check = |name: &'static str, default: &str, value: &'static str, expected: &str| {
            let name = HeaderName::from_static(name);
            let choices = Choices { values: Box::new(["de".into(), "en-gb".into()]), default: default.into() };
            let header = KeyHeader { name: name.clone(), choices: Some(choices) };
            let mut fields = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static(value))]);
            for time in 1..3 {
                header.reduce(&mut fields);
                let values: Vec<_> = fields.get_all(&name).iter().collect();
                assert_eq!(values, [expected], "{name}: {value}, {time}");
            }
        };
        check("accept-language", "de, fr", "fr", "de, fr");
        check("accept-language", "de;q=0.5", "fr", "de;q=0.5");
        check("accept-language", "*", "EN-GB, fr;q=0.1", "en-gb");
        check("x-device", "de", "fr", "de");
        check("x-device", "other", "De", "de");
    }

    #[test]
    fn another_field_must_be_a_listed_value() {
        let check = |value, expected| check("x-device", &["mobile", "tablet"], value, expected);
        check(" Mobile", "mobile");
        check("mobile, tablet", "other");
        check("tv", "other");
    }
}
