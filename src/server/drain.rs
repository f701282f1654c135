//! The end of the process: announced once, with a deadline that a second signal cuts short.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What workers and connections watch for the end. Cheap to share.
#[derive(Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    /// Set before anybody is told that it has begun.
    deadline: OnceLock<Instant>,
    cut_short: CancellationToken,
}

impl Drain {
    /// Announces the end: what is under way has `within` to finish.
    pub fn begin(&self, within: Duration) {
        let _ = self.deadline.set(Instant::now() + within);
        self.begun.cancel();
    }

    /// Whether it has begun. Asked on every wake of a connection: the token would take a lock for it.
    pub fn has_begun(&self) -> bool {
        self.deadline.get().is_some()
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Ends all waiting now.
    pub fn cut_short(&self) {
        self.cut_short.cancel();
    }

    /// How much time is left.
    pub fn left(&self) -> Duration {
        if self.cut_short.is_cancelled() {
            return Duration::ZERO;
        }
        self.deadline.get().map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits for `work`, at most until the deadline; whether it was done.
    pub async fn wait_for(&self, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = tokio::time::sleep(self.left()) => false,
            () = self.cut_short.cancelled() => false,
        }
    }
}
