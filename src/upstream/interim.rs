//! Interim responses (1xx): told to who wants them, and counted, for no server needs many.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode};

/// So many before one response are enough, where a call does not say.
const INTERIM_MAX: usize = 16;

type Listener = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

/// Is told each interim response to a request.
#[derive(Clone)]
pub struct OnInterim(Arc<Listener>);

impl OnInterim {
    /// Told on the connection's task, so it must not wait.
    pub fn new(listener: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }
}

impl fmt::Debug for OnInterim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnInterim")
    }
}

/// The interim responses to one attempt.
#[derive(Debug)]
pub(super) struct Interims {
    most: usize,
    count: AtomicUsize,
    /// Who waits for the response; woken when there are too many.
    reader: AtomicWaker,
}

impl Interims {
    /// Counts those to `request`, and tells its listener of as many as are allowed.
    pub fn of<B>(request: &mut Request<B>, most: Option<usize>, listener: Option<OnInterim>) -> Arc<Self> {
        let most = most.unwrap_or(INTERIM_MAX);
        let interims = Arc::new(Self { most, count: AtomicUsize::new(0), reader: AtomicWaker::new() });
        let counted = Arc::clone(&interims);
        hyper::ext::on_informational(request, move |response| {
            if !counted.admit() {
                counted.reader.wake();
            } else if let Some(OnInterim(listener)) = &listener {
                listener(response.status(), response.headers());
            }
        });
        interims
    }

    fn admit(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) < self.most
    }

    /// Whether there were more than are allowed.
    pub fn are_too_many(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.most
    }

    /// The same; who asks is woken once there are.
    pub fn poll_too_many(&self, context: &Context<'_>) -> bool {
        self.reader.register(context.waker());
        self.are_too_many()
    }
}
