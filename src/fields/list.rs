//! Comma-separated lists (RFC 9110 §5.6.1), split outside quoted strings.

/// The members of one field line: trimmed, empty ones left out. Commas within a quoted string do not split;
/// a quoted string that does not end runs to the end of the line.
pub fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split(line, b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// The parts of `text` between separators that stand outside quoted strings; untrimmed, empty ones included.
pub fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let part = rest?;
        let end = end_of_part(part, separator);
        rest = part.get(end + 1..);
        Some(&part[..end])
    })
}

fn end_of_part(text: &[u8], separator: u8) -> usize {
    let mut quoted = false;
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

/// A weight in thousandths (RFC 9110 §12.4.2), 0 to 1000; none when it is not one.
pub fn weight(text: &[u8]) -> Option<u16> {
    let (whole, fraction) = match text {
        [whole] | [whole, b'.'] => (whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |byte| u16::from(byte - b'0'));
    let thousandths = digit(0) * 100 + digit(1) * 10 + digit(2);
    match (whole, thousandths) {
        (b'0', _) => Some(thousandths),
        (b'1', 0) => Some(1000),
        _ => None,
    }
}

/// A member's text before its parameters, and its weight: 1000 without `q`; none when `q` is not a weight.
/// Other parameters are not looked at.
pub fn weighted(member: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = split(member, b';').map(<[u8]>::trim_ascii);
    let text = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| match part {
        [b'q' | b'Q', b'=', value @ ..] => Some(weight(value)),
        _ => None,
    });
    Some((text, quality.unwrap_or(Some(1000))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quoted_strings_do_not_split() {
        fn check(line: &str, expected: &[&str]) {
            let members: Vec<_> = members(line.as_bytes()).map(|m| std::str::from_utf8(m).unwrap()).collect();
            assert_eq!(members, expected, "{line}");
        }
        check("", &[]);
        check(" , ,", &[]);
        check("a,b", &["a", "b"]);
        check(" a ,\tb , ", &["a", "b"]);
        check(r#"a="1,2", b"#, &[r#"a="1,2""#, "b"]);
        check(r#"a="1\",2", b"#, &[r#"a="1\",2""#, "b"]);
        check(r#"a="1,2, b"#, &[r#"a="1,2, b"#]);
    }

    #[test]
    fn weights_have_at_most_three_decimals() {
        fn check(text: &str, expected: Option<u16>) {
            assert_eq!(weight(text.as_bytes()), expected, "{text}");
        }
        check("1", Some(1000));
        check("1.", Some(1000));
        check("1.000", Some(1000));
        check("0", Some(0));
        check("0.5", Some(500));
        check("0.05", Some(50));
        check("0.999", Some(999));
        check("1.001", None);
        check("0.0001", None);
        check("9", None);
        check("-1", None);
        check(".5", None);
        check("", None);
        check("0.x", None);
    }

    #[test]
    fn a_weight_is_found_among_parameters() {
        fn check(member: &str, expected: Option<(&str, u16)>) {
            let expected = expected.map(|(text, weight)| (text.as_bytes(), weight));
            assert_eq!(weighted(member.as_bytes()), expected, "{member}");
        }
        check("en", Some(("en", 1000)));
        check("en;q=0.5", Some(("en", 500)));
        check("en ; Q=0.5", Some(("en", 500)));
        check("text/html;level=1;q=0", Some(("text/html", 0)));
        check("br;q=9", None);
    }
}
