//! Responses to POST that can answer later GETs (RFC 9110 §9.3.3).

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};

use super::answer::Answer;
use super::ask::{self, Ask, Bypass, Sender};
use super::fetch::{self, Fetch};
use super::{Proxy, serve};
use crate::clock::Timestamp;
use crate::generation::Generation;
use crate::policy::reuse::Why;
use crate::policy::settle::{self, Exchange};
use crate::policy::validate::Conditional;
use crate::route::{Params, Route};
use crate::stored::StoredResponse;
use crate::target::Target;
use crate::upstream::ResponseBody;

/// A request that passed the cache by and has been answered.
pub struct Posted {
    /// The configuration it saw.
    pub generation: Arc<Generation>,
    /// Its route, with the parameters.
    pub matched: Option<(Arc<Route>, Params)>,
    /// Its target.
    pub target: Target,
    /// Who sent it.
    pub sender: Sender,
    /// Its head.
    pub parts: Parts,
    /// When it was sent on.
    pub request_time: Timestamp,
    /// Why it passed the cache by.
    pub bypass: Bypass,
}

/// A response to POST on its way into the store.
pub struct Storable {
    ask: Ask,
    head: Box<StoredResponse>,
    response: Response<ResponseBody>,
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
        let ask = self.head(proxy, &parts, framing).and_then(|head| Some((self.ask(proxy)?, head)));
        let response = Response::from_parts(parts, body);
        match ask {
            Some((ask, head)) => Ok(Storable { ask, head, response }),
            None => Err(Box::new(response)),
        }
    }

    fn head(
        &self,
        proxy: &Proxy,
        response: &http::response::Parts,
        framing: settle::Framing,
    ) -> Option<Box<StoredResponse>> {
        if self.parts.method != Method::POST || self.bypass.why != Why::Method {
            return None;
        }
        let caching = self.matched.as_ref()?.0.caching.as_ref()?;
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

    /// The GET that the response answers; none where that would pass the cache by.
    fn ask(&self, proxy: &Arc<Proxy>) -> Option<Ask> {
        let (route, params) = self.matched.clone()?;
        let caching = route.caching.as_ref()?;
        let mut parts = self.parts.clone();
        parts.method = Method::GET;
        let get = self.generation.routes.find(&self.target, &Method::GET)?;
        if !Arc::ptr_eq(get.route, &route) || ask::bypass_reason(&route, caching, &parts, false).is_some() {
            return None;
        }
        let address = caching.key.address(&Method::GET, &self.target, &parts.headers, b"").ok()?;
        let query = caching.key.query(self.target.query());
        Some(Ask {
            proxy: Arc::clone(proxy),
            counters: Arc::clone(&self.generation.counters[get.index]),
            generation: Arc::clone(&self.generation),
            route,
            params,
            target: self.target.clone(),
            query,
            parts,
            content: Bytes::new(),
            address,
            sender: self.sender.clone(),
        })
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
