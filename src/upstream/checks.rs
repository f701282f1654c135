//! Active health checks: a server is asked now and then, and only several answers alike in a row change what is held of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::HealthCheck;
use super::health::Change;

/// What the checks of one server have shown. One task checks; all workers look.
#[derive(Debug)]
pub(super) struct Checks {
    unhealthy: u32,
    healthy: u32,
    is_well: AtomicBool,
    /// Answers in a row that speak against `is_well`.
    contrary: AtomicU32,
}

impl Checks {
    /// Well until shown otherwise; without a rule nothing shows otherwise.
    pub fn new(rule: Option<&HealthCheck>) -> Self {
        let (unhealthy, healthy) = rule.map_or((u32::MAX, 1), |rule| (rule.unhealthy, rule.healthy));
        Self { unhealthy, healthy, is_well: AtomicBool::new(true), contrary: AtomicU32::new(0) }
    }

    /// Whether the server is held to be well.
    pub fn is_well(&self) -> bool {
        self.is_well.load(Ordering::Relaxed)
    }

    /// Takes a check's answer into account.
    pub fn note(&self, passed: bool) -> Change {
        let is_well = self.is_well();
        if passed == is_well {
            self.contrary.store(0, Ordering::Relaxed);
            return Change::Nothing;
        }
        let contrary = self.contrary.load(Ordering::Relaxed) + 1;
        if contrary < if is_well { self.unhealthy } else { self.healthy } {
            self.contrary.store(contrary, Ordering::Relaxed);
            return Change::Nothing;
        }
        self.contrary.store(0, Ordering::Relaxed);
        self.is_well.store(passed, Ordering::Relaxed);
        if passed { Change::Restored } else { Change::Ejected }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `answers` and what is held after each: `+` well, `-` not.
    fn check(answers: &str, expected: &str) {
        let rule =
            HealthCheck { path: "/".parse().unwrap(), interval: Duration::from_secs(1), unhealthy: 3, healthy: 2 };
        let checks = Checks::new(Some(&rule));
        let held = answers.chars().map(|answer| {
            let before = checks.is_well();
            let change = checks.note(answer == '+');
            assert_eq!(change != Change::Nothing, before != checks.is_well());
            if checks.is_well() { '+' } else { '-' }
        });
        assert_eq!(held.collect::<String>(), expected, "{answers}");
    }

    #[test]
    fn only_answers_in_a_row_change_anything() {
        check("---", "++-");
        check("--+--+--+-", "++++++++++");
        check("---++", "++--+");
        check("---+-+-+-", "++-------");
        check("---++---", "++--+++-");
    }

    #[test]
    fn without_checks_a_server_is_well() {
        assert!(Checks::new(None).is_well());
    }
}
