//! `[server]`, `[admin]` and `[log]`: where it listens, within which bounds, and what it tells.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;

use super::notes::Source;
use super::reader::{Reader, nearest};
use super::{AdminConfig, Limits, Listen, ListenTls, ServerConfig, Stats, tls, units};
use crate::fields::range::RANGES_MAX;
use crate::target::{Authority, Scheme};
use crate::telemetry::{AccessLog, Format, Level, LogConfig};

/// Fields that carry credentials, by default.
const CREDENTIALS: &[&str] = &["authorization", "x-api-key", "api-key", "x-auth-token", "x-access-token"];
const ADDRESS: &str = "is not an address; expected for example \"127.0.0.1:8080\"";
const NETWORK: &str = "is not a network; expected for example \"10.0.0.0/8\"";
/// More workers than any machine has cores are a mistake.
const THREADS_MAX: usize = 1024;

/// What `[server]` says; some of it is every route's.
pub(super) struct Server {
    pub(super) config: ServerConfig,
    pub(super) targeted_fields: Arc<[HeaderName]>,
    pub(super) credential_headers: Arc<[HeaderName]>,
}

/// Reads `[server]`.
pub(super) fn server(reader: &Reader<'_>, upstreams: &[&str]) -> Server {
    let addresses = listen(reader);
    let threads = match reader.whole("threads", 0, 0..=THREADS_MAX) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let trusted_proxies: Arc<[IpNet]> = networks(reader, "trusted_proxies", &[]).into();
    let hosts = reader.list("hosts", &[], "is not a host; expected for example \"api.example.com\"", host).into();
    let fallback = fallback(reader, upstreams);
    let client_ip_header = client_ip_header(reader);
    let drain_timeout = reader.duration("drain_timeout", "30s");
    let stats = stats(&reader.table("stats", "[server.stats]"));
    let purge = purge(&reader.table("purge", "[server.purge]"));
    let targeted_fields = reader.field_names("targeted_fields", &["CDN-Cache-Control"]).into();
    let credential_headers = reader.field_names("credential_headers", CREDENTIALS).into();
    let cache_status = reader.boolean("cache_status", true);
    let limits = limits(&reader.table("limits", "[server.limits]"));
    let tls = if reader.has("tls") { listener_tls(&reader.table("tls", "[server.tls]")) } else { None };
    let listen = addresses.into_iter().map(|address| Listen { address, tls: tls.clone() }).collect();
    let config = ServerConfig {
        listen,
        threads,
        trusted_proxies,
        hosts,
        fallback,
        client_ip_header,
        drain_timeout,
        stats,
        purge,
        cache_status,
        limits,
    };
    Server { config, targeted_fields, credential_headers }
}

/// The upstream of what no route matches: as given, else the only one.
fn fallback(reader: &Reader<'_>, upstreams: &[&str]) -> Option<Arc<str>> {
    let default = if upstreams.len() == 1 { upstreams[0] } else { "none" };
    let read = reader.optional("fallback", Some(format!("{default:?}")), |it| match it.text() {
        Some(name) if name == "none" || upstreams.contains(&name) => Ok(Arc::from(name)),
        text => {
            let hint = nearest(text.unwrap_or_default(), upstreams.iter().copied());
            Err(format!("is not an upstream that is defined; expected one, or \"none\"{hint}"))
        }
    });
    if upstreams.len() > 1 && !reader.has("fallback") {
        let what = "server.fallback: not set, with several upstreams: what no route matches is answered with 404";
        reader.notes.warn(reader.line, what);
    }
    read.or_else(|| Some(default.into())).filter(|name| &**name != "none")
}

fn listener_tls(reader: &Reader<'_>) -> Option<ListenTls> {
    let tls = tls::server(reader);
    reader.finish();
    tls
}

fn listen(reader: &Reader<'_>) -> Vec<SocketAddr> {
    const DEFAULT: &str = "127.0.0.1:8080";
    if reader.given("listen").is_some_and(|given| given.value.is_array()) {
        let addresses = reader.list("listen", &[], ADDRESS, |text| text.parse().ok());
        if let Some(given) = reader.given("listen").filter(|it| it.value.as_array().is_some_and(|it| it.is_empty())) {
            reader.problem("listen", &given, "is empty; expected at least one address");
        }
        return addresses;
    }
    let address = reader.optional("listen", Some(format!("{DEFAULT:?}")), |it| {
        it.text().and_then(|text| text.parse().ok()).ok_or_else(|| ADDRESS.to_owned())
    });
    vec![address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)))]
}

/// Networks; an address alone is a network of one.
fn networks(reader: &Reader<'_>, key: &'static str, default: &[&str]) -> Vec<IpNet> {
    reader.list(key, default, NETWORK, |text| {
        text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
    })
}

/// A host without a port, normalised.
pub(super) fn host(text: &str) -> Option<Box<str>> {
    let authority = Authority::parse(text, Scheme::Http).ok().filter(|it| it.port().is_none())?;
    // The scheme's own port would vanish, so that `:80` looks like none.
    let bare = text.rsplit(']').next().is_some_and(|rest| !rest.contains(':'));
    bare.then(|| authority.host().into())
}

fn client_ip_header(reader: &Reader<'_>) -> Option<HeaderName> {
    reader.optional("client_ip_header", Some("\"\"".to_owned()), |it| match it.text() {
        Some("") => Ok(None),
        text => text.and_then(super::reader::field_name).map(Some).ok_or("is not a field name".to_owned()),
    })?
}

fn stats(reader: &Reader<'_>) -> Stats {
    let path = reader.string("path", "/cache-stats");
    if !path.starts_with('/')
        && let Some(given) = reader.given("path")
    {
        reader.problem("path", &given, "is not a path; expected for example \"/cache-stats\"");
    }
    let allow = networks(reader, "allow", &["127.0.0.0/8", "::1/128"]).into();
    reader.finish();
    Stats { path: path.into(), allow }
}

fn purge(reader: &Reader<'_>) -> Arc<[IpNet]> {
    let allow = networks(reader, "allow", &[]).into();
    reader.finish();
    allow
}

fn limits(reader: &Reader<'_>) -> Limits {
    let limits = Limits {
        header_size: reader.size_of_kib("header_size", "16 KiB"),
        header_count: reader.whole("header_count", 100, 1..=10_000),
        uri_length: usize::try_from(reader.size_of_kib("uri_length", "8 KiB")).unwrap_or(usize::MAX),
        connections: reader.whole("connections", 10_000, 1..=1_000_000),
        connections_per_address: reader.whole("connections_per_address", 2500, 0..=1_000_000),
        header_timeout: reader.positive_duration("header_timeout", "10s"),
        idle_timeout: reader.positive_duration("idle_timeout", "60s"),
        body_idle_timeout: reader.positive_duration("body_idle_timeout", "30s"),
        body_rate_min: reader.size("body_rate_min", "1 KiB"),
        answer_rate_min: reader.size("answer_rate_min", "1 KiB"),
        waiters: reader.whole("waiters", 50_000, 1..=10_000_000),
        http2_streams: u32::try_from(reader.whole("http2_streams", 100, 1..=10_000)).unwrap_or(u32::MAX),
        http2_resets: reader.whole("http2_resets", 64, 1..=10_000),
        ranges: reader.whole("ranges", 16, 0..=RANGES_MAX),
        tags: reader.whole("tags", 64, 0..=1000),
        interim: reader.whole("interim", 16, 0..=1000),
    };
    reader.finish();
    limits
}

/// Reads `[admin]`.
pub(super) fn admin(reader: &Reader<'_>) -> AdminConfig {
    let listen = reader.optional("listen", Some("\"127.0.0.1:9090\"".to_owned()), |it| {
        it.text().and_then(|text| text.parse().ok()).ok_or_else(|| ADDRESS.to_owned())
    });
    let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9090)));
    let token = secret(reader, "token");
    if !listen.ip().is_loopback() && !reader.has("token") {
        reader.problem_here(&format!("no token, though {listen} is not loopback; expected token = \"env:NAME\""));
    }
    reader.finish();
    AdminConfig { listen, token }
}

/// A secret, read from where the file says; the message never has its value.
pub(super) fn secret(reader: &Reader<'_>, key: &'static str) -> Option<String> {
    let Some(given) = reader.given(key) else {
        reader.record(key, None, Source::Default);
        return None;
    };
    let text = given.text().unwrap_or_default();
    reader.record(key, Some(format!("{text:?}")), given.source.clone());
    match units::secret(text) {
        Ok(secret) => Some(secret),
        Err(what) => {
            reader.notes.problem(given.line, format!("{}: {what}", reader.path(key)));
            None
        }
    }
}

/// Reads `[log]`.
pub(super) fn log(reader: &Reader<'_>) -> LogConfig {
    let levels = [("info", Level::Info), ("error", Level::Error), ("warn", Level::Warn), ("debug", Level::Debug)];
    let level = reader.choice("level", &levels);
    let format = reader.choice("format", &[("text", Format::Text), ("json", Format::Json)]);
    let access = match reader.string("access", "stdout").as_str() {
        "off" => AccessLog::Off,
        "stdout" => AccessLog::Stdout,
        path => AccessLog::File(PathBuf::from(path)),
    };
    reader.finish();
    LogConfig { level, format, access }
}
