//! Responses to POST that can answer later GETs (RFC 9110 §9.3.3).

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};

use super::answer::Answer;
use super::ask::{self, Ask, Sender};
use super::fetch::{self, Fetch};
use super::{Proxy, forward, serve};
use crate::clock::Timestamp;
use crate::fields::hop_by_hop;
use crate::generation::Generation;
use crate::policy::reuse::Why;
use crate::policy::settle::{self, Exchange, Framing};
use crate::policy::validate::Conditional;
use crate::route::Caching;
use crate::stored::StoredResponse;
use crate::target::Target;
use crate::upstream::ResponseBody;

/// A request that passed the cache by and has been answered.
pub struct Posted {
    /// The configuration it saw.
    pub generation: Arc<Generation>,
    /// The upstream that answered it.
    pub upstream: Arc<str>,
    /// Its target.
    pub target: Target,
    /// Who sent it.
    pub sender: Sender,
    /// Its head.
    pub parts: Parts,
    /// What of it the upstream was sent.
    pub sent: Sent,
    /// When it was sent on.
    pub request_time: Timestamp,
}

/// The target and the fields that the upstream was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    uri: Uri,
    fields: HeaderMap,
}

/// A response to POST on its way into the store.
pub struct Storable {
    ask: Ask,
    head: Box<StoredResponse>,
    response: Response<ResponseBody>,
}

impl Sent {
    /// Those of a request to the upstream.
    pub fn of<B>(request: &Request<B>) -> Self {
        Self { uri: request.uri().clone(), fields: request.headers().clone() }
    }

    /// What the upstream would be sent for `ask`.
    fn for_ask(ask: &Ask) -> Self {
        Self {
            uri: forward::uri(&ask.target, ask.query.as_deref(), Some(&ask.route)),
            fields: forward::fields(&ask.parts, &ask.sender, Some(&ask.route), Some(ask.caching())),
        }
    }
}

impl Posted {
    /// What is to be stored for GETs of the target, or the response back. What the POST has invalidated is gone by now.
    pub fn storable(
        self,
        proxy: &Arc<Proxy>,
        response: Response<ResponseBody>,
    ) -> Result<Storable, Box<Response<ResponseBody>>> {
        let (parts, body) = response.into_parts();
        let framing = fetch::framing(&parts, &body);
        let found = (self.parts.method == Method::POST).then(|| self.get(proxy, &parts, framing)).flatten();
        let response = Response::from_parts(parts, body);
        match found {
            Some((ask, head)) => Ok(Storable { ask, head, response }),
            None => Err(Box::new(response)),
        }
    }

    /// The GET that the response answers, and the head to store; none where that GET would go elsewhere, pass the
    /// cache by, or be sent otherwise than the POST was: what an unkeyed cookie or parameter got is for its sender.
    fn get(
        self,
        proxy: &Arc<Proxy>,
        response: &http::response::Parts,
        framing: Framing,
    ) -> Option<(Ask, Box<StoredResponse>)> {
        let generation = Arc::clone(&self.generation);
        let matched = generation.routes.find(&self.target, &Method::GET)?;
        let caching = matched.route.caching.as_ref()?;
        let head = self.head(proxy, caching, response, framing)?;
        let mut parts = self.parts;
        parts.method = Method::GET;
        let passes = ask::bypass_reason(matched.route, caching, &parts, false).is_some();
        if passes || matched.route.upstream != self.upstream {
            return None;
        }
        hop_by_hop::remove(&mut parts.headers);
        caching.key.reduce(&mut parts.headers);
        let address = caching.key.address(&Method::GET, &self.target, &parts.headers, b"").ok()?;
        let ask = Ask {
            proxy: Arc::clone(proxy),
            counters: Arc::clone(&generation.counters[matched.index]),
            route: Arc::clone(matched.route),
            query: caching.key.query(self.target.query()),
            params: matched.params,
            target: self.target,
            parts,
            content: Bytes::new(),
            address,
            sender: self.sender,
            generation: self.generation,
        };
        (Sent::for_ask(&ask) == self.sent).then_some((ask, head))
    }

    fn head(
        &self,
        proxy: &Proxy,
        caching: &Caching,
        response: &http::response::Parts,
        framing: Framing,
    ) -> Option<Box<StoredResponse>> {
        let exchange = Exchange {
            request: &self.parts,
            conditional: Conditional::Plain,
            response,
            request_time: self.request_time,
            response_time: proxy.shared.clock.now(),
            framing,
            jitter: fastrand::f64(),
        };
        settle::storable_for_get(&exchange, &self.target.to_uri()?, &caching.rules)
    }
}

impl Storable {
    /// Stores it while its client reads it.
    pub async fn store(self, why: Why) -> Answer {
        let ask = Arc::new(self.ask);
        let report = Fetch::adopt(Arc::clone(&ask), *self.head, self.response).await;
        serve::reported(&ask, report.ok(), None, why).await
    }
}
