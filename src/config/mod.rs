//! Configuration: the file as written, checked into values, or all its problems.
//!
//! The file's table is walked with a reader of our own (`reader`) rather than deserialized: serde stops at the first
//! error, and an operator is told all of them at once, each with its line.

mod caching;
mod file;
mod keying;
mod notes;
mod reader;
mod route;
mod server;
mod store;
mod tls;
pub mod units;
mod upstream;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use crate::route::Route;
use crate::store::StoreConfig;
use crate::telemetry::LogConfig;
use crate::upstream::UpstreamConfig;

/// A checked configuration.
pub struct Config {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[admin]`; none: no admin listener.
    pub admin: Option<AdminConfig>,
    /// `[log]`.
    pub log: LogConfig,
    /// `[memory]` and `[redis]`.
    pub store: StoreConfig,
    /// `memory.max_filling`, in bytes.
    pub max_filling: u64,
    /// `memory.max_serving`, in bytes.
    pub max_serving: u64,
    /// `[upstream.*]`.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[[route]]`, in the order of the file.
    pub routes: Vec<Route>,
    /// A fingerprint of each section that only a restart can change (`server.listen`, `server.threads`, `admin`,
    /// `memory`, `redis`), so that a reload can name the ones that differ.
    pub fixed: Vec<(&'static str, u64)>,
}

/// Reads and checks a file: the configuration with its warnings, or every problem.
pub fn load(path: &Path) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let (name, text) = read(path)?;
    parse(&name, &text)
}

/// The same, and every effective value as TOML with comments that say where each came from. Secrets are named, not
/// told.
pub fn load_resolved(path: &Path) -> Result<(String, Vec<Problem>), Vec<Problem>> {
    let (name, text) = read(path)?;
    parse_resolved(&name, &text)
}

fn read(path: &Path) -> Result<(String, String), Vec<Problem>> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let message = format!("cannot be read: {error}");
            Err(vec![Problem { file: name.into(), line: 0, message, warning: false }])
        }
    }
}

/// Checks the text of a file named `name`.
pub fn parse(name: &str, text: &str) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    file::read(name, text).map(|checked| (checked.config, checked.warnings))
}

/// Checks as [`parse`] does, and gives what [`load_resolved`] does.
pub fn parse_resolved(name: &str, text: &str) -> Result<(String, Vec<Problem>), Vec<Problem>> {
    file::read(name, text).map(|checked| (checked.resolved, checked.warnings))
}

/// A short hash of settings, to see whether they changed.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// `[server]`, checked.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// Workers; at least 1.
    pub threads: usize,
    /// Whose X-Forwarded-* count.
    pub trusted_proxies: Arc<[IpNet]>,
    /// The allowed hosts, normalised, without port; empty: any valid one.
    pub hosts: Arc<[Box<str>]>,
    /// The upstream of what no route matches; none: 404.
    pub fallback: Option<Arc<str>>,
    /// Believed from trusted proxies alone.
    pub client_ip_header: Option<HeaderName>,
    /// How long in-flight requests may take to end.
    pub drain_timeout: Duration,
    /// `/cache-stats` on the proxy's own port.
    pub stats: Stats,
    /// Who may use the method PURGE; empty: it is a method like any other.
    pub purge: Arc<[IpNet]>,
    /// Whether responses carry Cache-Status.
    pub cache_status: bool,
    /// Bounds.
    pub limits: Limits,
}

/// One listener.
#[derive(Clone)]
pub struct Listen {
    /// Its address.
    pub address: SocketAddr,
    /// TLS, where set.
    pub tls: Option<ListenTls>,
}

/// A listener's TLS.
#[derive(Clone)]
pub struct ListenTls {
    /// With ALPN h2 and http/1.1.
    pub config: Arc<rustls::ServerConfig>,
    /// The certificate it proves itself with, without those that lead to an authority.
    pub certificate: CertificateDer<'static>,
}

/// `/cache-stats` on the proxy's own port.
#[derive(Clone)]
pub struct Stats {
    /// Its path.
    pub path: Box<str>,
    /// Who may see it.
    pub allow: Arc<[IpNet]>,
}

/// `[server.limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request head; above it 431.
    pub header_size: u64,
    /// Fields of a request; above it 431.
    pub header_count: usize,
    /// Bytes of a target; above it 414.
    pub uri_length: usize,
    /// Connections at one time; above it accepting waits.
    pub connections: usize,
    /// The same of one address (of IPv6: of one /64) that is no trusted proxy's; above it they are closed; 0: no bound.
    pub connections_per_address: usize,
    /// Until a request head is complete.
    pub header_timeout: Duration,
    /// A connection without a request.
    pub idle_timeout: Duration,
    /// Between bytes of a request's content.
    pub body_idle_timeout: Duration,
    /// Bytes a second of a request's content, while it is waited for `body_idle_timeout`; 0: no bound.
    pub body_rate_min: u64,
    /// Bytes a second that a client takes of its answers, while it is waited for `idle_timeout`; 0: no bound.
    pub answer_rate_min: u64,
    /// Requests that wait behind another's fetch; above it 503.
    pub waiters: usize,
    /// Streams of an HTTP/2 connection at one time.
    pub http2_streams: u32,
    /// Streams of an HTTP/2 connection reset and not yet forgotten; above it the connection is closed.
    pub http2_resets: usize,
    /// Ranges that a request may name; above it its `Range` is ignored.
    pub ranges: usize,
    /// Tags that a response may have of its origin; above it, it is not stored.
    pub tags: usize,
    /// Interim responses (1xx) that an upstream may send to one request; above it the response is a failure.
    pub interim: usize,
}

/// `[admin]`, checked.
#[derive(Clone)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The bearer token; none on loopback.
    pub token: Option<String>,
}

/// A problem of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1; 0 where none applies.
    pub line: usize,
    /// What is wrong and what was expected, with the key and the value.
    pub message: String,
    /// Warnings do not refuse the file.
    pub warning: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.warning { "warning: " } else { "" };
        match self.line {
            0 => write!(f, "{}: {kind}{}", self.file, self.message),
            line => write!(f, "{}:{line}: {kind}{}", self.file, self.message),
        }
    }
}
