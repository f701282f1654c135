//! What is told of requests and of the world: one value per request, one event enum.

pub mod cache_status;
pub mod events;
mod histogram;
pub mod limits;
pub mod lines;
mod logs;
pub mod metrics;
pub mod rfc3339;
pub mod stats;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;

use crate::clock::{Clock, Timestamp};
use crate::policy::settle::NotStored;
use cache_status::CacheStatus;
use events::Event;
use limits::Limit;
use logs::{Log, LogWriter, Sink};
use metrics::{RouteCounters, Snapshot};

/// The name under which requests that no route matches are counted.
pub const UNROUTED: &str = "(no route)";
/// How long [`Telemetry::flush`] waits for a terminal or disk that does not take more.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

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
    /// Path and query as received, copied: a slice would keep the connection's read buffer from being used again. Empty
    /// where the head could not be read, or has none.
    pub target: Box<str>,
    /// Host; none where the head could not be read, or has none.
    pub host: Option<HeaderValue>,
    /// HTTP version of the request.
    pub version: http::Version,
    /// Status of the answer.
    pub status: http::StatusCode,
    /// Bytes of content sent.
    pub bytes_served: u64,
    /// Whether the answer broke off.
    pub aborted: bool,
    /// The counters of its route.
    pub counters: Arc<metrics::RouteCounters>,
    /// How the cache took part.
    pub cache_status: CacheStatus,
    /// How long the upstream took to its head, where this request asked it; none when it shared another's fetch.
    pub upstream: Option<Duration>,
}

/// Where logs and counters go. Shared by all.
pub struct Telemetry {
    clock: Clock,
    writer: LogWriter,
    settings: Settings,
    /// Every route's counters since the start, by name.
    routes: Mutex<BTreeMap<Box<str>, Arc<RouteCounters>>>,
    /// How often each kind of event happened.
    events: Mutex<BTreeMap<&'static str, u64>>,
    /// How often each bound was met.
    limits: limits::Counts,
}

/// What a reload may change, read by every request.
struct Settings {
    level: AtomicU8,
    format: AtomicU8,
    access: AtomicU8,
}

thread_local! {
    /// Lines are built here and copied into the queue: no allocation per line.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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
    pub fn new(config: LogConfig, clock: Clock) -> io::Result<Self> {
        let writer = LogWriter::start(Sink::open(&config.access)?)?;
        let settings = Settings { level: AtomicU8::new(0), format: AtomicU8::new(0), access: AtomicU8::new(0) };
        settings.set(&config, Access::of(&config.access));
        Ok(Self {
            clock,
            writer,
            settings,
            routes: Mutex::default(),
            events: Mutex::default(),
            limits: limits::Counts::default(),
        })
    }

    /// Logs and counts an event.
    pub fn emit(&self, event: &Event) {
        *lock(&self.events).entry(event.name()).or_default() += 1;
        if self.settings.logs(event.level()) {
            let (format, now) = (self.settings.format(), self.clock.now());
            self.push(Log::Events, |line| lines::event(line, format, now, event));
        }
    }

    /// Counts a finished request and writes its access log line. Never waits: what the writer cannot take is counted.
    pub fn record(&self, record: &RequestRecord) {
        record.counters.record(record);
        if let Some(limit) = record.cache_status.detail.and_then(Limit::of) {
            self.limited(limit);
        }
        if self.settings.access() != Access::Off {
            let format = self.settings.format();
            self.push(Log::Access, |line| lines::access(line, format, record));
        }
    }

    /// Counts a bound that was met, where no request's record tells of it.
    pub fn limited(&self, limit: Limit) {
        self.limits.add(limit);
    }

    /// Counts a fetch that no client waited for (background revalidation) and that gave a response head.
    pub fn record_background(&self, counters: &RouteCounters) {
        counters.record_background();
    }

    /// Counts a response that was stored.
    pub fn record_stored(&self, counters: &RouteCounters) {
        counters.record_stored();
    }

    /// Counts a response that turned out not to be stored after its head had left.
    pub fn record_not_stored(&self, counters: &RouteCounters, reason: NotStored) {
        counters.record_not_stored(reason);
        if let Some(limit) = Limit::of_not_stored(reason) {
            self.limited(limit);
        }
    }

    /// The counters of a route by its name; the same over reloads.
    pub fn route(&self, name: &str) -> Arc<RouteCounters> {
        let mut routes = lock(&self.routes);
        if let Some(counters) = routes.get(name) {
            return Arc::clone(counters);
        }
        let counters = Arc::new(RouteCounters::named(name));
        routes.insert(name.into(), Arc::clone(&counters));
        counters
    }

    /// Reopens the access log file, and takes a changed level and format. A callback stays: no file can name one.
    pub fn reload(&self, config: &LogConfig) -> io::Result<()> {
        let access = match (self.settings.access(), &config.access) {
            (Access::Callback, AccessLog::Off | AccessLog::Stdout | AccessLog::File(_)) => Access::Callback,
            (Access::Callback | Access::Off | Access::Written, place) => {
                self.writer.redirect(Sink::open(place)?);
                Access::of(place)
            }
        };
        self.settings.set(config, access);
        Ok(())
    }

    /// Writes out what is queued.
    pub fn flush(&self) {
        self.writer.flush(FLUSH_WITHIN);
    }

    fn push(&self, log: Log, write: impl FnOnce(&mut Vec<u8>)) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            write(line);
            self.writer.push(log, line);
        });
    }

    /// All routes since the start, also those a reload took away, and what no route matched.
    fn totals(&self) -> Snapshot {
        lock(&self.routes).values().fold(Snapshot::default(), |totals, route| totals.sum(&route.snapshot()))
    }

    fn dropped_lines(&self) -> u64 {
        self.writer.dropped()
    }

    fn limit_counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.limits.all()
    }

    fn event_counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.events).clone()
    }
}

/// Whether requests are logged, and who gets the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Off,
    Written,
    Callback,
}

impl Access {
    const fn of(log: &AccessLog) -> Self {
        match log {
            AccessLog::Off => Self::Off,
            AccessLog::Stdout | AccessLog::File(_) => Self::Written,
            AccessLog::Lines(_) => Self::Callback,
        }
    }
}

impl Settings {
    fn set(&self, config: &LogConfig, access: Access) {
        self.level.store(config.level as u8, Relaxed);
        self.format.store(config.format as u8, Relaxed);
        self.access.store(access as u8, Relaxed);
    }

    fn logs(&self, level: Level) -> bool {
        level as u8 <= self.level.load(Relaxed)
    }

    fn format(&self) -> Format {
        if self.format.load(Relaxed) == Format::Json as u8 { Format::Json } else { Format::Text }
    }

    fn access(&self) -> Access {
        let access = self.access.load(Relaxed);
        let known = [Access::Off, Access::Written].into_iter().find(|known| *known as u8 == access);
        known.unwrap_or(Access::Callback)
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves counters as they are.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::cache_status::{Detail, Outcome};
    use super::metrics::Counter;
    use super::*;
    use crate::policy::reuse::Why;
    use crate::store::Tier;

    fn telemetry(access: AccessLog) -> Telemetry {
        let config = LogConfig { level: Level::Error, format: Format::Text, access };
        Telemetry::new(config, Clock::manual(Timestamp::from_secs(0))).unwrap()
    }

    fn record(counters: &Arc<RouteCounters>, outcome: Outcome, detail: Option<Detail>) -> RequestRecord {
        let asked = matches!(outcome, Outcome::Forward { collapsed: false, .. });
        RequestRecord {
            started: Timestamp::from_secs(0),
            duration: Duration::from_millis(1),
            until_head: Duration::from_millis(1),
            client: [127, 0, 0, 1].into(),
            method: Method::GET,
            target: "/".into(),
            host: Some(HeaderValue::from_static("a.test")),
            version: Version::HTTP_11,
            status: if outcome == Outcome::Generated { StatusCode::BAD_GATEWAY } else { StatusCode::OK },
            bytes_served: 10,
            aborted: false,
            counters: Arc::clone(counters),
            cache_status: CacheStatus { outcome, detail },
            upstream: asked.then_some(Duration::from_millis(300)),
        }
    }

    const fn forward(why: Why, stored: bool, collapsed: bool, revalidated: bool) -> Outcome {
        Outcome::Forward { why, fwd_status: Some(StatusCode::OK), stored, collapsed, revalidated }
    }

    #[test]
    fn each_outcome_is_counted_once_in_its_place() {
        let telemetry = telemetry(AccessLog::Off);
        let route = telemetry.route("a");
        for (outcome, detail) in [
            (forward(Why::UriMiss, true, false, false), None),
            (forward(Why::UriMiss, true, true, false), None),
            (forward(Why::Stale, true, false, true), None),
            (forward(Why::Miss, false, false, false), Some(Detail::NotStored(NotStored::Private))),
            (Outcome::Hit { ttl: 9, tier: Tier::Memory }, None),
            (Outcome::Hit { ttl: 9, tier: Tier::Redis }, None),
            (Outcome::Hit { ttl: -1, tier: Tier::Memory }, Some(Detail::StaleWhileRevalidate)),
            (Outcome::StaleOnError { ttl: -4 }, None),
            (forward(Why::Bypass, false, false, false), Some(Detail::Cookie)),
            (forward(Why::Method, false, false, false), None),
            (Outcome::Generated, Some(Detail::UpstreamConnect)),
        ] {
            telemetry.record(&record(&route, outcome, detail));
        }
        telemetry.record_stored(&route);
        telemetry.record_not_stored(&route, NotStored::Truncated);
        let figures = telemetry.totals();
        let count = |counter| figures.count(counter);
        assert_eq!(count(Counter::Requests), 11);
        assert_eq!((figures.hits(), count(Counter::HitsMemory), count(Counter::HitsRedis)), (2, 1, 1));
        assert_eq!((count(Counter::Stale), count(Counter::Misses), count(Counter::Revalidated)), (2, 4, 1));
        assert_eq!((count(Counter::Collapsed), count(Counter::Stored), count(Counter::Bypassed)), (1, 1, 2));
        assert_eq!((count(Counter::Errors), count(Counter::UpstreamRequests)), (1, 5));
        assert_eq!(count(Counter::BytesServed), 110);
        assert!((figures.hit_ratio() - 0.5).abs() < 1e-9);
        assert!((figures.seconds_saved() - 1.2).abs() < 1e-9);
        assert_eq!(route.bypass_reasons().collect::<Vec<_>>(), [("cookie", 1), ("method", 1)]);
        let mut reasons: Vec<_> = route.not_stored_reasons().collect();
        reasons.sort_unstable();
        assert_eq!(reasons, [("private", 1), ("truncated", 1)]);
    }

    #[test]
    fn a_route_keeps_its_counters_over_reloads() {
        let telemetry = telemetry(AccessLog::Off);
        assert!(Arc::ptr_eq(&telemetry.route("a"), &telemetry.route("a")));
        assert!(!Arc::ptr_eq(&telemetry.route("a"), &telemetry.route("b")));
    }

    #[test]
    fn a_reload_changes_format_and_place() {
        let telemetry = telemetry(AccessLog::Off);
        let (sender, receiver) = std::sync::mpsc::sync_channel(4);
        let hit = Outcome::Hit { ttl: 1, tier: Tier::Memory };
        let record = record(&telemetry.route("a"), hit, None);
        telemetry.record(&record);
        let config = LogConfig { level: Level::Info, format: Format::Json, access: AccessLog::Lines(sender) };
        telemetry.reload(&config).unwrap();
        telemetry.flush();
        telemetry.record(&record);
        telemetry.flush();
        let lines: Vec<String> = receiver.try_iter().collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with('{'), "{}", lines[0]);
    }

    #[test]
    fn events_are_counted_whether_logged_or_not() {
        let telemetry = telemetry(AccessLog::Off);
        telemetry.emit(&Event::RedisUp);
        telemetry.emit(&Event::RedisUp);
        assert_eq!(telemetry.event_counts(), BTreeMap::from([("redis_up", 2)]));
    }
}
