//! What is counted: one table of names and meanings, and the counters of a route.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::cache_status::{Detail, Outcome, Word};
use super::histogram::Histogram;
use super::{RequestRecord, UNROUTED};
use crate::policy::settle::NotStored;
use crate::store::Tier;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in `/cache-stats`.
    pub name: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
}

/// What kind of figure a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from the start of the process.
    Counter,
    /// Derived from counters, when asked for.
    Derived,
    /// Counters by a closed list of reasons; routes only.
    ByReason,
    /// Quantiles in milliseconds; routes only.
    Latency,
}

macro_rules! counters {
    ($($variant:ident $name:literal $help:literal,)*) => {
        /// What a route counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Counter { $(#[doc = $help] $variant),* }

        const COUNTERS: usize = [$($name),*].len();

        impl Counter {
            const fn metric(self) -> Metric {
                match self {
                    $(Self::$variant => Metric { name: $name, kind: Kind::Counter, help: $help }),*
                }
            }
        }
    };
}

counters! {
    Requests "requests" "requests answered, whatever with",
    HitsMemory "hits_memory" "hits from memory",
    HitsRedis "hits_redis" "hits from Redis",
    Stale "stale" "answered stale from the store: stale-while-revalidate, max-stale or stale-if-error; not among hits",
    Revalidated "revalidated" "the misses that a 304 answered: the upstream was asked, its content was not sent again",
    Misses "misses" "looked up, not answered from the store, and answered by the upstream",
    Collapsed "collapsed" "the misses that shared another request's fetch",
    Bypassed "bypassed" "proxied without a lookup, by method, route or request",
    Stored "stored" "responses stored",
    Errors "errors" "answered 5xx by the proxy itself because the upstream failed or had no room",
    BytesServed "bytes_served" "bytes of content sent to clients",
    UpstreamRequests "upstream_requests" "requests sent to the upstream that gave a response head, background revalidation included",
}

const fn derived(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Derived, help }
}

/// Every metric of a route in the order of `/cache-stats`; the totals have those that are counters or derived.
pub const TABLE: [Metric; COUNTERS + 6] = [
    Counter::Requests.metric(),
    derived("hits", "answered fresh from the store: hits_memory + hits_redis"),
    Counter::HitsMemory.metric(),
    Counter::HitsRedis.metric(),
    Counter::Stale.metric(),
    Counter::Revalidated.metric(),
    Counter::Misses.metric(),
    Counter::Collapsed.metric(),
    Counter::Bypassed.metric(),
    Counter::Stored.metric(),
    Counter::Errors.metric(),
    derived("hit_ratio", "(hits + stale) / (hits + stale + misses); bypassed requests and errors are outside it"),
    Counter::BytesServed.metric(),
    Counter::UpstreamRequests.metric(),
    derived(
        "upstream_seconds_saved",
        "(hits + stale) times the mean time to the head of the route's own misses, summed over routes in the totals",
    ),
    Metric { name: "bypass_reasons", kind: Kind::ByReason, help: "bypassed, by reason" },
    Metric { name: "not_stored_reasons", kind: Kind::ByReason, help: "misses not stored, by reason" },
    Metric {
        name: "latency_ms",
        kind: Kind::Latency,
        help: "time to the answer's head, p50 and p99, of hits and of misses",
    },
];

/// The counters of one route. Relaxed atomics: figures of one moment need not agree with each other.
pub struct RouteCounters {
    name: Box<str>,
    counts: [AtomicU64; COUNTERS],
    /// By the place in [`Detail::PLAIN`]; the last one is the method.
    bypass_reasons: [AtomicU64; Detail::PLAIN.len() + 1],
    /// By the place in [`NotStored::ALL`].
    not_stored_reasons: [AtomicU64; NotStored::ALL.len()],
    /// The time the upstream took for misses, and for how many.
    fetch_micros: AtomicU64,
    fetches: AtomicU64,
    pub(super) hit_latency: Histogram,
    pub(super) miss_latency: Histogram,
}

impl RouteCounters {
    /// Those of the route of this name, all zero.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            counts: zeros(),
            bypass_reasons: zeros(),
            not_stored_reasons: zeros(),
            fetch_micros: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            hit_latency: Histogram::default(),
            miss_latency: Histogram::default(),
        }
    }
}

impl std::fmt::Debug for RouteCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteCounters").field("counts", &self.counts).finish_non_exhaustive()
    }
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

impl RouteCounters {
    /// The route's name; none for what no route matched.
    pub fn route(&self) -> Option<&str> {
        Some(&*self.name).filter(|name| *name != UNROUTED)
    }

    /// Counts a finished request.
    pub(super) fn record(&self, record: &RequestRecord) {
        self.add(Counter::Requests, 1);
        self.add(Counter::BytesServed, record.bytes_served);
        let status = record.cache_status;
        match status.word() {
            Word::Hit => {
                self.add(hit_counter(status.outcome), 1);
                self.hit_latency.record(record.until_head);
            }
            Word::Stale => {
                self.add(Counter::Stale, 1);
                self.hit_latency.record(record.until_head);
            }
            Word::Revalidated => {
                self.add(Counter::Revalidated, 1);
                self.miss(record);
            }
            Word::Miss => self.miss(record),
            Word::Bypass | Word::Pass => self.bypass(status.outcome, status.detail),
            Word::Error => {
                // What is no failure of the upstream's has no detail: a purge that Redis did not record.
                let is_failure = status.detail.is_some_and(|detail| detail != Detail::OnlyIfCached);
                if record.status.is_server_error() && is_failure {
                    self.add(Counter::Errors, 1);
                }
            }
        }
        self.forwarded(record);
    }

    /// Counts a fetch that no client waited for.
    pub(super) fn record_background(&self) {
        self.add(Counter::UpstreamRequests, 1);
    }

    /// Counts a response that was stored.
    pub(super) fn record_stored(&self) {
        self.add(Counter::Stored, 1);
    }

    /// Counts why a response was not stored.
    pub(super) fn record_not_stored(&self, reason: NotStored) {
        if let Some(index) = NotStored::ALL.iter().position(|known| *known == reason) {
            self.not_stored_reasons[index].fetch_add(1, Relaxed);
        }
    }

    fn miss(&self, record: &RequestRecord) {
        self.add(Counter::Misses, 1);
        self.miss_latency.record(record.until_head);
        if let Some(Detail::NotStored(reason)) = record.cache_status.detail {
            self.record_not_stored(reason);
        }
        if let (Some(upstream), false) = (record.upstream, is_collapsed(record.cache_status.outcome)) {
            self.fetch_micros.fetch_add(micros(upstream), Relaxed);
            self.fetches.fetch_add(1, Relaxed);
        }
    }

    fn bypass(&self, outcome: Outcome, detail: Option<Detail>) {
        use crate::policy::reuse::Why;
        self.add(Counter::Bypassed, 1);
        let index = match (outcome, detail) {
            (Outcome::Forward { why: Why::Method, .. }, _) => Some(Detail::PLAIN.len()),
            (_, Some(detail)) => Detail::PLAIN.iter().position(|known| *known == detail),
            (_, None) => None,
        };
        if let Some(index) = index {
            self.bypass_reasons[index].fetch_add(1, Relaxed);
        }
    }

    /// What the request cost the upstream; a shared fetch is counted with its leader.
    fn forwarded(&self, record: &RequestRecord) {
        let outcome = record.cache_status.outcome;
        if is_collapsed(outcome) {
            self.add(Counter::Collapsed, 1);
            return;
        }
        self.add(Counter::UpstreamRequests, u64::from(record.upstream.is_some()));
    }

    fn add(&self, counter: Counter, by: u64) {
        if by > 0 {
            self.counts[counter as usize].fetch_add(by, Relaxed);
        }
    }

    /// The figures of this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let counts = std::array::from_fn(|index| self.counts[index].load(Relaxed));
        let mut snapshot = Snapshot { counts, seconds_saved: 0.0 };
        let fetches = self.fetches.load(Relaxed);
        if fetches > 0 {
            let mean = as_f64(self.fetch_micros.load(Relaxed)) / as_f64(fetches) / 1e6;
            snapshot.seconds_saved = as_f64(snapshot.hits() + snapshot.count(Counter::Stale)) * mean;
        }
        snapshot
    }

    /// The reasons of bypassed requests that occurred.
    pub(super) fn bypass_reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Detail::PLAIN.into_iter().map(Detail::as_str).chain(["method"]);
        occurred(names, &self.bypass_reasons)
    }

    /// The reasons of responses not stored that occurred.
    pub(super) fn not_stored_reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        occurred(NotStored::ALL.into_iter().map(NotStored::as_str), &self.not_stored_reasons)
    }
}

fn occurred(
    names: impl Iterator<Item = &'static str>,
    counts: &[AtomicU64],
) -> impl Iterator<Item = (&'static str, u64)> {
    names.zip(counts).map(|(name, count)| (name, count.load(Relaxed))).filter(|(_, count)| *count > 0)
}

const fn hit_counter(outcome: Outcome) -> Counter {
    match outcome {
        Outcome::Hit { tier: Tier::Redis, .. } => Counter::HitsRedis,
        Outcome::Hit { tier: Tier::Memory, .. }
        | Outcome::Forward { .. }
        | Outcome::StaleOnError { .. }
        | Outcome::Generated => Counter::HitsMemory,
    }
}

const fn is_collapsed(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Forward { collapsed: true, .. })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
const fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The figures of one route, or of all, at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    counts: [u64; COUNTERS],
    seconds_saved: f64,
}

impl Snapshot {
    pub(super) fn sum(mut self, other: &Self) -> Self {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.seconds_saved += other.seconds_saved;
        self
    }

    pub(super) const fn count(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    pub(super) const fn hits(&self) -> u64 {
        self.count(Counter::HitsMemory) + self.count(Counter::HitsRedis)
    }

    /// 0 while nothing was looked up.
    pub(super) fn hit_ratio(&self) -> f64 {
        let answered = self.hits() + self.count(Counter::Stale);
        let looked_up = answered + self.count(Counter::Misses);
        if looked_up == 0 { 0.0 } else { as_f64(answered) / as_f64(looked_up) }
    }

    pub(super) const fn seconds_saved(&self) -> f64 {
        self.seconds_saved
    }
}
