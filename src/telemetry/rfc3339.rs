//! Times as RFC 3339 writes them, in UTC with milliseconds.

use std::cell::Cell;

use crate::clock::Timestamp;

/// `2026-01-02T03:04:05.678Z`: always 24 bytes up to the year 9999.
pub fn format(time: Timestamp) -> String {
    let mut out = Vec::with_capacity(24);
    write(&mut out, time);
    String::from_utf8_lossy(&out).into_owned()
}

thread_local! {
    /// The last second that this thread wrote, and how: nearly every line is of the same one as the line before, and the
    /// date is most of the work.
    static SECOND: Cell<(u64, [u8; 20])> = const { Cell::new((u64::MAX, [0; 20])) };
}

/// Appends the time to `out`.
pub fn write(out: &mut Vec<u8>, time: Timestamp) {
    let millis = time.as_millis();
    let (second, mut text) = SECOND.get();
    if second != millis / 1000 {
        text = upto_second(millis);
        SECOND.set((millis / 1000, text));
    }
    out.extend_from_slice(&text);
    digits(out, millis % 1000, 3);
    out.push(b'Z');
}

/// `2026-01-02T03:04:05.`
fn upto_second(millis: u64) -> [u8; 20] {
    let mut out = Vec::with_capacity(20);
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
    let (year, month, day) = civil(days.min(2_932_896));
    digits(&mut out, year, 4);
    out.push(b'-');
    digits(&mut out, month, 2);
    out.push(b'-');
    digits(&mut out, day, 2);
    out.push(b'T');
    digits(&mut out, of_day / 3_600_000, 2);
    out.push(b':');
    digits(&mut out, of_day / 60_000 % 60, 2);
    out.push(b':');
    digits(&mut out, of_day / 1000 % 60, 2);
    out.push(b'.');
    // Four digits for the year: `days` is bounded.
    out.try_into().unwrap_or([b'0'; 20])
}

/// Year, month and day of a day since 1970-01-01: eras of 400 years that begin on the first of March.
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

fn digits(out: &mut Vec<u8>, value: u64, width: u32) {
    for place in (0..width).rev() {
        let digit = value / 10_u64.pow(place) % 10;
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        let check = |millis, expected: &str| assert_eq!(format(Timestamp::from_millis(millis)), expected);
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_399_999, "2000-02-28T23:59:59.999Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_772_323_200_001, "2026-03-01T00:00:00.001Z");
        check(253_402_300_799_999, "9999-12-31T23:59:59.999Z");
    }
}
