//! Sharing one fetch among the processes that share a Redis: hold the key's lock, or wait for who does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ask::Ask;
use crate::key::CacheKey;
use crate::store::{Guard, Lock, Lookup, Missing, Waiter, Wake};
use crate::stored::StoredResponse;

/// How often one who waits looks for itself: messages can be lost.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a holder that was there counts as there while Redis gives no answer in time: one that is late is no reason for
/// everybody who waits to fetch.
const HOLDER_STANDS: Duration = Duration::from_millis(500);
/// How many holders it waits for, one after another: the first may have died. More would be a queue.
const HOLDERS_MAX: usize = 2;

/// What one who leads in its process does next.
pub enum Led {
    /// Fetch, with the lock where it is ours.
    Fetch(Option<Guard>),
    /// Ask the store again, which has more now; whether it waited for that.
    Again {
        /// Another process was fetching.
        waited: bool,
    },
}

/// Takes the lock of `key`, or waits for who has it until the store holds something else than `stored`, what was fetched
/// turns out not to be shared, or the deadline passes. Trouble means to fetch without a lock.
pub async fn lead(ask: &Ask, key: CacheKey, stored: Option<&Arc<StoredResponse>>, deadline: Instant) -> Led {
    let store = &ask.proxy.shared.store;
    let (mut behind, mut holders): (Option<(Waiter, Instant)>, _) = (None, 0);
    loop {
        match store.lock(ask.proxy.worker, key).await {
            Lock::Held(guard) => return lead_with(guard, ask, key, stored, holders > 0).await,
            Lock::Taken(waiter) => {
                let is_same = behind.as_ref().is_some_and(|(last, _)| last.holder() == waiter.holder());
                holders += usize::from(!is_same);
                behind = Some((waiter, Instant::now()));
            }
            Lock::Unavailable => {}
        }
        let Some((waiter, _)) = behind.as_mut().filter(|(_, seen)| seen.elapsed() < HOLDER_STANDS) else {
            return Led::Fetch(None);
        };
        if is_superseded(ask, key, stored).await {
            return Led::Again { waited: true };
        }
        if holders > HOLDERS_MAX || Instant::now() >= deadline {
            return Led::Fetch(None);
        }
        match waiter.wait(deadline.min(Instant::now() + LOOK_EVERY)).await {
            Wake::Stored => {
                // Into memory, before those who follow here are freed.
                is_superseded(ask, key, stored).await;
                return Led::Again { waited: true };
            }
            Wake::NotShared => return Led::Fetch(None),
            Wake::Unsure => {}
        }
    }
}

/// The same for a validation in the background, which is left to who has the lock: it only learns what that stores, and
/// waits so long that a response in much use does not ask for the lock all the time.
pub async fn lead_in_background(ask: &Ask, key: CacheKey, stored: &Arc<StoredResponse>) -> Led {
    match ask.proxy.shared.store.lock(ask.proxy.worker, key).await {
        Lock::Held(guard) => lead_with(guard, ask, key, Some(stored), false).await,
        Lock::Taken(mut waiter) => {
            waiter.wait(Instant::now() + LOOK_EVERY).await;
            is_superseded(ask, key, Some(stored)).await;
            Led::Again { waited: true }
        }
        Lock::Unavailable => Led::Fetch(None),
    }
}

/// Another process may have ended its fetch between the lookup and the lock.
async fn lead_with(guard: Guard, ask: &Ask, key: CacheKey, stored: Option<&Arc<StoredResponse>>, waited: bool) -> Led {
    if is_superseded(ask, key, stored).await {
        guard.found();
        return Led::Again { waited };
    }
    Led::Fetch(Some(guard))
}

/// Whether the store holds another response than the lookup found, or knows a narrower key.
async fn is_superseded(ask: &Ask, key: CacheKey, stored: Option<&Arc<StoredResponse>>) -> bool {
    let tags = ask.tags();
    match ask.proxy.shared.store.get_newest(ask.proxy.worker, &ask.store_query(&tags, ask.now())).await {
        Lookup::Found(found) => stored.is_none_or(|stored| stored.response_time < found.response.response_time),
        Lookup::Missing(Missing::Variant(names)) => ask.address.variant(&ask.parts.headers, &names).key != key,
        Lookup::Missing(_) => false,
    }
}
