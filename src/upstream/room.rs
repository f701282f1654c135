//! How many requests an upstream gets at one time, and how many wait for their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::UpstreamError;

/// The bounds of one upstream, over all workers.
#[derive(Debug)]
pub(super) struct Room {
    /// None: no bound.
    places: Option<Arc<Semaphore>>,
    pending: AtomicUsize,
    pending_max: usize,
    /// How long one waits.
    wait: Duration,
}

/// A request's place: it is given back when dropped. None where there is no bound.
pub(super) type Place = Option<OwnedSemaphorePermit>;

impl Room {
    /// With `max_concurrent` 0, everybody has a place at once.
    pub fn new(max_concurrent: usize, max_pending: usize, wait: Duration) -> Self {
        let places = (max_concurrent > 0).then(|| Arc::new(Semaphore::new(max_concurrent.min(Semaphore::MAX_PERMITS))));
        Self { places, pending: AtomicUsize::new(0), pending_max: max_pending, wait }
    }

    /// A place, after those who came before.
    pub async fn enter(&self) -> Result<Place, UpstreamError> {
        let Some(places) = &self.places else { return Ok(None) };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(Some(place));
        }
        let _waiting = Waiting::begin(&self.pending, self.pending_max).ok_or(UpstreamError::Overloaded)?;
        match tokio::time::timeout(self.wait, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            // Nobody closes the semaphore.
            Ok(Err(_)) | Err(_) => Err(UpstreamError::Overloaded),
        }
    }
}

/// One of those who wait; counted until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(pending: &'a AtomicUsize, max: usize) -> Option<Self> {
        let waiting = Self(pending);
        (pending.fetch_add(1, Ordering::AcqRel) < max).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn who_finds_no_place_in_time_is_turned_away() {
        let room = Room::new(1, 1, WAIT);
        let _place = room.enter().await.expect("a free place");
        let before = std::time::Instant::now();
        assert_eq!(room.enter().await.err(), Some(UpstreamError::Overloaded));
        assert!(before.elapsed() >= WAIT);
        assert_eq!(room.pending.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_goes_to_who_waits() {
        let room = Room::new(1, 1, Duration::from_secs(60));
        let place = room.enter().await.expect("a free place");
        let (waited, turned_away, ()) = tokio::join!(biased; room.enter(), room.enter(), async { drop(place) });
        assert!(waited.is_ok());
        assert_eq!(turned_away.err(), Some(UpstreamError::Overloaded));
        assert_eq!(room.pending.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn zero_sets_no_bound() {
        let room = Room::new(0, 0, WAIT);
        assert!(room.enter().await.expect("no bound").is_none());
    }
}
