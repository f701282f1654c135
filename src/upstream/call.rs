//! One call: a place, a server, the exchange of request and head, and perhaps another server.

use std::pin::pin;
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
use super::error::Failure;
use super::outgoing::{Progress, Source};
use super::server::{Attempt, Server};
use super::{CallOptions, RequestBody, ResponseBody, Upstream, UpstreamError, framing};
use crate::telemetry::limits::Limit;

/// Indices of servers that this call asks no more.
type Tried = SmallVec<[usize; 4]>;

/// Sends a request to one of the upstream's servers.
pub(super) async fn run(
    upstream: &Upstream,
    worker: usize,
    request: Request<RequestBody>,
    options: &CallOptions,
) -> Result<Response<ResponseBody>, UpstreamError> {
    let place = upstream.room.enter().await.inspect_err(|_| upstream.telemetry.limited(Limit::MaxPending))?;
    let (head, content) = request.into_parts();
    let mut call =
        Call { upstream, worker, options, head: Request::from_parts(head, ()), source: Source::new(content) };
    let (response, attempt) = call.send().await?;
    let holds = Holds { in_flight: attempt.succeeded(), _place: place };
    Ok(response.map(|content| ResponseBody::new(content, holds, upstream.config.idle_timeout)))
}

struct Call<'a> {
    upstream: &'a Upstream,
    worker: usize,
    options: &'a CallOptions,
    head: Request<()>,
    source: Source,
}

impl Call<'_> {
    async fn send(&mut self) -> Result<(Response<Incoming>, Attempt), UpstreamError> {
        let mut tried = Tried::new();
        let mut error = UpstreamError::NoServer;
        for retries_left in (0..=self.upstream.config.retries).rev() {
            let Some(attempt) = self.upstream.admit(&mut tried) else { break };
            let is_last = retries_left == 0 || tried.len() >= self.upstream.servers.len();
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
        let uri = server
            .address(&head.uri().clone(), self.options.client_host.as_ref(), head.headers_mut())
            .ok_or_else(|| Failure::sent(UpstreamError::Protocol, "the target makes no valid uri"))?;
        *head.uri_mut() = uri;
        let asked_upgrade = head.headers().contains_key(UPGRADE);
        let client = server.client(self.worker, head.headers());
        let mut request = head.map(|()| self.source.body());
        let mut connection = capture_connection(&mut request);
        let timeout = self.options.first_byte_timeout.unwrap_or(self.upstream.config.first_byte_timeout);
        let response = await_head(client.request(request), &mut connection, timeout, self.source.progress()).await?;
        if let Some(fault) = framing::fault(&response, asked_upgrade) {
            // Where one response ends and the next begins is uncertain: nothing more is read from this connection.
            if let Some(connection) = connection.connection_metadata().as_ref() {
                connection.poison();
            }
            return Err(Failure::sent(UpstreamError::Protocol, fault));
        }
        Ok(response)
    }
}

impl Upstream {
    /// The server whose turn it is, and everybody who was considered.
    fn admit(&self, tried: &mut Tried) -> Option<Attempt> {
        let now = Instant::now().into_std();
        while let Some(index) = self.turn.choose(self.config.balance, self.servers.len(), |index| Candidate {
            is_eligible: !tried.contains(&index) && self.servers[index].would_admit(now),
            in_flight: self.servers[index].in_flight(),
        }) {
            tried.push(index);
            // Another worker may have taken the trial in the meantime.
            if let Some(attempt) = self.servers[index].admit(now) {
                return Some(attempt);
            }
        }
        None
    }
}

/// Waits for the head: first for the connection, which has its own timeout, then from the last byte of the request on.
async fn await_head(
    mut response: ResponseFuture,
    connection: &mut CaptureConnection,
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
        if let Ok(result) = timeout_at(deadline, &mut response).await {
            return result.map_err(explain);
        }
        let now = Instant::now();
        deadline = progress.upstream_waited_for_since(begun, now) + timeout;
        if deadline <= now {
            let cause = format!("no response head within {timeout:?}");
            return Err(Failure::sent(UpstreamError::FirstByteTimeout, cause));
        }
    }
}
