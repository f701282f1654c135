//! What is told of requests and of the world: one value per request, one event enum.

pub mod cache_status;
pub mod events;
pub mod logs;
pub mod metrics;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use cache_status::CacheStatus;
use events::Event;

/// Everything that is known of a request when its answer has ended.
#[derive(Debug)]
pub struct RequestRecord {
    /// When it came.
    pub started: Timestamp,
    /// Until the answer's last byte was handed over.
    pub duration: Duration,
    /// Until the answer's head; what the latency figures count.
    pub until_head: Duration,
    /// Who asked: the peer, or whom a trusted proxy names.
    pub client: IpAddr,
    /// Method.
    pub method: http::Method,
    /// Path and query as received.
    pub target: Box<str>,
    /// Host as received.
    pub host: Box<str>,
    /// HTTP version of the request.
    pub version: http::Version,
    /// Status of the answer.
    pub status: http::StatusCode,
    /// Bytes of content sent.
    pub bytes_served: u64,
    /// Whether the answer broke off.
    pub aborted: bool,
    /// The route's name; none where none matched.
    pub route: Option<Arc<str>>,
    /// The counters of its route.
    pub counters: Arc<metrics::RouteCounters>,
    /// How the cache took part.
    pub cache_status: CacheStatus,
    /// How long the upstream took to its head, where it was asked.
    pub upstream: Option<Duration>,
}

/// Where logs and counters go. Shared by all.
#[derive(Debug)]
pub struct Telemetry {
    _private: (),
}

/// Where the access log goes.
#[derive(Clone, Debug)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, reopened on SIGHUP.
    File(std::path::PathBuf),
    /// To a callback, line by line: `aside demo`, and tests.
    Lines(std::sync::mpsc::SyncSender<String>),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The least severe events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// `[log]`, checked.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least severe events that are logged, on standard error.
    pub level: Level,
    /// How lines look.
    pub format: Format,
    /// Where requests are logged.
    pub access: AccessLog,
}

impl Telemetry {
    /// Starts the log writer (a thread that ends with the last handle).
    pub fn new(config: LogConfig, clock: Clock) -> std::io::Result<Self> {
        todo!("{config:?} {clock:?}")
    }

    /// Logs and counts an event.
    pub fn emit(&self, event: &Event) {
        todo!("{event:?}")
    }

    /// Counts a finished request and writes its access log line. Never waits: what the writer cannot take is counted.
    pub fn record(&self, record: &RequestRecord) {
        todo!("{record:?}")
    }

    /// The counters of a route by its name; the same over reloads.
    pub fn route(&self, name: &str) -> Arc<metrics::RouteCounters> {
        todo!("{name}")
    }

    /// Reopens the access log file, and takes a changed level and format.
    pub fn reload(&self, config: &LogConfig) -> std::io::Result<()> {
        todo!("{config:?}")
    }

    /// Writes out what is queued.
    pub fn flush(&self) {
        todo!()
    }
}
