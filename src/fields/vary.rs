//! `Vary` (RFC 9110 §12.5.5): the fields that selected a response, and their normalised values.

use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::has_any;
use super::list::{members, split, weighted};

/// Which request fields select among the responses of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectingFields {
    /// `Vary: *`: something outside the request's fields; never matches.
    Any,
    /// These names: lower case, sorted, each once. Empty when there is no `Vary`.
    Names(Box<[HeaderName]>),
}

impl SelectingFields {
    /// The selecting fields of a response. A malformed member reads as `*`, the safe side.
    pub fn of(fields: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for line in fields.get_all(VARY) {
            for member in line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                match (member, HeaderName::from_bytes(member)) {
                    (b"", _) => {}
                    (b"*", _) | (_, Err(_)) => return Self::Any,
                    (_, Ok(name)) => names.push(name),
                }
            }
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Self::Names(names.into())
    }

    /// With one more name.
    #[must_use]
    pub fn with(self, name: Option<HeaderName>) -> Self {
        match (self, name) {
            (Self::Names(names), Some(name)) => {
                let at = names.partition_point(|known| known.as_str() < name.as_str());
                let mut names = names.into_vec();
                if names.get(at) != Some(&name) {
                    names.insert(at, name);
                }
                Self::Names(names.into())
            }
            (unchanged, _) => unchanged,
        }
    }

    /// Without the names in `ignore` (the route's `vary.ignore`).
    #[must_use]
    pub fn without(self, ignore: &[HeaderName]) -> Self {
        match self {
            Self::Names(names) if !ignore.is_empty() => {
                Self::Names(names.into_iter().filter(|name| !ignore.contains(name)).collect())
            }
            Self::Any | Self::Names(_) => self,
        }
    }
}

/// Appends the normalised, length-framed value of the request field `name` to `out`
/// (RFC 9111 §4.1: white space, order of members and case where the field's syntax allows).
/// Absent and empty differ. `Accept-Encoding` becomes the sorted set of known codings it accepts.
pub fn normalise_into(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    if !request.contains_key(name) {
        out.push(0);
        return;
    }
    out.push(1);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    if *name == ACCEPT_ENCODING {
        accepted_codings(request, out);
    } else if *name == ACCEPT_LANGUAGE || *name == ACCEPT_CHARSET || *name == ACCEPT {
        preferences(request, name, out);
    } else {
        combined(request, name, out);
    }
    let length = u32::try_from(out.len() - length_at - 4).unwrap_or(u32::MAX);
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// The registered content codings that a response may come in, sorted, and their other names.
const CODINGS: [(&[u8], &[u8]); 8] = [
    (b"br", b"br"),
    (b"compress", b"x-compress"),
    (b"dcb", b"dcb"),
    (b"dcz", b"dcz"),
    (b"deflate", b"deflate"),
    (b"gzip", b"x-gzip"),
    (b"identity", b"identity"),
    (b"zstd", b"zstd"),
];
const IDENTITY: usize = 6;

/// What `Accept-Encoding` says of each coding, in thousandths; and of those it does not list, by `*`.
#[derive(Default)]
struct AcceptedCodings {
    listed: [Option<u16>; CODINGS.len()],
    others: Option<u16>,
    /// Whether anything was left out: what is no coding, has no valid weight, or stands there again.
    is_lossy: bool,
}

impl AcceptedCodings {
    /// What is not a coding or has no valid weight is left out.
    fn of(request: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        for member in request.get_all(ACCEPT_ENCODING).iter().flat_map(|line| members(line.as_bytes())) {
            let Some((coding, weight)) = weighted(member) else {
                accepted.is_lossy = true;
                continue;
            };
            let is = |name: &[u8]| coding.eq_ignore_ascii_case(name);
            let at = CODINGS.iter().position(|(name, alias)| is(name) || is(alias));
            let place = match at {
                Some(at) => &mut accepted.listed[at],
                None if coding == b"*" => &mut accepted.others,
                None => {
                    accepted.is_lossy = true;
                    continue;
                }
            };
            let before = place.replace(weight);
            accepted.is_lossy |= before.is_some();
        }
        accepted
    }

    /// RFC 9110 §12.5.3: a coding is accepted when it has a weight above zero, else by `*`; `identity` unless refused.
    fn accepts(&self, at: usize) -> bool {
        self.listed[at].or(self.others).map_or(at == IDENTITY, |weight| weight > 0)
    }

    /// As a field's value that says no more than what was read.
    fn to_value(&self) -> HeaderValue {
        let listed = CODINGS.iter().zip(self.listed).filter_map(|((name, _), weight)| Some((*name, weight?)));
        let others = self.others.map(|weight| (&b"*"[..], weight));
        let mut text = Vec::new();
        for (name, weight) in listed.chain(others) {
            let separator: &[u8] = if text.is_empty() { b"" } else { b", " };
            text.extend_from_slice(separator);
            text.extend_from_slice(name);
            if weight < 1000 {
                text.extend_from_slice(format!(";q=0.{weight:03}").as_bytes());
            }
        }
        let nothing = HeaderValue::from_static("identity");
        if text.is_empty() { nothing } else { HeaderValue::from_bytes(&text).unwrap_or(nothing) }
    }
}

fn accepted_codings(request: &HeaderMap, out: &mut Vec<u8>) {
    let accepted = AcceptedCodings::of(request);
    for (at, (name, _)) in CODINGS.iter().enumerate().filter(|(at, _)| accepted.accepts(*at)) {
        if at != IDENTITY {
            out.extend_from_slice(name);
            out.push(b',');
        }
    }
    if !accepted.accepts(IDENTITY) {
        out.extend_from_slice(b"identity;q=0,");
    }
}

/// Leaves in a request's `Accept-Encoding` only what [`normalise_into`] reads, so that no upstream reads something else
/// and answers one variant's requests with a coding that the others do not accept.
pub fn reduce_accept_encoding(request: &mut HeaderMap) {
    if !has_any(request, &[ACCEPT_ENCODING]) {
        return;
    }
    let is_split = request.get_all(ACCEPT_ENCODING).iter().nth(1).is_some();
    let accepted = AcceptedCodings::of(request);
    if is_split || accepted.is_lossy {
        request.insert(ACCEPT_ENCODING, accepted.to_value());
    }
}

/// One member of an `Accept-*` list: its text in lower case, with parameters, and its weight.
type Preference = (SmallVec<[u8; 24]>, u16);

/// RFC 9110 §12.5.4: the order of members of equal weight says nothing, so they are sorted.
fn preferences(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    let mut all: SmallVec<[Preference; 8]> = SmallVec::new();
    for line in request.get_all(name) {
        all.extend(members(line.as_bytes()).map(preference));
    }
    all.sort_unstable();
    all.dedup();
    for (text, weight) in &all {
        out.extend_from_slice(text);
        if *weight < 1000 {
            out.extend_from_slice(b";q=");
            out.extend_from_slice(&weight.to_be_bytes());
        }
        out.push(b',');
    }
}

/// A member whose weight is not valid keeps it in its text and so differs from those that have one.
fn preference(member: &[u8]) -> Preference {
    let weight = weighted(member).map(|(_, weight)| weight);
    let mut text = SmallVec::new();
    for (at, part) in split(member, b';').map(<[u8]>::trim_ascii).enumerate() {
        let is_weight = matches!(part, [b'q' | b'Q', b'=', ..]);
        if part.is_empty() || (at > 0 && is_weight && weight.is_some()) {
            continue;
        }
        if at > 0 {
            text.push(b';');
        }
        // A parameter's value may depend on case; type, language and charset do not.
        let case_ends = if at == 0 { part.len() } else { part.iter().position(|&b| b == b'=').unwrap_or(0) };
        text.extend(part[..case_ends].iter().map(u8::to_ascii_lowercase));
        text.extend_from_slice(&part[case_ends..]);
    }
    (text, weight.unwrap_or(1000))
}

/// Field lines combined as a list (RFC 9110 §5.3), without white space around members; those of `Cookie` by `;`
/// (RFC 9113 §8.2.3).
fn combined(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    let separator = if *name == COOKIE { b';' } else { b',' };
    let start = out.len();
    for line in request.get_all(name) {
        for member in split(line.as_bytes(), separator) {
            out.extend_from_slice(member.trim_ascii());
            out.push(separator);
        }
    }
    if out.len() > start {
        out.pop();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::USER_AGENT;

    use super::*;

    const FOO: HeaderName = HeaderName::from_static("foo");

    fn request(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
    }

    fn normalised(name: &HeaderName, lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        normalise_into(&request(name, lines), name, &mut out);
        out
    }

    fn same(name: &HeaderName, one: &[&str], other: &[&str]) {
        assert_eq!(normalised(name, one), normalised(name, other), "{name}: {one:?} {other:?}");
    }

    fn differ(name: &HeaderName, one: &[&str], other: &[&str]) {
        assert_ne!(normalised(name, one), normalised(name, other), "{name}: {one:?} {other:?}");
    }

    #[test]
    fn selecting_fields_are_sorted_names_or_any() {
        fn check(lines: &[&'static str], expected: Option<&[&str]>) {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(VARY, HeaderValue::from_static(line));
            }
            let names = match SelectingFields::of(&fields) {
                SelectingFields::Any => None,
                SelectingFields::Names(names) => Some(names),
            };
            let names: Option<Vec<_>> = names.as_ref().map(|names| names.iter().map(HeaderName::as_str).collect());
            assert_eq!(names.as_deref(), expected, "{lines:?}");
        }
        check(&[], Some(&[]));
        check(&[""], Some(&[]));
        check(&["Foo, Bar,foo"], Some(&["bar", "foo"]));
        check(&["Foo", "Bar , ,"], Some(&["bar", "foo"]));
        for any in ["*", "*, *", ", *", "*, Foo", "Foo, *", "a b", "\"foo\"", "Foo;x"] {
            check(&[any], None);
        }
        check(&["", "*"], None);
    }

    #[test]
    fn ignored_names_do_not_select() {
        let fields = HeaderMap::from_iter([(VARY, HeaderValue::from_static("foo, user-agent"))]);
        let left = SelectingFields::of(&fields).without(&[USER_AGENT]);
        assert_eq!(left, SelectingFields::Names([FOO].into()));
        assert_eq!(SelectingFields::Any.without(&[FOO]), SelectingFields::Any);
    }

    #[test]
    fn unknown_fields_are_combined_without_white_space() {
        same(&FOO, &["1, 2"], &["1", "2"]);
        same(&FOO, &["1,2"], &[" 1, 2 "]);
        differ(&FOO, &["1"], &["2"]);
        differ(&FOO, &["1, 2"], &["2, 1"]);
        differ(&FOO, &["a"], &["A"]);
        differ(&FOO, &[], &[""]);
        differ(&FOO, &["\"1,2\""], &["\"1, 2\""]);
        same(&COOKIE, &["a=1; b=2"], &["a=1", "b=2"]);
        differ(&COOKIE, &["a=1, b=2"], &["a=1,b=2"]);
    }

    #[test]
    fn values_are_framed() {
        assert_eq!(normalised(&FOO, &[]), [0]);
        assert_eq!(normalised(&FOO, &[""]), [1, 0, 0, 0, 0]);
        assert_eq!(normalised(&FOO, &["ab"]), [1, 0, 0, 0, 2, b'a', b'b']);
    }

    #[test]
    fn languages_compare_by_weight_without_order_case_or_space() {
        same(&ACCEPT_LANGUAGE, &["en, de"], &["de, en"]);
        same(&ACCEPT_LANGUAGE, &["en, de"], &["eN, De"]);
        same(&ACCEPT_LANGUAGE, &["en, de"], &[" en ,   de"]);
        same(&ACCEPT_LANGUAGE, &["en, de"], &["en;q=1.0", "de;q=1"]);
        same(&ACCEPT_LANGUAGE, &["en;q=0.5"], &["en ; Q=0.500"]);
        same(&ACCEPT_LANGUAGE, &["en, en"], &["en"]);
        differ(&ACCEPT_LANGUAGE, &["en;q=0.5, de"], &["en, de;q=0.5"]);
        differ(&ACCEPT_LANGUAGE, &["en"], &["en;q=0"]);
        differ(&ACCEPT_LANGUAGE, &["en"], &["en;q=9"]);
        differ(&ACCEPT_LANGUAGE, &["en"], &["en-gb"]);
    }

    #[test]
    fn media_types_keep_the_case_of_parameter_values() {
        same(&ACCEPT, &["Text/HTML;Level=1, */*;q=0.1"], &["*/*; q=0.10 , text/html; level=1"]);
        differ(&ACCEPT, &["a/b;v=X"], &["a/b;v=x"]);
        differ(&ACCEPT, &["a/b;v=\"1, 2\""], &["a/b;v=\"1,2\""]);
    }

    #[test]
    fn accept_encoding_is_the_set_of_codings() {
        fn check(lines: &[&str], expected: &str) {
            assert_eq!(normalised(&ACCEPT_ENCODING, lines)[5..], *expected.as_bytes(), "{lines:?}");
        }
        check(&[""], "");
        check(&["gzip, br"], "br,gzip,");
        check(&["br;q=0.1", "GZIP ; q=1.0"], "br,gzip,");
        check(&["x-gzip, deflate;q=0, zstd, identity"], "gzip,zstd,");
        check(&["@@@,br;q=9, foo, gzip"], "gzip,");
        check(&["*"], "br,compress,dcb,dcz,deflate,gzip,zstd,");
        check(&["*;q=0.5, br;q=0"], "compress,dcb,dcz,deflate,gzip,zstd,");
        check(&["gzip, identity;q=0"], "gzip,identity;q=0,");
        check(&["gzip, *;q=0"], "gzip,identity;q=0,");
        check(&["identity, *;q=0"], "");
    }

    #[test]
    fn accept_encoding_is_left_to_say_what_is_read_of_it() {
        fn check(lines: &[&str], expected: &[&str]) {
            let mut fields = request(&ACCEPT_ENCODING, lines);
            let before = normalised(&ACCEPT_ENCODING, lines);
            reduce_accept_encoding(&mut fields);
            let left: Vec<_> = fields.get_all(ACCEPT_ENCODING).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(left, expected, "{lines:?}");
            assert_eq!(normalised(&ACCEPT_ENCODING, &left), before, "{lines:?}");
        }
        check(&[], &[]);
        check(&["gzip, deflate, br;q=0.5, *;q=0"], &["gzip, deflate, br;q=0.5, *;q=0"]);
        check(&["@@@,br;q=9"], &["identity"]);
        check(&["@@@, gzip, br;q=9, zstd;q=0.25"], &["gzip, zstd;q=0.250"]);
        check(&["br, br;q=0"], &["br;q=0.000"]);
        check(&["x-gzip", "br"], &["br, gzip"]);
        check(&["evil, *;q=0"], &["*;q=0.000"]);
        check(&["x-gzip, gzip;q=0, gzip"], &["gzip"]);
    }
}
