//! The content of a request under way: taken only when it is first asked for, and watched while it flows.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::RequestBody;

/// A request's content, shared by the attempts to send it. The client consumes the request that it is given; what it
/// did not begin to read is still here for another server.
#[derive(Debug)]
pub(super) struct Upload {
    /// Guards the content until the first attempt reads it; locked once for each attempt.
    content: Mutex<Option<RequestBody>>,
    flow: AtomicU8,
    begun: Instant,
    /// Milliseconds after `begun` at which content last moved.
    moved_millis: AtomicU64,
}

/// Whom the content waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Flow {
    /// Nobody has asked for it.
    Untouched,
    /// The upstream: it has what came, or all.
    Upstream,
    /// The client.
    Client,
    /// It failed.
    Failed,
}

impl Upload {
    fn set(&self, flow: Flow) {
        let moved = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_millis.store(moved, Ordering::Relaxed);
        self.flow.store(flow as u8, Ordering::Release);
    }

    fn is(&self, flow: Flow) -> bool {
        self.flow.load(Ordering::Acquire) == flow as u8
    }

    fn take(&self) -> Option<RequestBody> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What is known of a request's content from outside of the attempt.
#[derive(Clone, Debug)]
pub(super) struct Progress(Option<Arc<Upload>>);

impl Progress {
    /// Whether all of the content can be sent once more.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.is(Flow::Untouched))
    }

    /// Whether the content failed.
    pub fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|upload| upload.is(Flow::Failed))
    }

    /// Since when the upstream has had all that there was to read: never later than `now`. While the client is slow
    /// that is now; how slow it may be is the listener's to bound.
    pub fn upstream_waited_for_since(&self, begun: Instant, now: Instant) -> Instant {
        let Some(upload) = &self.0 else { return begun };
        if upload.is(Flow::Client) {
            return now;
        }
        let moved = std::time::Duration::from_millis(upload.moved_millis.load(Ordering::Relaxed));
        (upload.begun + moved).clamp(begun, now.max(begun))
    }
}

/// The content as the client gets it.
#[derive(Debug)]
pub(super) enum OutgoingBody {
    /// There is none.
    Empty,
    /// There is some.
    Upload(Reader),
}

/// One attempt's hold on an upload.
#[derive(Debug)]
pub(super) struct Reader {
    upload: Arc<Upload>,
    taken: Option<RequestBody>,
    /// What holds while nothing has been taken.
    hint: SizeHint,
}

/// What makes the content of each attempt.
pub(super) struct Source {
    progress: Progress,
    hint: SizeHint,
}

impl Source {
    pub fn new(content: RequestBody) -> Self {
        let hint = content.size_hint();
        let upload = (!content.is_end_stream()).then(|| {
            Arc::new(Upload {
                content: Mutex::new(Some(content)),
                flow: AtomicU8::new(Flow::Untouched as u8),
                begun: Instant::now(),
                moved_millis: AtomicU64::new(0),
            })
        });
        Self { progress: Progress(upload), hint }
    }

    /// Whether there is no content at all.
    pub const fn is_empty(&self) -> bool {
        self.progress.0.is_none()
    }

    /// The view from outside.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The content for an attempt.
    pub fn body(&self) -> OutgoingBody {
        match &self.progress.0 {
            None => OutgoingBody::Empty,
            Some(upload) => OutgoingBody::Upload(Reader { upload: Arc::clone(upload), taken: None, hint: self.hint }),
        }
    }
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Upload(reader) => reader.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(reader) => reader.taken.as_ref().is_some_and(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Upload(reader) => reader.taken.as_ref().map_or_else(|| reader.hint, Body::size_hint),
        }
    }
}

impl Reader {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, <OutgoingBody as Body>::Error>>> {
        if self.taken.is_none() {
            self.taken = self.upload.take();
        }
        let Some(content) = &mut self.taken else {
            return Poll::Ready(Some(Err("the content was sent before".into())));
        };
        let polled = Pin::new(content).poll_frame(context);
        self.upload.set(match &polled {
            Poll::Pending => Flow::Client,
            Poll::Ready(Some(Err(_))) => Flow::Failed,
            Poll::Ready(Some(Ok(_)) | None) => Flow::Upstream,
        });
        Poll::Ready(ready!(polled))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, Empty, Full};

    use super::*;

    fn boxed<B>(body: B) -> RequestBody
    where
        B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    {
        body.map_err(|never| match never {}).boxed_unsync()
    }

    #[tokio::test]
    async fn content_that_nobody_read_serves_the_next_attempt() {
        let source = Source::new(boxed(Full::from("hello")));
        drop(source.body());
        assert!(source.progress().is_whole());
        let second = source.body();
        assert_eq!(second.size_hint().exact(), Some(5));
        assert_eq!(second.collect().await.expect("content").to_bytes(), "hello");
        assert!(!source.progress().is_whole());
    }

    #[tokio::test]
    async fn no_content_is_always_whole() {
        let source = Source::new(boxed(Empty::new()));
        assert!(source.body().is_end_stream());
        assert!(source.body().collect().await.expect("content").to_bytes().is_empty());
        assert!(source.progress().is_whole());
    }

    #[tokio::test]
    async fn a_slow_client_is_not_held_against_the_upstream() {
        let (sender, mut frames) = tokio::sync::mpsc::channel(1);
        let frames = futures_util::stream::poll_fn(move |context| frames.poll_recv(context));
        let source = Source::new(http_body_util::StreamBody::new(frames).boxed_unsync());
        let begun = Instant::now();
        let mut body = source.body();
        let later = begun + Duration::from_secs(9);
        assert_eq!(source.progress().upstream_waited_for_since(begun, later), begun);
        assert!(futures_util::FutureExt::now_or_never(body.frame()).is_none());
        assert_eq!(source.progress().upstream_waited_for_since(begun, later), later);
        sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.expect("a reader");
        body.frame().await.expect("a frame").expect("content");
        let since = source.progress().upstream_waited_for_since(begun, later);
        assert!(since >= begun && since <= Instant::now());
        drop(sender);
    }
}
