//! `Cache-Control` (RFC 9111 §5.2, RFC 5861) of requests and responses.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName};

use super::age::delta_seconds;
use super::has_any;
use super::list::members;

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

/// What stands after a directive's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Argument<'a> {
    /// Nothing.
    Absent,
    /// A token, or a quoted string's text (RFC 9111 §5.2: recipients ought to accept both forms).
    Text(Cow<'a, [u8]>),
    /// Something that is neither.
    Malformed,
}

impl CacheControl {
    /// The directives of a response's `Cache-Control`.
    pub fn of_response(fields: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for line in fields.get_all(CACHE_CONTROL) {
            directives.add_line(line.as_bytes());
        }
        directives
    }

    /// The directives of a request; `Pragma: no-cache` counts where there is no `Cache-Control`
    /// (RFC 9111 §5.4).
    pub fn of_request(fields: &HeaderMap) -> Self {
        if !has_any(fields, &[CACHE_CONTROL, PRAGMA]) {
            return Self::default();
        }
        let mut directives = Self::of_response(fields);
        if fields.contains_key(PRAGMA) && !fields.contains_key(CACHE_CONTROL) && pragma_no_cache(fields) {
            directives.no_cache = Qualified::Whole;
        }
        directives
    }

    fn add_line(&mut self, line: &[u8]) {
        let mut rest = line;
        while let Some(&first) = rest.first() {
            if first == b',' || first.is_ascii_whitespace() {
                rest = &rest[1..];
                continue;
            }
            let (name, after) = rest.split_at(token_length(rest));
            let (argument, after) = argument(after);
            self.add(name, &argument);
            rest = after;
        }
    }

    /// Adds one directive; an unknown one is ignored (RFC 9111 §5.2.3).
    pub(super) fn add(&mut self, name: &[u8], argument: &Argument<'_>) {
        // Longer than any name that is known.
        let mut lower = [0_u8; 24];
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        match &*lower {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache.add(argument),
            b"private" => self.private.add(argument),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"no-transform" => self.no_transform = true,
            b"immutable" => self.immutable = true,
            b"max-age" => lower_to(&mut self.max_age, argument.seconds()),
            b"s-maxage" => lower_to(&mut self.s_maxage, argument.seconds()),
            b"stale-while-revalidate" => lower_to(&mut self.stale_while_revalidate, argument.seconds()),
            b"stale-if-error" => lower_to(&mut self.stale_if_error, argument.seconds()),
            b"only-if-cached" => self.only_if_cached = true,
            b"min-fresh" => self.min_fresh = self.min_fresh.max(argument.seconds()),
            b"max-stale" => self.add_max_stale(argument),
            _ => {}
        }
    }

    fn add_max_stale(&mut self, argument: &Argument<'_>) {
        let given = match argument {
            Argument::Absent => MaxStale::Any,
            Argument::Text(_) | Argument::Malformed => MaxStale::For(argument.seconds().unwrap_or_default()),
        };
        self.max_stale = Some(match (self.max_stale, given) {
            (Some(MaxStale::For(before)), MaxStale::For(given)) => MaxStale::For(before.min(given)),
            (Some(MaxStale::For(before)), MaxStale::Any) => MaxStale::For(before),
            (Some(MaxStale::Any) | None, given) => given,
        });
    }
}

impl Qualified {
    fn add(&mut self, argument: &Argument<'_>) {
        let names = match argument {
            Argument::Text(text) => field_names(text),
            Argument::Absent | Argument::Malformed => None,
        };
        match (&mut *self, names) {
            (Self::Whole, _) | (_, None) => *self = Self::Whole,
            (Self::Absent, Some(names)) => *self = Self::Fields(names),
            (Self::Fields(before), Some(names)) => before.extend(names),
        }
    }
}

impl Argument<'_> {
    fn seconds(&self) -> Option<Duration> {
        match self {
            Argument::Text(text) => delta_seconds(text),
            Argument::Absent | Argument::Malformed => None,
        }
    }
}

/// The least of repeated values counts, an invalid one as zero (RFC 9111 §4.2.1: the most restrictive
/// directive is honoured, and what is invalid is best taken as stale).
fn lower_to(value: &mut Option<Duration>, given: Option<Duration>) {
    let given = given.unwrap_or_default();
    *value = Some(value.map_or(given, |before| before.min(given)));
}

fn field_names(text: &[u8]) -> Option<Vec<HeaderName>> {
    let names: Option<Vec<_>> = members(text).map(|name| HeaderName::from_bytes(name).ok()).collect();
    names.filter(|names| !names.is_empty())
}

fn pragma_no_cache(fields: &HeaderMap) -> bool {
    let mut all = fields.get_all(PRAGMA).iter().flat_map(|line| members(line.as_bytes()));
    all.any(|member| member.eq_ignore_ascii_case(b"no-cache"))
}

/// The argument at the head of `text`, right after a directive's name, and what follows the directive.
fn argument(text: &[u8]) -> (Argument<'_>, &[u8]) {
    let (argument, after) = match text {
        [b'=', b'"', quoted @ ..] => match quoted_string(quoted) {
            Some((text, after)) => (Argument::Text(text), after),
            None => (Argument::Malformed, quoted),
        },
        [b'=', token @ ..] => match token_length(token) {
            0 => (Argument::Malformed, token),
            length => (Argument::Text(Cow::Borrowed(&token[..length])), &token[length..]),
        },
        text => (Argument::Absent, text),
    };
    match after.trim_ascii_start() {
        [] if argument != Argument::Malformed => (argument, &[]),
        [b',', rest @ ..] if argument != Argument::Malformed => (argument, rest),
        // Nothing may hide behind a quote that never ends: the next comma of any kind begins a directive.
        after => (Argument::Malformed, after_comma(after)),
    }
}

/// The text of a quoted string whose opening quote was read, and what follows its closing quote.
fn quoted_string(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let end = text.iter().position(|&byte| byte == b'"' || byte == b'\\')?;
    if text[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut unescaped = text[..end].to_vec();
    let mut rest = &text[end..];
    loop {
        match rest {
            [b'\\', byte, after @ ..] => {
                unescaped.push(*byte);
                rest = after;
            }
            [b'"', after @ ..] => return Some((Cow::Owned(unescaped), after)),
            [byte, after @ ..] => {
                unescaped.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

fn after_comma(text: &[u8]) -> &[u8] {
    text.iter().position(|&byte| byte == b',').map_or(&[], |at| &text[at + 1..])
}

fn token_length(text: &[u8]) -> usize {
    text.iter().position(|&byte| !is_token(byte)).unwrap_or(text.len())
}

/// RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{AUTHORIZATION, SET_COOKIE};

    use super::*;
    use crate::fields::age::DELTA_SECONDS_MAX;

    fn response(lines: &[&str]) -> CacheControl {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        CacheControl::of_response(&fields)
    }

    fn check_max_age(lines: &[&str], expected: Option<u64>) {
        assert_eq!(response(lines).max_age, expected.map(Duration::from_secs), "{lines:?}");
    }

    #[test]
    fn max_age_is_read_in_both_forms_and_any_case() {
        check_max_age(&[], None);
        check_max_age(&["max-age=3600"], Some(3600));
        check_max_age(&["MaX-aGe=3600"], Some(3600));
        check_max_age(&["max-age=\"3600\""], Some(3600));
        check_max_age(&["max-age=\"36\\00\""], Some(3600));
        check_max_age(&["max-age=003600"], Some(3600));
        check_max_age(&["foobar, max-age=3600"], Some(3600));
        check_max_age(&[",, ,max-age=3600 ,"], Some(3600));
        check_max_age(&["a=b,\tc=\"d, e\", max-age=1"], Some(1));
        check_max_age(&["max-age=2147483648"], Some(DELTA_SECONDS_MAX));
        check_max_age(&["max-age=99999999999"], Some(DELTA_SECONDS_MAX));
        check_max_age(&["max-age=999999999999999999999999999999"], Some(DELTA_SECONDS_MAX));
    }

    #[test]
    fn an_invalid_max_age_is_zero() {
        for value in ["", "'3600'", "3600.0", "3600.5", "a3600", "3600a", "-3600", "+3600", "\"\"", " 3600", "36 00"] {
            check_max_age(&[&format!("max-age={value}")], Some(0));
        }
        check_max_age(&["max-age"], Some(0));
        check_max_age(&["max-age =3600"], Some(0));
        check_max_age(&["max-age=3600;x"], Some(0));
        check_max_age(&["max-age=\"3600"], Some(0));
        check_max_age(&["max-age=\"3600\"x"], Some(0));
    }

    #[test]
    fn the_least_of_repeated_values_counts() {
        check_max_age(&["max-age=3600, max-age=1800"], Some(1800));
        check_max_age(&["max-age=1", "max-age=1800"], Some(1));
        check_max_age(&["max-age=1800", "max-age=x"], Some(0));
    }

    #[test]
    fn directives_in_quoted_strings_do_not_count() {
        check_max_age(&["extension=\"max-age=3600\", max-age=1"], Some(1));
        check_max_age(&["max-age=1, extension=\"max-age=3600\""], Some(1));
        check_max_age(&["max-age=\"1\", extension=\"max-age=3600\""], Some(1));
        check_max_age(&["extension=\"a, max-age=3600, b\""], None);
        let directives = response(&["x=\"no-store, private\", y=\"\\\", no-store\", max-age=5"]);
        assert!(!directives.no_store);
        assert_eq!(directives.private, Qualified::Absent);
        assert_eq!(directives.max_age, Some(Duration::from_secs(5)));
    }

    #[test]
    fn nothing_hides_behind_a_malformed_directive() {
        assert!(response(&["x=\"open, no-store"]).no_store);
        assert!(response(&["x", "= , no-store"]).no_store);
        assert!(response(&["(), no-store"]).no_store);
        assert!(response(&["no-store=1"]).no_store);
        assert!(response(&["no-store; max-age=1"]).no_store);
        assert_eq!(response(&["private; max-age=1"]).private, Qualified::Whole);
    }

    #[test]
    fn qualified_directives_have_field_names() {
        fn check(line: &str, expected: &Qualified) {
            assert_eq!(&response(&[line]).no_cache, expected, "{line}");
        }
        check("public", &Qualified::Absent);
        check("no-cache", &Qualified::Whole);
        check("No-Cache=\"Set-Cookie\"", &Qualified::Fields(vec![SET_COOKIE]));
        check("no-cache=Set-Cookie", &Qualified::Fields(vec![SET_COOKIE]));
        check("no-cache=\"set-cookie, Authorization\"", &Qualified::Fields(vec![SET_COOKIE, AUTHORIZATION]));
        check("no-cache=\"set-cookie\", no-cache=authorization", &Qualified::Fields(vec![SET_COOKIE, AUTHORIZATION]));
        check("no-cache=\"set-cookie\", no-cache", &Qualified::Whole);
        check("no-cache, no-cache=\"set-cookie\"", &Qualified::Whole);
        check("no-cache=\"\"", &Qualified::Whole);
        check("no-cache=\"a b\"", &Qualified::Whole);
        check("no-cache=\"set-cookie", &Qualified::Whole);
    }

    #[test]
    fn every_flag_is_known() {
        let line = "no-store, public, must-revalidate, proxy-revalidate, must-understand, no-transform, immutable, \
                    s-maxage=1, stale-while-revalidate=2, stale-if-error=3, only-if-cached, min-fresh=4";
        let expected = CacheControl {
            no_store: true,
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            no_transform: true,
            immutable: true,
            s_maxage: Some(Duration::from_secs(1)),
            stale_while_revalidate: Some(Duration::from_secs(2)),
            stale_if_error: Some(Duration::from_secs(3)),
            only_if_cached: true,
            min_fresh: Some(Duration::from_secs(4)),
            ..CacheControl::default()
        };
        assert_eq!(response(&[line]), expected);
    }

    #[test]
    fn unknown_directives_are_ignored() {
        let line = "nothing-to-see-here, a-directive-that-is-longer-than-any=1, x=y";
        assert_eq!(response(&[line]), CacheControl::default());
    }

    #[test]
    fn max_stale_without_a_value_accepts_any() {
        fn check(line: &str, expected: MaxStale) {
            assert_eq!(response(&[line]).max_stale, Some(expected), "{line}");
        }
        check("max-stale", MaxStale::Any);
        check("max-stale=5", MaxStale::For(Duration::from_secs(5)));
        check("max-stale=x", MaxStale::For(Duration::ZERO));
        check("max-stale, max-stale=5", MaxStale::For(Duration::from_secs(5)));
        check("max-stale=5, max-stale", MaxStale::For(Duration::from_secs(5)));
        check("max-stale=5, max-stale=3", MaxStale::For(Duration::from_secs(3)));
    }

    #[test]
    fn pragma_counts_in_a_request_without_cache_control() {
        fn check(fields: &[(HeaderName, &'static str)], expected: &Qualified) {
            let fields: HeaderMap =
                fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
            assert_eq!(&CacheControl::of_request(&fields).no_cache, expected, "{fields:?}");
            assert_eq!(CacheControl::of_response(&fields).no_cache, Qualified::Absent);
        }
        check(&[(PRAGMA, "no-cache")], &Qualified::Whole);
        check(&[(PRAGMA, "foo, No-Cache")], &Qualified::Whole);
        check(&[(PRAGMA, "foo")], &Qualified::Absent);
        check(&[(PRAGMA, "no-cache"), (CACHE_CONTROL, "nothing-to-see-here")], &Qualified::Absent);
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut seed = 7_u32;
        for _ in 0..5_000 {
            let line: Vec<u8> = (0..24)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"\",=\\ ;ax-m1\x80\t"[(seed >> 24) as usize % 13]
                })
                .collect();
            CacheControl::default().add_line(&line);
        }
    }
}
