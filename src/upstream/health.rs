//! Passive ejection: a server that fails again and again is left out for a while, then tried by one request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Breaker;

/// A server's health, as its answers show it.
///
/// Failures are those of transport: no connection, no head in time, a connection that broke before the head. An answer
/// is an answer, 5xx too: what it is worth is the policy's to say, and ejecting by status would let one broken route
/// take the whole server away. The only server of an upstream is ejected like any other: callers then learn at once
/// that there is nobody to ask, and may serve what is stored, instead of waiting for a timeout each. But a server that is
/// reached and answered others just now ([`LastAnswer`]) is not left out for what some requests meet.
#[derive(Debug)]
pub(super) struct Health {
    breaker: Breaker,
    /// Guards the state alone; held for a few instructions.
    state: Mutex<State>,
    /// Whether the state is that of a server that has not failed since it answered, as it is nearly always: then no request
    /// takes the lock. Written with the state.
    is_sound: AtomicBool,
}

/// That of a server that has not failed since it answered.
const SOUND: State = State::Up { failures: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up {
        failures: u32,
    },
    Ejected {
        until: Instant,
    },
    /// One request tries the server; the others are kept away until it has ended.
    OnTrial {
        since: Instant,
    },
}

/// When a server last answered.
#[derive(Debug)]
pub(super) struct LastAnswer {
    made: Instant,
    /// In nanoseconds since then.
    at: AtomicU64,
}

/// How long before a request an answer still shows that the server is well.
const JUST_BEFORE: Duration = Duration::from_secs(1);

impl LastAnswer {
    /// None yet.
    pub fn new() -> Self {
        Self { made: Instant::now(), at: AtomicU64::new(0) }
    }

    /// One came.
    pub fn note(&self) {
        self.at.store(self.nanos(Instant::now()), Relaxed);
    }

    /// Whether one came after a request had begun, or just before: a request that failed meanwhile failed by itself.
    pub fn was_by(&self, begun: Instant) -> bool {
        self.at.load(Relaxed) > self.nanos(begun).saturating_sub(JUST_BEFORE.as_nanos() as u64)
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.made).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// As what a request may go to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// As one of many.
    Regular,
    /// As the one that finds out whether an ejected server is back.
    Trial,
}

/// What a request's end changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that anybody needs to be told.
    Nothing,
    /// The server was left out.
    Ejected,
    /// The server is back.
    Restored,
}

impl Health {
    /// Healthy until shown otherwise. With 0 `failures` it is never ejected.
    pub const fn new(breaker: Breaker) -> Self {
        Self { breaker, state: Mutex::new(SOUND), is_sound: AtomicBool::new(true) }
    }

    /// Whether the server is in.
    pub fn is_up(&self) -> bool {
        matches!(*self.state(), State::Up { .. })
    }

    /// Whether `admit` would say yes; another thread may be faster.
    pub fn would_admit(&self, now: Instant) -> bool {
        if self.is_sound() {
            return true;
        }
        match *self.state() {
            State::Up { .. } => true,
            State::Ejected { until } => now >= until,
            State::OnTrial { .. } => false,
        }
    }

    /// Whether a request may go to the server. A trial ends with `succeeded`, `failed` or `abandoned`.
    pub fn admit(&self, now: Instant) -> Option<Admission> {
        if self.is_sound() {
            return Some(Admission::Regular);
        }
        let mut state = self.state();
        match *state {
            State::Up { .. } => Some(Admission::Regular),
            State::Ejected { until } if now >= until => {
                self.set(&mut state, State::OnTrial { since: now });
                Some(Admission::Trial)
            }
            State::Ejected { .. } | State::OnTrial { .. } => None,
        }
    }

    /// The server answered. What a request says that was sent before the ejection is too old to count.
    pub fn succeeded(&self, admission: Admission) -> Change {
        if self.is_sound() {
            return Change::Nothing;
        }
        let mut state = self.state();
        match (*state, admission) {
            (State::Up { .. }, _) => {
                self.set(&mut state, SOUND);
                Change::Nothing
            }
            (State::OnTrial { .. }, Admission::Trial) => {
                self.set(&mut state, SOUND);
                Change::Restored
            }
            (State::Ejected { .. }, _) | (State::OnTrial { .. }, Admission::Regular) => Change::Nothing,
        }
    }

    /// The server failed.
    pub fn failed(&self, admission: Admission, now: Instant) -> Change {
        let mut state = self.state();
        match (*state, admission) {
            (State::Up { failures }, _) => {
                let failures = failures.saturating_add(1);
                if self.breaker.failures == 0 || failures < self.breaker.failures {
                    self.set(&mut state, State::Up { failures });
                    return Change::Nothing;
                }
                self.set(&mut state, State::Ejected { until: now + self.breaker.open });
                Change::Ejected
            }
            (State::OnTrial { .. }, Admission::Trial) => {
                self.set(&mut state, State::Ejected { until: now + self.breaker.open });
                Change::Nothing
            }
            (State::Ejected { .. }, _) | (State::OnTrial { .. }, Admission::Regular) => Change::Nothing,
        }
    }

    /// The request ended without a word on the server (its client left, its own content failed).
    pub fn abandoned(&self, admission: Admission) {
        let mut state = self.state();
        if let (State::OnTrial { since }, Admission::Trial) = (*state, admission) {
            self.set(&mut state, State::Ejected { until: since });
        }
    }

    fn is_sound(&self) -> bool {
        self.is_sound.load(Relaxed)
    }

    fn set(&self, state: &mut State, to: State) {
        *state = to;
        self.is_sound.store(to == SOUND, Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OPEN: Duration = Duration::from_secs(5);

    fn health(failures: u32) -> (Health, Instant) {
        (Health::new(Breaker { failures, open: OPEN }), Instant::now())
    }

    fn ejected() -> (Health, Instant) {
        let (health, now) = health(1);
        assert_eq!(health.failed(Admission::Regular, now), Change::Ejected);
        (health, now)
    }

    #[test]
    fn only_failures_in_a_row_eject() {
        let (health, now) = health(2);
        assert_eq!(health.failed(Admission::Regular, now), Change::Nothing);
        assert_eq!(health.succeeded(Admission::Regular), Change::Nothing);
        assert_eq!(health.failed(Admission::Regular, now), Change::Nothing);
        assert_eq!(health.failed(Admission::Regular, now), Change::Ejected);
        assert_eq!(health.admit(now), None);
        assert!(!health.is_up());
    }

    #[test]
    fn zero_failures_never_eject() {
        let (health, now) = health(0);
        for _ in 0..100 {
            assert_eq!(health.failed(Admission::Regular, now), Change::Nothing);
        }
        assert!(health.is_up());
    }

    #[test]
    fn exactly_one_request_tries_an_ejected_server() {
        let (health, now) = ejected();
        assert_eq!(health.admit(now + OPEN - Duration::from_millis(1)), None);
        assert!(health.would_admit(now + OPEN));
        assert_eq!(health.admit(now + OPEN), Some(Admission::Trial));
        assert_eq!(health.admit(now + OPEN), None);
        assert_eq!(health.succeeded(Admission::Trial), Change::Restored);
        assert_eq!(health.admit(now + OPEN), Some(Admission::Regular));
    }

    #[test]
    fn a_failed_trial_leaves_the_server_out_again() {
        let (health, now) = ejected();
        let later = now + OPEN;
        assert_eq!(health.admit(later), Some(Admission::Trial));
        assert_eq!(health.failed(Admission::Trial, later), Change::Nothing);
        assert_eq!(health.admit(later), None);
        assert_eq!(health.admit(later + OPEN), Some(Admission::Trial));
    }

    #[test]
    fn an_abandoned_trial_passes_to_the_next_request() {
        let (health, now) = ejected();
        assert_eq!(health.admit(now + OPEN), Some(Admission::Trial));
        health.abandoned(Admission::Trial);
        assert_eq!(health.admit(now + OPEN), Some(Admission::Trial));
    }

    #[test]
    fn what_was_sent_before_the_ejection_changes_nothing() {
        let (health, now) = ejected();
        assert_eq!(health.succeeded(Admission::Regular), Change::Nothing);
        assert_eq!(health.admit(now), None);
        assert_eq!(health.admit(now + OPEN), Some(Admission::Trial));
        assert_eq!(health.failed(Admission::Regular, now + OPEN), Change::Nothing);
        assert_eq!(health.succeeded(Admission::Trial), Change::Restored);
    }
}
