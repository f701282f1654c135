//! The socket under hyper: reads before it, notes what the client does, and writes interim heads between responses.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::activity::Activity;
use super::front::{Front, Verdict};
use super::interim::InterimQueue;
use crate::gather;

/// A client's connection, above TLS where there is any. `place` is given back when the connection ends, be it hyper's
/// or, after an upgrade, a tunnel's.
#[derive(Debug)]
pub struct ClientSocket<S, P> {
    inner: S,
    activity: Arc<Activity>,
    interim: Arc<InterimQueue>,
    /// Interim heads of which a part may have been written.
    writing: Vec<u8>,
    written: usize,
    /// What the client said first, by which its version of HTTP is known, and which hyper has yet to read.
    first: Vec<u8>,
    /// Whether hyper has written since it last flushed: it may be within a response.
    is_dirty: bool,
    front: Front,
    verdict: Arc<Verdict>,
    /// Once our side is shut down: what the client still sends is read for so long, and not looked at.
    lingering: Option<Lingering>,
    _place: P,
}

/// The end of a connection whose client may be sending: closed at once, it would be reset, and the answer lost with it
/// (RFC 9112 §9.6).
#[derive(Debug)]
struct Lingering {
    left: usize,
    until: Pin<Box<Sleep>>,
}

/// How much is read, and how long, before a client that goes on sending is cut off.
const LINGER_BYTES: usize = 256 << 10;
const LINGER_TIME: Duration = Duration::from_secs(1);

impl<S, P> ClientSocket<S, P> {
    /// Wraps an accepted connection.
    pub fn new(inner: S, notes: Notes, place: P) -> Self {
        Self {
            inner,
            activity: notes.activity,
            interim: notes.interim,
            writing: Vec::new(),
            written: 0,
            first: Vec::new(),
            is_dirty: false,
            front: Front::default(),
            verdict: notes.verdict,
            lingering: None,
            _place: place,
        }
    }
}

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, by prior knowledge or ALPN: it begins with the same preface (RFC 9113 §3.4).
    Http2,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the socket and the service of a connection tell each other.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// What the connection waits for.
    pub activity: Arc<Activity>,
    /// Interim heads for the request in hand.
    pub interim: Arc<InterimQueue>,
    /// What reading before hyper has found.
    pub verdict: Arc<Verdict>,
}

impl<S: AsyncWrite + Unpin, P> ClientSocket<S, P> {
    /// Writes interim heads where none can land inside a response, before hyper writes.
    ///
    /// hyper flushes what it has before it hands out the next request (`pipeline_flush` is off). So while the queue is
    /// open and hyper has flushed all it wrote, the wire stands between responses; and once the queue is closed, the
    /// next thing that hyper writes to a clean wire is the response's head. If it is not clean then, head and remainder
    /// may be in one write, and the interim heads are dropped: they are hints.
    fn poll_before_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dirty {
            if !self.interim.is_open() {
                drop(self.interim.take());
            }
        } else if let Some(heads) = self.interim.take() {
            self.writing.extend_from_slice(&heads);
        }
        self.poll_interim(context)
    }

    /// The same; where the client does not take them, it is what hyper wants to write that waits.
    fn poll_clear(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_before_write(context);
        if polled.is_pending() {
            self.activity.write_blocked();
        }
        polled
    }

    fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.writing.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, &self.writing[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => {
                    self.activity.write_progressed(bytes);
                    self.written += bytes;
                }
            }
        }
        self.writing.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Notes whether the client takes what is written.
    fn note(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Pending => self.activity.write_blocked(),
            Poll::Ready(Ok(bytes)) => self.activity.write_progressed(*bytes),
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<S: AsyncRead + Unpin, P> ClientSocket<S, P> {
    /// Reads on, within bounds, what a client sends that has not seen yet that nobody listens.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| {
            let is_sending = self.front.is_within_request() && !self.verdict.is_tunnel();
            let until = Box::pin(tokio::time::sleep(LINGER_TIME));
            Lingering { left: if is_sending { LINGER_BYTES } else { 0 }, until }
        });
        let mut piece = [0; 8192];
        while lingering.left > 0 && lingering.until.as_mut().poll(context).is_pending() {
            let mut piece = ReadBuf::new(&mut piece);
            if ready!(Pin::new(&mut self.inner).poll_read(context, &mut piece)).is_err() || piece.filled().is_empty() {
                break;
            }
            lingering.left = lingering.left.saturating_sub(piece.filled().len());
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin, P> ClientSocket<S, P> {
    /// Reads as much as tells which version of HTTP the client speaks, and keeps it for hyper.
    ///
    /// hyper-util's own does it too, but hands its piece to hyper alone: hyper's buffer then grows to twice its size for
    /// the rest, and stays so, which cost 8 KiB for each idle connection.
    pub fn poll_version(&mut self, context: &mut Context<'_>) -> Poll<io::Result<HttpVersion>> {
        let mut piece = [0; PREFACE.len()];
        loop {
            if self.first == PREFACE {
                return Poll::Ready(Ok(HttpVersion::Http2));
            }
            if !PREFACE.starts_with(&self.first) {
                return Poll::Ready(Ok(HttpVersion::Http1));
            }
            let mut piece = ReadBuf::new(&mut piece[self.first.len()..]);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                // It has left; hyper finds the end of what there is.
                return Poll::Ready(Ok(HttpVersion::Http1));
            }
            self.activity.received(piece.filled());
            self.first.extend_from_slice(piece.filled());
        }
    }

    /// Hands over what was kept, with what has come since.
    fn poll_read_first(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..length]);
        self.first.drain(..length);
        if !self.first.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // An allocation that nobody needs any more.
        self.first = Vec::new();
        let kept = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut self.inner).poll_read(context, buf) {
            result?;
        }
        self.activity.received(&buf.filled()[kept..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for ClientSocket<S, P> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        if this.first.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(context, buf))?;
            this.activity.received(&buf.filled()[before..]);
        } else {
            ready!(this.poll_read_first(context, buf))?;
        }
        let received = &buf.filled()[before..];
        if !this.verdict.is_tunnel() {
            this.front.read(received, &this.verdict);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: Unpin> AsyncWrite for ClientSocket<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_clear(context))?;
        self.is_dirty = true;
        let polled = Pin::new(&mut self.inner).poll_write(context, buf);
        self.note(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_clear(context))?;
        self.is_dirty = true;
        let polled = gather::poll_write(Pin::new(&mut self.inner), context, bufs);
        self.note(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper flushes each time its task runs, and only when all it had has been written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dirty {
            ready!(Pin::new(&mut self.inner).poll_flush(context))?;
            self.is_dirty = false;
        }
        if self.interim.is_open() {
            self.interim.register(context.waker());
            ready!(self.poll_before_write(context))?;
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        self.poll_linger(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::proxy::InterimSink;

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";

    fn pair(room: usize) -> (ClientSocket<DuplexStream, ()>, Arc<InterimQueue>, DuplexStream) {
        let (client, server) = tokio::io::duplex(room);
        let queue = Arc::<InterimQueue>::default();
        let notes = Notes { interim: Arc::clone(&queue), ..Notes::default() };
        (ClientSocket::new(server, notes, ()), queue, client)
    }

    fn hint(queue: &InterimQueue, request: u64) {
        let fields = HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("</a.css>"))]);
        queue.send(request, StatusCode::EARLY_HINTS, &fields);
    }

    async fn received(socket: ClientSocket<DuplexStream, ()>, mut client: DuplexStream) -> String {
        drop(socket);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn an_interim_head_is_written_before_the_response() {
        let (mut socket, queue, client) = pair(1 << 16);
        let request = queue.open();
        hint(&queue, request);
        socket.flush().await.unwrap();
        hint(&queue, request);
        queue.close();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert_eq!(received(socket, client).await, format!("{HINT}{HINT}HTTP/1.1 200 OK\r\n\r\n"));
    }

    #[tokio::test]
    async fn an_interim_head_wakes_the_connection_that_waits() {
        let (mut socket, queue, mut client) = pair(1 << 16);
        let request = queue.open();
        let connection = std::future::poll_fn(|context| {
            let _ = Pin::new(&mut socket).poll_flush(context);
            Poll::<()>::Pending
        });
        let client = async {
            tokio::task::yield_now().await;
            hint(&queue, request);
            let mut head = vec![0; HINT.len()];
            client.read_exact(&mut head).await.unwrap();
            head
        };
        tokio::select! {
            () = connection => {}
            head = client => assert_eq!(head, HINT.as_bytes()),
        }
    }

    #[tokio::test]
    async fn nothing_lands_inside_a_response() {
        let (mut socket, queue, client) = pair(1 << 16);
        let request = queue.open();
        queue.close();
        socket.write_all(b"head of 1, ").await.unwrap();
        socket.flush().await.unwrap();
        hint(&queue, request);
        socket.flush().await.unwrap();
        socket.write_all(b"end of 1, ").await.unwrap();
        // The next request came, but the response before has not left: its end and the next head are one write.
        let request = queue.open();
        hint(&queue, request);
        queue.close();
        socket.write_all(b"more of 1 and head of 2, ").await.unwrap();
        socket.flush().await.unwrap();
        socket.write_all(b"end of 2").await.unwrap();
        assert_eq!(received(socket, client).await, "head of 1, end of 1, more of 1 and head of 2, end of 2");
    }

    #[tokio::test]
    async fn what_comes_late_for_a_request_is_not_written_for_the_next() {
        let (mut socket, queue, client) = pair(1 << 16);
        let late = queue.open();
        queue.close();
        socket.write_all(b"response 1, ").await.unwrap();
        socket.flush().await.unwrap();
        let request = queue.open();
        hint(&queue, late);
        socket.flush().await.unwrap();
        hint(&queue, request);
        socket.flush().await.unwrap();
        queue.close();
        socket.write_all(b"response 2").await.unwrap();
        assert_eq!(received(socket, client).await, format!("response 1, {HINT}response 2"));
    }

    #[tokio::test]
    async fn a_head_that_is_half_written_is_ended_before_anything_else() {
        let (mut socket, queue, mut client) = pair(8);
        let request = queue.open();
        hint(&queue, request);
        queue.close();
        let writing = async {
            socket.write_all(b"response").await.unwrap();
            socket.shutdown().await.unwrap();
        };
        let mut text = String::new();
        let (_, read) = tokio::join!(writing, client.read_to_string(&mut text));
        read.unwrap();
        assert_eq!(text, format!("{HINT}response"));
    }

    #[tokio::test]
    async fn a_request_has_at_most_sixteen_interim_heads() {
        let (mut socket, queue, client) = pair(1 << 16);
        let request = queue.open();
        for _ in 0..100 {
            hint(&queue, request);
        }
        socket.flush().await.unwrap();
        hint(&queue, request);
        socket.flush().await.unwrap();
        assert_eq!(received(socket, client).await, HINT.repeat(16));
    }
}
