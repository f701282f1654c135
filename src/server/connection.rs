//! One client's connection: TLS, hyper, its time-outs and its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};

use super::accept::Accepted;
use super::activity::{Activity, Timer};
use super::interim::InterimQueue;
use super::occupancy::Place;
use super::service::Service;
use super::socket::ClientSocket;
use super::vouched::Vouched;
use super::worker::Worker;
use crate::config::Limits;
use crate::proxy::Connection;
use crate::telemetry::events::Event;

/// Streams of one HTTP/2 connection at one time.
const STREAMS_MAX: u32 = 100;
/// Streams that were reset and not yet forgotten, before the connection is ended (rapid reset).
const RESET_STREAMS_MAX: usize = 64;
/// How often, and how patiently, an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an HTTP/2 client without a request has to acknowledge that its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
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
        Err(_) => Err(format!("tls handshake: not done within {within:?}")),
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
    let activity = Arc::new(Activity::new());
    let queue = Arc::<InterimQueue>::default();
    let socket = ClientSocket::new(stream, Arc::clone(&activity), Arc::clone(&queue), place);
    let service = Arc::new(Service {
        proxy: Arc::clone(&worker.proxy),
        connection,
        vouched,
        activity: Arc::clone(&activity),
        interim: queue,
    });
    let limits = || worker.shared().generation.load().server.limits.clone();
    let builder = builder(&limits());
    let answer = service_fn(move |request| Arc::clone(&service).call(request));
    let mut hyper = pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), answer));
    let mut is_ending = false;
    let mut pause = Activity::interval(&limits());
    loop {
        tokio::select! {
            biased;
            result = hyper.as_mut() => return result.map_err(|error| error.to_string()),
            () = worker.drain.begun(), if !is_ending => {
                is_ending = true;
                pause = FAREWELL;
                hyper.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(pause) => match activity.check(&limits()) {
                // An HTTP/2 client that does not answer the good-bye is left.
                _ if is_ending && activity.is_idle_for(FAREWELL) => return Ok(()),
                Timer::Again(next) => pause = if is_ending { FAREWELL } else { next },
                Timer::Stalled => return Err("the client stalled".to_owned()),
                Timer::Idle => {
                    is_ending = true;
                    pause = FAREWELL;
                    hyper.as_mut().graceful_shutdown();
                }
            },
        }
    }
}

/// hyper's own bounds; its buffer is above ours, so that a head that is a little too large is answered and recorded by us.
/// Time-outs of heads are [`Activity`]'s: hyper's would count a connection's idle time too.
fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let head_bytes = usize::try_from(limits.header_size).unwrap_or(usize::MAX);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.header_count)
        .max_buf_size(head_bytes.saturating_add(limits.uri_length).saturating_add(1024).max(BUFFER_MIN))
        .keep_alive(true)
        .half_close(false)
        .pipeline_flush(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.header_size).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
