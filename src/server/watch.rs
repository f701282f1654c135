//! What ends a connection besides itself: its time-outs, and the end of the process.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

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
        let limits = || worker.shared().generation.load();
        let mut begun = pin!(worker.drain.begun());
        let mut pause = pin!(sleep(Activity::interval(&limits().server.limits)));
        let (mut is_ending, mut are_told) = (false, false);
        loop {
            // What else may end it knows whom to wake once it was looked at, and is looked at again when it has come: each look
            // at the end of the process goes through locks that all connections share.
            let woken = poll_fn(|context| {
                if let Poll::Ready(output) = watched.as_mut().poll(context) {
                    return Poll::Ready(Woken::By(output));
                }
                let is_drained = !is_ending && (!are_told || worker.drain.has_begun());
                if is_drained && begun.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Woken::Drain);
                }
                if (!are_told || pause.is_elapsed()) && pause.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Woken::Pause);
                }
                are_told = true;
                Poll::Pending
            })
            .await;
            let mut rest = |span| {
                pause.set(sleep(span));
                are_told = false;
            };
            match woken {
                Woken::By(output) => return Ended::With(output),
                Woken::Drain => {}
                // An HTTP/2 client that does not answer the good-bye is left.
                Woken::Pause => match activity.check(&limits().server.limits) {
                    _ if is_ending && activity.is_idle_for(FAREWELL) => return Ended::Idle,
                    Timer::Again(next) => {
                        rest(if is_ending { FAREWELL } else { next });
                        continue;
                    }
                    Timer::Stalled(limit) => {
                        worker.shared().telemetry.limited(limit);
                        return Ended::Stalled(format!("the client stalled: {}", limit.name()));
                    }
                    Timer::Idle => worker.shared().telemetry.limited(Limit::IdleTimeout),
                },
            }
            is_ending = true;
            rest(FAREWELL);
            if !end(watched.as_mut()) {
                return Ended::Idle;
            }
        }
    }
}

/// What a connection's task was woken by.
enum Woken<T> {
    /// What is watched over has ended.
    By(T),
    /// The process ends.
    Drain,
    /// It is time to look at the time-outs.
    Pause,
}
