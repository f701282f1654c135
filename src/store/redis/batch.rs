//! Several commands as one: what workers ask of Redis in one turn of their loop.
//!
//! fred's router needs some 12,000 instructions for a command, whatever it is. In a script that reads, or writes, what came
//! together, they are shared: with 64 connections that takes a quarter off the CPU time of a lookup, and a third off a miss. A
//! key costs Redis 2 µs in a script, and about as much alone. In a cluster keys share no slot, and each is sent alone.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::types::Value;
use tokio::sync::{Notify, oneshot};

use super::RedisTier;
use super::errors::Trouble;
use super::script::Script;
use super::writes::not_connected;

/// The bound on the keys of one command.
pub(super) const KEYS_MAX: usize = 32;
/// A longer value is asked for alone, and stored alone: Redis does nothing else while a script runs. 32 values of this length
/// take 1.2 ms.
pub(super) const VALUE_MAX: usize = 32 << 10;
/// The bound on the records of one command: to compress them takes the worker about 1 ms.
pub(super) const BYTES_MAX: usize = 256 << 10;

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("write.lua")));

/// Lookups that wait to be sent together.
#[derive(Default)]
pub(super) struct Gathered {
    waiting: Mutex<Vec<Asked>>,
    came: Notify,
}

struct Asked {
    key: String,
    answer: oneshot::Sender<Result<Told, Error>>,
}

/// What a batch tells of one key.
pub(super) enum Told {
    /// What it holds; empty: nothing.
    Value(Bytes),
    /// Nothing: it is to be asked for alone.
    Alone,
}

/// A record to be stored.
pub(super) struct Record {
    pub(super) key: String,
    pub(super) value: Bytes,
    /// In milliseconds since the Unix epoch.
    pub(super) ends: i64,
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

/// Reads what is gathered on a lane for as long as the runtime lives.
pub(super) async fn read_gathered(tier: Arc<RedisTier>, lane: usize) {
    loop {
        let mut waiting = tier.lanes[lane].gathered.next().await;
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(KEYS_MAX));
            let asked = std::mem::replace(&mut waiting, rest);
            tier.tasks.spawn(read(Arc::clone(&tier), lane, asked));
        }
    }
}

/// One command for all; who is told nothing asks alone.
async fn read(tier: Arc<RedisTier>, lane: usize, asked: Vec<Asked>) {
    let (keys, answers): (Vec<_>, Vec<_>) = asked.into_iter().map(|asked| (asked.key, asked.answer)).unzip();
    if answers.len() == 1 {
        return answers.into_iter().for_each(|answer| drop(answer.send(Ok(Told::Alone))));
    }
    let told = match tier.lanes[lane].reading(tier.config.timeout) {
        Some(client) => READ.run_on::<Vec<Value>>(&client, keys, vec![VALUE_MAX.to_string().into()]).await,
        None => Err(not_connected()),
    };
    match told {
        Ok(values) => {
            let told = values.into_iter().map(told_of).chain(std::iter::repeat_with(|| Told::Alone));
            answers.into_iter().zip(told).for_each(|(answer, told)| drop(answer.send(Ok(told))));
        }
        Err(error) if matches!(Trouble::of(&error), Trouble::Timeout | Trouble::Connection) => {
            // Perhaps for one value that others put there: who asks alone is told no more of it than a record has.
            tier.reports.pause_batches();
            answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone()))));
        }
        // What is wrong with the server, each hears by itself; with the script, none.
        Err(error) => {
            tier.failed(lane, &error);
            tier.reports.pause_batches();
            answers.into_iter().for_each(|answer| drop(answer.send(Ok(Told::Alone))));
        }
    }
}

fn told_of(value: Value) -> Told {
    match value {
        Value::String(_) | Value::Bytes(_) => value.into_bytes().map_or(Told::Alone, Told::Value),
        _ => Told::Alone,
    }
}

/// Stores records with one command; how many of them, from the first on, Redis took.
pub(super) async fn write(tier: &RedisTier, lane: usize, records: Vec<Record>) -> Result<usize, Error> {
    let client = tier.lanes[lane].writing(tier.write_timeout()).ok_or_else(not_connected)?;
    let mut arguments = Vec::with_capacity(2 * records.len());
    let mut keys = Vec::with_capacity(records.len());
    for record in records {
        keys.push(record.key);
        arguments.extend([Value::Bytes(record.value), Value::from(record.ends.to_string())]);
    }
    let stored: i64 = WRITE.run_on(&client, keys, arguments).await?;
    usize::try_from(stored).map_err(|_| Error::new(ErrorKind::Protocol, "expected how many records were stored"))
}
