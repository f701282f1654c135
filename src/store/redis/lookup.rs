//! Reads from Redis: within the timeout, or not at all.

use std::time::Duration;

use bytes::Bytes;
use fred::error::Error;
use fred::interfaces::KeysInterface;
use tokio::time::Instant;

use super::errors::Trouble;
use super::pending::Waiting;
use super::writes::{bulk_timeout, not_connected};
use super::{RedisTier, WorkerId};
use crate::key::{Address, CacheKey};
use crate::store::Missing;
use crate::store::codec::{self, Detached, Record, Unreadable};

/// What a record may be longer than the largest body: its facts, fields and tags.
const RECORD_OVERHEAD_MAX: u64 = 1 << 20;

impl RedisTier {
    /// The record under an address of the key `base`. None: Redis holds nothing there.
    pub(in crate::store) async fn read(
        &self,
        worker: WorkerId,
        base: &CacheKey,
        address: &Address,
    ) -> Result<Option<Record>, Missing> {
        if !self.is_available(worker) {
            return Err(Missing::Unavailable);
        }
        if matches!(self.waiting(&address.key), Some(Waiting::Unlink)) {
            return Ok(None);
        }
        let key = self.record_key(base, &address.key);
        let value = match self.get(worker.0, &key).await {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(None),
            Err(Trouble::WrongType) => return Err(self.refuse(worker, base, address, Unreadable::Foreign)),
            Err(_) => return Err(Missing::Unavailable),
        };
        if value.len() as u64 > self.config.max_object.saturating_add(RECORD_OVERHEAD_MAX) {
            return Ok(None);
        }
        let record = match codec::decode(&value) {
            Ok(record) if record.material() == &address.material => record,
            Ok(_) => return Err(self.refuse(worker, base, address, Unreadable::OtherKey)),
            Err(why) => return Err(self.refuse(worker, base, address, why)),
        };
        self.with_body(worker, base, address, record).await
    }

    /// Fetches the body of a record where that is a string of its own. None: it is gone, or too large for us.
    async fn with_body(
        &self,
        worker: WorkerId,
        base: &CacheKey,
        address: &Address,
        record: Record,
    ) -> Result<Option<Record>, Missing> {
        let Record::Response { mut response, material, detached: Some(detached) } = record else {
            return Ok(Some(record));
        };
        if detached.length > self.config.max_object {
            return Ok(None);
        }
        let body = match self.get_body(base, &detached).await {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(_) => return Err(Missing::Unavailable),
        };
        let checked = body.clone();
        let is_it = tokio::task::spawn_blocking(move || detached.describes(&checked)).await;
        if !is_it.unwrap_or(false) {
            return Err(self.refuse(worker, base, address, Unreadable::Checksum));
        }
        response.body = body;
        Ok(Some(Record::Response { response, material, detached: None }))
    }

    /// GET on the worker's lane; waiting for a permit and for the answer together take at most `timeout`.
    async fn get(&self, lane: usize, key: &str) -> Result<Option<Bytes>, Trouble> {
        let deadline = Instant::now() + self.config.timeout;
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, self.lanes[lane].permits.acquire()).await else {
            return Err(Trouble::Timeout);
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let outcome = match self.lanes[lane].reading(left) {
            Some(client) => client.get(key).await,
            None => Err(not_connected()),
        };
        self.note(lane, outcome)
    }

    /// GET of a body on the bulk lane.
    async fn get_body(&self, base: &CacheKey, detached: &Detached) -> Result<Option<Bytes>, Trouble> {
        let lane = self.bulk();
        let key = self.body_key(base, &detached.digest);
        let outcome = match self.lanes[lane].reading(bulk_timeout(detached.length)) {
            Some(client) => client.get(key).await,
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
