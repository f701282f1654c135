//! The leader's part: ask the upstream, settle, store, and tell the followers.

mod storing;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::ask::Ask;
use super::fill::{Fill, News};
use super::share::Lead;
use super::{forward, share};
use crate::boxed::pinned;
use crate::clock::Timestamp;
use crate::generation::Shared;
use crate::policy::settle::{self, Exchange, Framing, NotStored, Settlement};
use crate::policy::validate::{self, Conditional};
use crate::store::ledger::Synced;
use crate::stored::StoredResponse;
use crate::telemetry::events::Event;
use crate::upstream::{CallOptions, RequestBody, ResponseBody, UpstreamError};

/// What a fetch brought.
#[derive(Debug)]
pub enum Fetched {
    /// A response that is being stored, and the fields for this client, who also gets what is not stored with it. The first
    /// reader may get the rest, should it turn out too large.
    Fill(Arc<Fill>, HeaderMap),
    /// The stored response, freshened or completed.
    Stored(Arc<StoredResponse>),
    /// What was stored, validated, but no longer to be stored.
    Once(Arc<StoredResponse>, NotStored),
    /// The upstream answered with an error, and the stored response may be used.
    Stale(Arc<StoredResponse>),
    /// A response that is not stored.
    Pass(Box<Response<ResponseBody>>, NotStored),
    /// No response.
    Failed(UpstreamError),
}

/// What a fetch brought, and what the upstream said.
#[derive(Debug)]
pub struct Report {
    /// What it brought.
    pub fetched: Fetched,
    /// The upstream's status, where it gave one.
    pub status: Option<StatusCode>,
    /// How long the upstream took to its head.
    pub upstream: Duration,
}

/// A fetch under way.
pub struct Fetch {
    ask: Arc<Ask>,
    stored: Option<Arc<StoredResponse>>,
    lead: Option<Lead>,
    /// The ledger, before the upstream is contacted.
    synced: Synced,
    begun: Instant,
    /// Whether this is the second, unconditional try.
    refetched: bool,
    /// Whether no client waits for it.
    background: bool,
    client: Option<oneshot::Sender<Report>>,
}

/// One request to the upstream and its response.
struct Asked {
    response: Response<ResponseBody>,
    conditional: Conditional,
    request_time: Timestamp,
    response_time: Timestamp,
}

/// A fetch that its client drives, for as long as it has nothing for the client. From then on, or when its client leaves, it is a
/// task. To be one from the beginning takes 1 % of a miss, and most end with what they report.
pub struct Driven {
    fetch: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    report: oneshot::Receiver<Report>,
    shared: Arc<Shared>,
    /// Counts it among the tasks that drain waits for.
    _counted: TaskTrackerToken,
}

impl Future for Driven {
    /// None: it ended without a report.
    type Output = Option<Report>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Report>> {
        // Taken out meanwhile: one that panics is not to go on.
        if let Some(mut fetch) = self.fetch.take()
            && fetch.as_mut().poll(context).is_pending()
        {
            self.fetch = Some(fetch);
        }
        match self.report.try_recv() {
            Ok(report) => Poll::Ready(Some(report)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Closed) => Poll::Ready(None),
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            self.shared.tasks.spawn(fetch);
        }
    }
}

impl Driven {
    fn new(
        fetch: Pin<Box<dyn Future<Output = ()> + Send>>,
        report: oneshot::Receiver<Report>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { fetch: Some(fetch), report, _counted: shared.tasks.token(), shared }
    }
}

impl Fetch {
    /// Begins with the first poll.
    pub fn start(ask: &Arc<Ask>, stored: Option<Arc<StoredResponse>>, lead: Option<Lead>) -> Driven {
        let (client, report) = oneshot::channel();
        let own = Arc::clone(ask);
        let fetch = pinned(move || async move { Self::new(own, stored, lead, Some(client)).run().await });
        Driven::new(fetch, report, Arc::clone(&ask.proxy.shared))
    }

    /// Starts a validation that no client waits for, as a task that drain waits for.
    pub fn start_in_background(ask: Arc<Ask>, stored: Arc<StoredResponse>, lead: Lead) {
        let shared = Arc::clone(&ask.proxy.shared);
        // In a box: tokio copies a task's future some eight times on its way through its life.
        shared.tasks.spawn(pinned(move || async move { Self::new(ask, Some(stored), Some(lead), None).run().await }));
    }

    /// Stores a response that another request than a GET has brought, and can answer GETs, by where the ledger stands for
    /// it.
    pub fn adopt(ask: Arc<Ask>, head: StoredResponse, response: Response<ResponseBody>, synced: Synced) -> Driven {
        let (client, report) = oneshot::channel();
        let shared = Arc::clone(&ask.proxy.shared);
        let mut fetch = Self { synced, ..Self::new(ask, None, None, Some(client)) };
        let fetch = pinned(move || async move {
            let (parts, body) = response.into_parts();
            fetch.store(head, framing(&parts, &body), parts, body).await;
        });
        Driven::new(fetch, report, shared)
    }

    fn new(
        ask: Arc<Ask>,
        stored: Option<Arc<StoredResponse>>,
        lead: Option<Lead>,
        client: Option<oneshot::Sender<Report>>,
    ) -> Self {
        let (synced, background) = (ask.proxy.shared.store.synced(), client.is_none());
        Self { ask, stored, lead, synced, begun: Instant::now(), refetched: false, background, client }
    }

    async fn run(mut self) {
        let stored = self.stored.clone();
        match self.ask_upstream(stored.as_deref()).await {
            Ok(asked) => self.settle(asked, stored).await,
            Err(error) => self.fail(error),
        }
    }

    async fn settle(&mut self, asked: Asked, stored: Option<Arc<StoredResponse>>) {
        let Asked { response, conditional, request_time, response_time } = asked;
        if self.background {
            self.ask.proxy.shared.telemetry.record_background(&self.ask.counters);
        }
        let (parts, body) = response.into_parts();
        let framing = framing(&parts, &body);
        let exchange = Exchange {
            request: &self.ask.parts,
            conditional,
            response: &parts,
            request_time,
            response_time,
            framing,
            jitter: fastrand::f64(),
            is_asked_again: stored.is_some() || self.ask.is_asked_again(),
        };
        let rules = &self.ask.caching().rules;
        if self.ask.parts.method == Method::HEAD {
            self.update_by_head(&exchange, stored.as_deref());
        }
        let settlement = settle::settle(&exchange, stored.as_ref(), rules);
        let status = parts.status;
        match settlement {
            Settlement::Store(head) => self.store(*head, framing, parts, body).await,
            Settlement::Freshen(freshened) => self.freshen(&freshened, status),
            Settlement::FreshenOnce(freshened, reason) => self.serve_once(freshened, reason, status),
            Settlement::Combine(part) => self.combine(*part, stored, status, body).await,
            Settlement::UseStale(stale) => {
                self.publish(News::Unwell);
                self.report(Fetched::Stale(stale), Some(status));
            }
            Settlement::Refetch => Box::pin(self.refetch()).await,
            // Nobody asked for a 304 (RFC 9110 §15.4.5), and it has no content to serve.
            Settlement::Pass(NotStored::Unsolicited) if status == StatusCode::NOT_MODIFIED => {
                self.fail(UpstreamError::Protocol);
            }
            Settlement::Pass(reason) => self.pass(Response::from_parts(parts, body), reason),
        }
    }

    /// Asks again without conditions: what came does not fit what is stored.
    async fn refetch(&mut self) {
        if std::mem::replace(&mut self.refetched, true) {
            return self.fail(UpstreamError::Protocol);
        }
        match self.ask_upstream(None).await {
            Ok(asked) => self.settle(asked, None).await,
            Err(error) => self.fail(error),
        }
    }

    async fn ask_upstream(&self, stored: Option<&StoredResponse>) -> Result<Asked, UpstreamError> {
        let ask = &*self.ask;
        let fields = || {
            let mut fields = ask.fields();
            let conditional = validate::upstream_conditions(&ask.parts.method, &mut fields, stored);
            (fields, conditional)
        };
        let (first, conditional) = fields();
        let body = http_body_util::Full::new(ask.content.clone()).map_err(|never| match never {});
        let mut request = Request::new(RequestBody::new(body));
        *request.method_mut() = ask.parts.method.clone();
        *request.uri_mut() = forward::uri(&ask.target, ask.query.as_deref(), Some(&ask.route));
        *request.headers_mut() = first;
        let telemetry = &ask.proxy.shared.telemetry;
        let options = CallOptions {
            first_byte_timeout: ask.route.first_byte_timeout,
            client_host: Some(ask.target.authority.as_value().clone()),
            interim_max: Some(ask.generation.server.limits.interim),
            on_interim: if self.background { None } else { forward::on_interim(&ask.sender, telemetry) },
        };
        let upstream = ask.generation.upstreams.find(&ask.route.upstream).ok_or(UpstreamError::NoServer)?;
        let request_time = ask.now();
        let response = upstream.fetch(ask.proxy.worker.0, request, &options, Some(&|| fields().0)).await?;
        Ok(Asked { response, conditional, request_time, response_time: ask.now() })
    }

    fn pass(&mut self, response: Response<ResponseBody>, reason: NotStored) {
        let status = response.status();
        if reason.is_of_resource() && !is_of_moment(status) {
            self.remember_uncacheable();
        }
        self.publish(if settle::is_failure(status) { News::Unwell } else { News::NotShared });
        self.report(Fetched::Pass(Box::new(response), reason), Some(status));
    }

    fn fail(&mut self, error: UpstreamError) {
        if self.background {
            let route = self.ask.route.name.to_string();
            self.ask.proxy.shared.telemetry.emit(&Event::RevalidationFailed { route, error });
        }
        self.publish(News::Failed(error));
        self.report(Fetched::Failed(error), None);
    }

    fn remember_uncacheable(&self) {
        let span = self.ask.caching().uncacheable_for;
        self.ask.proxy.shared.store.put_uncacheable(&self.ask.address, self.ask.now(), span);
    }

    fn publish(&self, news: News) {
        if let Some(lead) = &self.lead {
            lead.publish(news);
        }
    }

    fn report(&mut self, fetched: Fetched, status: Option<StatusCode>) {
        if let Some(client) = self.client.take() {
            // A client that has left needs no report.
            let _ = client.send(Report { fetched, status, upstream: self.begun.elapsed() });
        }
    }
}

/// Whether a status tells of the upstream's health or of this one request: the next may be answered otherwise, so it
/// never sets hit-for-miss.
fn is_of_moment(status: StatusCode) -> bool {
    status.is_server_error() || settle::is_of_one_request(status)
}

/// How the end of the content is known (RFC 9112 §6.3).
pub fn framing(parts: &http::response::Parts, body: &ResponseBody) -> Framing {
    if let Some(length) = http_body::Body::size_hint(body).exact() {
        return Framing::Length(length);
    }
    let is_chunked = parts.headers.contains_key(http::header::TRANSFER_ENCODING);
    if is_chunked || parts.version == http::Version::HTTP_2 { Framing::Delimited } else { Framing::Close }
}
