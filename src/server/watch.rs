//! What ends a connection besides itself: its time-outs, and the end of the process.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{Sleep, sleep};

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
        let generation = || worker.shared().generation.load();
        let mut begun = pin!(worker.drain.begun());
        let pause = pin!(sleep(Activity::interval(&generation().server.limits)));
        let mut alarm = Alarm::new(pause);
        let (mut is_ending, mut is_told) = (false, false);
        loop {
            let woken = poll_fn(|context| {
                if let Poll::Ready(output) = watched.as_mut().poll(context) {
                    return Poll::Ready(Woken::By(output));
                }
                // It knows whom to wake once it was looked at, which goes through locks that all connections share.
                if !is_ending && (!is_told || worker.drain.has_begun()) {
                    is_told = true;
                    if begun.as_mut().poll(context).is_ready() {
                        return Poll::Ready(Woken::Drain);
                    }
                }
                alarm.poll(context).map(|()| Woken::Pause)
            })
            .await;
            match woken {
                Woken::By(output) => return Ended::With(output),
                Woken::Drain => {}
                // An HTTP/2 client that does not answer the good-bye is left.
                Woken::Pause => match activity.check(&generation().server.limits) {
                    _ if is_ending && activity.is_idle_for(FAREWELL) => return Ended::Idle,
                    Timer::Again(next) => {
                        alarm.set(if is_ending { FAREWELL } else { next });
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
            alarm.set(FAREWELL);
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

/// A timer that is looked at once, so that it knows whom to wake, and then only when it has come.
struct Alarm<'p> {
    sleep: Pin<&'p mut Sleep>,
    is_told: bool,
}

impl<'p> Alarm<'p> {
    const fn new(sleep: Pin<&'p mut Sleep>) -> Self {
        Self { sleep, is_told: false }
    }

    fn set(&mut self, span: Duration) {
        self.sleep.set(sleep(span));
        self.is_told = false;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_told && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        self.is_told = true;
        // A task that has used up its budget would be turned away, and the timer not know of it.
        Pin::new(&mut unconstrained(self.sleep.as_mut())).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_for_a_task_that_had_used_up_its_budget() {
        const SOON: Duration = Duration::from_millis(1);
        let pause = pin!(sleep(SOON));
        let mut alarm = Alarm::new(pause);
        for _ in 0..2 {
            let ringing = poll_fn(|context| {
                while has_budget_remaining() {
                    assert!(pin!(consume_budget()).poll(context).is_ready());
                }
                alarm.poll(context)
            });
            tokio::time::timeout(Duration::from_secs(5), ringing).await.expect("it rings");
            alarm.set(SOON);
        }
    }
}
