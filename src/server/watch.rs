//! What ends a connection besides itself: its time-outs, and the end of the process.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use super::activity::{Activity, Timer};
use super::worker::Worker;
use crate::telemetry::limits::Limit;

/// How long an HTTP/2 client without a request has to acknowledge that its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Watches over a connection.
pub struct Watch<'w> {
    worker: &'w Worker,
    activity: &'w Activity,
}

/// How something that was watched over ended.
pub enum Ended<T> {
    /// By itself.
    With(T),
    /// It had nothing to do, for too long or as the process ends.
    Idle,
    /// The client was waited for too long; the text is for people.
    Stalled(String),
}

impl<'w> Watch<'w> {
    /// Over what `activity` tells of.
    pub const fn new(worker: &'w Worker, activity: &'w Activity) -> Self {
        Self { worker, activity }
    }

    /// Watches over what needs no farewell.
    pub async fn over<T>(&self, waiting: impl Future<Output = T>) -> Ended<T> {
        self.until_ended(pin!(waiting), |_| false).await
    }

    /// Watches over a connection, which `end` lets end with grace: what is being answered is answered.
    pub async fn over_connection<C: Future>(&self, connection: C, end: impl Fn(Pin<&mut C>)) -> Ended<C::Output> {
        let end = |connection: Pin<&mut C>| {
            end(connection);
            true
        };
        self.until_ended(pin!(connection), end).await
    }

    /// `end` asks it to end, and says whether to wait until it has.
    async fn until_ended<F: Future>(
        &self,
        mut watched: Pin<&mut F>,
        end: impl Fn(Pin<&mut F>) -> bool,
    ) -> Ended<F::Output> {
        let (worker, activity) = (self.worker, self.activity);
        let mut is_ending = false;
        let mut pause = Activity::interval(&worker.shared().generation.load().server.limits);
        loop {
            tokio::select! {
                biased;
                output = watched.as_mut() => return Ended::With(output),
                () = worker.drain.begun(), if !is_ending => is_ending = true,
                () = tokio::time::sleep(pause) => {
                    let checked = activity.check(&worker.shared().generation.load().server.limits);
                    match checked {
                        // An HTTP/2 client that does not answer the good-bye is left.
                        _ if is_ending && activity.is_idle_for(FAREWELL) => return Ended::Idle,
                        Timer::Again(next) => {
                            pause = if is_ending { FAREWELL } else { next };
                            continue;
                        }
                        Timer::Stalled(limit) => {
                            worker.shared().telemetry.limited(limit);
                            return Ended::Stalled(format!("the client stalled: {}", limit.name()));
                        }
                        Timer::Idle => {
                            worker.shared().telemetry.limited(Limit::IdleTimeout);
                            is_ending = true;
                        }
                    }
                }
            }
            pause = FAREWELL;
            if !end(watched.as_mut()) {
                return Ended::Idle;
            }
        }
    }
}
