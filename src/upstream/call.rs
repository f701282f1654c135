//! One call: a place, a server, the exchange of request and head, and perhaps another server.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::header::UPGRADE;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until};

use super::balance::Candidate;
use super::body::Holds;
use super::error::Failure;
use super::interim::Interims;
use super::outgoing::Source;
use super::pool::{Hold, Sent};
use super::server::{Attempt, Server};
use super::{CallOptions, Remade, RequestBody, ResponseBody, Upstream, UpstreamError, framing};
use crate::telemetry::limits::Limit;

/// Indices of servers that this call asks no more.
type Tried = SmallVec<[usize; 4]>;

/// Sends a request to one of the upstream's servers.
pub(super) async fn run(
    upstream: &Upstream,
    worker: usize,
    request: Request<RequestBody>,
    options: &CallOptions,
    remade: Option<Remade<'_>>,
) -> Result<Response<ResponseBody>, UpstreamError> {
    let servers = upstream.roster.get().await;
    let place = upstream.room.enter().await.inspect_err(|_| upstream.telemetry.limited(Limit::MaxPending))?;
    let (head, content) = request.into_parts();
    let (asked_upgrade, source) = (head.headers.contains_key(UPGRADE), Source::new(content));
    let mut call = Call { upstream, servers, worker, options, head, asked_upgrade, remade, source };
    let (response, connection, attempt) = call.send().await?;
    let holds = Holds { in_flight: attempt.succeeded(), _place: place, _connection: connection };
    Ok(response.map(|content| ResponseBody::new(content, holds, upstream.config.idle_timeout)))
}

struct Call<'a> {
    upstream: &'a Upstream,
    servers: Arc<Vec<Arc<Server>>>,
    worker: usize,
    options: &'a CallOptions,
    /// What is to be sent; without its fields, where these are with an attempt and no copy was made.
    head: Parts,
    /// Whether they ask for another protocol.
    asked_upgrade: bool,
    /// Makes the fields anew.
    remade: Option<Remade<'a>>,
    source: Source,
}

impl Call<'_> {
    async fn send(&mut self) -> Result<(Response<Incoming>, Hold, Attempt), UpstreamError> {
        let mut tried = Tried::new();
        // A name without an address is a connection that cannot be made.
        let mut error = if self.servers.is_empty() { UpstreamError::Connect } else { UpstreamError::NoServer };
        for retries_left in (0..=self.upstream.config.retries).rev() {
            let Some(attempt) = self.admit(&mut tried) else { break };
            let is_last = retries_left == 0 || tried.len() >= self.servers.len();
            let failure = match self.exchange(attempt.server(), is_last).await {
                Ok((response, connection)) => return Ok((response, connection, attempt)),
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

    async fn exchange(&mut self, server: &Server, is_last: bool) -> Result<(Response<Incoming>, Hold), Failure> {
        let is_repeatable = self.head.method.is_safe() && self.source.is_empty() && !self.asked_upgrade;
        let fields = self.fields(is_last && !is_repeatable);
        match self.attempt(server, fields, false).await {
            // The server has closed what was kept open, as it may at any time; that tells nothing of it, and nothing of
            // what it makes of the request (RFC 9110 §9.2.2, RFC 9112 §9.3.1). Others that were kept may be closed too.
            Err(failure) if failure.broke && is_repeatable => {
                let fields = self.fields(is_last);
                self.attempt(server, fields, true).await
            }
            outcome => outcome,
        }
    }

    /// The fields for an attempt. What can be made anew is not copied; of the rest the copy, which has no room for a field
    /// more, is what stays: most are never sent.
    fn fields(&mut self, is_last: bool) -> HeaderMap {
        if let Some(remade) = self.remade.filter(|_| self.head.headers.is_empty()) {
            return remade();
        }
        let further = if is_last || self.remade.is_some() { HeaderMap::new() } else { self.head.headers.clone() };
        std::mem::replace(&mut self.head.headers, further)
    }

    /// Sends the request once. A failure says that the connection broke only where it had been kept.
    async fn attempt(
        &self,
        server: &Server,
        fields: HeaderMap,
        must_be_new: bool,
    ) -> Result<(Response<Incoming>, Hold), Failure> {
        let pool = server.pool(self.worker, self.asked_upgrade);
        let mut request = Request::new(self.source.body());
        request.method_mut().clone_from(&self.head.method);
        *request.headers_mut() = fields;
        let interims = Interims::of(&mut request, self.options.interim_max, self.options.on_interim.clone());
        loop {
            let lease = if must_be_new { pool.get_new().await } else { pool.get().await };
            let lease = lease.map_err(|error| Failure::unconnected(&error))?;
            let was_kept = lease.was_kept();
            server
                .address(&mut request, &self.head.uri, self.options.client_host.as_ref(), lease.version())
                .ok_or_else(|| Failure::sent(UpstreamError::Protocol, "the target makes no valid uri"))?;
            let (sent, hold) = lease.send(request);
            let outcome = self.await_head(sent, &interims).await.and_then(|sent| judged(sent, self.asked_upgrade));
            let failed = match outcome {
                Ok(Ok(response)) => return Ok((response, hold)),
                Ok(Err(error)) => Ok(error),
                Err(failure) => Err(failure),
            };
            hold.close();
            let mut error = failed?;
            let message = error.take_message();
            let unsent = message.is_some();
            // The server closed it before there was a byte of the request.
            if let Some(message) = message.filter(|_| was_kept) {
                request = message;
                continue;
            }
            let body_failed = self.source.progress().has_failed();
            let failure = Failure::exchanging(&error.into_error(), unsent, body_failed);
            return Err(Failure { broke: failure.broke && was_kept, ..failure });
        }
    }

    /// Waits for the head, from the last byte of the request on.
    async fn await_head(&self, sent: impl Future<Output = Sent>, interims: &Interims) -> Result<Sent, Failure> {
        let timeout = self.options.first_byte_timeout.unwrap_or(self.upstream.config.first_byte_timeout);
        let begun = Instant::now();
        let (mut sent, mut alarm) = (pin!(sent), pin!(sleep_until(begun + timeout)));
        poll_fn(|context| {
            let outcome = sent.as_mut().poll(context);
            let are_too_many =
                if outcome.is_ready() { interims.are_too_many() } else { interims.poll_too_many(context) };
            if are_too_many {
                self.upstream.telemetry.limited(Limit::Interim);
                return Poll::Ready(Err(Failure::sent(UpstreamError::Protocol, "too many interim responses")));
            }
            if let Poll::Ready(outcome) = outcome {
                return Poll::Ready(Ok(outcome));
            }
            while alarm.as_mut().poll(context).is_ready() {
                let now = Instant::now();
                let deadline = self.source.progress().upstream_waited_for_since(begun, now) + timeout;
                if deadline <= now {
                    let cause = format!("no response head within {timeout:?}");
                    return Poll::Ready(Err(Failure::sent(UpstreamError::FirstByteTimeout, cause)));
                }
                alarm.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
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

/// A response of which it is certain where it ends and the next begins; else it is none.
fn judged(sent: Sent, asked_upgrade: bool) -> Result<Sent, Failure> {
    let fault = sent.as_ref().ok().and_then(|response| framing::fault(response, asked_upgrade));
    fault.map_or(Ok(sent), |fault| Err(Failure::sent(UpstreamError::Protocol, fault)))
}
