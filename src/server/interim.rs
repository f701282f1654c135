//! Interim heads (1xx) waiting for an HTTP/1.1 client, which hyper itself cannot send.

use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode};

use crate::proxy::InterimSink;

/// How many interim heads one request may have; RFC 9110 §15.2 sets no bound.
const HEADS_MAX: usize = 16;
/// Bytes of those heads together: a few thousand are usual, a client that does not read must not make them grow.
const BYTES_MAX: usize = 64 << 10;

/// The interim heads of the request in hand. Filled by the proxy, emptied by the socket under hyper.
///
/// For a request whose answer is waited for it is open from the moment hyper hands it out until its response's head is given
/// to hyper: only then is what it holds sure to precede that head, and to follow the response before.
#[derive(Debug, Default)]
pub struct InterimQueue {
    /// The heads themselves; held for a copy.
    heads: Mutex<Heads>,
    /// Whether heads wait, readable without the lock.
    waiting: AtomicBool,
    /// Whether it is open, readable without the lock.
    open: AtomicBool,
    /// The connection's task.
    task: AtomicWaker,
}

#[derive(Debug, Default)]
struct Heads {
    /// The number of the last request that was waited for. What comes of one before it, or of a fetch that outlives it, is not for it.
    request: u64,
    bytes: Vec<u8>,
    count: usize,
}

impl InterimQueue {
    /// Begins a request and returns its number; nothing of the one before is left.
    pub fn open(&self) -> u64 {
        let mut heads = self.heads();
        heads.request += 1;
        heads.bytes.clear();
        heads.count = 0;
        self.waiting.store(false, Release);
        self.open.store(true, Release);
        heads.request
    }

    /// The response's head is about to be given to hyper. What waits may still be written before it.
    pub fn close(&self) {
        let _heads = self.heads();
        self.open.store(false, Release);
    }

    /// Whether heads are taken at this time.
    pub fn is_open(&self) -> bool {
        self.open.load(Acquire)
    }

    /// Has `waker` called when heads come.
    pub fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// The heads that wait, ready to be written.
    pub fn take(&self) -> Option<Vec<u8>> {
        if !self.waiting.load(Acquire) {
            return None;
        }
        let mut heads = self.heads();
        self.waiting.swap(false, AcqRel).then(|| std::mem::take(&mut heads.bytes))
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InterimSink for InterimQueue {
    fn send(&self, request: u64, status: StatusCode, fields: &HeaderMap) -> bool {
        let mut heads = self.heads();
        if !self.is_open() || request != heads.request {
            return true;
        }
        if heads.count == HEADS_MAX {
            return false;
        }
        let before = heads.bytes.len();
        write_head(&mut heads.bytes, status, fields);
        if heads.bytes.len() > BYTES_MAX {
            heads.bytes.truncate(before);
            return false;
        }
        heads.count += 1;
        self.waiting.store(true, Release);
        drop(heads);
        self.task.wake();
        true
    }
}

/// `HeaderName` and `HeaderValue` hold no line break, so that a field cannot end the head.
fn write_head(out: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
