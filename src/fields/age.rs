//! `Age` (RFC 9111 §5.1) and the number that it and cache directives share: delta-seconds (RFC 9111 §1.2.2).

use std::time::Duration;

use http::HeaderMap;
use http::header::AGE;

/// The greatest number of seconds that is told apart (RFC 9111 §1.2.2: 2^31).
pub const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The age that a response was received with. The first member counts; an invalid one is ignored (RFC 9111 §5.1).
pub fn age(fields: &HeaderMap) -> Duration {
    let first = fields.get(AGE).and_then(|line| line.as_bytes().split(|&byte| byte == b',').next());
    first.and_then(|text| delta_seconds(text.trim_ascii())).unwrap_or_default()
}

/// Delta-seconds: digits alone, capped at [`DELTA_SECONDS_MAX`].
pub fn delta_seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut seconds = 0_u64;
    for &byte in text {
        if !byte.is_ascii_digit() {
            return None;
        }
        seconds = (seconds * 10 + u64::from(byte - b'0')).min(DELTA_SECONDS_MAX);
    }
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(lines: &[&str], expected: u64) {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(AGE, HeaderValue::from_str(line).unwrap());
        }
        assert_eq!(age(&fields), Duration::from_secs(expected), "{lines:?}");
    }

    #[test]
    fn the_first_age_counts_and_an_invalid_one_is_ignored() {
        check(&[], 0);
        check(&["0"], 0);
        check(&["7200"], 7200);
        check(&["7200,0"], 7200);
        check(&["0, 7200"], 0);
        check(&["7200", "0"], 7200);
        check(&["0", "7200"], 0);
        check(&["99999999999999999999999"], DELTA_SECONDS_MAX);
        for invalid in ["", "abc", "-7200", "+1", "7200.0", "7200;foo=bar", "\"1\""] {
            check(&[invalid], 0);
        }
    }
}
