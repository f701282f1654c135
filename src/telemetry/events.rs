//! What happens outside requests: one enum, logged and counted in one place.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use super::Level;
use crate::upstream::UpstreamError;

/// Something an operator may want to know.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Event {
    Started {
        listen: Vec<String>,
        workers: usize,
    },
    Reloaded {
        generation: u64,
    },
    ReloadRefused {
        problems: Vec<String>,
    },
    ReloadNeedsRestart {
        sections: Vec<&'static str>,
    },
    ConfigurationWarned {
        problem: String,
    },
    Draining {
        connections: usize,
    },
    DrainTimedOut {
        connections: usize,
    },
    Stopped,
    AcceptFailed {
        error: String,
    },
    ConnectionFailed {
        error: String,
    },
    RedisUp,
    RedisDown {
        reason: String,
    },
    RedisError {
        reason: String,
    },
    RedisWriteRefused {
        reason: String,
    },
    RedisCorrupt {
        reason: &'static str,
    },
    BreakerOpened,
    BreakerClosed,
    UpstreamFailed {
        upstream: String,
        server: String,
        error: UpstreamError,
        cause: String,
    },
    ServerEjected {
        upstream: String,
        server: String,
    },
    ServerRestored {
        upstream: String,
        server: String,
    },
    ServerUnhealthy {
        upstream: String,
        server: String,
        cause: String,
    },
    ServerHealthy {
        upstream: String,
        server: String,
    },
    NameNotFound {
        upstream: String,
        name: String,
        cause: String,
    },
    AddressesFound {
        upstream: String,
        name: String,
        addresses: Vec<String>,
    },
    Purged {
        way: &'static str,
        /// Who ordered it, where one is known.
        by: Option<IpAddr>,
        everything: bool,
        kind: &'static str,
        tags: String,
        number: u64,
        /// Why Redis has not recorded it.
        unacknowledged: Option<String>,
        took: Duration,
    },
    /// An order that the backend published.
    PurgeRefused {
        reason: String,
    },
    RevalidationFailed {
        route: String,
        error: UpstreamError,
    },
    BodyTruncated {
        upstream: String,
        cause: String,
    },
}

impl Event {
    /// Its kind, from a closed set: the log's `event`, and what it is counted as.
    pub const fn name(&self) -> &'static str {
        self.describe().0
    }

    /// How severe it is.
    pub const fn level(&self) -> Level {
        self.describe().1
    }

    /// What happened, for people.
    pub const fn message(&self) -> &'static str {
        self.describe().2
    }

    const fn describe(&self) -> (&'static str, Level, &'static str) {
        use Level::{Debug, Error, Info, Warn};
        match self {
            Self::Started { .. } => ("started", Info, "listening"),
            Self::Reloaded { .. } => ("reloaded", Info, "configuration reloaded"),
            Self::ReloadRefused { .. } => ("reload_refused", Error, "configuration refused, the running one stays"),
            Self::ReloadNeedsRestart { .. } => ("reload_needs_restart", Warn, "changed, but only a restart applies it"),
            Self::ConfigurationWarned { .. } => {
                ("configuration_warned", Warn, "configuration may not be what is meant")
            }
            Self::Draining { .. } => ("draining", Info, "draining"),
            Self::DrainTimedOut { .. } => ("drain_timed_out", Warn, "drain timed out, closing what is open"),
            Self::Stopped => ("stopped", Info, "stopped"),
            Self::AcceptFailed { .. } => ("accept_failed", Error, "cannot accept connections"),
            Self::ConnectionFailed { .. } => ("connection_failed", Debug, "connection failed"),
            Self::RedisUp => ("redis_up", Info, "redis is up"),
            Self::RedisDown { .. } => ("redis_down", Warn, "redis is down, going on without it"),
            Self::RedisError { .. } => ("redis_error", Warn, "redis answered with an error"),
            Self::RedisWriteRefused { .. } => ("redis_write_refused", Warn, "redis refuses writes"),
            Self::RedisCorrupt { .. } => ("redis_corrupt", Warn, "a value in redis is not readable, deleting it"),
            Self::BreakerOpened => ("breaker_opened", Warn, "redis does not answer in time, not asking it"),
            Self::BreakerClosed => ("breaker_closed", Info, "asking redis again"),
            Self::UpstreamFailed { .. } => ("upstream_failed", Warn, "upstream failed"),
            Self::ServerEjected { .. } => ("server_ejected", Warn, "upstream server ejected"),
            Self::ServerRestored { .. } => ("server_restored", Info, "upstream server restored"),
            Self::ServerUnhealthy { .. } => ("server_unhealthy", Warn, "upstream server fails its checks"),
            Self::ServerHealthy { .. } => ("server_healthy", Info, "upstream server passes its checks again"),
            Self::NameNotFound { .. } => ("name_not_found", Warn, "name not found, what was known of it stays"),
            Self::AddressesFound { .. } => ("addresses_found", Info, "the addresses of a name"),
            Self::Purged { everything: true, .. } => ("purged_all", Warn, "purged everything"),
            Self::Purged { everything: false, .. } => ("purged", Info, "purged"),
            Self::PurgeRefused { .. } => ("purge_refused", Warn, "a purge order in redis is not one"),
            Self::RevalidationFailed { .. } => ("revalidation_failed", Warn, "background revalidation failed"),
            Self::BodyTruncated { .. } => ("body_truncated", Warn, "upstream broke off its response"),
        }
    }

    /// What it is about, as name and value.
    pub(super) fn fields(&self) -> Vec<(&'static str, Value)> {
        match self {
            Self::Started { listen, workers } => {
                vec![("listen", listen.join(", ").into()), ("workers", (*workers).into())]
            }
            Self::Reloaded { generation } => vec![("generation", (*generation).into())],
            Self::ReloadRefused { problems } => vec![("problems", problems.clone().into())],
            Self::ReloadNeedsRestart { sections } => vec![("sections", sections.join(", ").into())],
            Self::ConfigurationWarned { problem } => vec![("problem", text(problem))],
            Self::Draining { connections } | Self::DrainTimedOut { connections } => {
                vec![("connections", (*connections).into())]
            }
            Self::AcceptFailed { error } | Self::ConnectionFailed { error } => vec![("error", text(error))],
            Self::RedisDown { reason }
            | Self::RedisError { reason }
            | Self::RedisWriteRefused { reason }
            | Self::PurgeRefused { reason } => vec![("reason", text(reason))],
            Self::RedisCorrupt { reason } => vec![("reason", text(reason))],
            Self::UpstreamFailed { upstream, server, error, cause } => vec![
                ("upstream", text(upstream)),
                ("server", text(server)),
                ("error", text(failure(*error))),
                ("cause", text(cause)),
            ],
            Self::ServerEjected { upstream, server }
            | Self::ServerRestored { upstream, server }
            | Self::ServerHealthy { upstream, server } => {
                vec![("upstream", text(upstream)), ("server", text(server))]
            }
            Self::ServerUnhealthy { upstream, server, cause } => {
                vec![("upstream", text(upstream)), ("server", text(server)), ("cause", text(cause))]
            }
            Self::NameNotFound { upstream, name, cause } => {
                vec![("upstream", text(upstream)), ("name", text(name)), ("cause", text(cause))]
            }
            Self::AddressesFound { upstream, name, addresses } => {
                vec![("upstream", text(upstream)), ("name", text(name)), ("addresses", addresses.join(", ").into())]
            }
            Self::Purged { way, by, everything: _, kind, tags, number, unacknowledged, took } => {
                let mut fields = vec![("way", text(way))];
                fields.extend(by.map(|by| ("by", by.to_string().into())));
                fields.extend([("kind", text(kind)), ("tags", text(tags))]);
                fields.push(("number", (*number).into()));
                fields.push(("acknowledged", unacknowledged.is_none().into()));
                fields.extend(unacknowledged.as_deref().map(|why| ("reason", text(why))));
                fields.push(("took_ms", ((took.as_secs_f64() * 1e6).round() / 1e3).into()));
                fields
            }
            Self::RevalidationFailed { route, error } => {
                vec![("route", text(route)), ("error", text(failure(*error)))]
            }
            Self::BodyTruncated { upstream, cause } => vec![("upstream", text(upstream)), ("cause", text(cause))],
            Self::Stopped | Self::RedisUp | Self::BreakerOpened | Self::BreakerClosed => Vec::new(),
        }
    }
}

fn text(value: &str) -> Value {
    Value::from(value)
}

const fn failure(error: UpstreamError) -> &'static str {
    match error {
        UpstreamError::Connect => "connect",
        UpstreamError::ConnectTimeout => "connect-timeout",
        UpstreamError::FirstByteTimeout => "first-byte-timeout",
        UpstreamError::Protocol => "protocol",
        UpstreamError::RequestBody => "request-body",
        UpstreamError::Overloaded => "overloaded",
        UpstreamError::NoServer => "no-server",
    }
}
