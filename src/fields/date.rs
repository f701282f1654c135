//! Dates and ages (RFC 9110 §5.6.7, RFC 9111 §5.1), read as leniently as the standards let a recipient.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{AGE, DATE, EXPIRES};
use http::{HeaderMap, HeaderValue};

use crate::clock::Timestamp;

/// The greatest `Age` that is kept; larger ones are read as this (RFC 9111 §1.2.2).
const AGE_MAX: u64 = 1 << 31;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The time a field value names: IMF-fixdate, RFC 850 or asctime form; names in any case. The weekday is not checked
/// against the date. Two-digit years are read as of the century that puts them at most 50 years ahead of 2026.
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim();
    match text.split_once(',') {
        Some((weekday, rest)) if is_name(weekday) => parse_after_comma(rest),
        Some(_) => None,
        None => parse_asctime(text),
    }
}

/// `time` in IMF-fixdate form.
pub fn format(time: Timestamp) -> HeaderValue {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// A response's `Date`, where it has exactly one valid one.
pub fn date(fields: &HeaderMap) -> Option<Timestamp> {
    fields.get(DATE).and_then(parse)
}

/// A response's `Expires`: none without it; a repeated or invalid one is in the past (RFC 9111 §5.3).
pub fn expires(fields: &HeaderMap) -> Option<Timestamp> {
    let mut lines = fields.get_all(EXPIRES).iter();
    let first = lines.next()?;
    let is_repeated = lines.any(|other| other != first);
    Some(parse(first).filter(|_| !is_repeated).unwrap_or_default())
}

/// A response's `Age`: the first value counts; an invalid one is ignored (RFC 9111 §5.1).
pub fn age(fields: &HeaderMap) -> Duration {
    let first = fields.get(AGE).and_then(|value| value.to_str().ok()).and_then(|text| text.split(',').next());
    let digits = first.map(str::trim).filter(|text| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit()));
    let seconds = digits.map_or(0, |digits| digits.parse().unwrap_or(AGE_MAX));
    Duration::from_secs(seconds.min(AGE_MAX))
}

/// `06 Nov 1994 08:49:37 GMT` or `06-Nov-94 08:49:37 GMT`.
fn parse_after_comma(text: &str) -> Option<Timestamp> {
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    let (day, month, year) = if first.contains('-') {
        let mut parts = first.split('-');
        (parts.next()?, parts.next()?, century(parts.next()?)?)
    } else {
        (first, words.next()?, number(words.next()?, 4)?)
    };
    let (time, zone) = (words.next()?, words.next()?);
    if !zone.eq_ignore_ascii_case("gmt") || words.next().is_some() {
        return None;
    }
    assemble(year, month, day, time)
}

/// `Sun Nov  6 08:49:37 1994`.
fn parse_asctime(text: &str) -> Option<Timestamp> {
    let mut words = text.split_ascii_whitespace();
    let (weekday, month, day, time, year) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    if !is_name(weekday) || words.next().is_some() {
        return None;
    }
    assemble(number(year, 4)?, month, day, time)
}

fn assemble(year: u64, month: &str, day: &str, time: &str) -> Option<Timestamp> {
    let month = MONTHS.iter().position(|name| name.eq_ignore_ascii_case(month))? as u64 + 1;
    let day = number(day, 2)?;
    let mut parts = time.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    let is_valid = (1..=days_in(year, month)).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !is_valid || parts.next().is_some() || year < 1970 {
        // Everything before the epoch is as long ago as matters.
        return (is_valid && year >= 1).then_some(Timestamp::default());
    }
    let seconds = days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59);
    Some(Timestamp::from_secs(seconds))
}

/// Days from the epoch to a date of the Gregorian calendar.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    years + (1..month).map(|month| days_in(year, month)).sum::<u64>() + day - 1
}

const fn days_in(year: u64, month: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn century(two_digits: &str) -> Option<u64> {
    let year = number(two_digits, 2)?;
    Some(if year > 76 { 1900 + year } else { 2000 + year })
}

fn number(text: &str, digits_max: usize) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= digits_max && text.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn is_name(text: &str) -> bool {
    text.len() >= 3 && text.bytes().all(|it| it.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIXTH: u64 = 784_111_777;

    #[test]
    fn all_three_forms_are_read_in_any_case() {
        let check = |text: &str, expected: Option<u64>| {
            let parsed = parse(&HeaderValue::from_str(text).unwrap());
            assert_eq!(parsed, expected.map(Timestamp::from_secs), "{text}");
        };
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(SIXTH));
        check("sun, 06 nOV 1994 08:49:37 gmt", Some(SIXTH));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(SIXTH));
        check("Sun Nov  6 08:49:37 1994", Some(SIXTH));
        check("Mon Nov  6 08:49:37 1994", Some(SIXTH));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check("Mon, 01 Jan 1601 00:00:00 GMT", Some(0));
        check("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000));
        check("Thu, 29 Feb 2023 12:00:00 GMT", None);
        check("Sun, 06 Nov 1994 08:49:37 PST", None);
        check("Sun, 06 Nov 1994 08:49 GMT", None);
        check("Sun, 06 Nov 1994 24:49:37 GMT", None);
        check("0", None);
        check("", None);
    }

    #[test]
    fn what_is_formatted_reads_back() {
        for seconds in [0, SIXTH, 1_709_208_000, 4_102_444_799] {
            let time = Timestamp::from_secs(seconds);
            assert_eq!(parse(&format(time)), Some(time));
        }
    }

    #[test]
    fn an_odd_expires_is_in_the_past() {
        let check = |lines: &[&str], expected: Option<u64>| {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(EXPIRES, HeaderValue::from_str(line).unwrap());
            }
            assert_eq!(expires(&fields), expected.map(Timestamp::from_secs), "{lines:?}");
        };
        check(&[], None);
        check(&["Sun, 06 Nov 1994 08:49:37 GMT"], Some(SIXTH));
        check(&["0"], Some(0));
        check(&["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 2044 08:49:37 GMT"], Some(0));
    }

    #[test]
    fn age_is_the_first_valid_value() {
        let check = |lines: &[&str], expected: u64| {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(AGE, HeaderValue::from_str(line).unwrap());
            }
            assert_eq!(age(&fields).as_secs(), expected, "{lines:?}");
        };
        check(&[], 0);
        check(&["7200"], 7200);
        check(&["7200, 0"], 7200);
        check(&["0, 7200"], 0);
        check(&["0", "7200"], 0);
        check(&["-7200"], 0);
        check(&["7200.0"], 0);
        check(&["99999999999999999999"], AGE_MAX);
        check(&["abc"], 0);
    }
}
