//! One call: a place, a server, the exchange of request and head, and perhaps another server.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::UPGRADE;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::client::legacy::{self, ResponseFuture};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::balance::Candidate;
use super::body::Holds;
use super::connect::{self, PooledClient, Uses};
use super::error::Failure;
use super::interim::Interims;
use super::outgoing::{Progress, Source};
use super::server::{Attempt, Server};
use super::{CallOptions, RequestBody, ResponseBody, Upstream, UpstreamError, framing};
use crate::telemetry::limits::Limit;

const TOO_MANY_INTERIMS: &str = "too many interim responses";

/// Indices of servers that this call asks no more.
type Tried = SmallVec<[usize; 4]>;

/// Sends a request to one of the upstream's servers.
pub(super) async fn run(
    upstream: &Upstream,
    worker: usize,
    request: Request<RequestBody>,
    options: &CallOptions,
) -> Result<Response<ResponseBody>, UpstreamError> {
    let servers = upstream.roster.get().await;
    let place = upstream.room.enter().await.inspect_err(|_| upstream.telemetry.limited(Limit::MaxPending))?;
    let (head, content) = request.into_parts();
    let mut call =
        Call { upstream, servers, worker, options, head: Request::from_parts(head, ()), source: Source::new(content) };
    let (response, attempt) = call.send().await?;
    let holds = Holds { in_flight: attempt.succeeded(), _place: place };
    Ok(response.map(|content| ResponseBody::new(content, holds, upstream.config.idle_timeout)))
}

struct Call<'a> {
    upstream: &'a Upstream,
    servers: Arc<Vec<Arc<Server>>>,
    worker: usize,
    options: &'a CallOptions,
    head: Request<()>,
    source: Source,
}

impl Call<'_> {
    async fn send(&mut self) -> Result<(Response<Incoming>, Attempt), UpstreamError> {
        let mut tried = Tried::new();
        // A name without an address is a connection that cannot be made.
        let mut error = if self.servers.is_empty() { UpstreamError::Connect } else { UpstreamError::NoServer };
        for retries_left in (0..=self.upstream.config.retries).rev() {
            let Some(attempt) = self.admit(&mut tried) else { break };
            let is_last = retries_left == 0 || tried.len() >= self.servers.len();
            let failure = match self.exchange(attempt.server(), is_last).await {
                Ok(response) => return Ok((response, attempt)),
                Err(failure) => failure,
            };
            let goes_on = !is_last && failure.unsent && self.source.progress().is_whole();
            error = attempt.failed(failure, Instant::now().into_std());
            if !goes_on {
                break;
            }
        }
        Err(error)
    }

    async fn exchange(&mut self, server: &Server, is_last: bool) -> Result<Response<Incoming>, Failure> {
        let mut head = if is_last { std::mem::take(&mut self.head) } else { self.head.clone() };
        *head.version_mut() = Version::HTTP_11;
        let target = std::mem::take(head.uri_mut());
        let uri = server
            .address(&target, self.options.client_host.as_ref(), head.headers_mut())
            .ok_or_else(|| Failure::sent(UpstreamError::Protocol, "the target makes no valid uri"))?;
        *head.uri_mut() = uri;
        let asked_upgrade = head.headers().contains_key(UPGRADE);
        let is_repeatable = head.method().is_safe() && self.source.is_empty() && !asked_upgrade;
        let again = is_repeatable.then(|| head.clone());
        let client = server.client(self.worker, head.headers());
        match (self.attempt(client, head).await, again) {
            // The server has closed what was kept open, as it may at any time; that tells nothing of it, and nothing of
            // what it makes of the request (RFC 9110 §9.2.2, RFC 9112 §9.3.1). Others that were kept may be closed too.
            (Err(failure), Some(head)) if failure.broke => self.attempt(&server.fresh_client(), head).await,
            (outcome, _) => outcome,
        }
    }

    /// Sends the request once. A failure says that the connection broke only where it had been used before.
    async fn attempt(&self, client: &PooledClient, head: Request<()>) -> Result<Response<Incoming>, Failure> {
        let asked_upgrade = head.headers().contains_key(UPGRADE);
        let mut request = head.map(|()| self.source.body());
        let interims = Interims::of(&mut request, self.options.interim_max, self.options.on_interim.clone());
        let mut connection = capture_connection(&mut request);
        let timeout = self.options.first_byte_timeout.unwrap_or(self.upstream.config.first_byte_timeout);
        let response = client.request(request);
        let response = await_head(response, &mut connection, &interims, timeout, self.source.progress()).await;
        if interims.are_too_many() {
            self.upstream.telemetry.limited(Limit::Interim);
        }
        let response = match response {
            Ok(response) => {
                Uses::begin(response.extensions());
                response
            }
            Err(failure) => {
                let was_used = Uses::begin(&connect::extras(&connection));
                return Err(Failure { broke: failure.broke && was_used, ..failure });
            }
        };
        let fault = framing::fault(&response, asked_upgrade);
        if let Some(fault) = fault.or_else(|| interims.are_too_many().then_some(TOO_MANY_INTERIMS)) {
            // Where one response ends and the next begins is uncertain: nothing more is read from this connection.
            if let Some(connection) = connection.connection_metadata().as_ref() {
                connection.poison();
            }
            return Err(Failure::sent(UpstreamError::Protocol, fault));
        }
        Ok(response)
    }

    /// The server whose turn it is, and everybody who was considered. Who is not well is asked only when nobody else can
    /// be: checks may be wrong, and never leave an upstream without servers.
    fn admit(&self, tried: &mut Tried) -> Option<Attempt> {
        let now = Instant::now().into_std();
        let (turn, servers) = (&self.upstream.turn, &self.servers);
        loop {
            let may_be_asked = |index: usize| !tried.contains(&index) && servers[index].would_admit(now);
            let some_are_well = (0..servers.len()).any(|index| may_be_asked(index) && servers[index].is_well());
            let chosen = turn.choose(self.upstream.config.balance, servers.len(), |index| Candidate {
                is_eligible: may_be_asked(index) && (servers[index].is_well() || !some_are_well),
                in_flight: servers[index].in_flight(),
            });
            let index = chosen?;
            tried.push(index);
            // Another worker may have taken the trial in the meantime.
            if let Some(attempt) = servers[index].admit(now) {
                return Some(attempt);
            }
        }
    }
}

/// Waits for the head: first for the connection, which has its own timeout, then from the last byte of the request on.
async fn await_head(
    mut response: ResponseFuture,
    connection: &mut CaptureConnection,
    interims: &Interims,
    timeout: Duration,
    progress: &Progress,
) -> Result<Response<Incoming>, Failure> {
    let explain = |error: legacy::Error| Failure::from_client(&error, progress.has_failed());
    if let Either::Left((result, _)) = select(&mut response, pin!(connection.wait_for_connection_metadata())).await {
        return result.map_err(explain);
    }
    let begun = Instant::now();
    let mut deadline = begun + timeout;
    loop {
        match timeout_at(deadline, select(&mut response, pin!(interims.exceeded()))).await {
            Ok(Either::Left((result, _))) => return result.map_err(explain),
            // Giving up the response closes its connection.
            Ok(Either::Right(_)) => return Err(Failure::sent(UpstreamError::Protocol, TOO_MANY_INTERIMS)),
            Err(_elapsed) => {}
        }
        let now = Instant::now();
        deadline = progress.upstream_waited_for_since(begun, now) + timeout;
        if deadline <= now {
            let cause = format!("no response head within {timeout:?}");
            return Err(Failure::sent(UpstreamError::FirstByteTimeout, cause));
        }
    }
}
