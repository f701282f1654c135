//! The leader's part: ask the upstream, settle, store, and tell the followers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use super::ask::Ask;
use super::fill::{Bound, Fill, News, Received, Room};
use super::share::Lead;
use super::{forward, share};
use crate::clock::Timestamp;
use crate::fields::hop_by_hop;
use crate::policy::settle::{self, Exchange, Framing, HeadUpdate, NotStored, Settlement};
use crate::policy::validate::{self, Conditional};
use crate::store::ledger::Synced;
use crate::store::{Put, PutLimits};
use crate::stored::{Provenance, StoredResponse};
use crate::telemetry::events::Event;
use crate::upstream::{CallOptions, RequestBody, ResponseBody, UpstreamError};

/// What a fetch brought.
#[derive(Debug)]
pub enum Fetched {
    /// A response that is being stored; the first reader may get the rest, should it turn out too large.
    Fill(Arc<Fill>),
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

/// A fetch under way: it goes on when its client leaves.
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

impl Fetch {
    /// Starts it as a task that drain waits for.
    pub fn start(ask: Arc<Ask>, stored: Option<Arc<StoredResponse>>, lead: Option<Lead>) -> oneshot::Receiver<Report> {
        let (client, report) = oneshot::channel();
        Self::spawn(ask, stored, lead, Some(client));
        report
    }

    /// Starts a validation that no client waits for.
    pub fn start_in_background(ask: Arc<Ask>, stored: Arc<StoredResponse>, lead: Lead) {
        Self::spawn(ask, Some(stored), Some(lead), None);
    }

    /// Stores a response that another request than a GET has brought, and can answer GETs, by where the ledger stands for
    /// it.
    pub fn adopt(
        ask: Arc<Ask>,
        head: StoredResponse,
        response: Response<ResponseBody>,
        synced: Synced,
    ) -> oneshot::Receiver<Report> {
        let (client, report) = oneshot::channel();
        let shared = Arc::clone(&ask.proxy.shared);
        let mut fetch = Self { synced, ..Self::new(ask, None, None, Some(client)) };
        shared.tasks.spawn(async move {
            let (parts, body) = response.into_parts();
            fetch.store(head, framing(&parts, &body), parts, body).await;
        });
        report
    }

    fn spawn(
        ask: Arc<Ask>,
        stored: Option<Arc<StoredResponse>>,
        lead: Option<Lead>,
        client: Option<oneshot::Sender<Report>>,
    ) {
        let shared = Arc::clone(&ask.proxy.shared);
        shared.tasks.spawn(Self::new(ask, stored, lead, client).run());
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
        let mut fields = forward::fields(&ask.parts, &ask.sender, Some(&ask.route), Some(ask.caching()));
        let conditional = validate::upstream_conditions(&ask.parts.method, &mut fields, stored);
        let body = http_body_util::Full::new(ask.content.clone()).map_err(|never| match never {});
        let mut request = Request::new(RequestBody::new(body));
        *request.method_mut() = ask.parts.method.clone();
        *request.uri_mut() = forward::uri(&ask.target, ask.query.as_deref(), Some(&ask.route));
        *request.headers_mut() = fields;
        if !self.background {
            forward::pass_interim(&mut request, &ask.sender);
        }
        let options = CallOptions {
            first_byte_timeout: ask.route.first_byte_timeout,
            client_host: Some(ask.sender.host.clone()),
        };
        let upstream = ask.generation.upstreams.find(&ask.route.upstream).ok_or(UpstreamError::NoServer)?;
        let request_time = ask.now();
        let response = upstream.fetch(ask.proxy.worker.0, request, &options).await?;
        Ok(Asked { response, conditional, request_time, response_time: ask.now() })
    }

    async fn store(
        &mut self,
        head: StoredResponse,
        framing: Framing,
        parts: http::response::Parts,
        body: ResponseBody,
    ) {
        let status = parts.status;
        let (head, room) = match self.admit(head, framing) {
            Ok(admitted) => admitted,
            Err(reason) => return self.pass(Response::from_parts(parts, body), reason),
        };
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Delimited | Framing::Close => None,
        };
        let variant = share::variant_key(&self.ask, &head);
        let mut received = parts.headers;
        hop_by_hop::remove(&mut received);
        let fill = Arc::new(Fill::new(Arc::new(head), received, length, variant));
        if length.is_some() {
            self.publish(News::Streaming(Arc::clone(&fill)));
        }
        self.report(Fetched::Fill(Arc::clone(&fill)), Some(status));
        match fill.receive(body, room, self.ask.caching().max_object).await {
            Received::Whole(whole, room) => {
                let stored = Arc::new(StoredResponse { body: whole, ..(*fill.head).clone() });
                self.put(&stored);
                let is_counted = self.ask.proxy.shared.store.memory_admits(stored.body.len());
                fill.complete(stored, Some(room).filter(|_| !is_counted));
            }
            Received::Broken => {
                self.publish(News::Failed(UpstreamError::Protocol));
                fill.break_off();
            }
            Received::TooLarge(bound) => {
                if bound == Bound::Object {
                    self.remember_uncacheable();
                }
                self.publish(News::NotShared);
            }
        }
    }

    /// The head with its provenance, and room for the body; or why it is not stored.
    fn admit(&self, mut head: StoredResponse, framing: Framing) -> Result<(StoredResponse, Room), NotStored> {
        head.selecting = head.selecting.without(&self.ask.caching().vary_ignore);
        head.provenance = self.provenance(&head)?;
        let expected = match framing {
            Framing::Length(length) if length > self.ask.caching().max_object => return Err(NotStored::TooLarge),
            Framing::Length(length) => length,
            Framing::Delimited | Framing::Close => 0,
        };
        let room = self.ask.proxy.shared.filling.reserve(expected).ok_or(NotStored::FillingLimit)?;
        Ok((head, room))
    }

    fn provenance(&self, head: &StoredResponse) -> Result<Provenance, NotStored> {
        self.ask.provenance(head, self.synced)
    }

    fn freshen(&mut self, freshened: &Arc<StoredResponse>, status: StatusCode) {
        let mut freshened = StoredResponse::clone(freshened);
        // Over the tag limits the provenance of before stays, and with it every purge since.
        if let Ok(provenance) = self.provenance(&freshened) {
            freshened.provenance = provenance;
        }
        let freshened = Arc::new(freshened);
        self.put(&freshened);
        self.report(Fetched::Stored(freshened), Some(status));
    }

    /// Receives the rest of a stored part and stores the whole.
    async fn combine(
        &mut self,
        mut part: StoredResponse,
        stored: Option<Arc<StoredResponse>>,
        status: StatusCode,
        body: ResponseBody,
    ) {
        let expected = part.part.map_or(0, |range| range.last - range.first + 1);
        let fits = expected <= self.ask.caching().max_object;
        let room = fits.then(|| self.ask.proxy.shared.filling.reserve(expected)).flatten();
        let (Some(room), Some(stored), Ok(provenance)) = (room, stored, self.provenance(&part)) else {
            return Box::pin(self.refetch()).await;
        };
        part.provenance = provenance;
        let fill = Fill::new(Arc::new(part.clone()), HeaderMap::new(), None, self.ask.address.key);
        let Received::Whole(rest, _) = fill.receive(body, room, expected).await else {
            return self.fail(UpstreamError::Protocol);
        };
        part.body = rest;
        match settle::combine(&stored, &part) {
            Some(whole) => {
                let whole = Arc::new(whole);
                self.put(&whole);
                self.report(Fetched::Stored(whole), Some(status));
            }
            None => Box::pin(self.refetch()).await,
        }
    }

    fn update_by_head(&self, exchange: &Exchange<'_>, stored: Option<&StoredResponse>) {
        let Some(stored) = stored else { return };
        match settle::updated_by_head(exchange, stored, &self.ask.caching().rules) {
            HeadUpdate::Updated(updated) => self.put(&Arc::new(*updated)),
            HeadUpdate::Outdated => self.forget(),
            HeadUpdate::Unrelated => {}
        }
    }

    /// The updated fields forbid to store what was validated.
    fn serve_once(&mut self, freshened: Arc<StoredResponse>, reason: NotStored, status: StatusCode) {
        self.forget();
        self.publish(News::NotShared);
        self.report(Fetched::Once(freshened, reason), Some(status));
    }

    fn forget(&self) {
        let tags = self.ask.tags();
        let query = self.ask.store_query(&tags, self.ask.now());
        self.ask.proxy.shared.store.remove(self.ask.proxy.worker, &query);
    }

    fn put(&self, stored: &Arc<StoredResponse>) {
        let tags = self.ask.tags();
        let query = self.ask.store_query(&tags, self.ask.now());
        let limits = PutLimits { max_variants: self.ask.caching().max_variants };
        let store = &self.ask.proxy.shared.store;
        let put = store.put(self.ask.proxy.worker, &query, Arc::clone(stored), limits);
        match (put, &self.lead) {
            (Put::Stored, Some(lead)) => lead.stored(&self.ask, &query),
            (Put::Stored, None) => {}
            (Put::TooManyVariants | Put::NoRoom, _) => self.publish(News::NotShared),
        }
        if self.background {
            self.ask.proxy.shared.telemetry.record_background(&self.ask.counters, put == Put::Stored);
        }
    }

    fn pass(&mut self, response: Response<ResponseBody>, reason: NotStored) {
        let status = response.status();
        if reason.is_of_resource() && !is_of_moment(status) {
            self.remember_uncacheable();
        }
        if self.background {
            self.ask.proxy.shared.telemetry.record_background(&self.ask.counters, false);
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
    let of_request = [400, 408, 413, 414, 417, 425, 429, 431];
    status.is_server_error() || of_request.contains(&status.as_u16())
}

/// How the end of the content is known (RFC 9112 §6.3).
pub fn framing(parts: &http::response::Parts, body: &ResponseBody) -> Framing {
    if let Some(length) = http_body::Body::size_hint(body).exact() {
        return Framing::Length(length);
    }
    let is_chunked = parts.headers.contains_key(http::header::TRANSFER_ENCODING);
    if is_chunked || parts.version == http::Version::HTTP_2 { Framing::Delimited } else { Framing::Close }
}
