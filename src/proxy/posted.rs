//! Responses to POST that can answer later GETs (RFC 9110 §9.3.3).

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri, response};

use super::answer::Answer;
use super::ask::{self, Ask, Sender};
use super::fetch::Fetch;
use super::{Proxy, forward, serve};
use crate::clock::Timestamp;
use crate::fields::forwarding;
use crate::generation::Generation;
use crate::policy::reuse::Why;
use crate::policy::settle::{self, Exchange, Framing};
use crate::policy::validate::Conditional;
use crate::store::ledger::Synced;
use crate::stored::StoredResponse;
use crate::target::Target;
use crate::upstream::ResponseBody;

/// A POST that passed the cache by and is being answered.
pub struct Posted<'p> {
    /// The configuration it saw.
    pub generation: &'p Arc<Generation>,
    /// The upstream that answered it.
    pub upstream: &'p str,
    /// Its target.
    pub target: &'p Target,
    /// Who sent it.
    pub sender: &'p Sender,
    /// Its head.
    pub parts: &'p Parts,
    /// What of it the upstream was sent.
    pub sent: Sent,
    /// The ledger, before it was sent on.
    pub synced: Synced,
    /// When it was sent on.
    pub request_time: Timestamp,
}

/// The target and the fields that the upstream was sent, but for those that describe content.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    uri: Uri,
    fields: HeaderMap,
}

/// A response to POST that may be stored.
pub struct Storable {
    ask: Ask,
    head: Box<StoredResponse>,
    /// The ledger when nothing had purged it yet.
    pub valid_at: Synced,
}

impl Sent {
    /// Those of a request to the upstream.
    pub fn of<B>(request: &Request<B>) -> Self {
        let mut fields = request.headers().clone();
        forwarding::remove_if(&mut fields, |name| name.as_str().starts_with("content-"));
        Self { uri: request.uri().clone(), fields }
    }

    /// What the upstream would be sent for `ask`.
    fn for_ask(ask: &Ask) -> Self {
        Self { uri: forward::uri(&ask.target, ask.query.as_deref(), Some(&ask.route)), fields: ask.fields() }
    }
}

impl Posted<'_> {
    /// What may be stored for GETs of the target once the POST's own purge is made; none where something else has purged
    /// it since the POST was sent on: then the answer may be older than that.
    pub fn storable(&self, proxy: &Arc<Proxy>, response: &response::Parts, framing: Framing) -> Option<Storable> {
        let mut head = self.head(proxy, response, framing)?;
        let ask = self.get(proxy)?;
        let valid_at = proxy.shared.store.synced();
        head.provenance = ask.provenance(&head, self.synced).ok()?;
        let is_purged = proxy.shared.store.is_purged(&head, &ask.tags(), ask.now());
        (!is_purged && ask.is_asked_again()).then_some(Storable { ask, head, valid_at })
    }

    /// The GET that the response answers; none where that GET would go elsewhere, pass the cache by, or be sent otherwise
    /// than the POST was: what an unkeyed cookie or parameter got is for its sender.
    fn get(&self, proxy: &Arc<Proxy>) -> Option<Ask> {
        let matched = self.generation.routes.find(self.target, &Method::GET)?;
        let caching = matched.route.caching.as_ref()?;
        let mut parts = self.parts.clone();
        parts.method = Method::GET;
        let passes = ask::bypass_reason(matched.route, caching, &parts, false).is_some();
        if passes || *matched.route.upstream != *self.upstream {
            return None;
        }
        forward::reduce(&mut parts.headers, self.sender, matched.route, caching, false);
        let claims = self.sender.claims(&parts.headers);
        let address = caching.key.address(&Method::GET, self.target, &parts.headers, &claims, b"").ok()?;
        let ask = Ask {
            proxy: Arc::clone(proxy),
            counters: Arc::clone(&self.generation.counters[matched.index]),
            route: Arc::clone(matched.route),
            query: caching.key.query(self.target.query()),
            params: matched.params,
            target: self.target.clone(),
            parts,
            content: Bytes::new(),
            address,
            sender: self.sender.clone(),
            generation: Arc::clone(self.generation),
        };
        (Sent::for_ask(&ask) == self.sent).then_some(ask)
    }

    fn head(&self, proxy: &Proxy, response: &response::Parts, framing: Framing) -> Option<Box<StoredResponse>> {
        let matched = self.generation.routes.find(self.target, &Method::GET)?;
        let exchange = Exchange {
            request: self.parts,
            conditional: Conditional::Plain,
            response,
            request_time: self.request_time,
            response_time: proxy.shared.clock.now(),
            framing,
            jitter: fastrand::f64(),
            // That is known once the GET is.
            is_asked_again: true,
        };
        settle::storable_for_get(&exchange, &self.target.to_uri()?, &matched.route.caching.as_ref()?.rules)
    }
}

impl Storable {
    /// Stores it, by where the ledger stands for it, while its client reads it.
    pub async fn store(self, response: Response<ResponseBody>, synced: Synced, why: Why) -> Answer {
        let ask = Arc::new(self.ask);
        let report = Fetch::adopt(Arc::clone(&ask), *self.head, response, synced).await;
        serve::reported(&ask, report, None, why).await
    }
}
