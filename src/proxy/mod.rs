//! The path of a request, step by step.

pub mod answer;
pub mod ask;
mod client_body;
mod cluster;
mod fetch;
pub mod fill;
mod forward;
mod invalidate;
mod pass;
mod posted;
pub mod reply;
pub mod rounds;
mod serve;
mod share;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::generation::{Generation, Shared};
use crate::policy::reuse::{Decision, Why, decide};
use crate::route::Match;
use crate::store::WorkerId;
use crate::target::{Scheme, Target};
use crate::telemetry::cache_status::Detail;
use answer::{Answer, Body, Visit};
use ask::{Ask, Bypass, Sender};
use pass::Passing;
use serve::LookedUp;
use share::{Share, Step};

/// What is known of the connection a request came over.
#[derive(Debug)]
pub struct Connection {
    /// The peer's address.
    pub peer: SocketAddr,
    /// The listener's scheme.
    pub scheme: Scheme,
}

/// A sender of interim responses (103) to one HTTP/1.1 request; the server's socket wrapper writes them.
#[derive(Clone, Debug)]
pub struct Interim {
    /// The connection's sink.
    pub sink: Arc<dyn InterimSink>,
    /// The request's number there.
    pub request: u64,
}

/// Takes an interim head, to be written before its request's final response.
pub trait InterimSink: Send + Sync + std::fmt::Debug {
    /// Queues it while that request is in hand; false where it is dropped, for the request has had enough.
    fn send(&self, request: u64, status: StatusCode, fields: &http::HeaderMap) -> bool;
}

/// One worker's view of the proxy.
pub struct Proxy {
    /// What outlives configurations.
    pub shared: Arc<Shared>,
    /// The worker it runs on.
    pub worker: WorkerId,
}

/// A request as it came, with what was found out about it.
pub struct Incomer {
    generation: Arc<Generation>,
    target: Target,
    sender: Sender,
    parts: http::request::Parts,
    content: Incoming,
}

impl Proxy {
    /// The view of `worker`.
    pub fn new(shared: Arc<Shared>, worker: WorkerId) -> Arc<Self> {
        Arc::new(Self { shared, worker })
    }

    /// Answers a request, whose normalised target the server has left among its extensions, by the configuration that
    /// the server checked it with. Never fails. `interim` is where its interim responses go.
    pub async fn handle(
        self: &Arc<Self>,
        connection: &Connection,
        generation: Arc<Generation>,
        request: Request<Incoming>,
        interim: Option<Interim>,
    ) -> Response<Body> {
        let (mut parts, content) = request.into_parts();
        let Some(target) = parts.extensions.remove::<Target>() else {
            return answer::unrecorded(StatusCode::BAD_REQUEST);
        };
        let matched = generation.routes.find(&target, &parts.method);
        let sender = Sender::new(connection, &generation, &parts, &target, interim);
        let visit = self.visit(&generation, matched.as_ref(), &sender, &parts);
        let route = matched.as_ref().map(|matched| Arc::clone(matched.route));
        let mut answer = if self.shared.pseudonym.has_signed(&parts.headers) {
            // Before the lookup: it would wait for the fetch that it is.
            Answer::generated(StatusCode::LOOP_DETECTED, Detail::Loop)
        } else {
            let incomer = Incomer { generation: Arc::clone(&generation), target, sender, parts, content };
            self.answer(matched, incomer).await
        };
        if let Some(route) = route {
            route.response_headers.apply(answer.head.headers_mut());
        }
        visit.finish(answer, &self.shared.telemetry, generation.server.cache_status)
    }

    /// Route, what passes the cache by, and key.
    async fn answer(self: &Arc<Self>, matched: Option<Match<'_>>, incomer: Incomer) -> Answer {
        let because = |detail| Bypass { why: Why::Bypass, detail: Some(detail) };
        let Some(matched) = matched else {
            let is_other_method = incomer.generation.routes.caches(&incomer.target);
            let other_method = Bypass { why: Why::Method, detail: None };
            let bypass = if is_other_method { other_method } else { because(Detail::NoRoute) };
            return self.pass(Passing::new(incomer, None, bypass)).await;
        };
        let Some(caching) = &matched.route.caching else {
            return self.pass(Passing::new(incomer, Some(matched), because(Detail::CacheOff))).await;
        };
        let has_content = !incomer.content.is_end_stream();
        if let Some(bypass) = ask::bypass_reason(matched.route, caching, &incomer.parts, has_content) {
            return self.pass(Passing::new(incomer, Some(matched), bypass)).await;
        }
        match self.ask(matched, incomer).await {
            Ok(ask) => self.cached(Arc::new(ask)).await,
            Err(passing) => self.pass(*passing).await,
        }
    }

    /// Lookup and decide, then serve, or share a fetch, or fetch.
    async fn cached(self: &Arc<Self>, ask: Arc<Ask>) -> Answer {
        let mut share = Share::new(&ask);
        let mut collapsed = None;
        loop {
            let looked_up = LookedUp::from_store(&ask).await;
            let (stored, must_validate, miss) = looked_up.for_decision();
            let decision = decide(&ask.parts, stored, must_validate, miss, &ask.caching().rules, ask.now());
            let (stored, why) = match decision {
                Decision::Serve(stored, usage) => return looked_up.serve(&ask, &stored, usage.into(), collapsed),
                Decision::ServeWhileRevalidating(stored) => {
                    share::revalidate(&ask, &stored);
                    return looked_up.serve(&ask, &stored, Some(Detail::StaleWhileRevalidate), collapsed);
                }
                Decision::GatewayTimeout => {
                    return Answer::generated(StatusCode::GATEWAY_TIMEOUT, Detail::OnlyIfCached);
                }
                // What came while it waited is as new as the request's own directives can ask for.
                Decision::Validate(stored, Why::Request) if share.has_waited_for(&stored) => {
                    return looked_up.serve(&ask, &stored, None, collapsed);
                }
                Decision::Validate(stored, why) => (Some(stored), why),
                Decision::Forward(why) => (None, why),
            };
            match share.turn(&ask, stored.as_ref(), &looked_up).await {
                Step::Again => {}
                Step::AgainBehindAnother => collapsed = Some(why),
                Step::Fetch(lead) => return looked_up.fetch(&ask, stored, why, lead).await,
                Step::Stream(fill) => return serve::stream(fill, why),
                Step::Stale(stored) => return serve::stale_on_error(&ask, &stored),
                Step::Failed(error) => return serve::stale_or_failed(&ask, looked_up.stored(), why, error),
            }
        }
    }

    fn visit(
        &self,
        generation: &Generation,
        matched: Option<&Match<'_>>,
        sender: &Sender,
        parts: &http::request::Parts,
    ) -> Visit {
        let counters = matched.map_or(&generation.unrouted, |matched| &generation.counters[matched.index]);
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        Visit {
            started: self.shared.clock.now(),
            begun: std::time::Instant::now(),
            client: sender.client,
            method: parts.method.clone(),
            target: target.into(),
            host: String::from_utf8_lossy(sender.host.as_bytes()).into(),
            version: parts.version,
            route: matched.map(|matched| Arc::clone(&matched.route.name)),
            counters: Arc::clone(counters),
        }
    }
}
