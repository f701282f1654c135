//! `Cache-Control` (RFC 9111 §5.2, RFC 5861) of requests and responses.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName};

/// A directive that may be limited to named fields: `no-cache`, `private`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Qualified {
    /// Not present.
    #[default]
    Absent,
    /// Present without a list: the whole response is meant.
    Whole,
    /// Present with a list of field names.
    Fields(Vec<HeaderName>),
}

/// What a client says about stale responses with `max-stale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxStale {
    /// However stale.
    Any,
    /// Stale by at most this much.
    For(Duration),
}

/// The directives of one message. Repeated or odd values are read in the most restrictive way:
/// an invalid `max-age` is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the directive of its name")]
#[allow(clippy::struct_excessive_bools, reason = "each is a directive of its own")]
pub struct CacheControl {
    pub no_store: bool,
    pub no_cache: Qualified,
    pub private: Qualified,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
    pub max_age: Option<Duration>,
    pub s_maxage: Option<Duration>,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    pub only_if_cached: bool,
    pub min_fresh: Option<Duration>,
    pub max_stale: Option<MaxStale>,
}

/// The greatest delta-seconds that is kept; larger ones and overflow are read as this (RFC 9111 §1.2.2).
const SECONDS_MAX: u64 = 1 << 31;

impl CacheControl {
    /// The directives of a response's `Cache-Control`.
    pub fn of_response(fields: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for value in fields.get_all(CACHE_CONTROL) {
            for directive in Directives::new(value.as_bytes()) {
                directives.add(&directive);
            }
        }
        directives
    }

    /// The directives of a request; `Pragma: no-cache` counts where there is no `Cache-Control`
    /// (RFC 9111 §5.4).
    pub fn of_request(fields: &HeaderMap) -> Self {
        let mut directives = Self::of_response(fields);
        let pragma = || fields.get_all(PRAGMA).iter().flat_map(|value| Directives::new(value.as_bytes()));
        if !fields.contains_key(CACHE_CONTROL) && pragma().any(|it| it.name.eq_ignore_ascii_case(b"no-cache")) {
            directives.no_cache = Qualified::Whole;
        }
        directives
    }

    fn add(&mut self, directive: &Directive<'_>) {
        let name = directive.name.to_ascii_lowercase();
        match name.as_slice() {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache.add(directive),
            b"private" => self.private.add(directive),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"no-transform" => self.no_transform = true,
            b"immutable" => self.immutable = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => keep_least(&mut self.max_age, directive.seconds()),
            b"s-maxage" => keep_least(&mut self.s_maxage, directive.seconds()),
            b"stale-while-revalidate" => keep_least(&mut self.stale_while_revalidate, directive.seconds()),
            b"stale-if-error" => keep_least(&mut self.stale_if_error, directive.seconds()),
            b"min-fresh" => self.min_fresh = self.min_fresh.max(Some(directive.seconds())),
            b"max-stale" => {
                let limit = directive.argument.as_ref().map_or(MaxStale::Any, |_| MaxStale::For(directive.seconds()));
                self.max_stale.get_or_insert(limit);
            }
            _ => {}
        }
    }
}

/// Of repeated directives the most restrictive counts (RFC 9111 §4.2.1).
fn keep_least(kept: &mut Option<Duration>, seen: Duration) {
    *kept = Some(kept.map_or(seen, |kept| kept.min(seen)));
}

impl Qualified {
    fn add(&mut self, directive: &Directive<'_>) {
        let names = directive.argument.as_deref().and_then(field_names);
        match (&mut *self, names) {
            (Self::Fields(kept), Some(names)) => kept.extend(names),
            (Self::Absent, Some(names)) => *self = Self::Fields(names),
            (Self::Whole, _) | (_, None) => *self = Self::Whole,
        }
    }
}

/// A list of field names; none where it is empty or has anything else, which then counts for the whole response.
fn field_names(argument: &[u8]) -> Option<Vec<HeaderName>> {
    let members = argument.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|it| !it.is_empty());
    let names: Option<Vec<_>> = members.map(|member| HeaderName::from_bytes(member).ok()).collect();
    names.filter(|names| !names.is_empty())
}

/// One directive: its name and its argument, unquoted.
struct Directive<'a> {
    name: &'a [u8],
    argument: Option<Cow<'a, [u8]>>,
}

impl Directive<'_> {
    /// The argument as delta-seconds; anything else is zero, which is stale (RFC 9111 §4.2.1).
    fn seconds(&self) -> Duration {
        let digits = self.argument.as_deref().unwrap_or_default();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Duration::ZERO;
        }
        let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok());
        Duration::from_secs(number.unwrap_or(SECONDS_MAX).min(SECONDS_MAX))
    }
}

/// The directives of one field line, split at commas outside quoted strings.
struct Directives<'a> {
    rest: &'a [u8],
}

impl<'a> Directives<'a> {
    const fn new(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// Takes up to the next comma outside quotes.
    fn member(&mut self) -> &'a [u8] {
        let (mut quoted, mut escaped) = (false, false);
        let end = self.rest.iter().position(|byte| {
            let ends = *byte == b',' && !quoted;
            quoted ^= *byte == b'"' && !escaped;
            escaped = quoted && *byte == b'\\' && !escaped;
            ends
        });
        let (member, rest) = match end {
            Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        member.trim_ascii()
    }
}

impl<'a> Iterator for Directives<'a> {
    type Item = Directive<'a>;

    fn next(&mut self) -> Option<Directive<'a>> {
        while !self.rest.is_empty() {
            let member = self.member();
            if member.is_empty() {
                continue;
            }
            let (name, argument) = match member.iter().position(|byte| *byte == b'=') {
                Some(at) => (&member[..at], Some(unquoted(&member[at + 1..]))),
                None => (member, None),
            };
            return Some(Directive { name, argument });
        }
        None
    }
}

/// The content of a quoted string, or the text as it is.
fn unquoted(text: &[u8]) -> Cow<'_, [u8]> {
    let Some(inner) = text.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return Cow::Borrowed(text);
    };
    if !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let mut escaped = false;
    let kept = inner.iter().filter(|byte| {
        escaped = **byte == b'\\' && !escaped;
        !escaped
    });
    Cow::Owned(kept.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn parsed(lines: &[&str]) -> CacheControl {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        CacheControl::of_response(&fields)
    }

    #[test]
    fn max_age_is_read_in_the_most_restrictive_way() {
        let check = |lines: &[&str], expected: Option<u64>| {
            assert_eq!(parsed(lines).max_age, expected.map(Duration::from_secs), "{lines:?}");
        };
        check(&["max-age=60"], Some(60));
        check(&["MaX-AgE=60"], Some(60));
        check(&["max-age=\"60\""], Some(60));
        check(&["max-age=60, max-age=30"], Some(30));
        check(&["max-age=60", "max-age=30"], Some(30));
        check(&["a=\"max-age=5, b\", max-age=60"], Some(60));
        check(&["foo=\"\\\"\", max-age=60"], Some(60));
        check(&["max-age=-1"], Some(0));
        check(&["max-age=3600.0"], Some(0));
        check(&["max-age='60'"], Some(0));
        check(&["max-age = 60"], None);
        check(&["max-age= 60"], Some(0));
        check(&["max-age=99999999999999999999"], Some(1 << 31));
        check(&["max-age"], Some(0));
        check(&[", ,max-age=60,"], Some(60));
        check(&["x-max-age=60"], None);
    }

    #[test]
    fn a_list_limits_a_directive_to_fields() {
        let check = |line: &str, expected: Qualified| assert_eq!(parsed(&[line]).private, expected, "{line}");
        check("public", Qualified::Absent);
        check("private", Qualified::Whole);
        check(
            "PRIVATE=\"set-cookie, x-a\"",
            Qualified::Fields(vec![http::header::SET_COOKIE, HeaderName::from_static("x-a")]),
        );
        check("private=\"a\", private", Qualified::Whole);
        check("private=\"\"", Qualified::Whole);
        check("private=\"a b\"", Qualified::Whole);
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let check = |lines: &[(&'static str, &str)], expected: Qualified| {
            let mut fields = HeaderMap::new();
            for (name, value) in lines {
                fields.append(*name, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(CacheControl::of_request(&fields).no_cache, expected, "{lines:?}");
        };
        check(&[("pragma", "no-cache")], Qualified::Whole);
        check(&[("pragma", "foo")], Qualified::Absent);
        check(&[("pragma", "no-cache"), ("cache-control", "max-age=1")], Qualified::Absent);
    }

    #[test]
    fn max_stale_without_argument_is_any() {
        assert_eq!(parsed(&["max-stale"]).max_stale, Some(MaxStale::Any));
        assert_eq!(parsed(&["max-stale=5"]).max_stale, Some(MaxStale::For(Duration::from_secs(5))));
    }
}
