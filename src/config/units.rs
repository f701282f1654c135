//! The units that values are written in: durations, sizes and secrets.

use std::time::Duration;

/// How a duration is written; for messages.
pub const DURATION: &str = "is not a duration; expected for example \"30s\"";
/// How a size is written; for messages.
pub const SIZE: &str = "is not a size; expected for example \"64 KiB\"";

/// Parses `250ms`, `30s`, `1m30s`, `1h`, `1d`: whole numbers with units, the greater before the smaller.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut last) = (text.trim(), 0_u64, u64::MAX);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let millis = millis_of(after[..end].trim())?;
        if millis >= last {
            return None;
        }
        total = total.checked_add(number.checked_mul(millis)?)?;
        (rest, last) = (&after[end..], millis);
    }
    Some(Duration::from_millis(total))
}

/// A duration as it would be written.
pub fn written(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

fn millis_of(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    }
}

/// Parses `512`, `64 KiB`, `10 MB`: bytes.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text.trim())?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Whether a value names a secret's place rather than being one.
pub fn is_secret(text: &str) -> bool {
    text.starts_with("env:") || text.starts_with("file:")
}

/// Reads a secret from `env:NAME` or `file:PATH` (without the line break at its end); an error is for people and
/// never has the secret in it.
pub fn secret(text: &str) -> Result<String, String> {
    let read = if let Some(name) = text.strip_prefix("env:") {
        std::env::var(name).map_err(|_| format!("environment variable {name:?} is not set"))?
    } else if let Some(path) = text.strip_prefix("file:") {
        let content = std::fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
        content.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        return Err("a secret is not written into the file; expected \"env:NAME\" or \"file:PATH\"".to_owned());
    };
    if read.is_empty() { Err(format!("{text:?} is empty; expected a secret")) } else { Ok(read) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("1m30s", 90_000), ("1h", 3_600_000), ("1d", 86_400_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "30", "s", "5 parsecs", "1s1m", "1s1s", "-1s", "1.5s", "99999999999999999999s", "300000000000d"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes() {
        for (text, bytes) in
            [("512", 512), ("0", 0), ("64 KiB", 65_536), ("2 MiB", 2_097_152), ("10 MB", 10_000_000), ("1GiB", 1 << 30)]
        {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1 parsec", "-1", "1.5 MiB", "99999999999999 GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn a_secret_is_never_the_value_itself() {
        assert!(secret("hunter2").unwrap_err().contains("expected \"env:NAME\""));
        assert_eq!(secret("env:ASIDE_NOT_SET").unwrap_err(), "environment variable \"ASIDE_NOT_SET\" is not set");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "geheim\n").unwrap();
        assert_eq!(secret(&format!("file:{}", file.path().display())), Ok("geheim".to_owned()));
    }
}
