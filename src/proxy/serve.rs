//! Answers made from what the store holds and from what a fetch brought.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};

use super::answer::{Answer, Content};
use super::ask::Ask;
use super::fetch::{Fetch, Fetched, Report};
use super::fill::{Fill, FillReader, Room};
use super::reply;
use super::share::Lead;
use crate::clock::Timestamp;
use crate::fields::hop_by_hop;
use crate::policy::reuse::{Use, Why, usable_on_error};
use crate::store::{Found, Looked, Lookup, Missing, Tier};
use crate::stored::StoredResponse;
use crate::telemetry::cache_status::{CacheStatus, Detail, Outcome};
use crate::telemetry::limits::Limit;
use crate::upstream::{ResponseBody, UpstreamError};

/// A body that is no more than what a connection takes anyway.
const SMALL_BYTES: usize = 64 << 10;

/// What the store said.
#[derive(Clone, Debug)]
pub struct LookedUp {
    lookup: Lookup,
    /// How often something had been stored under the key before.
    changes: u64,
}

impl LookedUp {
    /// Asks the store.
    pub async fn from_store(ask: &Ask) -> Self {
        let (tags, store) = (ask.tags(), &ask.proxy.shared.store);
        let query = ask.store_query(&tags, ask.now());
        let changes = store.changes(&ask.address);
        Self { lookup: with_room(ask, store.get(ask.proxy.worker, &query).await), changes }
    }

    /// Asks the rest of the store, after this process was `looked` through.
    pub async fn after(ask: &Ask, looked: Looked) -> Self {
        let (tags, store) = (ask.tags(), &ask.proxy.shared.store);
        let query = ask.store_query(&tags, ask.now());
        let changes = store.changes(&ask.address);
        Self { lookup: with_room(ask, store.look_on(ask.proxy.worker, &query, looked).await), changes }
    }

    /// Whether something was stored under the key meanwhile, perhaps in Redis alone.
    pub fn is_outdated(&self, ask: &Ask) -> bool {
        ask.proxy.shared.store.changes(&ask.address) != self.changes
    }

    /// What is stored, whether it must be validated first, and why the upstream would be asked.
    pub fn for_decision(&self) -> (Option<Arc<StoredResponse>>, bool, Why) {
        match &self.lookup {
            Lookup::Found(Found { response, must_validate, .. }) => {
                (Some(Arc::clone(response)), *must_validate, Why::Stale)
            }
            Lookup::Missing(Missing::Variant(_)) => (None, false, Why::VaryMiss),
            Lookup::Missing(Missing::Key | Missing::Purged) => (None, false, Why::UriMiss),
            Lookup::Missing(Missing::Uncacheable | Missing::Unavailable | Missing::Corrupt | Missing::NoRoom) => {
                (None, false, Why::Miss)
            }
        }
    }

    /// What is stored.
    pub const fn stored(&self) -> Option<&Arc<StoredResponse>> {
        match &self.lookup {
            Lookup::Found(found) => Some(&found.response),
            Lookup::Missing(_) => None,
        }
    }

    /// Whether the key is remembered as uncacheable.
    pub const fn is_uncacheable(&self) -> bool {
        match &self.lookup {
            Lookup::Found(found) => found.uncacheable,
            Lookup::Missing(missing) => matches!(missing, Missing::Uncacheable),
        }
    }

    /// Why nothing is.
    pub const fn missing(&self) -> Option<&Missing> {
        match &self.lookup {
            Lookup::Found(_) => None,
            Lookup::Missing(missing) => Some(missing),
        }
    }

    /// The answer from what is stored. `collapsed`: another process was waited for, who stored it, and why.
    pub fn serve(&self, ask: &Ask, stored: &StoredResponse, detail: Option<Detail>, collapsed: Option<Why>) -> Answer {
        let now = ask.now();
        if let Some(why) = collapsed {
            let outcome = collapsed_into(why, stored.status);
            return from_stored(&ask.parts, stored, now, CacheStatus { outcome, detail });
        }
        let tier = match &self.lookup {
            Lookup::Found(found) => found.tier,
            Lookup::Missing(_) => Tier::Memory,
        };
        hit(&ask.parts, stored, tier, detail, now)
    }

    /// Fetches and answers from what that brings. The fetch goes on when this request's client leaves.
    pub async fn fetch(
        &self,
        ask: &Arc<Ask>,
        stored: Option<Arc<StoredResponse>>,
        why: Why,
        lead: Option<Lead>,
    ) -> Answer {
        let fallback = stored.clone();
        let report = Fetch::start(ask, stored, lead).await;
        let mut answer = reported(ask, report, fallback.as_ref(), why).await;
        answer.cache_status.detail = answer.cache_status.detail.or_else(|| self.detail());
        answer
    }

    fn detail(&self) -> Option<Detail> {
        match self.missing()? {
            Missing::Key | Missing::Variant(_) => None,
            Missing::Purged => Some(Detail::Purged),
            Missing::Uncacheable => Some(Detail::Uncacheable),
            Missing::Unavailable => Some(Detail::RedisUnavailable),
            Missing::Corrupt => Some(Detail::CorruptRecord),
            Missing::NoRoom => Some(Detail::ServingLimit),
        }
    }
}

/// The answer from what `tier` held.
pub fn hit(request: &Parts, stored: &StoredResponse, tier: Tier, detail: Option<Detail>, now: Timestamp) -> Answer {
    from_stored(request, stored, now, CacheStatus { outcome: Outcome::Hit { ttl: ttl(stored, now), tier }, detail })
}

/// What was found, where there is room for it: what Redis held and memory does not take is counted once for each client that
/// reads it, though clients that asked together share it.
fn with_room(ask: &Ask, lookup: Lookup) -> Lookup {
    let shared = &ask.proxy.shared;
    let Lookup::Found(mut found) = lookup else { return lookup };
    let length = found.response.body.len();
    if found.tier == Tier::Memory || length <= SMALL_BYTES || shared.store.memory_admits(length) {
        return Lookup::Found(found);
    }
    let Some(room) = shared.serving.reserve(length as u64) else {
        shared.telemetry.limited(Limit::MaxServing);
        return Lookup::Missing(Missing::NoRoom);
    };
    let mut response = Arc::unwrap_or_clone(found.response);
    response.body = Bytes::from_owner(Housed { body: response.body, _room: room });
    found.response = Arc::new(response);
    Lookup::Found(found)
}

/// A body with its room, which is given back when nobody reads it any more.
struct Housed {
    body: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Housed {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl From<Use> for Option<Detail> {
    fn from(usage: Use) -> Self {
        match usage {
            Use::Fresh => None,
            Use::Stale => Some(Detail::MaxStale),
        }
    }
}

/// The outcome of a request that another's fetch answered.
const fn collapsed_into(why: Why, status: StatusCode) -> Outcome {
    Outcome::Forward { why, fwd_status: Some(status), stored: true, collapsed: true, revalidated: false }
}

/// The answer from what a fetch brought; `fallback` is what is stored, should it have failed.
pub async fn reported(ask: &Ask, report: Option<Report>, fallback: Option<&Arc<StoredResponse>>, why: Why) -> Answer {
    let Some(Report { fetched, status, upstream }) = report else {
        return stale_or_failed(ask, fallback, why, UpstreamError::Protocol);
    };
    let mut answer = match fetched {
        Fetched::Fill(fill, fields) => received(ask, fill, fields, why).await,
        Fetched::Stored(stored) => {
            let revalidated = status == Some(StatusCode::NOT_MODIFIED);
            let outcome = Outcome::Forward { why, fwd_status: status, stored: true, collapsed: false, revalidated };
            from_stored(&ask.parts, &stored, ask.now(), CacheStatus { outcome, detail: None })
        }
        Fetched::Once(stored, reason) => {
            let detail = Some(Detail::NotStored(reason));
            from_stored(&ask.parts, &stored, ask.now(), CacheStatus { outcome: forwarded(why, status, false), detail })
        }
        Fetched::Stale(stored) => stale_on_error(ask, &stored),
        Fetched::Pass(response, reason) => {
            passed_to(ask, *response, forwarded(why, status, false), Some(Detail::NotStored(reason)))
        }
        Fetched::Failed(error) => stale_or_failed(ask, fallback, why, error),
    };
    answer.upstream = Some(upstream);
    answer
}

/// The answer that reads along with another request's fetch.
pub fn stream(fill: Arc<Fill>, why: Why) -> Answer {
    let outcome = collapsed_into(why, fill.head.status);
    let content = Content::Fill(FillReader::follower(Arc::clone(&fill)));
    streamed(&fill, fill.head.fields.to_map(), content, CacheStatus { outcome, detail: None })
}

/// The upstream failed: what is stored, where that may be used now, else the error.
pub fn stale_or_failed(ask: &Ask, stored: Option<&Arc<StoredResponse>>, why: Why, error: UpstreamError) -> Answer {
    match stored.filter(|stored| usable_on_error(&ask.parts, stored, ask.now())) {
        Some(stored) => stale_on_error(ask, stored),
        None => Answer::failed(error, forwarded(why, None, false)),
    }
}

/// An answer that the upstream gave and that is not stored.
pub fn passed(response: Response<ResponseBody>, outcome: Outcome, detail: Option<Detail>) -> Answer {
    let (mut parts, body) = response.into_parts();
    hop_by_hop::remove(&mut parts.headers);
    let head = Response::from_parts(parts, ());
    Answer {
        head,
        content: Content::Upstream(Box::new(body)),
        cache_status: CacheStatus { outcome, detail },
        upstream: None,
    }
}

/// The same where the client's own condition was kept back: it may make a 304 of it.
fn passed_to(ask: &Ask, response: Response<ResponseBody>, outcome: Outcome, detail: Option<Detail>) -> Answer {
    let (mut parts, body) = response.into_parts();
    match reply::not_modified(&ask.parts, &parts, ask.now()) {
        Some(mut head) => {
            hop_by_hop::remove(head.headers_mut());
            Answer { head, content: Content::Empty, cache_status: CacheStatus { outcome, detail }, upstream: None }
        }
        None => {
            parts.extensions.clear();
            passed(Response::from_parts(parts, body), outcome, detail)
        }
    }
}

/// The outcome of a request that the upstream answered.
pub const fn forwarded(why: Why, fwd_status: Option<StatusCode>, stored: bool) -> Outcome {
    Outcome::Forward { why, fwd_status, stored, collapsed: false, revalidated: false }
}

/// The leader's own answer: streamed, or taken from the whole where the request asks for less than it.
async fn received(ask: &Ask, fill: Arc<Fill>, received: HeaderMap, why: Why) -> Answer {
    let cache_status = CacheStatus { outcome: forwarded(why, Some(fill.head.status), true), detail: None };
    let fields = &ask.parts.headers;
    let asks_for_less = [RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE].iter().any(|name| fields.contains_key(name));
    if asks_for_less && let Some(stored) = fill.stored().await {
        return from_stored(&ask.parts, &stored, ask.now(), cache_status);
    }
    let content = Content::Fill(FillReader::leader(Arc::clone(&fill)));
    streamed(&fill, received, content, cache_status)
}

fn streamed(fill: &Fill, fields: HeaderMap, content: Content, cache_status: CacheStatus) -> Answer {
    let mut head = Response::new(());
    *head.status_mut() = fill.head.status;
    *head.headers_mut() = fields;
    // What came aged goes on aged (RFC 9111 §5.1).
    if fill.head.freshness.initial_age >= Duration::from_secs(1) {
        head.headers_mut().insert(AGE, fill.head.freshness.initial_age.as_secs().into());
    }
    Answer { head, content, cache_status, upstream: None }
}

/// The answer from what is stored, in place of the upstream's error.
pub fn stale_on_error(ask: &Ask, stored: &StoredResponse) -> Answer {
    let now = ask.now();
    let outcome = Outcome::StaleOnError { ttl: ttl(stored, now) };
    from_stored(&ask.parts, stored, now, CacheStatus { outcome, detail: Some(Detail::StaleIfError) })
}

fn from_stored(request: &Parts, stored: &StoredResponse, now: Timestamp, cache_status: CacheStatus) -> Answer {
    let (head, body) = reply::from_stored(request, stored, now);
    Answer { head, content: body.into(), cache_status, upstream: None }
}

/// Seconds of freshness left, negative when stale (RFC 9211 §2.4).
fn ttl(stored: &StoredResponse, now: Timestamp) -> i64 {
    let left = i64::try_from(stored.fresh_for(now).as_secs()).unwrap_or(i64::MAX);
    if left > 0 { left } else { -i64::try_from(stored.stale_for(now).as_secs()).unwrap_or(i64::MAX) }
}
