//! A body being received, stored and read at the same time.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;

use super::answer::BodyError;
use crate::key::CacheKey;
use crate::stored::StoredResponse;
use crate::upstream::{ResponseBody, UpstreamError};

/// A room for bodies: for those being stored (`memory.max_filling`), for large ones being read (`memory.max_serving`).
#[derive(Debug)]
pub struct Filling {
    used: AtomicU64,
    max: u64,
}

/// Room taken; given back when dropped.
#[derive(Debug)]
pub struct Room {
    filling: Arc<Filling>,
    bytes: u64,
}

impl Filling {
    /// Room for `max` bytes.
    pub const fn new(max: u64) -> Self {
        Self { used: AtomicU64::new(0), max }
    }

    /// Takes room for `bytes`, where there is.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        let mut room = Room { filling: Arc::clone(self), bytes: 0 };
        room.grow(bytes).then_some(room)
    }

    /// Bytes taken at this time.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Room {
    /// Takes room until it is `bytes` in all; false, and nothing changes, where there is not enough.
    fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let fits = |used: u64| used.checked_add(more).filter(|sum| *sum <= self.filling.max);
        let taken = self.filling.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.bytes += more;
        }
        taken
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.filling.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a leader tells its followers.
#[derive(Clone, Debug)]
pub enum News {
    /// The head is there, the length is known, and the body is being received.
    Streaming(Arc<Fill>),
    /// The answer is the leader's alone: fetch for yourself.
    NotShared,
    /// The upstream answered with an error: use what you have in its place, where that may be; else fetch for yourself.
    Unwell,
    /// The upstream could not be reached or broke off.
    Failed(UpstreamError),
}

/// A response whose body is being received.
#[derive(Debug)]
pub struct Fill {
    /// Its head, as it will be stored; the body is empty.
    pub head: Arc<StoredResponse>,
    /// The body's length, where it is known before the end.
    pub length: Option<u64>,
    /// The key of the variant that the leader's request selected.
    pub variant: CacheKey,
    /// What has been received and who waits for more; held for a push or a read of one chunk.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Bytes>,
    end: End,
    waiting: Vec<Waker>,
}

#[derive(Debug)]
enum End {
    Open,
    /// Readers go on from what is stored. The room stays taken where the memory tier does not count it.
    Complete(Arc<StoredResponse>, #[allow(dead_code, reason = "given back with the last reader")] Option<Room>),
    Broken,
    /// Too large to be stored: the rest is read by the leader's own client, at its own pace.
    HandedOver(Option<Box<ResponseBody>>),
}

/// How receiving ended.
#[derive(Debug)]
pub enum Received {
    /// The whole body, in storage of its own, with its room.
    Whole(Bytes, Room),
    /// It broke off.
    Broken,
    /// It passed a bound; what was received and the rest belong to the leader's client now.
    TooLarge(Bound),
}

/// The bound that a body passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The route's `max_object`.
    Object,
    /// `memory.max_filling`.
    Filling,
}

impl Fill {
    /// A body of which nothing has been received.
    pub fn new(head: Arc<StoredResponse>, length: Option<u64>, variant: CacheKey) -> Self {
        let state = State { chunks: Vec::new(), end: End::Open, waiting: Vec::new() };
        Self { head, length, variant, state: Mutex::new(state) }
    }

    /// Receives at the upstream's pace, within `bound_bytes` and the room. The chunk that completes a known length is
    /// held back, so that nobody has the whole before it is stored.
    pub async fn receive(&self, mut body: ResponseBody, mut room: Room, bound_bytes: u64) -> Received {
        let mut total = 0_u64;
        let mut held = None;
        loop {
            let chunk = match body.frame().await {
                None => break,
                Some(Err(_cause)) => return Received::Broken,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    Err(_trailers) => continue,
                },
            };
            total += chunk.len() as u64;
            let passed = if total > bound_bytes {
                Some(Bound::Object)
            } else if room.grow(total) {
                None
            } else {
                Some(Bound::Filling)
            };
            if let Some(bound) = passed {
                self.hand_over(chunk, body);
                return Received::TooLarge(bound);
            }
            if self.length == Some(total) {
                held = Some(chunk);
            } else {
                self.push(chunk);
            }
        }
        Received::Whole(self.joined(held.as_ref(), total), room)
    }

    /// Lets the readers have the rest out of what is stored. `room` stays taken until the last of them is done.
    pub fn complete(&self, stored: Arc<StoredResponse>, room: Option<Room>) {
        self.change(|state| {
            state.chunks = Vec::new();
            state.end = End::Complete(stored, room);
        });
    }

    /// Lets the readers know that there is no rest.
    pub fn break_off(&self) {
        self.change(|state| state.end = End::Broken);
    }

    /// Waits for the end: the stored response, or none when it broke off or was handed over.
    pub async fn stored(&self) -> Option<Arc<StoredResponse>> {
        std::future::poll_fn(|context| {
            let mut state = self.state();
            match &state.end {
                End::Complete(stored, _) => Poll::Ready(Some(Arc::clone(stored))),
                End::Broken | End::HandedOver(_) => Poll::Ready(None),
                End::Open => state.wait(context),
            }
        })
        .await
    }

    fn push(&self, chunk: Bytes) {
        self.change(|state| state.chunks.push(chunk));
    }

    fn hand_over(&self, chunk: Bytes, rest: ResponseBody) {
        self.change(|state| {
            state.chunks.push(chunk);
            state.end = End::HandedOver(Some(Box::new(rest)));
        });
    }

    fn joined(&self, held: Option<&Bytes>, total: u64) -> Bytes {
        let state = self.state();
        let mut whole = Vec::with_capacity(usize::try_from(total).unwrap_or_default());
        for chunk in state.chunks.iter().chain(held) {
            whole.extend_from_slice(chunk);
        }
        Bytes::from(whole)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, so poison tells nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Reads a body that is being received, from its beginning.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
    next: usize,
    /// Bytes read so far.
    read: usize,
    remaining: Option<u64>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A follower: reads what is received.
    Chunks,
    /// The leader's client: gets the rest when the body is handed over.
    ChunksThenRest,
    /// The rest itself.
    Rest(Box<ResponseBody>),
}

impl FillReader {
    /// For the leader's own client.
    pub fn leader(fill: Arc<Fill>) -> Self {
        let remaining = fill.length;
        Self { fill, next: 0, read: 0, remaining, source: Source::ChunksThenRest }
    }

    /// For a client that follows.
    pub fn follower(fill: Arc<Fill>) -> Self {
        let remaining = fill.length;
        Self { fill, next: 0, read: 0, remaining, source: Source::Chunks }
    }

    /// Bytes still to come, where the length is known.
    pub const fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    /// The next frame.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Source::Rest(rest) = &mut self.source {
            return Pin::new(rest.as_mut()).poll_frame(context).map_err(BodyError::from);
        }
        let fill = Arc::clone(&self.fill);
        let mut state = fill.state();
        let chunk = match &state.end {
            End::Complete(stored, _) => Some(stored.body.slice(self.read..)).filter(|rest| !rest.is_empty()),
            End::Open | End::Broken | End::HandedOver(_) => state.chunks.get(self.next).cloned(),
        };
        if let Some(chunk) = chunk {
            self.next += 1;
            self.read += chunk.len();
            self.remaining = self.remaining.map(|left| left.saturating_sub(chunk.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let rest = match &mut state.end {
            End::Open => return state.wait(context),
            End::Complete(..) => return Poll::Ready(None),
            End::Broken => return Poll::Ready(Some(Err(BodyError::Truncated))),
            End::HandedOver(rest) if matches!(self.source, Source::ChunksThenRest) => rest.take(),
            End::HandedOver(_) => None,
        };
        drop(state);
        let Some(rest) = rest else { return Poll::Ready(Some(Err(BodyError::Truncated))) };
        self.source = Source::Rest(rest);
        self.poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::clock::Timestamp;
    use crate::fields::vary::SelectingFields;
    use crate::stored::{Freshness, Place, Provenance, StaleUse, StoredFields};

    fn response(body: &'static [u8]) -> Arc<StoredResponse> {
        let freshness = Freshness {
            lifetime: Duration::from_secs(60),
            initial_age: Duration::ZERO,
            stale_use: StaleUse::Never,
            keep: Duration::ZERO,
        };
        Arc::new(StoredResponse {
            place: Place::default(),
            status: StatusCode::OK,
            fields: StoredFields::default(),
            request_time: Timestamp::default(),
            response_time: Timestamp::default(),
            freshness,
            selecting: SelectingFields::Names(Box::default()),
            part: None,
            provenance: Provenance::default(),
            body: Bytes::from_static(body),
        })
    }

    fn read(reader: &mut FillReader) -> Option<Bytes> {
        match reader.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            Poll::Ready(None) => Some(Bytes::new()),
            Poll::Ready(Some(Err(_))) | Poll::Pending => None,
        }
    }

    #[test]
    fn readers_go_on_from_what_is_stored_and_hold_nothing_else() {
        let filling = Arc::new(Filling::new(100));
        let room = filling.reserve(10).unwrap();
        let fill = Arc::new(Fill::new(response(b""), Some(10), CacheKey::from_bytes([0; 32])));
        let (mut early, mut late) = (FillReader::leader(Arc::clone(&fill)), FillReader::follower(Arc::clone(&fill)));
        fill.push(Bytes::from_static(b"0123"));
        fill.push(Bytes::from_static(b"45"));
        assert_eq!(read(&mut early).unwrap(), "0123");
        let stored = response(b"0123456789");
        fill.complete(Arc::clone(&stored), Some(room));
        assert_eq!((read(&mut early).unwrap(), read(&mut late).unwrap()), ("456789".into(), "0123456789".into()));
        assert_eq!((early.remaining(), late.remaining()), (Some(0), Some(0)));
        assert_eq!((read(&mut early).unwrap(), read(&mut late).unwrap()), (Bytes::new(), Bytes::new()));
        assert!(fill.state().chunks.is_empty());
        assert_eq!(filling.used(), 10);
        drop((early, late, fill));
        assert_eq!(filling.used(), 0);
    }
}
