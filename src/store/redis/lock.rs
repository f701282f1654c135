//! One lock for each key over all processes that share a Redis: who has it fetches.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::KeysInterface;
use fred::types::{Expiration, SetOptions, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::errors::Trouble;
use super::pending::Waiting;
use super::script::Script;
use super::wakes::{Waiter, Wake, wake_channel};
use super::writes::not_connected;
use super::{RedisTier, WorkerId, hex};
use crate::key::CacheKey;
use crate::store::Query;
use crate::store::find::selecting;
use crate::store::slot::Slot;

/// How long a lock outlives its holder, should that die.
const LEASE: Duration = Duration::from_secs(2);
/// How often a holder renews it.
const RENEWAL: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 3);

/// Extends a lock that is ours: 1; else 0.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) end return 0")
});
/// Deletes a lock that is ours, and wakes who waits for it: 1; else 0.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('get',KEYS[1])==ARGV[1] then redis.call('del',KEYS[1]) \
         redis.call('publish',ARGV[2],ARGV[3]) return 1 end return 0",
    )
});

/// What became of the wish to lock a key.
pub enum Lock {
    /// It is ours.
    Held(Guard),
    /// Another has it.
    Taken(Waiter),
    /// Redis does not say: there is no lock.
    Unavailable,
}

/// A lock that is held, and renewed, until what was fetched is in Redis or turns out not to be shared. Dropping it lets
/// another have it.
#[derive(Debug)]
pub struct Guard {
    /// Takes the first; the rest finds it full or closed.
    end: mpsc::Sender<End>,
}

impl Guard {
    /// Lets the lock go: what was fetched cannot be shared.
    pub fn not_shared(&self) {
        self.end(End::Now(Wake::NotShared));
    }

    /// Lets the lock go: the store has it already.
    pub fn found(&self) {
        self.end(End::Now(Wake::Stored));
    }

    fn end(&self, end: End) {
        // Should it have ended before, that stands.
        let _ = self.end.try_send(end);
    }
}

/// How the holding of a lock ends.
#[derive(Debug)]
enum End {
    /// At once.
    Now(Wake),
    /// With these records' way to Redis.
    Written(Vec<oneshot::Receiver<bool>>),
}

impl End {
    /// Waits for the end itself. Writes have deadlines of their own.
    async fn awaited(self) -> Wake {
        match self {
            Self::Now(wake) => wake,
            Self::Written(records) => {
                for record in records {
                    if !record.await.unwrap_or(false) {
                        return Wake::NotShared;
                    }
                }
                Wake::Stored
            }
        }
    }
}

/// What the task that keeps a lock found.
enum Found {
    Free(Guard),
    Holder(Bytes),
    Trouble,
}

/// A lock as Redis knows it.
struct Claim {
    lane: usize,
    key: CacheKey,
    name: String,
    /// Random: only who set the lock renews or deletes it.
    token: String,
}

impl RedisTier {
    /// Locks a key among all processes, or tells who waits for it. The lock is its own task's, which goes on when who
    /// asked for it leaves.
    pub(in crate::store) async fn lock(self: &Arc<Self>, worker: WorkerId, key: CacheKey) -> Lock {
        if !self.is_available(worker) {
            return Lock::Unavailable;
        }
        // From before the lock is asked for: no message is missed.
        let waiter = Waiter::new(self, key);
        let name = format!("{}:l:{}", self.config.prefix, hex(key.as_bytes()));
        let claim = Claim { lane: worker.0, key, name, token: format!("{:032x}", fastrand::u128(..)) };
        let (asker, found) = oneshot::channel();
        self.locks.spawn(keep(Arc::clone(self), claim, asker));
        match found.await {
            Ok(Found::Free(guard)) => Lock::Held(guard),
            Ok(Found::Holder(holder)) => Lock::Taken(waiter.behind(&holder)),
            Ok(Found::Trouble) | Err(_) => Lock::Unavailable,
        }
    }

    /// Lets a lock go once what was just put for this query is in Redis; at once where it will not be.
    pub(in crate::store) fn release_when_written(&self, guard: &Guard, query: &Query<'_>) {
        let base = query.address;
        let variant = match self.waiting(&base.key) {
            Some(Waiting::Store(Slot::Marker(marker))) => {
                Some(base.variant(query.request, &selecting(query, &marker)).key)
            }
            Some(_) | None => None,
        };
        let keys = variant.into_iter().chain([base.key]);
        match keys.map(|key| self.pending.watch(&key)).collect() {
            Some(records) => guard.end(End::Written(records)),
            None => guard.not_shared(),
        }
    }

    /// Takes the lock, or says who has it.
    async fn claim(&self, claim: &Claim) -> Result<Option<Bytes>, Trouble> {
        let deadline = Instant::now() + self.config.timeout;
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, self.lanes[claim.lane].permits.acquire()).await else {
            return Err(Trouble::Timeout);
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let outcome = match self.lanes[claim.lane].writing(left) {
            Some(client) => {
                let lease = Some(Expiration::PX(LEASE.as_millis() as i64));
                client.set(&claim.name, claim.token.as_str(), lease, Some(SetOptions::NX), true).await
            }
            None => Err(not_connected()),
        };
        self.note(claim.lane, outcome)
    }

    /// Whether the lock is still ours, as far as Redis says.
    async fn renew(&self, claim: &Claim) -> bool {
        let lease = LEASE.as_millis().to_string();
        self.run(&RENEW, claim, vec![lease.into()]).await != Some(0)
    }

    async fn release(&self, claim: &Claim, wake: Wake) {
        let channel = wake_channel(&self.config.prefix);
        let message = Bytes::from(wake.message(&claim.key));
        // What cannot be released ends with its lease.
        self.run(&RELEASE, claim, vec![channel.into(), message.into()]).await;
    }

    /// Runs a script on a lock; none: Redis did not answer.
    async fn run(&self, script: &Script, claim: &Claim, arguments: Vec<Value>) -> Option<i64> {
        let lane = &self.lanes[claim.lane];
        if !lane.is_usable() {
            return None;
        }
        let permit = tokio::time::timeout(self.write_timeout(), lane.permits.acquire()).await;
        let _permit = permit.ok()?.ok()?;
        let client = lane.writing(self.write_timeout())?;
        let arguments = [vec![Value::from(claim.token.as_str())], arguments].concat();
        let outcome = script.run(&client, &claim.name, arguments).await;
        self.note(claim.lane, outcome).ok()
    }
}

/// Takes a lock, renews it for as long as it is held, and releases it.
async fn keep(tier: Arc<RedisTier>, claim: Claim, asker: oneshot::Sender<Found>) {
    let (end, mut ended) = mpsc::channel(1);
    let found = match tier.claim(&claim).await {
        Ok(None) => Found::Free(Guard { end }),
        Ok(Some(holder)) => return drop(asker.send(Found::Holder(holder))),
        Err(trouble) => {
            drop(asker.send(Found::Trouble));
            // Redis may have taken it, or take it late, and then nobody has it.
            if matches!(trouble, Trouble::Timeout | Trouble::Connection) {
                tier.release(&claim, Wake::Unsure).await;
            }
            return;
        }
    };
    // Who asked may have left: the guard is dropped then, and the lock released.
    drop(asker.send(found));
    let end = async move {
        match ended.recv().await {
            Some(end) => end.awaited().await,
            None => Wake::Unsure,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            wake = &mut end => return tier.release(&claim, wake).await,
            () = tokio::time::sleep(RENEWAL) => {
                if !tier.renew(&claim).await {
                    // Lost: another may hold it by now.
                    return;
                }
            }
        }
    }
}
