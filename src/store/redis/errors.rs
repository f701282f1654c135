//! What Redis' errors mean to us, and what is told of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;

use super::RedisTier;
use super::breaker::{FAILURES_MAX, State};
use crate::store::codec::Unreadable;
use crate::telemetry::Telemetry;
use crate::telemetry::events::Event;

/// How long writes pause when Redis refuses them, and how often a reconnection is forced for it.
const PAUSE: Duration = Duration::from_secs(1);
/// How often one kind of event is told.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// What an error begins with where the server as a whole does not do what it is told: a replica, data being loaded, no
/// primary, slots unserved, a snapshot that fails, too few replicas, a script that does not end.
const REFUSALS: [&str; 7] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY"];
/// The bound on a forced reconnection.
const RECONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No answer in time.
    Timeout,
    /// The connection is gone.
    Connection,
    /// `maxmemory` is reached and nothing may be evicted: what is stored can be read.
    OutOfMemory,
    /// This server does not write, or not yet: perhaps another one does.
    Refusing,
    /// The key holds no string.
    WrongType,
    /// All else.
    Other,
}

/// Counters and events, each kind of event at most once in [`TOLD_EVERY`].
pub(super) struct Reports {
    telemetry: Arc<Telemetry>,
    started: Instant,
    state: AtomicU8,
    ledger_is_synced: AtomicBool,
    pub(super) errors: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) dropped_writes: AtomicU64,
    pub(super) corrupt: AtomicU64,
    /// Failures in a row over all lanes.
    failures: AtomicU32,
    error_told: Pace,
    denial_told: Pace,
    refusal_told: Pace,
    corrupt_told: Pace,
    reconnection: Pace,
    /// Milliseconds after `started` until which nothing is written.
    writes_paused_until: AtomicU64,
    /// The same, until which each key is asked for alone; 0: they are asked for together.
    alone_until: AtomicU64,
}

const CONNECTING: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Lets through one in a while; it holds the time of the next, in milliseconds.
#[derive(Default)]
struct Pace(AtomicU64);

impl Trouble {
    pub(super) fn of(error: &Error) -> Self {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| error.details().starts_with(prefix));
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Tls | ErrorKind::Protocol => Self::Connection,
            _ if starts(&["OOM"]) => Self::OutOfMemory,
            _ if starts(&REFUSALS) => Self::Refusing,
            _ if starts(&["WRONGTYPE"]) => Self::WrongType,
            _ => Self::Other,
        }
    }
}

impl RedisTier {
    /// A command of the lane was answered.
    pub(super) fn succeeded(&self, lane: usize) {
        self.lanes[lane].breaker.succeed();
        if self.reports.failures.load(Ordering::Relaxed) != 0 {
            self.reports.failures.store(0, Ordering::Relaxed);
        }
    }

    /// One more request of the worker waited for a read that failed. Where that was for the lack of an answer, it counts as
    /// if it had asked itself; an answer that is an error says nothing against the server.
    pub(in crate::store) fn waited_in_vain(&self, worker: crate::store::WorkerId) {
        if self.lanes[worker.0].breaker.is_failing() {
            self.reports.timeouts.fetch_add(1, Ordering::Relaxed);
            self.count_failure(worker.0);
        }
    }

    /// A command of the lane failed: counts, tells, and does what the error asks for.
    pub(super) fn failed(&self, lane: usize, error: &Error) -> Trouble {
        let trouble = Trouble::of(error);
        match trouble {
            Trouble::Timeout => {
                self.reports.timeouts.fetch_add(1, Ordering::Relaxed);
                self.count_failure(lane);
            }
            Trouble::Connection => {
                self.reports.error(error);
                self.count_failure(lane);
            }
            Trouble::OutOfMemory => {
                self.reports.refused(error);
                self.reports.pause_writes();
            }
            Trouble::Refusing => {
                self.reports.refused(error);
                self.reports.pause_writes();
                self.look_for_another_server();
            }
            Trouble::WrongType | Trouble::Other => self.reports.error(error),
        }
        trouble
    }

    /// A value that could not be read.
    pub(super) fn unreadable(&self, why: Unreadable) {
        self.reports.corrupt.fetch_add(1, Ordering::Relaxed);
        if self.reports.pace(&self.reports.corrupt_told, TOLD_EVERY) {
            self.reports.telemetry.emit(&Event::RedisCorrupt { reason: why.as_str() });
        }
    }

    /// All breakers seen as one: the worst.
    pub(super) fn breaker_state(&self) -> &'static str {
        let states = || self.lanes.iter().map(|lane| lane.breaker.state());
        if states().any(|state| state == State::Open) {
            "open"
        } else if states().any(|state| state == State::HalfOpen) {
            "half-open"
        } else {
            "closed"
        }
    }

    /// Tells of a breaker's closing, once the last has.
    pub(super) fn breaker_closed(&self) {
        self.reports.failures.store(0, Ordering::Relaxed);
        if self.lanes.iter().all(|lane| lane.breaker.is_closed()) {
            self.reports.telemetry.emit(&Event::BreakerClosed);
        }
    }

    /// Five failures in a row, on one lane or over all, open breakers: the lane's, or all. The bulk lane, where time
    /// goes by size, opens none.
    fn count_failure(&self, lane: usize) {
        if lane == self.bulk() {
            return;
        }
        let was_closed = self.lanes.iter().all(|lane| lane.breaker.is_closed());
        let mut opened = self.lanes[lane].breaker.fail();
        if self.reports.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            let others = self.lanes.iter().take(self.bulk()).filter(|lane| lane.is_attached());
            opened |= others.map(|lane| lane.breaker.trip()).fold(false, |any, one| any | one);
        }
        if opened && was_closed {
            self.reports.telemetry.emit(&Event::BreakerOpened);
            self.reports.down("no answer in time, five times in a row");
        }
    }

    /// Behind a failover the name may lead elsewhere by now.
    fn look_for_another_server(&self) {
        if !self.reports.pace(&self.reports.reconnection, PAUSE) {
            return;
        }
        for client in self.lanes.iter().filter_map(|lane| lane.client()) {
            self.tasks.spawn(force_reconnection(client));
        }
    }
}

/// Closes and opens the client's connection; bounded, for a router stuck in a write does not hear it.
pub(super) async fn force_reconnection(client: Arc<Client>) {
    let _ = tokio::time::timeout(RECONNECTION_TIMEOUT, client.force_reconnection()).await;
}

/// Whether none of the sentinels answers that a client learnt of. It asks them alone, whatever its URL says.
pub(super) fn knows_no_sentinel(error: &Error) -> bool {
    *error.kind() == ErrorKind::Sentinel && error.details().starts_with("Failed to connect to all sentinel")
}

/// Whether credentials, rights or certificates are not as they should be.
fn needs_operator(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Auth | ErrorKind::Tls)
        || error.details().starts_with("NOPERM")
        || error.details().contains("InvalidCertificate")
}

impl Reports {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            telemetry,
            started: Instant::now(),
            state: AtomicU8::new(CONNECTING),
            ledger_is_synced: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            dropped_writes: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            error_told: Pace::default(),
            denial_told: Pace::default(),
            refusal_told: Pace::default(),
            corrupt_told: Pace::default(),
            reconnection: Pace::default(),
            writes_paused_until: AtomicU64::new(0),
            alone_until: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> &'static str {
        match self.state.load(Ordering::Relaxed) {
            CONNECTING => "connecting",
            UP => "up",
            _ => "down",
        }
    }

    /// Redis answers.
    pub(super) fn up(&self) {
        if self.state.swap(UP, Ordering::Relaxed) != UP {
            self.telemetry.emit(&Event::RedisUp);
        }
    }

    /// Redis does not answer as it should.
    pub(super) fn down(&self, reason: &str) {
        if self.state.swap(DOWN, Ordering::Relaxed) != DOWN {
            self.telemetry.emit(&Event::RedisDown { reason: reason.to_owned() });
        }
    }

    /// The mirror has been proven complete.
    pub(super) fn ledger_synced(&self) {
        self.ledger_is_synced.store(true, Ordering::Relaxed);
    }

    /// The ledger cannot be followed at this time.
    pub(super) fn ledger_lost(&self) {
        self.ledger_is_synced.store(false, Ordering::Relaxed);
    }

    pub(super) fn ledger_state(&self) -> &'static str {
        if self.ledger_is_synced.load(Ordering::Relaxed) { "synced" } else { "unsynced" }
    }

    /// An error that is not a timeout.
    pub(super) fn error(&self, error: &Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        // What only an operator can mend is not hidden by what came with it.
        let pace = if needs_operator(error) { &self.denial_told } else { &self.error_told };
        self.tell_at(pace, &error.to_string());
    }

    /// Something an operator should know.
    pub(super) fn tell(&self, reason: &str) {
        self.tell_at(&self.error_told, reason);
    }

    fn tell_at(&self, pace: &Pace, reason: &str) {
        if self.pace(pace, TOLD_EVERY) {
            self.telemetry.emit(&Event::RedisError { reason: reason.to_owned() });
        }
    }

    pub(super) fn drop_write(&self) {
        self.dropped_writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn writes_are_paused(&self) -> bool {
        self.millis() < self.writes_paused_until.load(Ordering::Relaxed)
    }

    fn refused(&self, error: &Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        if self.pace(&self.refusal_told, TOLD_EVERY) {
            self.telemetry.emit(&Event::RedisWriteRefused { reason: error.to_string() });
        }
    }

    fn pause_writes(&self) {
        self.writes_paused_until.store(self.millis() + millis(PAUSE), Ordering::Relaxed);
    }

    pub(super) fn keys_go_alone(&self) -> bool {
        let until = self.alone_until.load(Ordering::Relaxed);
        until != 0 && self.millis() < until
    }

    /// Redis does not tell of several keys, perhaps for lack of a right: for some time each is asked for alone.
    pub(super) fn ask_alone(&self) {
        self.alone_until.store(self.millis() + millis(TOLD_EVERY), Ordering::Relaxed);
    }

    fn pace(&self, pace: &Pace, every: Duration) -> bool {
        pace.lets_through(self.millis(), every)
    }

    fn millis(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

impl Pace {
    /// Whether it is time, at `now` milliseconds.
    fn lets_through(&self, now: u64, every: Duration) -> bool {
        let next = self.0.load(Ordering::Relaxed);
        let after = now.saturating_add(millis(every));
        now >= next && self.0.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_kind_and_prefix() {
        let check = |kind, details: &'static str, expected| {
            assert_eq!(Trouble::of(&Error::new(kind, details)), expected, "{details}");
        };
        check(ErrorKind::Timeout, "Request timed out.", Trouble::Timeout);
        check(ErrorKind::IO, "reset", Trouble::Connection);
        check(ErrorKind::Canceled, "Connection closed unexpectedly.", Trouble::Connection);
        check(ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'.", Trouble::OutOfMemory);
        check(ErrorKind::Unknown, "READONLY You can't write against a read only replica.", Trouble::Refusing);
        check(ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", Trouble::Refusing);
        check(ErrorKind::Cluster, "CLUSTERDOWN Hash slot not served", Trouble::Refusing);
        check(ErrorKind::Unknown, "MASTERDOWN Link with MASTER is down", Trouble::Refusing);
        check(ErrorKind::Unknown, "MISCONF Redis is configured to save RDB snapshots", Trouble::Refusing);
        check(ErrorKind::Unknown, "NOREPLICAS Not enough good replicas to write.", Trouble::Refusing);
        check(ErrorKind::Unknown, "BUSY Redis is busy running a script.", Trouble::Refusing);
        check(ErrorKind::InvalidArgument, "WRONGTYPE Operation against a key", Trouble::WrongType);
        check(ErrorKind::Auth, "NOPERM this user has no permissions", Trouble::Other);
        check(ErrorKind::Unknown, "ERR unknown command", Trouble::Other);
    }

    #[test]
    fn a_pace_lets_through_one_in_its_time() {
        let pace = Pace::default();
        let let_through: Vec<u64> = (0..3500).filter(|now| pace.lets_through(*now, PAUSE)).collect();
        assert_eq!(let_through, [0, 1000, 2000, 3000]);
    }
}
