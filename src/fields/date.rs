//! HTTP dates (RFC 9110 §5.6.7), read as leniently as the standard lets a recipient.

use http::header::{DATE, EXPIRES};
use http::{HeaderMap, HeaderValue};

use crate::clock::Timestamp;

const DAYS: [&[u8]; 7] = [b"Sunday", b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const SECONDS_PER_DAY: u64 = 86_400;
/// The last second that a four-digit year can write.
const LAST_SECOND: u64 = 253_402_300_799;
/// The present that [`parse`] reads two-digit years by: 2026. What it misreads in later decades are dates
/// more than half a century ahead in a form that nobody has sent for longer.
const REFERENCE: Timestamp = Timestamp::from_secs(1_767_225_600);

/// The time a field value names: IMF-fixdate, RFC 850 or asctime form; names in any case.
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    parse_near(value, REFERENCE)
}

/// As [`parse`]; a two-digit year that seems more than 50 years after `now` is in the past (RFC 9110 §5.6.7).
/// A time before 1970 is 1970. The day's name is not compared with the date (RFC 9111 §4.2: names in any case,
/// but no zone other than GMT).
pub fn parse_near(value: &HeaderValue, now: Timestamp) -> Option<Timestamp> {
    let text = value.as_bytes().trim_ascii();
    let comma = text.iter().position(|&byte| byte == b',');
    match comma {
        Some(3) => imf_fixdate(text),
        Some(at) => rfc850(&text[..at], &text[at + 1..], now),
        None => asctime(text),
    }
}

/// A response's valid `Date`.
pub fn date(fields: &HeaderMap) -> Option<Timestamp> {
    fields.get(DATE).and_then(parse)
}

/// The time that `Expires` names; the distant past when it is invalid or repeated (RFC 9111 §5.3, §4.2.1).
pub fn expires(fields: &HeaderMap) -> Option<Timestamp> {
    let mut lines = fields.get_all(EXPIRES).iter();
    let first = lines.next()?;
    let only = if lines.next().is_none() { parse(first) } else { None };
    Some(only.unwrap_or_default())
}

/// `time` in IMF-fixdate form.
pub fn format(time: Timestamp) -> HeaderValue {
    let seconds = time.as_secs().min(LAST_SECOND);
    let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let mut text = *b"Day, 00 Mon 0000 00:00:00 GMT";
    // 1970-01-01 was a Thursday.
    text[..3].copy_from_slice(&DAYS[index((days + 4) % 7)][..3]);
    write_digits(&mut text[5..7], day);
    text[8..11].copy_from_slice(MONTHS[index(month - 1)]);
    write_digits(&mut text[12..16], year);
    write_digits(&mut text[17..19], second / 3600);
    write_digits(&mut text[20..22], second / 60 % 60);
    write_digits(&mut text[23..25], second % 60);
    HeaderValue::from_bytes(&text).expect("letters, digits and punctuation")
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<Timestamp> {
    if text.len() != 29 || text[4] != b' ' || text[7] != b' ' || text[11] != b' ' || text[16] != b' ' {
        return None;
    }
    is_day(&text[..3], false)?;
    is_gmt(&text[25..])?;
    timestamp(number(&text[12..16])?, month(&text[8..11])?, number(&text[5..7])?, clock(&text[17..25])?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(day_name: &[u8], text: &[u8], now: Timestamp) -> Option<Timestamp> {
    is_day(day_name, true)?;
    if text.len() != 23 || text[0] != b' ' || text[3] != b'-' || text[7] != b'-' || text[10] != b' ' {
        return None;
    }
    is_gmt(&text[19..])?;
    let (month, day, clock) = (month(&text[4..7])?, number(&text[1..3])?, clock(&text[11..19])?);
    let in_century = number(&text[8..10])?;
    let (this_year, ..) = civil(now.as_secs() / SECONDS_PER_DAY);
    let horizon = this_year + 50;
    let year = horizon - (horizon + 100 - in_century) % 100;
    let time = timestamp(year, month, day, clock)?;
    // In the horizon's own year, the day and the hour decide.
    let ahead = timestamp(horizon, 1, 1, 0)?.since(timestamp(this_year, 1, 1, 0)?);
    if time > now.plus(ahead) { timestamp(year - 100, month, day, clock) } else { Some(time) }
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<Timestamp> {
    if text.len() != 24 || text[3] != b' ' || text[7] != b' ' || text[10] != b' ' || text[19] != b' ' {
        return None;
    }
    is_day(&text[..3], false)?;
    let day = if text[8] == b' ' { &text[9..10] } else { &text[8..10] };
    timestamp(number(&text[20..])?, month(&text[4..7])?, number(day)?, clock(&text[11..19])?)
}

fn is_day(name: &[u8], whole: bool) -> Option<()> {
    let length = |day: &'static [u8]| if whole { day.len() } else { 3 };
    DAYS.iter().any(|day| name.eq_ignore_ascii_case(&day[..length(day)])).then_some(())
}

/// RFC 9111 §4.2: a zone other than GMT makes the date invalid.
fn is_gmt(text: &[u8]) -> Option<()> {
    text.eq_ignore_ascii_case(b" GMT").then_some(())
}

fn month(name: &[u8]) -> Option<u64> {
    let at = MONTHS.iter().position(|month| name.eq_ignore_ascii_case(&month[..]))?;
    Some(at as u64 + 1)
}

/// The second of the day of `08:49:37`; 60 is a leap second.
fn clock(text: &[u8]) -> Option<u64> {
    if text[2] != b':' || text[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (number(&text[..2])?, number(&text[3..5])?, number(&text[6..])?);
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, &byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

fn timestamp(year: u64, month: u64, day: u64, second: u64) -> Option<Timestamp> {
    if day == 0 || day > days_in(year, month) {
        return None;
    }
    let seconds = days_before(year, month, day).map_or(0, |days| days * SECONDS_PER_DAY + second);
    Some(Timestamp::from_secs(seconds))
}

const fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The days from 1970-01-01 to a date; the count of a year that begins in March makes leap days last.
/// None for a date before 1970.
const fn days_before(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    Some(year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468)
}

/// Year, month and day, `days` after 1970-01-01.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

fn write_digits(text: &mut [u8], mut number: u64) {
    for place in text.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        let value = HeaderValue::from_str(text).unwrap();
        assert_eq!(parse(&value), expected.map(Timestamp::from_secs), "{text}");
    }

    #[test]
    fn the_three_forms_are_read() {
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777));
        check("Sun Nov  6 08:49:37 1994", Some(784_111_777));
        check("Sun Nov 06 08:49:37 1994", Some(784_111_777));
        check("Thu Aug 18 02:01:18 2050", Some(2_544_400_878));
        check("Thursday, 18-Aug-50 02:01:18 GMT", Some(2_544_400_878));
        check("Sun, 21 Nov 2286 04:46:39 GMT", Some(10_000_039_599));
    }

    #[test]
    fn names_in_any_case_and_a_wrong_weekday_are_accepted() {
        for text in [
            "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 gMT",
            "Mon, 18 Aug 2050 02:01:18 GMT",
            "FRIDAY, 18-aug-50 02:01:18 gmt",
            "mon aug 18 02:01:18 2050",
        ] {
            check(text, Some(2_544_400_878));
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            ",",
            "foo",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18 Aug 2050 24:01:18 GMT",
            "Thu, 18 Aug 2050 23:60:18 GMT",
            "Thu, 18 Aug 2050 23:01:61 GMT",
            "Thu, 00 Aug 2050 02:01:18 GMT",
            "Thu, 31 Jun 2050 02:01:18 GMT",
            "Thu, 29 Feb 2100 02:01:18 GMT",
            "Thu, 18 Foo 2050 02:01:18 GMT",
            "Xyz, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug +050 02:01:18 GMT",
            "Thursday, 18-Aug-50 02:01:18",
            "Thu, 18-Aug-50 02:01:18 GMT",
        ] {
            check(text, None);
        }
        let bytes = HeaderValue::from_bytes(&[0xff; 29]).unwrap();
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn leap_days_and_seconds_are_dates() {
        check("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400));
        check("Thu, 29 Feb 2024 00:00:00 GMT", Some(1_709_164_800));
        check("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_800));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check("Mon, 01 Jan 1900 12:00:00 GMT", Some(0));
        check("Sat, 01 Jan 0000 00:00:00 GMT", Some(0));
    }

    #[test]
    fn a_two_digit_year_is_at_most_fifty_years_ahead() {
        fn check(text: &str, now: &str, expected: &str) {
            let read = |text: &str| parse(&HeaderValue::from_str(text).unwrap()).unwrap();
            let time = parse_near(&HeaderValue::from_str(text).unwrap(), read(now)).unwrap();
            assert_eq!(format(time), expected, "{text} at {now}");
        }
        let now = "Sat, 21 Nov 2026 00:00:00 GMT";
        check("Sunday, 06-Nov-94 08:49:37 GMT", now, "Sun, 06 Nov 1994 08:49:37 GMT");
        check("Sunday, 06-Nov-76 08:49:37 GMT", now, "Fri, 06 Nov 2076 08:49:37 GMT");
        check("Sunday, 22-Nov-76 08:49:37 GMT", now, "Mon, 22 Nov 1976 08:49:37 GMT");
        check("Sunday, 22-Nov-26 08:49:37 GMT", now, "Sun, 22 Nov 2026 08:49:37 GMT");
        check("Sunday, 01-Jan-00 00:00:00 GMT", now, "Sat, 01 Jan 2000 00:00:00 GMT");
        let later = "Mon, 01 Jan 2080 00:00:00 GMT";
        check("Sunday, 06-Nov-94 08:49:37 GMT", later, "Sat, 06 Nov 2094 08:49:37 GMT");
        check("Sunday, 06-Nov-29 08:49:37 GMT", later, "Sun, 06 Nov 2129 08:49:37 GMT");
        check("Sunday, 06-Nov-30 08:49:37 GMT", later, "Wed, 06 Nov 2030 08:49:37 GMT");
    }

    #[test]
    fn formatting_agrees_with_the_httpdate_crate_and_reading() {
        let mut seconds = 0;
        while seconds < LAST_SECOND {
            let value = format(Timestamp::from_secs(seconds));
            let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(value, theirs);
            assert_eq!(parse(&value), Some(Timestamp::from_secs(seconds)));
            seconds += 86_400 * 97 + 3_661;
        }
        assert_eq!(format(Timestamp::from_millis(u64::MAX)), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn invalid_or_repeated_expires_is_in_the_past() {
        fn check(lines: &[&'static str], expected: Option<u64>) {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(EXPIRES, HeaderValue::from_static(line));
            }
            assert_eq!(expires(&fields), expected.map(Timestamp::from_secs), "{lines:?}");
        }
        check(&[], None);
        check(&["Thu, 18 Aug 2050 02:01:18 GMT"], Some(2_544_400_878));
        check(&["0"], Some(0));
        check(&[""], Some(0));
        check(&["Thu, 18 Aug 2050 02:01:18 GMT", "Thu, 18 Aug 2050 02:01:18 GMT"], Some(0));
    }
}
