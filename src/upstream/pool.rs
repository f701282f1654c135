//! The connections to one server that one worker keeps: handed out, taken back, and closed when nobody wants them.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::oneshot;

use super::connect::Connector;
use super::outgoing::OutgoingBody;
use crate::boxed::pinned;

/// What is idle is looked at once a round, and closed after so many: no connection need know when it was put here. Common
/// servers close idle connections after 5 s or more; being first keeps requests from meeting the close.
const ROUND: Duration = Duration::from_secs(1);
const IDLE_ROUNDS: u64 = 4;
/// Idle connections that one worker keeps to one server.
const IDLE_MAX: usize = 256;
/// Bytes of the read buffer, which bounds a head before it is judged.
const HEAD_MAX: usize = 128 * 1024;
/// What a response may fill before its reader takes it; bounds the memory that slow readers hold.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const H2_SEND_BUFFER: usize = 256 * 1024;
/// Streams that are opened before the server has said how many it takes; it refuses what is above that.
const H2_STREAMS_AT_FIRST: usize = 10;
/// A silent HTTP/2 connection is asked for a sign of life, for all its requests would wait for their timeout.
const H2_PING_EVERY: Duration = Duration::from_secs(10);
const H2_PING_WAIT: Duration = Duration::from_secs(5);

/// One worker's connections to one server. Their tasks run on the runtime of the worker that calls it, and end with it;
/// drain waits for the requests that use them.
pub(super) struct Pool {
    connector: Connector,
    /// Held while a connection is put here or taken.
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// HTTP/1.1 connections without a request, the longest idle first.
    idle: Vec<Idle>,
    /// The HTTP/2 connection that requests share.
    shared: Option<Shared>,
    /// Requests that have begun a connection, and take one that becomes idle before theirs stands. First come, first served.
    waiting: VecDeque<oneshot::Sender<Sender>>,
    round: u64,
    /// Whether a task looks once a round.
    is_swept: bool,
}

struct Idle {
    sender: http1::SendRequest<OutgoingBody>,
    since: u64,
}

struct Shared {
    sender: http2::SendRequest<OutgoingBody>,
    /// The round of its last request.
    used: u64,
}

/// What sends requests over a connection.
enum Sender {
    Http1(http1::SendRequest<OutgoingBody>),
    Http2(http2::SendRequest<OutgoingBody>),
}

/// A connection for one request.
pub(super) struct Lease {
    pool: Arc<Pool>,
    sender: Sender,
    was_kept: bool,
}

/// A request's hold on its connection. Dropped, it gives back one that is idle again, be it once the rest of the request's content
/// has left; one whose response has not ended is closed.
pub(super) struct Hold {
    pool: Arc<Pool>,
    has_content: bool,
    /// None: HTTP/2, of which only the stream is the request's; or it is not to be used again.
    sender: Option<http1::SendRequest<OutgoingBody>>,
}

/// A response's head; or what gives back a request that nothing was written of.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Request<OutgoingBody>>>;

impl Pool {
    /// None stands yet.
    pub fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, kept: Mutex::default() })
    }

    /// One that is idle or can be shared; else the first of a new one and one that becomes idle meanwhile.
    pub async fn get(self: &Arc<Self>) -> io::Result<Lease> {
        let turn = match self.take() {
            Ok(sender) => return Ok(self.lease(sender, true)),
            Err(turn) => turn,
        };
        match select(turn, pinned(|| Arc::clone(self).connect(false))).await {
            Either::Left((Ok(sender), connecting)) => {
                // What has begun is brought to its end, and kept.
                spawn(async {
                    if let Ok(lease) = connecting.await {
                        lease.keep().await;
                    }
                });
                Ok(self.lease(sender, true))
            }
            // Who waits is forgotten only with the pool.
            Either::Left((Err(_), connecting)) => connecting.await,
            Either::Right((outcome, _)) => outcome,
        }
    }

    /// One that nobody has used.
    pub async fn get_new(self: &Arc<Self>) -> io::Result<Lease> {
        Arc::clone(self).connect(true).await
    }

    fn take(&self) -> Result<Sender, oneshot::Receiver<Sender>> {
        let mut kept = self.lock();
        while let Some(Idle { sender, .. }) = kept.idle.pop() {
            if sender.is_ready() {
                return Ok(Sender::Http1(sender));
            }
        }
        let round = kept.round;
        if let Some(shared) = kept.shared.as_mut().filter(|shared| !shared.sender.is_closed()) {
            shared.used = round;
            return Ok(Sender::Http2(shared.sender.clone()));
        }
        // Those who have theirs go before the queue grows.
        if kept.waiting.len() == kept.waiting.capacity() {
            kept.waiting.retain(|waiting| !waiting.is_closed());
        }
        let (sender, turn) = oneshot::channel();
        kept.waiting.push_back(sender);
        Err(turn)
    }

    async fn connect(self: Arc<Self>, must_be_new: bool) -> io::Result<Lease> {
        let stream = self.connector.connect().await?;
        let sender = if stream.is_http2() {
            let (sender, connection) =
                http2_settings().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            spawn(async { drop(connection.await) });
            Sender::Http2(self.share(sender, must_be_new))
        } else {
            let (sender, connection) =
                http1_settings().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            spawn(async { drop(connection.with_upgrades().await) });
            Sender::Http1(sender)
        };
        Ok(self.lease(sender, false))
    }

    /// Lets other requests use a new HTTP/2 connection, unless they share one already, which is the better one then.
    fn share(
        self: &Arc<Self>,
        sender: http2::SendRequest<OutgoingBody>,
        must_be_new: bool,
    ) -> http2::SendRequest<OutgoingBody> {
        let mut kept = self.lock();
        if let Some(shared) = &kept.shared
            && !must_be_new
            && !shared.sender.is_closed()
        {
            return shared.sender.clone();
        }
        kept.shared = Some(Shared { sender: sender.clone(), used: kept.round });
        for waiting in kept.waiting.drain(..) {
            // Who has one does not listen.
            let _ = waiting.send(Sender::Http2(sender.clone()));
        }
        self.see_swept(&mut kept);
        sender
    }

    /// Takes an idle connection back: for who waits, or else until it is wanted.
    fn give_back(self: &Arc<Self>, sender: http1::SendRequest<OutgoingBody>) {
        let mut kept = self.lock();
        let mut sender = Sender::Http1(sender);
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(sender) {
                Ok(()) => return,
                Err(unwanted) => sender = unwanted,
            }
        }
        if let Sender::Http1(sender) = sender
            && kept.idle.len() < IDLE_MAX
        {
            let since = kept.round;
            kept.idle.push(Idle { sender, since });
            self.see_swept(&mut kept);
        }
    }

    /// The same, as soon as it is idle.
    async fn await_back(self: Arc<Self>, mut sender: http1::SendRequest<OutgoingBody>) {
        if sender.ready().await.is_ok() {
            self.give_back(sender);
        }
    }

    fn see_swept(self: &Arc<Self>, kept: &mut Kept) {
        if !std::mem::replace(&mut kept.is_swept, true) {
            let pool = Arc::downgrade(self);
            spawn(async move {
                loop {
                    tokio::time::sleep(ROUND).await;
                    let Some(pool) = pool.upgrade() else { break };
                    if !pool.sweep() {
                        break;
                    }
                }
            });
        }
    }

    /// Closes what has been idle for long. Whether there is anything left to look at.
    fn sweep(&self) -> bool {
        let mut kept = self.lock();
        kept.round += 1;
        let round = kept.round;
        let is_old = |since| round - since >= IDLE_ROUNDS;
        kept.idle.retain(|idle| !is_old(idle.since) && !idle.sender.is_closed());
        kept.shared.take_if(|shared| is_old(shared.used) || shared.sender.is_closed());
        kept.is_swept = !kept.idle.is_empty() || kept.shared.is_some();
        kept.is_swept
    }

    fn lease(self: &Arc<Self>, sender: Sender, was_kept: bool) -> Lease {
        Lease { pool: Arc::clone(self), sender, was_kept }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Whether it stood before it was asked for: the server may have closed it since.
    pub const fn was_kept(&self) -> bool {
        self.was_kept
    }

    /// The protocol spoken.
    pub const fn version(&self) -> Version {
        match self.sender {
            Sender::Http1(_) => Version::HTTP_11,
            Sender::Http2(_) => Version::HTTP_2,
        }
    }

    /// Sends a request whose target has the form that the protocol wants: path and query, or all of it for HTTP/2. Dropping
    /// the future gives the request up.
    pub fn send(self, request: Request<OutgoingBody>) -> (impl Future<Output = Sent> + use<>, Hold) {
        let has_content = !request.body().is_end_stream();
        let (sent, sender) = match self.sender {
            Sender::Http1(mut sender) => (Either::Left(sender.try_send_request(request)), Some(sender)),
            Sender::Http2(mut sender) => (Either::Right(sender.try_send_request(request)), None),
        };
        (sent, Hold { pool: self.pool, has_content, sender })
    }

    /// Keeps it without a request.
    async fn keep(self) {
        if let Sender::Http1(sender) = self.sender {
            self.pool.await_back(sender).await;
        }
    }
}

impl Hold {
    /// Reads nothing more from the connection (HTTP/2: from the stream).
    pub fn close(mut self) {
        self.sender = None;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take() else { return };
        if sender.is_ready() {
            self.pool.give_back(sender);
        } else if self.has_content && !sender.is_closed() {
            // The response may have come before all of the request was sent.
            spawn(Arc::clone(&self.pool).await_back(sender));
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

#[allow(clippy::disallowed_methods, reason = "a connection lives as long as who uses it, and drain waits for those")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn http1_settings() -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings.max_buf_size(HEAD_MAX);
    settings
}

fn http2_settings() -> http2::Builder<TokioExecutor> {
    let mut settings = http2::Builder::new(TokioExecutor::new());
    settings
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_MAX as u32)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .initial_max_send_streams(H2_STREAMS_AT_FIRST)
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_WAIT);
    settings
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::outgoing::Source;
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok";

    /// A server, a pool of connections to it, and how many the server has seen come and go.
    struct Scene {
        pool: Arc<Pool>,
        made: Arc<AtomicUsize>,
        closed: Arc<AtomicUsize>,
    }

    impl Scene {
        #[allow(clippy::disallowed_methods, reason = "a test's server ends with its runtime")]
        async fn open() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            let connector = Connector::new(url.parse().expect("a url"), None, Duration::from_secs(10));
            let scene = Self { pool: Pool::new(connector), made: Arc::default(), closed: Arc::default() };
            let (made, closed) = (Arc::clone(&scene.made), Arc::clone(&scene.closed));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    made.fetch_add(1, Ordering::SeqCst);
                    let closed = Arc::clone(&closed);
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while let Ok(byte) = stream.read_u8().await {
                            head.push(byte);
                            if head.ends_with(b"\r\n\r\n") {
                                let answer = if head.starts_with(b"GET /half") { HALF } else { WHOLE };
                                head.clear();
                                stream.write_all(answer).await.expect("a reader");
                            }
                        }
                        closed.fetch_add(1, Ordering::SeqCst);
                    });
                }
            });
            scene
        }

        /// Asks once, and reads all of the response.
        async fn ask(&self, lease: Lease) {
            let (sent, _hold) = lease.send(get("/"));
            let response = sent.await.expect("a response");
            assert_eq!(response.into_body().collect().await.expect("content").to_bytes(), "ok");
        }

        fn idle(&self) -> usize {
            self.pool.lock().idle.len()
        }

        async fn closes(&self, count: usize) {
            eventually(|| self.closed.load(Ordering::SeqCst) >= count).await;
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::SeqCst)
        }
    }

    async fn eventually(holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it does not come");
    }

    fn get(target: &'static str) -> Request<OutgoingBody> {
        Request::get(target).header(http::header::HOST, "a").body(OutgoingBody::Empty).expect("a request")
    }

    #[tokio::test]
    async fn a_connection_whose_response_was_read_is_used_again() {
        let scene = Scene::open().await;
        for was_kept in [false, true, true] {
            let lease = scene.pool.get().await.expect("a connection");
            assert_eq!((lease.was_kept(), lease.version()), (was_kept, Version::HTTP_11));
            scene.ask(lease).await;
        }
        assert_eq!((scene.made(), scene.idle()), (1, 1));
        let lease = scene.pool.get_new().await.expect("a connection");
        assert!(!lease.was_kept());
        scene.ask(lease).await;
        assert_eq!((scene.made(), scene.idle()), (2, 2));
    }

    #[tokio::test]
    async fn what_was_given_up_or_not_read_is_closed() {
        let scene = Scene::open().await;
        let (sent, hold) = scene.pool.get().await.expect("a connection").send(get("/half"));
        let response = sent.await.expect("a head");
        drop(hold);
        drop(response);
        assert_eq!(scene.idle(), 0);
        scene.closes(1).await;
        let (sent, hold) = scene.pool.get().await.expect("a connection").send(get("/"));
        drop(sent);
        drop(hold);
        assert_eq!(scene.idle(), 0);
        scene.closes(2).await;
        let (sent, hold) = scene.pool.get().await.expect("a connection").send(get("/"));
        sent.await.expect("a response").into_body().collect().await.expect("content");
        hold.close();
        assert_eq!(scene.idle(), 0);
        scene.closes(3).await;
    }

    #[tokio::test]
    async fn a_response_that_comes_before_all_was_sent_gives_its_connection_back_once_it_is() {
        let scene = Scene::open().await;
        let (content, mut frames) = tokio::sync::mpsc::channel(1);
        let frames = futures_util::stream::poll_fn(move |context| frames.poll_recv(context));
        let source = Source::new(http_body_util::StreamBody::new(frames).boxed_unsync());
        let request = Request::post("/").header(http::header::HOST, "a").body(source.body()).expect("a request");
        let (sent, hold) = scene.pool.get().await.expect("a connection").send(request);
        sent.await.expect("a response").into_body().collect().await.expect("content");
        drop(hold);
        assert_eq!(scene.idle(), 0);
        content.send(Ok(http_body::Frame::data(bytes::Bytes::from_static(b"x")))).await.expect("a reader");
        drop(content);
        eventually(|| scene.idle() > 0).await;
        assert_eq!((scene.made(), scene.closed.load(Ordering::SeqCst)), (1, 0));
    }

    #[tokio::test]
    async fn who_waits_takes_what_becomes_idle_and_what_was_begun_is_kept() {
        let scene = Scene::open().await;
        let first = scene.pool.get().await.expect("a connection");
        let mut second = std::pin::pin!(scene.pool.get());
        // It has begun to connect, and the runtime has not looked whether it is connected.
        assert!(futures_util::poll!(&mut second).is_pending());
        first.keep().await;
        let second = futures_util::poll!(&mut second);
        let Poll::Ready(Ok(second)) = second else { panic!("a connection at once") };
        assert!(second.was_kept());
        eventually(|| scene.idle() > 0).await;
        assert_eq!(scene.made(), 2);
    }

    #[tokio::test]
    async fn those_who_gave_up_waiting_do_not_pile_up() {
        let scene = Scene::open().await;
        for _ in 0..1000 {
            assert!(futures_util::poll!(std::pin::pin!(scene.pool.get())).is_pending());
        }
        assert!(scene.pool.lock().waiting.len() < 10);
    }

    #[tokio::test]
    async fn what_nobody_wants_is_closed_after_some_rounds() {
        let scene = Scene::open().await;
        let (first, second) = (scene.pool.get_new().await, scene.pool.get_new().await);
        let (first, second) = (first.expect("a connection"), second.expect("a connection"));
        scene.ask(first).await;
        assert!(scene.pool.sweep());
        scene.ask(second).await;
        for _ in 2..IDLE_ROUNDS {
            assert!(scene.pool.sweep());
        }
        assert_eq!(scene.idle(), 2);
        assert!(scene.pool.sweep());
        scene.closes(1).await;
        assert_eq!(scene.idle(), 1);
        assert!(!scene.pool.sweep());
        scene.closes(2).await;
        assert_eq!(scene.idle(), 0);
    }
}
