//! One client's connection: TLS, hyper, its time-outs and its end.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::accept::Accepted;
use super::occupancy::Place;
use super::request::FirstHost;
use super::service::Service;
use super::socket::{ClientSocket, HttpVersion, Notes};
use super::vouched::Vouched;
use super::watch::{Ended, Watch};
use super::worker::Worker;
use crate::config::Limits;
use crate::proxy::Connection;
use crate::telemetry::events::Event;
use crate::telemetry::limits::Limit;

/// How often, and how patiently, an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What the HTTP/2 library says where it ended a connection itself, and why.
const FOUND: &str = "connection error detected: ";
const EXCESS: &str = "excessive load";
/// Bytes that HTTP/2 counts for a field besides name and value.
const FIELD_OVERHEAD: usize = 32;
/// The least that hyper takes for its read buffer.
const BUFFER_MIN: usize = 8 << 10;

/// Serves an accepted connection to its end.
pub async fn serve(worker: Arc<Worker>, accepted: Accepted) {
    let result = match TcpStream::from_std(accepted.stream) {
        Ok(stream) => {
            let connection = Connection { peer: accepted.peer, scheme: accepted.speech.scheme };
            match &accepted.speech.tls {
                None => drive(&worker, stream, connection, None, accepted.place).await,
                // In a box, for its state is 5 KiB, which each connection without TLS would take too.
                Some((tls, certificate)) => {
                    Box::pin(serve_tls(&worker, tls.accept(stream), certificate, connection, accepted.place)).await
                }
            }
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = result {
        worker.shared().telemetry.emit(&Event::ConnectionFailed { error });
    }
}

async fn serve_tls(
    worker: &Arc<Worker>,
    accept: tokio_rustls::Accept<TcpStream>,
    certificate: &CertificateDer<'static>,
    connection: Connection,
    place: Place,
) -> Result<(), String> {
    let stream = handshake(worker, accept).await?;
    let vouched = Vouched::of(stream.get_ref().1, certificate);
    drive(worker, stream, connection, vouched, place).await
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
    let mut socket = ClientSocket::new(stream, notes.clone(), place);
    let service = Arc::new(Service {
        proxy: Arc::clone(&worker.proxy),
        connection,
        vouched,
        notes,
        first_host: FirstHost::new(),
    });
    let limits = worker.shared().generation.load().server.limits.clone();
    let watch = Watch::new(worker, &activity);
    let version = match watch.over(poll_fn(|context| socket.poll_version(context))).await {
        Ended::With(version) => version.map_err(|error| error.to_string())?,
        Ended::Idle => return Ok(()),
        Ended::Stalled(error) => return Err(error),
    };
    let (io, answered) = (TokioIo::new(socket), Arc::clone(&service));
    let answer = service_fn(move |request| Arc::clone(&answered).call(request));
    let ended = match version {
        HttpVersion::Http1 => {
            let connection = http1(&limits).serve_connection(io, answer).with_upgrades();
            watch.over_connection(connection, http1::UpgradeableConnection::graceful_shutdown).await
        }
        // In a box, for its state is a kilobyte, which each connection of HTTP/1.1 would take too.
        HttpVersion::Http2 => {
            let connection = http2(&limits).serve_connection(io, answer);
            Box::pin(watch.over_connection(connection, http2::Connection::graceful_shutdown)).await
        }
    };
    match ended {
        Ended::With(Ok(())) | Ended::Idle => Ok(()),
        Ended::With(Err(error)) => {
            limit_of(&error).into_iter().for_each(|limit| worker.shared().telemetry.limited(limit));
            Err(service.told_by_hyper(&error))
        }
        Ended::Stalled(error) => Err(error),
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
fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.header_count)
        .max_buf_size(head_bytes(limits).max(BUFFER_MIN))
        .keep_alive(true)
        .half_close(false)
        .pipeline_flush(false);
    builder
}

/// The same for HTTP/2.
fn http2(limits: &Limits) -> http2::Builder<TokioExecutor> {
    // RFC 9113 §6.5.2 adds to each field.
    let list_bytes = head_bytes(limits).saturating_add(limits.header_count.saturating_mul(FIELD_OVERHEAD));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(list_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.http2_resets)
        .max_local_error_reset_streams(limits.http2_resets)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

fn head_bytes(limits: &Limits) -> usize {
    let header_size = usize::try_from(limits.header_size).unwrap_or(usize::MAX);
    header_size.saturating_add(limits.uri_length).saturating_add(1024)
}
