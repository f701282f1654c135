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

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::boxed::pinned;
use crate::clock::Timestamp;
use crate::generation::{Generation, Shared};
use crate::key::Address;
use crate::policy::reuse::{Decision, Why, decide};
use crate::route::{Caching, ConfiguredTags, Match, Matched, Route};
use crate::store::{Looked, Lookup, Query, WorkerId};
use crate::target::{Scheme, Target};
use crate::telemetry::cache_status::Detail;
use answer::{Answer, Arrival, Body, Visit};
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

/// A request as it came.
pub struct Incomer {
    head: Head,
    content: Incoming,
}

/// A request's head, with what was found out about it.
pub struct Head {
    target: Target,
    sender: Sender,
    parts: Parts,
}

/// The response to a request: there at once, or to be waited for.
pub enum Handled {
    /// From memory, or made without asking anybody.
    Now(Response<Body>),
    /// Redis or the upstream is asked.
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

/// How far a request gets without waiting.
enum Begun {
    /// To its answer.
    Answered(Answer),
    /// Its key is known, and what memory says of it.
    Asked(Address, Looked),
    /// Its content must be read for its key.
    HasContent,
    /// Past the cache.
    Passes(Bypass),
}

impl Proxy {
    /// The view of `worker`.
    pub fn new(shared: Arc<Shared>, worker: WorkerId) -> Arc<Self> {
        Arc::new(Self { shared, worker })
    }

    /// Answers a request for a normalised target, by the configuration that the server checked it with. Never fails.
    /// `interim` is asked where its interim responses go, unless it is answered at once.
    pub fn handle(
        self: &Arc<Self>,
        connection: &Connection,
        generation: Arc<Generation>,
        target: Target,
        request: Request<Incoming>,
        interim: impl FnOnce() -> Option<Interim>,
    ) -> Handled {
        let (parts, content) = request.into_parts();
        let matched = generation.routes.find(&target, &parts.method);
        let sender = Sender::new(connection, &generation.server, &parts.headers);
        let now = self.shared.clock.now();
        let visit = self.visit(&generation, matched.as_ref(), &sender, &target, &parts, now);
        let mut incomer = Incomer { head: Head { target, sender, parts }, content };
        match self.begin(&generation, matched.as_ref(), &mut incomer, now) {
            Begun::Answered(answer) => Handled::Now(finish(visit, answer, matched.map(|it| &**it.route), &generation)),
            begun => {
                incomer.head.sender.interim = interim();
                let matched = matched.map(Matched::from);
                Handled::Later(self.wait(visit, begun, generation, matched, incomer))
            }
        }
    }

    /// What passes the cache by, key, lookup in memory and decide: all that needs no waiting, and for most hits all.
    fn begin(
        &self,
        generation: &Generation,
        matched: Option<&Match<'_>>,
        incomer: &mut Incomer,
        now: Timestamp,
    ) -> Begun {
        if self.shared.pseudonym.has_signed(&incomer.head.parts.headers) {
            // Before the lookup: it would wait for the fetch that it is.
            return Begun::Answered(Answer::generated(StatusCode::LOOP_DETECTED, Detail::Loop));
        }
        let because = |detail| Begun::Passes(Bypass { why: Why::Bypass, detail: Some(detail) });
        let Some(matched) = matched else {
            let is_other_method = generation.routes.caches(&incomer.head.target);
            let other_method = Begun::Passes(Bypass { why: Why::Method, detail: None });
            return if is_other_method { other_method } else { because(Detail::NoRoute) };
        };
        let Some(caching) = &matched.route.caching else { return because(Detail::CacheOff) };
        let has_content = !incomer.content.is_end_stream();
        if let Some(bypass) = ask::bypass_reason(matched.route, caching, &incomer.head.parts, has_content) {
            return Begun::Passes(bypass);
        }
        self.bound_ranges(generation, &mut incomer.head.parts.headers);
        if has_content {
            return Begun::HasContent;
        }
        match pass::address(matched.route, caching, &mut incomer.head, b"") {
            Ok(address) => self.look(matched, caching, &incomer.head, address, now),
            // Without content everything can be keyed.
            Err(_unkeyed) => because(Detail::RequestBody),
        }
    }

    /// Lookup in memory and, where something is found, decide.
    fn look(&self, matched: &Match<'_>, caching: &Caching, head: &Head, address: Address, now: Timestamp) -> Begun {
        let tags = ConfiguredTags { route: matched.route, params: &matched.params, target: &head.target };
        let (request, vary_ignore) = (&head.parts.headers, &*caching.vary_ignore);
        let looked = self.shared.store.look(&Query { address: &address, request, vary_ignore, tags: &tags, now });
        if let Looked::Known(Lookup::Found(found)) = &looked {
            let stored = Arc::clone(&found.response);
            let decision = decide(&head.parts, Some(stored), found.must_validate, Why::Stale, &caching.rules, now);
            if let Decision::Serve(stored, usage) = decision {
                let (tier, detail) = (found.tier, usage.into());
                return Begun::Answered(serve::hit(&head.parts, &stored, tier, detail, now));
            }
        }
        Begun::Asked(address, looked)
    }

    /// What waits: for Redis and then perhaps the upstream, or for what is rarer. Each has a box of its own: that of a lookup,
    /// which each miss has, was 12 KiB with all in it, and 5 with the request beside what it asks.
    fn wait(
        self: &Arc<Self>,
        visit: Visit,
        begun: Begun,
        generation: Arc<Generation>,
        matched: Option<Matched>,
        incomer: Incomer,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
        let this = Arc::clone(self);
        match (begun, matched) {
            (Begun::Asked(address, looked), Some(matched)) => {
                let ask = Arc::new(self.ask(&generation, matched, incomer.head, address, Bytes::new()));
                pinned(move || async move {
                    let share = Share::new(&ask);
                    let looked_up = LookedUp::after(&ask, looked).await;
                    let answer = this.cached(&ask, share, looked_up).await;
                    finish(visit, answer, Some(&ask.route), &ask.generation)
                })
            }
            (begun, matched) => pinned(move || async move {
                let route = matched.as_ref().map(|matched| Arc::clone(&matched.route));
                let answer = this.go_on(begun, &generation, matched, incomer).await;
                finish(visit, answer, route.as_deref(), &generation)
            }),
        }
    }

    /// What reads the request's content for its key, and what passes.
    async fn go_on(
        self: &Arc<Self>,
        begun: Begun,
        generation: &Arc<Generation>,
        matched: Option<Matched>,
        incomer: Incomer,
    ) -> Answer {
        match (begun, matched) {
            (Begun::Answered(answer), _) => answer,
            (Begun::HasContent, Some(matched)) => match pinned(|| self.read(generation, matched, incomer)).await {
                Ok(ask) => {
                    let ask = Arc::new(ask);
                    let share = Share::new(&ask);
                    let looked_up = LookedUp::from_store(&ask).await;
                    self.cached(&ask, share, looked_up).await
                }
                Err(passing) => self.pass(*passing).await,
            },
            (Begun::Passes(bypass), matched) => self.pass(Passing::new(generation, matched, incomer, bypass)).await,
            // One is begun with its lookup, neither is without a route.
            (Begun::Asked(..) | Begun::HasContent, matched) => {
                let nothing = Bypass { why: Why::Bypass, detail: None };
                self.pass(Passing::new(generation, matched, incomer, nothing)).await
            }
        }
    }

    /// Decide, then serve, or share a fetch and look up again, or fetch.
    async fn cached(self: &Arc<Self>, ask: &Arc<Ask>, mut share: Share, mut looked_up: LookedUp) -> Answer {
        let mut collapsed = None;
        loop {
            let (stored, must_validate, miss) = looked_up.for_decision();
            let decision = decide(&ask.parts, stored, must_validate, miss, &ask.caching().rules, ask.now());
            let (stored, why) = match decision {
                Decision::Serve(stored, usage) => return looked_up.serve(ask, &stored, usage.into(), collapsed),
                Decision::ServeWhileRevalidating(stored) => {
                    share::revalidate(ask, &stored);
                    return looked_up.serve(ask, &stored, Some(Detail::StaleWhileRevalidate), collapsed);
                }
                Decision::GatewayTimeout => {
                    return Answer::generated(StatusCode::GATEWAY_TIMEOUT, Detail::OnlyIfCached);
                }
                // What came while it waited is as new as the request's own directives can ask for.
                Decision::Validate(stored, Why::Request) if share.has_waited_for(&stored) => {
                    return looked_up.serve(ask, &stored, None, collapsed);
                }
                Decision::Validate(stored, why) => (Some(stored), why),
                Decision::Forward(why) => (None, why),
            };
            match share.turn(ask, stored.as_ref(), &looked_up).await {
                Step::Again => looked_up = LookedUp::from_store(ask).await,
                Step::AgainBehindAnother => {
                    collapsed = Some(why);
                    looked_up = LookedUp::from_store(ask).await;
                }
                Step::Fetch(lead) => return looked_up.fetch(ask, stored, why, lead).await,
                Step::Stream(fill) => return serve::stream(fill, why),
                Step::Stale(stored) => return serve::stale_on_error(ask, &stored),
                Step::Failed(error) => return serve::stale_or_failed(ask, looked_up.stored(), why, error),
            }
        }
    }

    fn visit(
        &self,
        generation: &Generation,
        matched: Option<&Match<'_>>,
        sender: &Sender,
        target: &Target,
        parts: &Parts,
        started: Timestamp,
    ) -> Visit {
        let counters = matched.map_or(&generation.unrouted, |matched| &generation.counters[matched.index]);
        let arrival = Arrival {
            started,
            client: sender.client,
            method: parts.method.clone(),
            target: parts.uri.path_and_query().map_or("", PathAndQuery::as_str).into(),
            host: Some(target.authority.as_value().clone()),
            version: parts.version,
            counters: Arc::clone(counters),
        };
        Visit::new(arrival, &self.shared.telemetry)
    }
}

/// The response of an answer, as its route and the server edit it.
fn finish(visit: Visit, mut answer: Answer, route: Option<&Route>, generation: &Generation) -> Response<Body> {
    if let Some(route) = route {
        route.response_headers.apply(answer.head.headers_mut());
    }
    visit.finish(answer, generation.server.cache_status)
}
