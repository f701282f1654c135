//! `Vary` (RFC 9110 §12.5.5): the fields that selected a response, and their normalised values.

use http::header::{ACCEPT_ENCODING, VARY};
use http::{HeaderMap, HeaderName};

/// Which request fields select among the responses of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectingFields {
    /// `Vary: *`: something outside the request's fields; never matches.
    Any,
    /// These names: lower case, sorted, each once. Empty when there is no `Vary`.
    Names(Box<[HeaderName]>),
}

/// The content codings that are told apart in `Accept-Encoding`.
const CODINGS: [&str; 6] = ["br", "compress", "deflate", "gzip", "identity", "zstd"];

impl SelectingFields {
    /// The selecting fields of a response. A malformed member reads as `*`, the safe side.
    pub fn of(fields: &HeaderMap) -> Self {
        let mut names = Vec::new();
        let members = fields.get_all(VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        for member in members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
            match HeaderName::from_bytes(member) {
                Ok(name) if member != b"*" => names.push(name),
                _ => return Self::Any,
            }
        }
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        Self::Names(names.into())
    }

    /// Without the names in `ignore` (the route's `vary.ignore`).
    #[must_use]
    pub fn without(self, ignore: &[HeaderName]) -> Self {
        match self {
            Self::Names(names) if names.iter().any(|name| ignore.contains(name)) => {
                Self::Names(names.into_iter().filter(|name| !ignore.contains(name)).collect())
            }
            other => other,
        }
    }

    /// The names, where it is not `*`.
    pub fn names(&self) -> &[HeaderName] {
        match self {
            Self::Any => &[],
            Self::Names(names) => names,
        }
    }
}

/// Appends the normalised, length-framed value of the request field `name` to `out` (RFC 9111 §4.1): lines are joined,
/// white space around list members and quality values dropped. Absent and empty differ. `Accept-Encoding` becomes the
/// set of known codings that it accepts; of `Accept-Language` and the like members are compared without case and in the
/// order of preference.
pub fn normalise_into(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    if !request.contains_key(name) {
        out.push(0);
        return;
    }
    out.push(1);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    if *name == ACCEPT_ENCODING {
        codings_into(request, out);
    } else {
        members_into(request, name, out);
    }
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn codings_into(request: &HeaderMap, out: &mut Vec<u8>) {
    let members: Vec<(String, u16)> = preferences(request, &ACCEPT_ENCODING);
    let weight = |coding: &str| members.iter().find(|(name, _)| name == coding).map(|(_, weight)| *weight);
    for coding in CODINGS {
        let default = if coding == "identity" { 1000 } else { 0 };
        let accepted = weight(coding).or_else(|| weight("*")).unwrap_or(default);
        if accepted > 0 {
            out.extend_from_slice(coding.as_bytes());
            out.push(b',');
        }
    }
}

/// Lists with quality values in order of preference, everything else as it stands but for white space.
fn members_into(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    if name.as_str().starts_with("accept") {
        for (member, weight) in preferences(request, name) {
            out.extend_from_slice(member.as_bytes());
            out.extend_from_slice(&weight.to_be_bytes());
            out.push(b',');
        }
        return;
    }
    let members = request.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    for member in members.map(<[u8]>::trim_ascii) {
        out.extend_from_slice(member);
        out.push(b',');
    }
}

/// The members of an `Accept*` field, lower case, the most preferred first, with their weights in thousandths; among equal
/// weights order has no meaning (RFC 9110 §12.4.2, §12.5.4). A weight that cannot be read counts as 1.
pub fn preferences(request: &HeaderMap, name: &HeaderName) -> Vec<(String, u16)> {
    let lines = request.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let mut members: Vec<(String, u16)> = lines.flat_map(|line| line.split(',')).filter_map(preference).collect();
    members.sort_unstable_by(|(one, left), (other, right)| right.cmp(left).then_with(|| one.cmp(other)));
    members
}

fn preference(member: &str) -> Option<(String, u16)> {
    let mut parts = member.split(';').map(str::trim);
    let mut text = parts.next().filter(|text| !text.is_empty())?.to_ascii_lowercase();
    let mut weight = 1000;
    for parameter in parts {
        match parameter.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
            Some(("q" | "Q", value)) => weight = thousandths(value).unwrap_or(1000),
            _ => {
                text.push(';');
                text.push_str(&parameter.to_ascii_lowercase());
            }
        }
    }
    Some((text, weight))
}

fn thousandths(value: &str) -> Option<u16> {
    let weight: f32 = value.parse().ok()?;
    // In 0..=1000, so the cast is exact.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (0.0..=1.0).contains(&weight).then(|| (weight * 1000.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn request(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(name, HeaderValue::from_str(line).unwrap());
        }
        fields
    }

    #[test]
    fn the_names_are_sorted_and_odd_ones_read_as_any() {
        let check = |lines: &[&str], expected: Option<&[&str]>| {
            let found = SelectingFields::of(&request("vary", lines));
            let expected = expected.map_or(SelectingFields::Any, |names| {
                SelectingFields::Names(names.iter().map(|name| name.parse().unwrap()).collect())
            });
            assert_eq!(found, expected, "{lines:?}");
        };
        check(&[], Some(&[]));
        check(&["B, a", "A"], Some(&["a", "b"]));
        check(&["*"], None);
        check(&["a, *"], None);
        check(&["a b"], None);
        check(&["", ",a"], Some(&["a"]));
    }

    #[test]
    fn values_that_mean_the_same_are_the_same() {
        let check = |name: &'static str, one: &[&str], other: &[&str], same: bool| {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            normalise_into(&request(name, one), &name.parse().unwrap(), &mut first);
            normalise_into(&request(name, other), &name.parse().unwrap(), &mut second);
            assert_eq!(first == second, same, "{name}: {one:?} and {other:?}");
        };
        check("accept-encoding", &["gzip, br"], &["br,gzip;q=0.5"], true);
        check("accept-encoding", &["gzip"], &["gzip, @@@;q=9, sdch"], true);
        check("accept-encoding", &["gzip"], &["gzip;q=0"], false);
        check("accept-encoding", &["*"], &["gzip"], false);
        check("accept-language", &["en, de"], &["EN,de"], true);
        check("accept-language", &["en;q=0.5, de"], &["de, en;q=0.5"], true);
        check("accept-language", &["en, de"], &["de, en"], true);
        check("accept-language", &["en, de;q=0.9"], &["de, en;q=0.9"], false);
        check("x-a", &["1, 2"], &["1", "2"], true);
        check("x-a", &["1,2"], &["2,1"], false);
        check("x-a", &["a"], &["A"], false);
        check("x-a", &[], &[""], false);
    }
}
