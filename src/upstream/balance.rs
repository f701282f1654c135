//! Which server gets the next request.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Balance;

/// Takes turns over the servers; shared by all workers.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicUsize);

/// What is known of a server when one is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Whether it may be asked: not ejected, not tried before.
    pub is_eligible: bool,
    /// Requests in flight.
    pub in_flight: usize,
}

impl Turn {
    /// The index of the server to ask, of `count`; none when none is eligible. Ties go in turn, too, so that idle
    /// servers share the load.
    pub fn choose(&self, balance: Balance, count: usize, candidate: impl Fn(usize) -> Candidate) -> Option<usize> {
        let first = if count > 1 { self.0.fetch_add(1, Ordering::Relaxed) % count } else { 0 };
        let mut eligible = (0..count)
            .map(|step| (first + step) % count)
            .map(|index| (index, candidate(index)))
            .filter(|(_, candidate)| candidate.is_eligible);
        let chosen = match balance {
            Balance::RoundRobin => eligible.next(),
            // `min_by_key` returns the first of equals, which is the one whose turn it is.
            Balance::LeastRequests => eligible.min_by_key(|(_, candidate)| candidate.in_flight),
        };
        chosen.map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: not eligible; else the requests in flight.
    #[track_caller]
    fn check(balance: Balance, servers: &[Option<usize>], expected: &[Option<usize>]) {
        let turn = Turn::default();
        let candidate =
            |index: usize| Candidate { is_eligible: servers[index].is_some(), in_flight: servers[index].unwrap_or(0) };
        let chosen: Vec<_> = expected.iter().map(|_| turn.choose(balance, servers.len(), candidate)).collect();
        assert_eq!(chosen, expected);
    }

    #[test]
    fn round_robin_goes_in_turn_whatever_is_in_flight() {
        check(Balance::RoundRobin, &[Some(9), Some(0), Some(0)], &[Some(0), Some(1), Some(2), Some(0)]);
    }

    #[test]
    fn round_robin_passes_over_who_is_not_eligible() {
        check(Balance::RoundRobin, &[Some(0), None, Some(0)], &[Some(0), Some(2), Some(2), Some(0)]);
    }

    #[test]
    fn least_requests_asks_the_idlest() {
        check(Balance::LeastRequests, &[Some(3), Some(1), Some(2)], &[Some(1), Some(1), Some(1)]);
        check(Balance::LeastRequests, &[Some(3), None, Some(2)], &[Some(2), Some(2)]);
    }

    #[test]
    fn least_requests_shares_among_equals() {
        check(Balance::LeastRequests, &[Some(0), Some(0)], &[Some(0), Some(1), Some(0)]);
    }

    #[test]
    fn nobody_is_chosen_when_nobody_is_eligible() {
        check(Balance::RoundRobin, &[None, None], &[None]);
        check(Balance::LeastRequests, &[], &[None]);
    }
}
