//! Sharing one fetch among the requests for a key: lead, follow, or go alone.

use std::sync::Arc;

use http::Method;
use http::header::RANGE;
use tokio::time::Instant;

use super::ask::Ask;
use super::cluster::{self, Led};
use super::fetch::Fetch;
use super::fill::{Fill, News};
use super::serve::LookedUp;
use crate::clock::Timestamp;
use crate::collapse::{Follower, Lease, Turn, Wait, WaitersMax};
use crate::fields::cache_control::CacheControl;
use crate::fields::vary::SelectingFields;
use crate::key::CacheKey;
use crate::policy::reuse::{Decision, Why, decide, usable_on_error};
use crate::route::Collapse;
use crate::store::{Guard, Lookup, Missing, Query};
use crate::stored::StoredResponse;
use crate::upstream::UpstreamError;

/// How often a request waits behind others before it fetches for itself: once for the key, once for the variant that
/// the first wait made known, and once more for a response that was purged or replaced meanwhile.
const WAITS_MAX: u32 = 3;

/// One request's part in sharing.
pub struct Share {
    key: CacheKey,
    arrived: Timestamp,
    deadline: Instant,
    waits: u32,
}

/// What a request does next.
pub enum Step {
    /// Fetch: as the leader, or alone.
    Fetch(Option<Lead>),
    /// Ask the store again.
    Again,
    /// The same, after another process' fetch.
    AgainBehindAnother,
    /// Read along with the leader.
    Stream(Arc<Fill>),
    /// The leader was answered with an error, in whose place this may be used.
    Stale(Arc<StoredResponse>),
    /// The leader's fetch failed, and so would this one; or too many wait for it.
    Failed(UpstreamError),
}

/// The duty to fetch for those who wait: in this process and, with the key's lock, in all.
#[derive(Debug)]
pub struct Lead {
    lease: Lease<News>,
    lock: Option<Guard>,
}

impl Lead {
    const fn new(lease: Lease<News>, lock: Option<Guard>) -> Self {
        Self { lease, lock }
    }

    /// Tells those who wait. Other processes hear only that there is nothing to be shared.
    pub fn publish(&self, news: News) {
        if let (News::NotShared | News::Unwell | News::Failed(_), Some(lock)) = (&news, &self.lock) {
            lock.not_shared();
        }
        self.lease.publish(news);
    }

    /// What was fetched has been put: the other processes are told once Redis has it.
    pub fn stored(&self, ask: &Ask, query: &Query<'_>) {
        if let Some(lock) = &self.lock {
            ask.proxy.shared.store.release_when_written(lock, query);
        }
    }
}

impl Share {
    /// One deadline bounds all its waiting.
    pub fn new(ask: &Ask) -> Self {
        Self {
            key: ask.address.key,
            arrived: ask.now(),
            deadline: Instant::now() + ask.caching().collapse_wait,
            waits: 0,
        }
    }

    /// Whether the request has waited, and what is stored came after it.
    pub fn has_waited_for(&self, stored: &StoredResponse) -> bool {
        self.waits > 0 && stored.response_time >= self.arrived
    }

    /// Leads, follows, or goes alone.
    pub async fn turn(&mut self, ask: &Arc<Ask>, stored: Option<&Arc<StoredResponse>>, looked_up: &LookedUp) -> Step {
        if self.waits == 0 {
            ask.count();
        }
        // What was fetched since this request came and still must be validated would be so again after each wait.
        let is_unshareable = stored.is_some_and(|stored| self.has_waited_for(stored));
        let is_spent = looked_up.is_uncacheable() || is_unshareable || self.waits >= WAITS_MAX;
        if is_spent || ask.caching().collapse == Collapse::Off || !is_shareable(ask) {
            return Step::Fetch(None);
        }
        self.select(ask, stored, looked_up);
        let of_key = ask.caching().collapse_waiters;
        let max = WaitersMax { of_key, in_all: ask.generation.server.limits.waiters };
        match ask.proxy.shared.inflight.join(self.key, max) {
            // A leader may have ended between the lookup and now.
            Turn::Lead(lease) if looked_up.is_outdated(ask) || is_stored_meanwhile(ask, stored) => {
                drop(lease);
                self.waits += 1;
                Step::Again
            }
            Turn::Lead(lease) => self.lead(ask, stored, lease).await,
            Turn::Follow(follower) => self.follow(ask, follower, looked_up.stored()).await,
            // Each that fetched for itself now would be one more for an upstream that is slow already.
            Turn::Full(limit) => {
                ask.proxy.shared.telemetry.limited(limit);
                Step::Failed(UpstreamError::Overloaded)
            }
        }
    }

    /// Leads in this process; where all share, only with the lock, or when waiting for who has it is over.
    async fn lead(&mut self, ask: &Ask, stored: Option<&Arc<StoredResponse>>, lease: Lease<News>) -> Step {
        let led = match ask.caching().collapse {
            Collapse::Off | Collapse::Local => Led::Fetch(None),
            // In a box: 9 KiB that every request's future would have room for, and that each miss would copy twice.
            Collapse::Cluster => Box::pin(cluster::lead(ask, self.key, stored, self.deadline)).await,
        };
        match led {
            Led::Fetch(lock) => Step::Fetch(Some(Lead::new(lease, lock))),
            Led::Again { waited } => {
                self.waits += 1;
                if waited { Step::AgainBehindAnother } else { Step::Again }
            }
        }
    }

    /// Narrows the key to the variant, where the selecting fields are known.
    fn select(&mut self, ask: &Ask, stored: Option<&Arc<StoredResponse>>, looked_up: &LookedUp) {
        if let Some(Missing::Variant(names)) = looked_up.missing() {
            self.key = ask.address.variant(&ask.parts.headers, names).key;
        } else if let Some(stored) = stored {
            self.key = variant_key(ask, stored);
        }
    }

    async fn follow(
        &mut self,
        ask: &Arc<Ask>,
        mut follower: Follower<News>,
        stored: Option<&Arc<StoredResponse>>,
    ) -> Step {
        self.waits += 1;
        match follower.wait(self.deadline).await {
            Wait::News(News::Unwell) => match stored.filter(|stored| usable_on_error(&ask.parts, stored, ask.now())) {
                Some(stored) => Step::Stale(Arc::clone(stored)),
                None => Step::Fetch(None),
            },
            Wait::News(News::Streaming(fill)) => self.read_along(ask, fill),
            Wait::News(News::Failed(error)) => Step::Failed(error),
            Wait::News(News::NotShared) | Wait::TimedOut => Step::Fetch(None),
            Wait::Freed => Step::Again,
        }
    }

    /// A follower decides again with its own request: the leader's response may be another variant, not fresh enough
    /// for it, or purged meanwhile.
    fn read_along(&mut self, ask: &Ask, fill: Arc<Fill>) -> Step {
        let own = variant_key(ask, &fill.head);
        if fill.variant != own {
            self.key = own;
            return Step::Again;
        }
        let head = Some(Arc::clone(&fill.head));
        let decision = decide(&ask.parts, head, false, Why::UriMiss, &ask.caching().rules, ask.now());
        let is_purged = ask.proxy.shared.store.is_purged(&fill.head, &ask.tags(), ask.now());
        // What comes while it waits is as new as the request's own directives can ask for.
        let serves = matches!(decision, Decision::Serve(..) | Decision::Validate(_, Why::Request));
        if serves && !is_purged { Step::Stream(fill) } else { Step::Fetch(None) }
    }
}

/// Validates in the background, unless that is being done. A request for a part or a head leaves it to one for the whole.
pub fn revalidate(ask: &Arc<Ask>, stored: &Arc<StoredResponse>) {
    if !is_shareable(ask) {
        return;
    }
    let key = variant_key(ask, stored);
    let Some(lease) = ask.proxy.shared.inflight.lead(key) else { return };
    let (ask, stored) = (Arc::clone(ask), Arc::clone(stored));
    if ask.caching().collapse != Collapse::Cluster {
        return Fetch::start_in_background(ask, stored, Lead::new(lease, None));
    }
    let shared = Arc::clone(&ask.proxy.shared);
    shared.tasks.spawn(async move {
        match cluster::lead_in_background(&ask, key, &stored).await {
            Led::Fetch(lock) => Fetch::start_in_background(ask, stored, Lead::new(lease, lock)),
            Led::Again { .. } => {}
        }
    });
}

/// The key of the variant of `stored` that the request selects.
pub fn variant_key(ask: &Ask, stored: &StoredResponse) -> CacheKey {
    match &stored.selecting {
        SelectingFields::Names(names) if !names.is_empty() => ask.address.variant(&ask.parts.headers, names).key,
        SelectingFields::Names(_) | SelectingFields::Any => ask.address.key,
    }
}

/// Whether this process holds another response than the lookup found.
fn is_stored_meanwhile(ask: &Ask, stored: Option<&Arc<StoredResponse>>) -> bool {
    let tags = ask.tags();
    match ask.proxy.shared.store.get_local(&ask.store_query(&tags, ask.now())) {
        Some(Lookup::Found(found)) => stored.is_none_or(|stored| stored.response_time < found.response.response_time),
        Some(Lookup::Missing(_)) | None => false,
    }
}

/// A part, or a head without content, answers few of those who wait; what a client lets nobody store, nobody else.
fn is_shareable(ask: &Ask) -> bool {
    let fields = &ask.parts.headers;
    ask.parts.method != Method::HEAD && !fields.contains_key(RANGE) && !CacheControl::of_request(fields).no_store
}
