//! The content of an upstream's response, timed while it is waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::Hold;
use super::room::Place;
use super::server::InFlight;

/// The content of an upstream's response: timed between bytes, holds the call's place until it ends or is dropped.
/// A body that breaks off ends in an error.
#[derive(Debug)]
pub struct ResponseBody {
    content: Incoming,
    /// None once the content has ended.
    holds: Option<Holds>,
    idle: Duration,
    /// Since when the reader waits; none while the content comes as fast as it is read. A reader that is slow itself
    /// is not counted against the upstream.
    waiting_since: Option<Instant>,
    /// One timer for the whole content, made when first it is waited for; it is moved when it fires, not with each frame.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// What a call occupies until it is dropped.
#[derive(Debug)]
pub(super) struct Holds {
    pub in_flight: InFlight,
    pub _place: Place,
    pub _connection: Hold,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl ResponseBody {
    pub(super) fn new(content: Incoming, holds: Holds, idle: Duration) -> Self {
        let holds = (!content.is_end_stream()).then_some(holds);
        Self { content, holds, idle, waiting_since: None, alarm: None }
    }

    /// Fails when nothing has come for `idle` while the reader waited.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = since + self.idle;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while alarm.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn break_off(&mut self, cause: BoxError) -> BoxError {
        if let Some(holds) = self.holds.take() {
            holds.in_flight.body_broke(super::error::chain(&*cause));
        }
        cause
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.content).poll_frame(context) else {
            if this.poll_alarm(context).is_pending() {
                return Poll::Pending;
            }
            let cause = format!("no content for {:?}", this.idle);
            return Poll::Ready(Some(Err(this.break_off(cause.into()))));
        };
        this.waiting_since = None;
        match frame {
            // RFC 9110 §6.5.1: trailers may be left out, and none is known here to be harmless as a field.
            Some(Ok(frame)) if frame.is_trailers() => {
                this.holds = None;
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if this.content.is_end_stream() {
                    this.holds = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(this.break_off(error.into())))),
            None => {
                this.holds = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}
