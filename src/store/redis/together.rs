//! Lookups that a worker makes at one time, as one command.
//!
//! fred's router takes some 12,000 instructions for a command, whatever it is; in an `MGET` they are shared, and Redis takes less for
//! a key, too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use fred::error::Error;
use fred::interfaces::KeysInterface;
use tokio::sync::{Notify, oneshot};

use super::RedisTier;
use super::errors::{Trouble, force_reconnection};
use super::writes::not_connected;
use crate::boxed::pinned;

/// The bound on the keys of one command: all of them wait for the last byte of its answer. So do they for what is long: of its
/// answer no more is to be expected than this, by the lengths of those before.
const KEYS_MAX: u64 = 16;
const ANSWER_BYTES: u64 = 128 << 10;
/// What a lane's values are taken to be before any has come: too long to be asked for with others.
const LENGTH_AT_FIRST: u64 = ANSWER_BYTES;
/// The weight of the latest value: one part in so many.
const LATEST: u64 = 8;

/// How long a lane's latest values were, in bytes, on average; nothing is the shortest.
pub(super) struct Lengths(AtomicU64);

impl Default for Lengths {
    fn default() -> Self {
        Self(AtomicU64::new(LENGTH_AT_FIRST))
    }
}

impl Lengths {
    /// One more has come.
    pub(super) fn learn(&self, length: usize) {
        // The lane's worker alone writes it.
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before - before.div_ceil(LATEST) + length as u64 / LATEST, Ordering::Relaxed);
    }

    /// How many to ask for in one command.
    pub(super) fn keys(&self) -> usize {
        // At most KEYS_MAX.
        (ANSWER_BYTES / self.0.load(Ordering::Relaxed).max(1)).clamp(1, KEYS_MAX) as usize
    }
}

/// Lookups that wait to be sent together.
#[derive(Default)]
pub(super) struct Gathered {
    /// Held while a lookup is put here, or all are taken.
    waiting: Mutex<Vec<Asked>>,
    came: Notify,
}

struct Asked {
    key: String,
    answer: oneshot::Sender<Result<Told, Error>>,
}

/// What is told of one key.
pub(super) enum Told {
    /// What it holds, if anything; a key of another type holds nothing.
    Value(Option<Bytes>),
    /// Nothing: it is to be asked for alone.
    Alone,
}

impl Gathered {
    /// What a key holds, asked together with others.
    pub(super) async fn ask(&self, key: String) -> Result<Told, Error> {
        let (answer, told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { key, answer });
        self.came.notify_one();
        // Who would answer is gone with its runtime.
        told.await.unwrap_or_else(|_| Err(not_connected()))
    }

    /// What waits, once something does. The runtime comes to it after all that is ready now: what they ask is in it.
    async fn next(&self) -> Vec<Asked> {
        loop {
            self.came.notified().await;
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
        }
    }
}

/// Asks for what is gathered on a lane, for as long as the runtime lives.
pub(super) async fn ask_gathered(tier: Arc<RedisTier>, lane: usize) {
    loop {
        let mut waiting = tier.lanes[lane].gathered.next().await;
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(tier.lanes[lane].lengths.keys()));
            let asked = std::mem::replace(&mut waiting, rest);
            let asking = Arc::clone(&tier);
            tier.tasks.spawn(pinned(move || async move { ask(&asking, lane, asked).await }));
        }
    }
}

/// One command for all; who is told nothing asks alone.
async fn ask(tier: &RedisTier, lane: usize, asked: Vec<Asked>) {
    let (keys, answers): (Vec<_>, Vec<_>) = asked.into_iter().map(|asked| (asked.key, asked.answer)).unzip();
    let all_alone = |answers: Vec<oneshot::Sender<_>>| {
        // Who has left need not be told.
        answers.into_iter().for_each(|answer| drop(answer.send(Ok(Told::Alone))));
    };
    if answers.len() == 1 {
        return all_alone(answers);
    }
    let told: Result<Vec<Option<Bytes>>, Error> = match tier.lanes[lane].reading(tier.config.timeout) {
        Some(client) => client.mget(keys).await,
        None => Err(not_connected()),
    };
    match told {
        Ok(values) if values.len() == answers.len() => {
            for (answer, value) in answers.into_iter().zip(values) {
                drop(answer.send(Ok(Told::Value(value))));
            }
        }
        Ok(_) => all_alone(answers),
        Err(error) if matches!(Trouble::of(&error), Trouble::Timeout | Trouble::Connection) => {
            // Perhaps for one value that others put there, of which no more is to come than came in that time. Who asks
            // alone is told no more of it than a record has.
            tier.reports.ask_alone();
            if let Some(client) = tier.lanes[lane].client() {
                tier.tasks.spawn(force_reconnection(client));
            }
            answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone()))));
        }
        // What is wrong with a key, or with the server, each hears by itself; with the command, none.
        Err(error) => {
            tier.failed(lane, &error);
            tier.reports.ask_alone();
            all_alone(answers);
        }
    }
}
