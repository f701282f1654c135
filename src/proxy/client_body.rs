//! The client's content on its way to the upstream: bounded, timed, and partly read already.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::config::Limits;
use crate::telemetry::limits::Limit;

/// Why a client's content could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentTrouble {
    /// More than the route's `request_body_max`.
    TooLarge,
    /// Nothing came for `body_idle_timeout`.
    Idle,
    /// Less came than `body_rate_min`.
    Slow,
    /// The client broke off.
    Broken,
}

impl ContentTrouble {
    /// The bound that was met, where none is told of with the answer.
    pub const fn limit(self) -> Option<Limit> {
        match self {
            Self::Idle => Some(Limit::BodyIdleTimeout),
            Self::Slow => Some(Limit::BodyRateMin),
            Self::TooLarge | Self::Broken => None,
        }
    }
}

impl std::fmt::Display for ContentTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the request's content is larger than allowed",
            Self::Idle => "the request's content stopped coming",
            Self::Slow => "the request's content came too slowly",
            Self::Broken => "the request's content broke off",
        })
    }
}

impl std::error::Error for ContentTrouble {}

/// The trouble that a body met, told to whoever sent it on.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<AtomicU8>);

impl Trouble {
    /// What happened, if anything.
    pub fn seen(&self) -> Option<ContentTrouble> {
        match self.0.load(Ordering::Relaxed) {
            1 => Some(ContentTrouble::TooLarge),
            2 => Some(ContentTrouble::Idle),
            3 => Some(ContentTrouble::Broken),
            4 => Some(ContentTrouble::Slow),
            _ => None,
        }
    }

    fn note(&self, trouble: ContentTrouble) -> ContentTrouble {
        let number = match trouble {
            ContentTrouble::TooLarge => 1,
            ContentTrouble::Idle => 2,
            ContentTrouble::Broken => 3,
            ContentTrouble::Slow => 4,
        };
        self.0.store(number, Ordering::Relaxed);
        trouble
    }
}

/// A client's content. After trouble nothing of it comes but the trouble again: what is left is not what the client sent.
#[derive(Debug)]
pub struct ClientBody {
    read: Option<Bytes>,
    rest: Incoming,
    left: u64,
    idle: Duration,
    /// Bytes a second, while the client is waited for.
    rate_min: u64,
    /// Made when first waited for: most requests have no content.
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the client is waited for.
    waiting: Option<Instant>,
    /// How long it was waited for, and the bytes that came since, up to `idle`.
    waited: Duration,
    came: u64,
    trouble: Trouble,
}

impl ClientBody {
    /// Content of at most `bytes_max`, that comes as fast as `limits` say.
    pub fn new(content: Incoming, bytes_max: u64, limits: &Limits) -> Self {
        Self {
            read: None,
            rest: content,
            left: bytes_max,
            idle: limits.body_idle_timeout,
            rate_min: limits.body_rate_min,
            timer: None,
            waiting: None,
            waited: Duration::ZERO,
            came: 0,
            trouble: Trouble::default(),
        }
    }

    /// Where trouble will be seen.
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Whether the announced length alone is too much.
    pub fn is_too_large(&self) -> bool {
        self.rest.size_hint().lower() > self.left
    }

    /// Reads all of it, where that is at most `bytes_max`; more is kept to be sent on.
    pub async fn buffer(&mut self, bytes_max: u64) -> Result<Option<Bytes>, ContentTrouble> {
        let mut whole = Vec::new();
        loop {
            match std::future::poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await {
                None => return Ok(Some(Bytes::from(whole))),
                Some(Err(trouble)) => return Err(trouble),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        whole.extend_from_slice(&data);
                    }
                }
            }
            if whole.len() as u64 > bytes_max {
                self.read = Some(Bytes::from(whole));
                return Ok(None);
            }
        }
    }

    /// Gives back what [`Self::buffer`] read, to be sent on.
    pub fn put_back(&mut self, read: Bytes) {
        self.read = Some(read).filter(|read| !read.is_empty());
    }

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ContentTrouble>>> {
        match Pin::new(&mut self.rest).poll_frame(context) {
            // RFC 9110 §6.5.1: trailers may be left out, and none is known here to be harmless as a field.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.is_too_slow(bytes) {
                    return Poll::Ready(Some(Err(self.trouble.note(ContentTrouble::Slow))));
                }
                let Some(left) = self.left.checked_sub(bytes) else {
                    return Poll::Ready(Some(Err(self.trouble.note(ContentTrouble::TooLarge))));
                };
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(self.trouble.note(ContentTrouble::Broken)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.poll_timer(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err(self.trouble.note(ContentTrouble::Idle)))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// Counts from when the wait began: while the upstream takes nothing, the client cannot be called idle.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if self.waiting.is_none() {
            self.waiting = Some(Instant::now());
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(context)
    }

    /// Counts what came, and judges each time that the client was waited for `idle` in all. What comes while the upstream
    /// takes nothing is there when it is asked for, and no time was waited.
    fn is_too_slow(&mut self, bytes: u64) -> bool {
        self.waited += self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.came = self.came.saturating_add(bytes);
        if self.waited < self.idle {
            return false;
        }
        let (waited, came) = (std::mem::take(&mut self.waited), std::mem::take(&mut self.came));
        u128::from(came) * 1000 < u128::from(self.rate_min) * waited.as_millis()
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ContentTrouble;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentTrouble>>> {
        match (self.trouble.seen(), self.read.take()) {
            (Some(trouble), _) => Poll::Ready(Some(Err(trouble))),
            (None, Some(read)) => Poll::Ready(Some(Ok(Frame::data(read)))),
            (None, None) => self.poll_rest(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.trouble.seen().is_none() && self.read.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.as_ref().map_or(0, |read| read.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}
