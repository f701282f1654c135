//! Canonical JSON, so that content that means the same has one digest.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::UnkeyedBody;

/// The bound on nesting.
const MAX_DEPTH: u32 = 64;
/// The decimal digits that a 64-bit float always carries.
const FLOAT_DIGITS: usize = 15;

/// Members sorted by name, no white space, one form of each string and number, a comma after every
/// member. A repeated name is refused, since
/// parsers disagree on which one counts.
///
/// A number that a 64-bit number would round is appended as written, so that two that differ never look alike.
pub(super) fn canonical(body: &[u8]) -> Result<Vec<u8>, UnkeyedBody> {
    let mut out = Vec::with_capacity(body.len());
    let mut source = serde_json::Deserializer::from_slice(body);
    let parsed = Canonical { depth: 0, out: &mut out }.deserialize(&mut source).and_then(|()| source.end());
    parsed.map_err(|_| UnkeyedBody::NotJson)?;
    append_rounded_numbers(body, &mut out);
    Ok(out)
}

struct Canonical<'o> {
    depth: u32,
    out: &'o mut Vec<u8>,
}

impl Canonical<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Canonical<'_>, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom("nested too deeply"));
        }
        Ok(Canonical { depth: self.depth + 1, out: self.out })
    }

    fn write<E: Error>(self, value: &(impl serde::Serialize + ?Sized)) -> Result<(), E> {
        serde_json::to_writer(self.out, value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.write(&())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.write(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        inner.out.push(b'[');
        while members.next_element_seed(Canonical { depth: inner.depth, out: inner.out })?.is_some() {
            inner.out.push(b',');
        }
        inner.out.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let start = inner.out.len();
        let mut places = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let from = inner.out.len() - start;
            serde_json::to_writer(&mut *inner.out, &name).map_err(A::Error::custom)?;
            inner.out.push(b':');
            members.next_value_seed(Canonical { depth: inner.depth, out: inner.out })?;
            inner.out.push(b',');
            places.push((name, from..inner.out.len() - start));
        }
        places.sort_by(|a, b| a.0.cmp(&b.0));
        if places.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom("a repeated name"));
        }
        let unsorted = inner.out.split_off(start);
        inner.out.push(b'{');
        places.into_iter().for_each(|(_, place)| inner.out.extend_from_slice(&unsorted[place]));
        inner.out.push(b'}');
        Ok(())
    }
}

/// Appends the numbers of `body`, which is valid JSON, that parsing may have rounded.
fn append_rounded_numbers(body: &[u8], out: &mut Vec<u8>) {
    let mut rest = body;
    while let [first, after @ ..] = rest {
        rest = match first {
            b'"' => after_string(after),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                if is_rounded(number) {
                    out.push(b' ');
                    out.extend_from_slice(number);
                }
                after
            }
            _ => after,
        };
    }
}

/// What follows the closing quote of a string.
fn after_string(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'\\', _, after @ ..] => after,
            [b'"', after @ ..] => return after,
            [_, after @ ..] => after,
            [] => return rest,
        };
    }
}

fn is_rounded(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return true };
    if text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok() {
        return false;
    }
    let digits = number.iter().filter(|byte| byte.is_ascii_digit()).count();
    let underflows =
        text.parse::<f64>().is_ok_and(|value| !value.is_normal() && number.iter().any(|byte| *byte > b'0'));
    digits > FLOAT_DIGITS || underflows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<&str>) {
        let canonical = canonical(body.as_bytes()).ok().map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(canonical.as_deref(), expected, "{body}");
    }

    #[test]
    fn members_are_sorted_and_space_is_dropped() {
        check(r#" { "b" : 1, "a" : [ true, null, {} ] } "#, Some(r#"{"a":[true,null,{},],"b":1,}"#));
        check(r#""\u0061\/""#, Some(r#""a/""#));
        check("[1.50, 15e-1, -2]", Some("[1.5,1.5,-2,]"));
    }

    #[test]
    fn numbers_that_would_be_rounded_stay_apart() {
        let of = |body: &str| canonical(body.as_bytes()).unwrap();
        assert_ne!(of("18446744073709551616"), of("18446744073709551617"));
        assert_ne!(of("0.10000000000000001"), of("0.1"));
        assert_ne!(of("1e-400"), of("0.0"));
        check(r#"["\"18446744073709551617"]"#, Some(r#"["\"18446744073709551617",]"#));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for body in ["", "{", "1 2", "{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":1}", "[1,]", "NaN", "\"\\ud800\""] {
            check(body, None);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| canonical(format!("{}{}", "[".repeat(depth), "]".repeat(depth)).as_bytes());
        assert!(nested(64).is_ok());
        assert_eq!(nested(65), Err(UnkeyedBody::NotJson));
        assert_eq!(nested(100_000), Err(UnkeyedBody::NotJson));
    }
}
