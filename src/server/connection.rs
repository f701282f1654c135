//! One client's connection: TLS, hyper, its time-outs and its end.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};

use super::accept::Accepted;
use super::activity::{Activity, Timer};
use super::occupancy::Place;
use super::request::FirstHost;
use super::service::Service;
use super::socket::{ClientSocket, Notes};
use super::vouched::Vouched;
use super::worker::Worker;
use crate::config::Limits;
use crate::proxy::Connection;
use crate::telemetry::events::Event;
use crate::telemetry::limits::Limit;

/// How often, and how patiently, an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an HTTP/2 client without a request has to acknowledge that its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the HTTP/2 library says where it ended a connection itself, and why.
const FOUND: &str = "connection error detected: ";
const EXCESS: &str = "excessive load";
/// Bytes that HTTP/2 counts for a field besides name and value.
const FIELD_OVERHEAD: usize = 32;
/// The least that hyper takes for its read buffer.
const BUFFER_MIN: usize = 8 << 10;

/// Serves an accepted connection to its end.
pub async fn serve(worker: Arc<Worker>, accepted: Accepted) {
    let result = match tokio::net::TcpStream::from_std(accepted.stream) {
        Ok(stream) => {
            let connection = Connection { peer: accepted.peer, scheme: accepted.speech.scheme };
            match &accepted.speech.tls {
                None => drive(&worker, stream, connection, None, accepted.place).await,
                Some((tls, certificate)) => match handshake(&worker, tls.accept(stream)).await {
                    Ok(stream) => {
                        let vouched = Vouched::of(stream.get_ref().1, certificate);
                        drive(&worker, stream, connection, vouched, accepted.place).await
                    }
                    Err(error) => Err(error),
                },
            }
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = result {
        worker.shared().telemetry.emit(&Event::ConnectionFailed { error });
    }
}

async fn handshake<S>(
    worker: &Worker,
    accept: tokio_rustls::Accept<S>,
) -> Result<tokio_rustls::server::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let within = worker.shared().generation.load().server.limits.header_timeout;
    match tokio::time::timeout(within, accept).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("tls handshake: {error}")),
        Err(_) => {
            worker.shared().telemetry.limited(Limit::HeaderTimeout);
            Err(format!("tls handshake: not done within {within:?}"))
        }
    }
}

async fn drive<S>(
    worker: &Arc<Worker>,
    stream: S,
    connection: Connection,
    vouched: Option<Vouched>,
    place: Place,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let notes = Notes::default();
    let activity = Arc::clone(&notes.activity);
    let socket = ClientSocket::new(stream, notes.clone(), place);
    let service = Arc::new(Service {
        proxy: Arc::clone(&worker.proxy),
        connection,
        vouched,
        notes,
        first_host: FirstHost::new(),
    });
    let asked = Arc::clone(&service);
    let limits = || worker.shared().generation.load().server.limits.clone();
    let builder = builder(&limits());
    let answer = service_fn(move |request| Arc::clone(&service).call(request));
    let mut hyper = pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), answer));
    let mut is_ending = false;
    let mut pause = Activity::interval(&limits());
    loop {
        tokio::select! {
            biased;
            result = hyper.as_mut() => return result.map_err(|error| {
                limit_of(&*error).into_iter().for_each(|limit| worker.shared().telemetry.limited(limit));
                asked.told_by_hyper(&*error)
            }),
            () = worker.drain.begun(), if !is_ending => {
                is_ending = true;
                pause = FAREWELL;
                hyper.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(pause) => match activity.check(&limits()) {
                // An HTTP/2 client that does not answer the good-bye is left.
                _ if is_ending && activity.is_idle_for(FAREWELL) => return Ok(()),
                Timer::Again(next) => pause = if is_ending { FAREWELL } else { next },
                Timer::Stalled(limit) => {
                    worker.shared().telemetry.limited(limit);
                    return Err(format!("the client stalled: {}", limit.name()));
                }
                Timer::Idle => {
                    worker.shared().telemetry.limited(Limit::IdleTimeout);
                    is_ending = true;
                    pause = FAREWELL;
                    hyper.as_mut().graceful_shutdown();
                }
            },
        }
    }
}

/// The bound that hyper ended the connection for.
fn limit_of(error: &(dyn Error + 'static)) -> Option<Limit> {
    let causes = std::iter::successors(Some(error), |cause| (*cause).source());
    let is_too_large = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large);
    // HTTP/2's ENHANCE_YOUR_CALM, of which only the text can be had without the library below hyper.
    let is_excess = causes.into_iter().any(|cause| {
        let text = cause.to_string();
        text.starts_with(FOUND) && text.contains(EXCESS)
    });
    if is_too_large { Some(Limit::HeaderSize) } else { is_excess.then_some(Limit::Http2Resets) }
}

/// hyper's own bounds; its buffer is above ours, so that a head that is a little too large is answered and recorded by us.
/// Time-outs of heads are [`Activity`]'s: hyper's would count a connection's idle time too.
fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let head_bytes = usize::try_from(limits.header_size).unwrap_or(usize::MAX);
    let head_bytes = head_bytes.saturating_add(limits.uri_length).saturating_add(1024);
    // RFC 9113 §6.5.2 adds to each field.
    let list_bytes = head_bytes.saturating_add(limits.header_count.saturating_mul(FIELD_OVERHEAD));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.header_count)
        .max_buf_size(head_bytes.max(BUFFER_MIN))
        .keep_alive(true)
        .half_close(false)
        .pipeline_flush(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(list_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.http2_resets)
        .max_local_error_reset_streams(limits.http2_resets)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
