//! `[upstream.*]`: the servers that requests go to, and how much patience there is with them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use super::file::key_of;
use super::reader::Reader;
use super::{fingerprint, tls};
use crate::target::{Authority, Scheme};
use crate::upstream::{Balance, Breaker, HealthCheck, HostRule, UpstreamConfig};

const URL: &str = "is not an upstream's URL; expected for example \"http://127.0.0.1:3000\"";

/// Reads one upstream; none where TLS could not be set up, after a problem was noted.
pub(super) fn upstream(name: &str, reader: &Reader<'_>) -> Option<UpstreamConfig> {
    let urls = urls(reader);
    let encrypted = urls.iter().any(|url| url.scheme_str() == Some("https"));
    let host = host(reader);
    let balance =
        reader.choice("balance", &[("least_requests", Balance::LeastRequests), ("round_robin", Balance::RoundRobin)]);
    let connect_timeout = reader.positive_duration("connect_timeout", "2s");
    let first_byte_timeout = reader.positive_duration("first_byte_timeout", "30s");
    let idle_timeout = reader.positive_duration("idle_timeout", "30s");
    let retries = u32::try_from(reader.whole("retries", 1, 0..=10)).unwrap_or(1);
    let max_concurrent = reader.whole("max_concurrent", 0, 0..=1_000_000);
    let max_pending = reader.whole("max_pending", 1024, 0..=1_000_000);
    let resolve_interval = reader.positive_duration("resolve_interval", "30s");
    let client = tls::client(reader, encrypted, true);
    let breaker = breaker(&reader.table("breaker", &format!("[upstream.{}.breaker]", key_of(name))));
    let health =
        reader.has("health").then(|| health(&reader.table("health", &format!("[upstream.{}.health]", key_of(name)))));
    reader.finish();
    let client = client?;
    Some(UpstreamConfig {
        name: name.into(),
        urls: urls.into(),
        host,
        balance,
        connect_timeout,
        first_byte_timeout,
        idle_timeout,
        retries,
        max_concurrent,
        max_pending,
        resolve_interval,
        breaker,
        health,
        tls: client.config,
        fingerprint: fingerprint(&[reader.settings().as_bytes(), &client.material]),
    })
}

/// The longest a call waits for its head: what collapsed requests wait by default.
pub(super) fn patience(upstream: &UpstreamConfig, first_byte_timeout: Option<Duration>) -> Duration {
    upstream.connect_timeout.saturating_add(first_byte_timeout.unwrap_or(upstream.first_byte_timeout))
}

fn breaker(reader: &Reader<'_>) -> Breaker {
    let failures = u32::try_from(reader.whole("failures", 5, 1..=1_000_000_000)).unwrap_or(u32::MAX);
    let breaker = Breaker { failures, open: reader.positive_duration("open", "5s") };
    reader.finish();
    breaker
}

fn health(reader: &Reader<'_>) -> HealthCheck {
    const PATH: &str = "/health";
    let path = reader.optional("path", Some(format!("{PATH:?}")), |it| {
        let path =
            it.text().filter(|text| text.starts_with('/') && !text.contains('#')).and_then(|text| text.parse().ok());
        path.ok_or_else(|| format!("is not a path; expected for example {PATH:?}"))
    });
    let times = |key, default| u32::try_from(reader.whole(key, default, 1..=1000)).unwrap_or(u32::MAX);
    let health = HealthCheck {
        path: path.unwrap_or_else(|| PathAndQuery::from_static(PATH)),
        interval: reader.positive_duration("interval", "5s"),
        unhealthy: times("unhealthy", 3),
        healthy: times("healthy", 2),
    };
    reader.finish();
    health
}

fn urls(reader: &Reader<'_>) -> Vec<Uri> {
    let one = reader.optional("url", None, |it| url(it.text().unwrap_or_default()));
    let has_list = reader.has("urls");
    if has_list == reader.has("url") {
        let how = if has_list { "both url and urls" } else { "no url" };
        reader.problem_here(&format!("{how}; expected either url = \"http://…\" or urls = [..]"));
    }
    if !has_list {
        return one.into_iter().collect();
    }
    let mut all = Vec::new();
    let members = reader.values("urls", &[]).unwrap_or_default();
    if members.is_empty() {
        reader.problem_here("urls is empty; expected at least one");
    }
    for member in members {
        match url(member.text().unwrap_or_default()) {
            Ok(url) => all.push(url),
            Err(what) => reader.problem("urls", &member, &what),
        }
    }
    all
}

/// Scheme, authority and base path without a slash at its end.
fn url(text: &str) -> Result<Uri, String> {
    if text.contains('#') {
        return Err("has a fragment; expected none".to_owned());
    }
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| URL.to_owned())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(URL.to_owned()) };
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err("has a scheme that is not known; expected http or https".to_owned()),
    };
    if authority.as_str().contains('@') {
        return Err("has user information; expected none (request_headers can set Authorization)".to_owned());
    }
    if uri.query().is_some() {
        return Err("has a query; expected none".to_owned());
    }
    Authority::parse(authority.as_str(), scheme).map_err(|_| URL.to_owned())?;
    Ok(uri)
}

/// Whether `url` leads to a listener at `address`, as far as can be told without asking.
pub(super) fn is_at(url: &Uri, address: SocketAddr) -> bool {
    let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
    if url.port_u16().unwrap_or(default) != address.port() {
        return false;
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let listens = address.ip().to_canonical();
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) => ip == listens || (listens.is_unspecified() && ip.is_loopback()),
        Err(_name) => host.eq_ignore_ascii_case("localhost") && (listens.is_unspecified() || listens.is_loopback()),
    }
}

fn host(reader: &Reader<'_>) -> HostRule {
    let rule = reader.optional("host", Some("\"upstream\"".to_owned()), |it| match it.text() {
        Some("upstream") => Ok(HostRule::Upstream),
        Some("preserve") => Ok(HostRule::Preserve),
        text => literal_host(text.unwrap_or_default())
            .map(HostRule::Literal)
            .ok_or_else(|| "is not a host; expected \"upstream\", \"preserve\" or a host".to_owned()),
    });
    rule.unwrap_or(HostRule::Upstream)
}

fn literal_host(text: &str) -> Option<HeaderValue> {
    Authority::parse(text, Scheme::Http).ok()?;
    HeaderValue::from_str(text).ok()
}

/// The upstream of a name.
pub(super) fn find<'u>(upstreams: &'u [UpstreamConfig], name: &str) -> Option<&'u UpstreamConfig> {
    upstreams.iter().find(|upstream| *upstream.name == *name)
}
