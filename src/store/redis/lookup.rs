//! Reads from Redis: within the timeout, or not at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::Error;
use fred::interfaces::KeysInterface;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::client::IN_FLIGHT_MAX;
use super::errors::Trouble;
use super::pending::Waiting;
use super::together::Told;
use super::writes::{INLINE_MAX, bulk_timeout, not_connected};
use super::{RedisTier, WorkerId};
use crate::boxed::pinned;
use crate::key::{Address, CacheKey};
use crate::store::Missing;
use crate::store::codec::compression::{Coding, StoredBody};
use crate::store::codec::{self, Detached, Record, Unreadable};
use crate::store::slot::Marker;
use crate::stored::StoredResponse;

/// The longest record: the longest body that one has, its facts, fields and tags.
const RECORD_MAX: usize = INLINE_MAX + (1 << 20);
/// A longer body is decompressed off the worker: this one takes 0.6 ms (generated JSON, in a release build).
const DECOMPRESSED_HERE_MAX: u64 = 1 << 20;

/// What Redis holds under a key.
#[derive(Clone)]
pub(in crate::store) enum Read {
    /// A response with its body as it was received.
    Response {
        /// The response. Its field values are slices of what was read, which pin the client's buffer.
        response: Arc<StoredResponse>,
        /// Whether its body is a slice of that, too.
        is_body_shared: bool,
    },
    /// The marker of a key whose responses vary; it owns all it has.
    Marker(Marker),
}

impl RedisTier {
    /// The record under an address of the key `base`. None: Redis holds nothing there.
    pub(in crate::store) async fn read(
        &self,
        worker: WorkerId,
        base: &CacheKey,
        address: &Address,
    ) -> Result<Option<Read>, Missing> {
        if !self.is_available(worker) {
            return Err(Missing::Unavailable);
        }
        if matches!(self.waiting(&address.key), Some(Waiting::Unlink)) {
            return Ok(None);
        }
        let key = self.record_key(base, &address.key);
        let value = match self.get(worker.0, key).await {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(None),
            Err(Trouble::WrongType) => return Err(self.refuse(worker, base, address, Unreadable::Foreign)),
            Err(_) => return Err(Missing::Unavailable),
        };
        if value.len() > RECORD_MAX {
            return Err(self.refuse(worker, base, address, Unreadable::Foreign));
        }
        let record = match codec::decode(&value, self.config.max_object, &self.config.seal) {
            Ok(record) if **record.material() == *address.material => record,
            // Another process takes larger ones than we do.
            Err(Unreadable::TooLarge) => return Ok(None),
            Ok(_) => return Err(self.refuse(worker, base, address, Unreadable::OtherKey)),
            Err(why) => return Err(self.refuse(worker, base, address, why)),
        };
        self.with_body(worker, base, address, record).await
    }

    /// Completes a record with its body as it was received, fetched where it is a string of its own. None: that string
    /// is gone.
    async fn with_body(
        &self,
        worker: WorkerId,
        base: &CacheKey,
        address: &Address,
        record: Record,
    ) -> Result<Option<Read>, Missing> {
        let (mut response, detached, coding) = match record {
            Record::Response { response, detached, coding, .. } => (response, detached, coding),
            Record::Marker(marker) => return Ok(Some(Read::Marker(marker))),
        };
        let is_body_shared = coding == Coding::Identity;
        if is_body_shared && detached.is_none() {
            return Ok(Some(Read::Response { response, is_body_shared }));
        }
        let bytes = match &detached {
            None => response.body.clone(),
            Some(detached) => match self.get_body(base, detached).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(None),
                Err(_) => return Err(Missing::Unavailable),
            },
        };
        // Nobody else has it yet: nothing is cloned.
        Arc::make_mut(&mut response).body = match restore(StoredBody { bytes, coding }, detached).await {
            Some(Ok(body)) => body,
            Some(Err(why)) => return Err(self.refuse(worker, base, address, why)),
            None => return Err(Missing::Unavailable),
        };
        Ok(Some(Read::Response { response, is_body_shared }))
    }

    /// What a key holds, on the worker's lane; waiting for a permit and for the answer together take at most `timeout`;
    /// twice that where others were asked for with it, and Redis does not tell of several.
    async fn get(&self, lane: usize, key: String) -> Result<Option<Bytes>, Trouble> {
        // Where one is free, which is nearly always, no clock is read and no timer made.
        let (_permit, left) = match self.lanes[lane].permits.try_acquire() {
            Ok(permit) if self.has_company(lane) => match self.lanes[lane].gathered.ask(key.clone()).await {
                Ok(Told::Alone) => (permit, self.config.timeout),
                outcome => {
                    let told = |told| if let Told::Value(value) = told { value } else { None };
                    return self.learn(lane, outcome.map(told).map(|value| value.filter(|value| !value.is_empty())));
                }
            },
            Ok(permit) => (permit, self.config.timeout),
            Err(_) => self.permitted(lane).await?,
        };
        let outcome = match self.lanes[lane].reading(left) {
            Some(client) => get(&client, key, RECORD_MAX).await,
            None => Err(not_connected()),
        };
        self.learn(lane, outcome)
    }

    /// The outcome of a lookup, whose length tells how many to ask for together.
    fn learn(&self, lane: usize, outcome: Result<Option<Bytes>, Error>) -> Result<Option<Bytes>, Trouble> {
        if let Ok(value) = &outcome {
            self.lanes[lane].lengths.learn(value.as_ref().map_or(0, Bytes::len));
        }
        self.note(lane, outcome)
    }

    /// Whether a lookup goes together with others: where any is under way, for the one that is alone waits for nobody. In a
    /// cluster keys share no slot, and each is asked for alone.
    fn has_company(&self, lane: usize) -> bool {
        let is_alone = || self.lanes[lane].permits.available_permits() + 1 >= IN_FLIGHT_MAX;
        let may_have = !self.is_cluster && lane < self.control() && self.lanes[lane].lengths.keys() > 1;
        may_have && !is_alone() && !self.reports.keys_go_alone()
    }

    /// Waits for a permit; with what is left of `timeout` then.
    async fn permitted(&self, lane: usize) -> Result<(SemaphorePermit<'_>, Duration), Trouble> {
        let deadline = Instant::now() + self.config.timeout;
        let Ok(Ok(permit)) = tokio::time::timeout_at(deadline, self.lanes[lane].permits.acquire()).await else {
            return Err(Trouble::Timeout);
        };
        Ok((permit, deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))))
    }

    /// A body, on the bulk lane.
    async fn get_body(&self, base: &CacheKey, detached: &Detached) -> Result<Option<Bytes>, Trouble> {
        let lane = self.bulk();
        let key = self.body_key(base, &detached.digest);
        let outcome = match self.lanes[lane].reading(bulk_timeout(detached.length)) {
            Some(client) => get(&client, key, usize::try_from(detached.length).unwrap_or(usize::MAX)).await,
            None => Err(not_connected()),
        };
        self.note(lane, outcome)
    }

    /// The outcome of a command of the lane, for its breaker too.
    pub(super) fn note<T>(&self, lane: usize, outcome: Result<T, Error>) -> Result<T, Trouble> {
        match outcome {
            Ok(value) => {
                self.succeeded(lane);
                Ok(value)
            }
            Err(error) => Err(self.failed(lane, &error)),
        }
    }

    /// A value that could not be read: told, counted, deleted.
    fn refuse(&self, worker: WorkerId, base: &CacheKey, address: &Address, why: Unreadable) -> Missing {
        self.unreadable(why);
        self.change(worker, *base, address.key, Waiting::Unlink);
        Missing::Corrupt
    }
}

/// What a key holds, and no more than one byte beyond `length_max`: a foreign value of any length costs no more than that.
async fn get(client: &WithOptions<Client>, key: String, length_max: usize) -> Result<Option<Bytes>, Error> {
    // In a box: it is 6 KiB, by which all that wait for it would be larger.
    let reading = pinned(|| client.getrange(key, 0, length_max));
    // No empty string is written, which this does not tell from none.
    let value: Bytes = reading.await?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// The body as it was received, its digest checked where it was a string of its own; off the worker where that takes
/// long. None: it was not done in time.
async fn restore(stored: StoredBody, detached: Option<Detached>) -> Option<Result<Bytes, Unreadable>> {
    let length = match stored.coding {
        Coding::Identity => stored.bytes.len() as u64,
        Coding::Lz4 { length } | Coding::Zstd { length } => length,
    };
    let is_quick = detached.is_none() && (stored.coding == Coding::Identity || length <= DECOMPRESSED_HERE_MAX);
    let work = move || match detached {
        Some(detached) if !detached.describes(&stored.bytes) => Err(Unreadable::Checksum),
        Some(_) | None => stored.restored(),
    };
    if is_quick { Some(work()) } else { off_worker(length, work).await }
}

/// Runs work on a body of this length off the worker. None: it was not done in time.
async fn off_worker<T: Send + 'static>(length: u64, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let working = tokio::task::spawn_blocking(work);
    tokio::time::timeout(bulk_timeout(length), working).await.ok()?.ok()
}
