//! `[memory]` and `[redis]`: the bounds of the tiers and how Redis is reached.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::{Given, Reader};
use super::server::secret;
use super::{tls, units};
use crate::store::redis::{RedisConfig, Seal};

/// `[memory]`, checked; all in bytes.
pub(super) struct Memory {
    pub(super) max_size: u64,
    pub(super) max_object: u64,
    pub(super) max_filling: u64,
    pub(super) max_serving: u64,
    pub(super) unsynced_residence: Duration,
}

/// The default of `unsynced_residence`.
const RESIDENCE: Duration = Duration::from_secs(5);
/// Two polls of the ledger: with less, what is followed well would not be believed.
const RESIDENCE_MIN: Duration = Duration::from_secs(2);
/// The shortest `mac_key` in bytes.
const MAC_KEY_MIN: usize = 16;
/// The default of `purge.slots`, and its bounds.
const SLOTS: u32 = 1 << 20;
const SLOTS_RANGE: RangeInclusive<u32> = 1 << 10..=1 << 24;

/// Reads `[memory]`. Without Redis no body is bounded here but by its route.
pub(super) fn memory(reader: &Reader<'_>, with_redis: bool) -> Memory {
    let max_size = reader.size("max_size", "256 MiB");
    let unbounded = !with_redis && !reader.has("max_object");
    let max_object = reader.size("max_object", "1 MiB");
    let max_filling = reader.size("max_filling", "64 MiB");
    let max_serving = reader.size("max_serving", "256 MiB");
    let residence = reader.optional("unsynced_residence", Some("\"5s\"".to_owned()), |it| {
        let duration = it.text().and_then(units::duration).ok_or_else(|| units::DURATION.to_owned())?;
        let long_enough = (duration >= RESIDENCE_MIN).then_some(duration);
        long_enough.ok_or_else(|| "is too short; expected at least \"2s\"".to_owned())
    });
    reader.finish();
    let max_object = if unbounded { u64::MAX } else { max_object };
    Memory { max_size, max_object, max_filling, max_serving, unsynced_residence: residence.unwrap_or(RESIDENCE) }
}

/// Reads `[purge]`: the slots of one of the ledger's arrays.
pub(super) fn purge(reader: &Reader<'_>) -> u32 {
    let slots = reader.optional("slots", Some(SLOTS.to_string()), |it| {
        let number = it.value.as_integer().and_then(|integer| integer.as_str().replace('_', "").parse::<u32>().ok());
        let fitting = number.filter(|number| number.is_power_of_two() && SLOTS_RANGE.contains(number));
        fitting.ok_or_else(|| "is not a number of slots; expected a power of two from 1024 to 16777216".to_owned())
    });
    reader.finish();
    slots.unwrap_or(SLOTS)
}

/// Reads `[redis]`, and what of it a fingerprint must cover that the file only names; none where its URL is no good.
pub(super) fn redis(reader: &Reader<'_>) -> Option<(RedisConfig, Vec<u8>)> {
    let url = url(reader);
    let username = reader.string("username", "");
    let password = secret(reader, "password");
    let sentinel_username = reader.string("sentinel_username", "");
    let sentinel_password = secret(reader, "sentinel_password");
    let prefix = reader.string("prefix", "aside");
    let timeout = reader.positive_duration("timeout", "50ms");
    let max_object = reader.size("max_object", "8 MiB");
    let compress = reader.boolean("compress", true);
    let encrypted = url.as_deref().is_some_and(RedisConfig::is_encrypted);
    let mac_key = mac_key(reader);
    let client = tls::client(reader, encrypted, false);
    reader.finish();
    let url = url?;
    let secrets = [&password, &sentinel_password, &mac_key].map(|secret| secret.as_deref().unwrap_or_default());
    let mut material = [url.as_str(), secrets[0], secrets[1], secrets[2], ""].join("\n").into_bytes();
    material.extend(client.iter().flat_map(|client| &client.material));
    let tls = client.filter(|_| encrypted).map(|client| client.config);
    let config = RedisConfig {
        url,
        username,
        password,
        sentinel_username,
        sentinel_password,
        tls,
        prefix,
        timeout,
        max_object,
        compress,
        seal: mac_key.map_or_else(Seal::plain, |key| Seal::keyed(&key)),
    };
    let given = reader.given("url")?;
    match config.problem() {
        Some(what) => {
            let told = given.text().unwrap_or_default();
            let told = if units::is_secret(told) { format!("what {told:?} names") } else { format!("{told:?}") };
            refuse(reader, &given, &format!("{told} {what}"));
            None
        }
        None => Some((config, material)),
    }
}

/// What records are sealed with, long enough not to be guessed.
fn mac_key(reader: &Reader<'_>) -> Option<String> {
    let key = secret(reader, "mac_key")?;
    if key.len() >= MAC_KEY_MIN {
        return Some(key);
    }
    if let Some(given) = reader.given("mac_key") {
        let what =
            format!("is too short; expected a secret of at least {MAC_KEY_MIN} bytes, the same in every process");
        reader.notes.problem(given.line, format!("{}: {what}", reader.path("mac_key")));
    }
    None
}

/// The URL, from the environment or a file where it says so: only there may a password be in it.
fn url(reader: &Reader<'_>) -> Option<String> {
    let Some(given) = reader.given("url") else {
        reader.problem_here("no url; expected for example url = \"redis://127.0.0.1:6379\"");
        return None;
    };
    let Some(text) = given.text() else {
        reader.problem("url", &given, "is not a URL; expected for example \"redis://127.0.0.1:6379\"");
        return None;
    };
    reader.record("url", Some(format!("{text:?}")), given.source.clone());
    if units::is_secret(text) {
        return units::secret(text).map_err(|what| refuse(reader, &given, &what)).ok();
    }
    if has_password(text) {
        let what = "a password is not written into the file; expected password = \"env:NAME\" or url = \"env:NAME\"";
        refuse(reader, &given, what);
        return None;
    }
    Some(text.to_owned())
}

fn refuse(reader: &Reader<'_>, url: &Given<'_>, what: &str) {
    reader.notes.problem(url.line, format!("{}: {what}", reader.path("url")));
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
        || url.split_once('?').is_some_and(|(_, query)| query.to_ascii_lowercase().contains("password="))
}
