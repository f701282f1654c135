//! Writes to Redis, behind the response: bounded, tried once, dropped and counted where that fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::interfaces::KeysInterface;
use fred::types::Expiration;
use tokio::sync::{Semaphore, mpsc};

use super::pending::{Added, Taken, Waiting};
use super::{RedisTier, WorkerId};
use crate::boxed::pinned;
use crate::clock::Timestamp;
use crate::key::CacheKey;
use crate::store::codec::compression::{self, StoredBody};
use crate::store::codec::{self, Detached};
use crate::store::slot::Slot;
use crate::stored::StoredResponse;

/// The bound on a lane's waiting writes.
const WRITES_MAX: usize = 4096;
/// The bound on the bytes they keep in memory.
const BYTES_MAX: usize = 32 << 20;
/// The bound on a lane's writes under way, in pages of what they keep in memory: reads wait behind them. 512 small ones, for as
/// many as a busy worker stores while Redis answers once must fit, and 32 long ones.
const PAGES_AT_ONCE_MAX: u32 = 512;
const PAGES_OF_ONE_MAX: u32 = 16;
const PAGE: usize = 4 << 10;
/// A body that is stored in more than this is a string of its own.
pub(super) const INLINE_MAX: usize = 1 << 20;
/// A longer body is compressed off the worker: this one takes 0.7 ms with the block that is tried first, twice as long a
/// one 1.3 ms (generated JSON, in a release build).
const COMPRESSED_HERE_MAX: usize = 256 << 10;
/// What a write is given where `timeout` is less: nobody waits for it.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
/// What a string of its own is given, and for each 10 MiB as much again.
const BULK_TIMEOUT: Duration = Duration::from_secs(1);
const BULK_BYTES_PER_SECOND: u64 = 10 << 20;

/// The keys that a lane is to write, in order, and the pages that each takes.
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<(CacheKey, u32)>,
    /// Guards the hand-over to the task that works it off.
    receiver: Mutex<Option<mpsc::UnboundedReceiver<(CacheKey, u32)>>>,
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queue {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Mutex::new(Some(receiver));
        Self { sender, receiver, count: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// Whether there is room for as many bytes more. Deletions only count: they free more than they take.
    fn has_room(&self, waiting: &Waiting) -> bool {
        let count = self.count.load(Ordering::Relaxed);
        match waiting {
            Waiting::Store(_) => {
                count < WRITES_MAX && self.bytes.load(Ordering::Relaxed).saturating_add(waiting.bytes()) <= BYTES_MAX
            }
            Waiting::Unlink => count < 2 * WRITES_MAX,
        }
    }
}

/// Works off a lane's queue for as long as the runtime lives, once the epoch is known.
pub(super) async fn work_off(tier: Arc<RedisTier>, lane: usize) {
    let taken = tier.lanes[lane].queue.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut keys) = taken else { return };
    let at_once = Arc::new(Semaphore::new(PAGES_AT_ONCE_MAX as usize));
    tier.synced.wait().await;
    tier.lanes[lane].connected().await;
    while let Some((key, pages)) = keys.recv().await {
        let Ok(permit) = Arc::clone(&at_once).acquire_many_owned(pages).await else { return };
        let writer = Arc::clone(&tier);
        // In a box: tokio copies a task's future some eight times on its way through its life.
        tier.tasks.spawn(pinned(move || async move {
            writer.discharge(lane, &key).await;
            drop(permit);
        }));
    }
}

impl RedisTier {
    /// The change of a key that waits to be written.
    pub(in crate::store) fn waiting(&self, key: &CacheKey) -> Option<Waiting> {
        self.pending.get(key)
    }

    /// Whether the tier takes it.
    pub(in crate::store) fn admits(&self, slot: &Slot) -> bool {
        match slot {
            Slot::Response(response) => response.body.len() as u64 <= self.config.max_object,
            Slot::Marker(_) => true,
        }
    }

    /// Queues a change; false: there is no room, and Redis keeps what it has. What waits for the key is outdated all the
    /// same: a deletion takes its place, which needs no more room.
    pub(in crate::store) fn change(&self, worker: WorkerId, base: CacheKey, key: CacheKey, waiting: Waiting) -> bool {
        let lane = if worker.0 < self.control() { worker.0 } else { 0 };
        if self.lanes[lane].queue.has_room(&waiting) {
            self.enqueue(lane, base, key, waiting);
            return true;
        }
        let replaced = self.pending.unlink(&key);
        if let Some((owner, before)) = replaced {
            self.replaced(owner, before, Waiting::Unlink.bytes());
        }
        let is_queued = replaced.is_some() && matches!(waiting, Waiting::Unlink);
        if !is_queued {
            self.reports.drop_write();
        }
        is_queued
    }

    /// Waits until nothing waits, and no lock is held, at most `within`.
    pub(in crate::store) async fn flush(&self, within: Duration) {
        let _ = tokio::time::timeout(within, async {
            self.pending.empty().await;
            self.locks.wait().await;
        })
        .await;
    }

    fn enqueue(&self, lane: usize, base: CacheKey, key: CacheKey, waiting: Waiting) {
        let bytes = waiting.bytes();
        let queue = &self.lanes[lane].queue;
        match self.pending.put(key, base, lane, waiting) {
            Added::New => {
                queue.count.fetch_add(1, Ordering::Relaxed);
                queue.bytes.fetch_add(bytes, Ordering::Relaxed);
                // The receiver lives as long as the lane, or the process is ending.
                let _ = queue.sender.send((key, pages(bytes)));
            }
            Added::Replaced(owner, before) => self.replaced(owner, before, bytes),
        }
    }

    /// What waited on a lane with `before` bytes has `bytes` now.
    fn replaced(&self, owner: usize, before: usize, bytes: usize) {
        let owner = &self.lanes[owner].queue;
        owner.bytes.fetch_add(bytes, Ordering::Relaxed);
        owner.bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Writes the changes of a key until none is left.
    async fn discharge(&self, lane: usize, key: &CacheKey) {
        let queue = &self.lanes[lane].queue;
        while let Some(taken) = self.pending.take_up(key) {
            let written = self.write(lane, key, &taken).await;
            if !written {
                self.reports.drop_write();
            }
            if self.pending.settle(key, &taken, written) {
                queue.count.fetch_sub(1, Ordering::Relaxed);
                queue.bytes.fetch_sub(taken.waiting.bytes(), Ordering::Relaxed);
                return;
            }
        }
    }

    /// Whether Redis acknowledged it.
    async fn write(&self, lane: usize, key: &CacheKey, taken: &Taken) -> bool {
        if !self.lanes[lane].is_usable() || self.reports.writes_are_paused() {
            return false;
        }
        let outcome = match &taken.waiting {
            Waiting::Unlink => self.unlink(lane, self.record_key(&taken.base, key)).await,
            Waiting::Store(slot) => self.store(lane, &taken.base, key, slot).await,
        };
        match outcome {
            Ok(()) => {
                self.succeeded(lane);
                true
            }
            Err(error) => {
                self.failed(lane, &error);
                false
            }
        }
    }

    async fn unlink(&self, lane: usize, key: String) -> Result<(), Error> {
        let client = self.lanes[lane].writing(self.write_timeout()).ok_or_else(not_connected)?;
        client.unlink(key).await
    }

    async fn store(&self, lane: usize, base: &CacheKey, key: &CacheKey, slot: &Slot) -> Result<(), Error> {
        let record = match slot {
            Slot::Marker(marker) => codec::encode_marker(marker, &self.config.seal),
            Slot::Response(response) => {
                let body = self.stored_body(response).await;
                let is_detached = body.bytes.len() > INLINE_MAX;
                let expires = expiration(slot.useless_after());
                let detached =
                    if is_detached { Some(self.store_body(base, &body.bytes, expires).await?) } else { None };
                let epoch = self.ledger.epoch_of(&response.provenance);
                codec::encode_response(response, epoch, &body, detached.as_ref(), &self.config.seal)
            }
        };
        let key = self.record_key(base, key);
        let client = self.lanes[lane].writing(self.write_timeout()).ok_or_else(not_connected)?;
        client.set(key, Bytes::from(record), Some(expiration(slot.useless_after())), None, false).await
    }

    /// A response's body as it is to be stored. Where it could not be compressed in time, as it is.
    async fn stored_body(&self, response: &StoredResponse) -> StoredBody {
        let body = response.body.clone();
        if !self.config.compress || !compression::may_shrink(response) {
            return StoredBody::identity(body);
        }
        if body.len() <= COMPRESSED_HERE_MAX {
            return StoredBody::compressed(body);
        }
        let within = bulk_timeout(body.len() as u64);
        let compressing = tokio::task::spawn_blocking(move || StoredBody::compressed(body));
        match tokio::time::timeout(within, compressing).await {
            Ok(Ok(compressed)) => compressed,
            Ok(Err(_)) | Err(_) => StoredBody::identity(response.body.clone()),
        }
    }

    /// Writes what is stored of a large body as a string of its own.
    async fn store_body(&self, base: &CacheKey, stored: &Bytes, expires: Expiration) -> Result<Detached, Error> {
        let hashed = stored.clone();
        let detached = tokio::task::spawn_blocking(move || Detached::of(&hashed)).await?;
        let key = self.body_key(base, &detached.digest);
        let client = self.lanes[self.bulk()].writing(bulk_timeout(detached.length)).ok_or_else(not_connected)?;
        // Its failures are the bulk lane's: they open no breaker.
        if let Err(error) = client.set::<(), _, _>(key, stored.clone(), Some(expires), None, false).await {
            self.failed(self.bulk(), &error);
            return Err(Error::new(ErrorKind::Unknown, "the body could not be written"));
        }
        Ok(detached)
    }

    /// What a command that nobody waits for is given.
    pub(super) fn write_timeout(&self) -> Duration {
        self.config.timeout.max(WRITE_TIMEOUT)
    }
}

/// The pages that a write is counted with: at least one, and no more than lets long ones go side by side.
fn pages(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX).clamp(1, PAGES_OF_ONE_MAX)
}

/// What a command on a string of `length` bytes is given.
pub(super) fn bulk_timeout(length: u64) -> Duration {
    BULK_TIMEOUT + Duration::from_millis(length.saturating_mul(1000) / BULK_BYTES_PER_SECOND)
}

pub(super) fn not_connected() -> Error {
    Error::new(ErrorKind::Canceled, "not connected")
}

/// Absolute, so that a write that Redis applies late does not live longer for it.
fn expiration(useless_after: Timestamp) -> Expiration {
    Expiration::PXAT(i64::try_from(useless_after.as_millis()).unwrap_or(i64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_counts_and_32_long_ones_go_at_once() {
        assert_eq!([0, 1, PAGE, PAGE + 1, BYTES_MAX].map(pages), [1, 1, 1, 2, PAGES_AT_ONCE_MAX / 32]);
    }
}
