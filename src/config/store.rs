//! `[memory]` and `[redis]`: the bounds of the tiers and how Redis is reached.

use super::reader::Reader;
use super::server::secret;
use super::{tls, units};
use crate::store::redis::RedisConfig;

/// What a Redis URL may begin with.
const SCHEMES: &[&str] = &["redis", "rediss", "redis+unix", "valkey", "valkeys"];

/// `[memory]`, checked; all in bytes.
pub(super) struct Memory {
    pub(super) max_size: u64,
    pub(super) max_object: u64,
    pub(super) max_filling: u64,
}

/// Reads `[memory]`. Without Redis no body is bounded here but by its route.
pub(super) fn memory(reader: &Reader<'_>, with_redis: bool) -> Memory {
    let max_size = reader.size("max_size", "256 MiB");
    let unbounded = !with_redis && !reader.has("max_object");
    let max_object = reader.size("max_object", "1 MiB");
    let max_filling = reader.size("max_filling", "64 MiB");
    reader.finish();
    Memory { max_size, max_object: if unbounded { u64::MAX } else { max_object }, max_filling }
}

/// Reads `[redis]`, and what of it a fingerprint must cover that the file only names; none where its URL is no good.
pub(super) fn redis(reader: &Reader<'_>) -> Option<(RedisConfig, Vec<u8>)> {
    let url = url(reader);
    let username = reader.string("username", "");
    let password = secret(reader, "password");
    let prefix = reader.string("prefix", "aside");
    let timeout = reader.positive_duration("timeout", "50ms");
    let max_object = reader.size("max_object", "8 MiB");
    let compress = reader.boolean("compress", true);
    let encrypted = url.as_deref().is_some_and(|url| url.starts_with("rediss:") || url.starts_with("valkeys:"));
    let client = tls::client(reader, encrypted, false);
    reader.finish();
    let url = url?;
    let mut material = [url.as_bytes(), b"\n", password.as_deref().unwrap_or_default().as_bytes(), b"\n"].concat();
    material.extend(client.iter().flat_map(|client| &client.material));
    let tls = client.filter(|_| encrypted).map(|client| client.config);
    Some((RedisConfig { url, username, password, tls, prefix, timeout, max_object, compress }, material))
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
    let refuse = |what: &str| reader.notes.problem(given.line, format!("{}: {what}", reader.path("url")));
    reader.record("url", Some(format!("{text:?}")), given.source.clone());
    if units::is_secret(text) {
        let url = units::secret(text).map_err(|what| refuse(&what)).ok()?;
        return well_formed(&url).map_err(|what| refuse(&format!("what {text:?} names {what}"))).ok().map(|()| url);
    }
    if has_password(text) {
        refuse("a password is not written into the file; expected password = \"env:NAME\" or url = \"env:NAME\"");
        return None;
    }
    well_formed(text).map_err(|what| refuse(&format!("{text:?} {what}"))).ok().map(|()| text.to_owned())
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
        || url.split_once('?').is_some_and(|(_, query)| query.contains("password="))
}

fn well_formed(url: &str) -> Result<(), String> {
    let expected = SCHEMES.join(", ");
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("is not a URL; expected for example \"redis://127.0.0.1:6379\"".to_owned());
    };
    if !SCHEMES.contains(&scheme) {
        return Err(format!("has a scheme that is not known; expected one of {expected}"));
    }
    if rest.is_empty() {
        Err("has no host; expected for example \"redis://127.0.0.1:6379\"".to_owned())
    } else {
        Ok(())
    }
}
