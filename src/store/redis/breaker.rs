//! The circuit breaker of one lane: opens after failures in a row, closes after a probe that succeeds.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// As many failures in a row open it.
pub(super) const FAILURES_MAX: u32 = 5;

/// A breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Commands pass.
    Closed,
    /// None passes.
    Open,
    /// None passes but the probe under way.
    HalfOpen,
}

/// A circuit breaker. It reads no clock: who owns the lane says when to probe.
pub(super) struct Breaker {
    state: AtomicU8,
    failures: AtomicU32,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { state: AtomicU8::new(State::Closed as u8), failures: AtomicU32::new(0) }
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            state if state == State::Closed as u8 => State::Closed,
            state if state == State::Open as u8 => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// Whether commands pass.
    pub(super) fn is_closed(&self) -> bool {
        self.state() == State::Closed
    }

    /// A command succeeded.
    pub(super) fn succeed(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the last command failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failures.load(Ordering::Relaxed) != 0
    }

    /// A command failed; whether that opened the breaker.
    pub(super) fn fail(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX && self.trip()
    }

    /// Opens it; whether it was closed.
    pub(super) fn trip(&self) -> bool {
        self.swap(State::Closed, State::Open)
    }

    /// Whether the caller is to probe now: it was open.
    pub(super) fn begin_probe(&self) -> bool {
        self.swap(State::Open, State::HalfOpen)
    }

    /// The probe's outcome.
    pub(super) fn end_probe(&self, succeeded: bool) {
        self.failures.store(0, Ordering::Relaxed);
        self.swap(State::HalfOpen, if succeeded { State::Closed } else { State::Open });
    }

    fn swap(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_row_open_it_and_a_success_between_starts_anew() {
        let breaker = Breaker::new();
        (1..FAILURES_MAX).for_each(|_| assert!(!breaker.fail()));
        breaker.succeed();
        (1..FAILURES_MAX).for_each(|_| assert!(!breaker.fail()));
        assert!(breaker.is_closed());
        assert!(breaker.fail());
        assert!(!breaker.fail(), "it opens once");
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let breaker = Breaker::new();
        assert!(!breaker.begin_probe(), "a closed breaker is not probed");
        assert!(breaker.trip());
        assert!(breaker.begin_probe());
        assert!(!breaker.begin_probe());
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.end_probe(false);
        assert_eq!(breaker.state(), State::Open);
        assert!(breaker.begin_probe());
        breaker.end_probe(true);
        assert!(breaker.is_closed());
        (1..FAILURES_MAX).for_each(|_| assert!(!breaker.fail()));
    }
}
