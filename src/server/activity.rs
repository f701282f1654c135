//! What a connection is waiting for, and since when: the source of its time-outs.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::telemetry::limits::Limit;

/// Bytes that HTTP/2 writes of its own accord while nothing is asked: a PING and a SETTINGS acknowledgement.
const CONTROL_FRAMES: usize = 64;
/// So many times longer may one HTTP/2 stream hold its content back while something leaves on the others, with which it
/// shares what the client's line can carry.
const SHARED_LINE: u32 = 10;

/// What a connection is waiting for. Written by the socket and the service, read when its timer fires.
#[derive(Debug)]
pub struct Activity {
    accepted: Instant,
    /// Requests whose answers have not ended.
    requests: AtomicUsize,
    /// When the last answer ended, or its last bytes left.
    idle_since: Since,
    /// When the first byte of a request head came; HTTP/1 only, whose bytes between requests are nothing else.
    head_since: Since,
    /// When the client ceased to take what is written.
    blocked_since: Since,
    is_http2: AtomicBool,
    /// When something other than frames of control last left; HTTP/2 only.
    progressed_since: Since,
    /// One for each HTTP/2 answer: when its content was last handed over, while more of it is not asked for. One that
    /// nobody else holds is used again. Held for a look through them.
    contents: Mutex<Vec<Arc<Since>>>,
    pace: Pace,
    /// Bytes that came while there was no request, and that frames of control may answer; HTTP/2 only.
    asked_idle: AtomicUsize,
    /// When the timer last looked for content held back; HTTP/2 only.
    checked_since: Since,
}

/// What a connection's timer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Nothing; look again after this time.
    Again(Duration),
    /// It has had no request for too long: end it with grace.
    Idle,
    /// The client does not send a head it began, or does not take its answer, or not fast enough: end it.
    Stalled(Limit),
}

/// How much a client takes while it is waited for. What it takes when nobody waits tells nothing.
#[derive(Debug, Default)]
struct Pace {
    /// Milliseconds.
    waited: AtomicU64,
    /// Bytes since the first of them.
    taken: AtomicU64,
}

impl Pace {
    fn waited(&self, time: Duration) {
        // At least one, for what follows counts.
        self.waited.fetch_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    fn taken(&self, bytes: usize) {
        if self.waited.load(Relaxed) > 0 {
            self.taken.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Whether it was below `rate_min`, each time a whole `span` was waited.
    fn is_too_slow(&self, span: Duration, rate_min: u64) -> bool {
        let waited = Duration::from_millis(self.waited.load(Relaxed));
        if waited < span {
            return false;
        }
        self.waited.store(0, Relaxed);
        u128::from(self.taken.swap(0, Relaxed)) * 1000 < u128::from(rate_min) * waited.as_millis()
    }
}

/// Milliseconds after `accepted`, plus one; 0: not.
#[derive(Debug, Default)]
struct Since(AtomicU64);

impl Since {
    fn set(&self, elapsed: Duration) {
        self.0.store(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1) + 1, Relaxed);
    }

    fn clear(&self) {
        if self.is_set() {
            self.0.store(0, Relaxed);
        }
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// How long ago, where it is set.
    fn ago(&self, elapsed: Duration) -> Option<Duration> {
        let since = self.0.load(Relaxed).checked_sub(1)?;
        Some(elapsed.saturating_sub(Duration::from_millis(since)))
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl Activity {
    /// Of a connection accepted now.
    pub fn new() -> Self {
        Self {
            accepted: Instant::now(),
            requests: AtomicUsize::new(0),
            idle_since: Since(AtomicU64::new(1)),
            head_since: Since::default(),
            blocked_since: Since::default(),
            is_http2: AtomicBool::new(false),
            progressed_since: Since::default(),
            contents: Mutex::default(),
            pace: Pace::default(),
            asked_idle: AtomicUsize::new(0),
            checked_since: Since::default(),
        }
    }

    /// Bytes came from the client.
    pub fn received(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.requests.load(Relaxed) > 0 {
            return;
        }
        if self.is_http2.load(Relaxed) {
            self.asked_idle.fetch_add(bytes.len(), Relaxed);
            return;
        }
        if bytes.starts_with(b"PRI * HTTP/2") {
            self.is_http2.store(true, Relaxed);
        } else if !self.head_since.is_set() && !is_whole_head(bytes) {
            self.head_since.set(self.accepted.elapsed());
        }
    }

    /// A request's head is complete; the request lasts until the guard is dropped.
    pub fn begin(self: &Arc<Self>, is_http2: bool) -> InFlight {
        self.requests.fetch_add(1, Relaxed);
        self.head_since.clear();
        self.asked_idle.store(0, Relaxed);
        if is_http2 {
            // The preface may have come in pieces.
            self.is_http2.store(true, Relaxed);
        }
        let content = is_http2.then(|| self.content());
        InFlight { activity: Arc::clone(self), content, ended: None }
    }

    fn content(&self) -> Arc<Since> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(free) = contents.iter().find(|content| Arc::strong_count(content) == 1) {
            free.clear();
            return Arc::clone(free);
        }
        let new = Arc::<Since>::default();
        contents.push(Arc::clone(&new));
        new
    }

    /// The socket took nothing.
    pub fn write_blocked(&self) {
        if !self.blocked_since.is_set() {
            self.blocked_since.set(self.accepted.elapsed());
        }
    }

    /// The socket took some bytes. An answer may leave long after hyper has read its content: HTTP/2 holds what the
    /// client's windows have no room for. So what is more than a frame of control counts as activity.
    pub fn write_progressed(&self, bytes: usize) {
        let is_http2 = self.is_http2.load(Relaxed);
        let was_blocked = self.blocked_since.is_set();
        if was_blocked {
            let blocked = self.blocked_since.ago(self.accepted.elapsed()).filter(|_| !is_http2);
            blocked.into_iter().for_each(|blocked| self.pace.waited(blocked));
            self.blocked_since.clear();
        }
        if bytes > CONTROL_FRAMES || !is_http2 {
            self.pace.taken(bytes);
        }
        if bytes <= CONTROL_FRAMES {
            return;
        }
        if self.requests.load(Relaxed) == 0 {
            // Answers to frames of control are no longer than those were.
            let asked = self.asked_idle.load(Relaxed);
            self.asked_idle.store(asked.saturating_sub(bytes), Relaxed);
            // An HTTP/1 answer that nothing held up leaves as its request ends, which has looked at the clock. (What hyper
            // answers by itself is the last on its connection.)
            if bytes > asked.saturating_add(CONTROL_FRAMES) && (is_http2 || was_blocked) {
                self.idle_since.set(self.accepted.elapsed());
            }
        } else if is_http2 {
            self.progressed_since.set(self.accepted.elapsed());
        }
    }

    /// Whether no request is being answered or has begun to come, and nothing has left, for some time.
    pub fn is_idle_for(&self, span: Duration) -> bool {
        self.was_idle_for(span, self.accepted.elapsed())
    }

    fn was_idle_for(&self, span: Duration, elapsed: Duration) -> bool {
        let is_quiet = self.requests.load(Relaxed) == 0 && !self.head_since.is_set() && !self.blocked_since.is_set();
        is_quiet && self.idle_since.ago(elapsed).is_some_and(|ago| ago >= span)
    }

    /// How often to check: a head that begins between two checks is found soon enough.
    pub fn interval(limits: &Limits) -> Duration {
        limits.header_timeout.min(limits.idle_timeout) / 2 + Duration::from_millis(1)
    }

    /// What to do now.
    pub fn check(&self, limits: &Limits) -> Timer {
        self.check_at(self.accepted.elapsed(), limits)
    }

    fn check_at(&self, elapsed: Duration, limits: &Limits) -> Timer {
        let has_lasted = |since: &Since, bound: Duration| since.ago(elapsed).is_some_and(|ago| ago >= bound);
        if has_lasted(&self.blocked_since, limits.idle_timeout) {
            return Timer::Stalled(Limit::IdleTimeout);
        }
        let is_held_back = self.is_held_back(elapsed, limits.idle_timeout);
        if self.pace.is_too_slow(limits.idle_timeout, limits.answer_rate_min) {
            return Timer::Stalled(Limit::AnswerRateMin);
        }
        let soon = Self::interval(limits);
        if self.requests.load(Relaxed) > 0 {
            return if is_held_back { Timer::Stalled(Limit::IdleTimeout) } else { Timer::Again(soon) };
        }
        if has_lasted(&self.head_since, limits.header_timeout) {
            return Timer::Stalled(Limit::HeaderTimeout);
        }
        if self.was_idle_for(limits.idle_timeout, elapsed) {
            return Timer::Idle;
        }
        Timer::Again(soon)
    }

    /// Whether an HTTP/2 client gives no window for an answer's content: its frames go on, so the socket never blocks.
    /// The time for which any is held counts as waiting for the client.
    fn is_held_back(&self, elapsed: Duration, bound: Duration) -> bool {
        if !self.is_http2.load(Relaxed) {
            return false;
        }
        let is_still = self.progressed_since.ago(elapsed).is_none_or(|ago| ago >= bound);
        let bound = if is_still { bound } else { bound.saturating_mul(SHARED_LINE) };
        let unchecked = self.checked_since.ago(elapsed).unwrap_or(elapsed);
        self.checked_since.set(elapsed);
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        // One that nobody else holds is of an answer that has ended.
        let held = contents.iter().filter(|content| Arc::strong_count(content) > 1);
        let longest = held.filter_map(|content| content.ago(elapsed)).max();
        longest.into_iter().for_each(|held| self.pace.waited(held.min(unchecked)));
        longest.is_some_and(|held| held >= bound)
    }
}

/// Whether it is a head to its end, as nearly all come: then no look at the clock is needed. Lines that are empty are none.
fn is_whole_head(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n") && !bytes.starts_with(b"\r") && !bytes.starts_with(b"\n")
}

/// A request being answered; dropped when its answer has ended.
#[derive(Debug)]
pub struct InFlight {
    activity: Arc<Activity>,
    /// Of HTTP/2 only: HTTP/1 shows by the socket whether the client takes the content.
    content: Option<Arc<Since>>,
    /// Where whoever drops it has looked at the clock already.
    ended: Option<Instant>,
}

impl InFlight {
    /// Whether its connection speaks HTTP/2.
    pub const fn is_http2(&self) -> bool {
        self.content.is_some()
    }

    /// The head or a piece of the content was handed over: it leaves before more is asked for.
    pub fn handed_over(&self) {
        if let Some(content) = &self.content {
            content.set(self.activity.accepted.elapsed());
        }
    }

    /// More is asked for, and not there yet: it is not the client who is waited for.
    pub fn waits_for_content(&self) {
        if let Some(content) = &self.content {
            content.clear();
        }
    }
}

impl InFlight {
    /// Its answer ends now; it is about to be dropped.
    pub const fn end(&mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.activity.idle_since.set(ended.saturating_duration_since(self.activity.accepted));
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            header_size: 0,
            header_count: 0,
            uri_length: 0,
            connections: 0,
            connections_per_address: 0,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(30),
            body_rate_min: 1024,
            answer_rate_min: 0,
            waiters: 1,
            http2_streams: 1,
            http2_resets: 1,
            ranges: 1,
            tags: 1,
            interim: 1,
        }
    }

    #[track_caller]
    fn check(activity: &Activity, seconds: u64, expected: Timer) {
        assert_eq!(activity.check_at(Duration::from_secs(seconds), &limits()), expected);
    }

    const AGAIN: Timer = Timer::Again(Duration::from_millis(5001));

    #[test]
    fn a_connection_without_a_request_ends_after_the_idle_timeout() {
        let activity = Activity::new();
        check(&activity, 59, AGAIN);
        check(&activity, 60, Timer::Idle);
    }

    #[test]
    fn a_head_must_be_complete_within_the_header_timeout() {
        let activity = Activity::new();
        activity.received(b"GET / HT");
        check(&activity, 9, AGAIN);
        check(&activity, 11, Timer::Stalled(Limit::HeaderTimeout));
        // Empty lines before a head are none, though they end as one does.
        let activity = Activity::new();
        activity.received(b"\r\n\r\n");
        check(&activity, 11, Timer::Stalled(Limit::HeaderTimeout));
    }

    #[test]
    fn http2_frames_between_requests_are_no_heads() {
        let activity = Activity::new();
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        activity.received(b"\0\0\0\x04\x01\0\0\0\0");
        check(&activity, 11, AGAIN);
        check(&activity, 60, Timer::Idle);
    }

    #[test]
    fn answers_to_frames_of_control_keep_no_connection_busy() {
        let activity = http2();
        activity.received(&[0; 1700]);
        activity.idle_since.clear();
        activity.write_progressed(1700);
        assert!(!activity.idle_since.is_set());
        activity.write_progressed(1700);
        assert!(activity.idle_since.is_set());
    }

    #[test]
    fn a_request_may_last() {
        let activity = Arc::new(Activity::new());
        activity.received(b"GET / HTTP/1.1\r\n\r\n");
        let request = activity.begin(false);
        check(&activity, 3600, AGAIN);
        assert!(!activity.is_idle_for(Duration::ZERO));
        drop(request);
        assert!(activity.is_idle_for(Duration::ZERO));
        check(&activity, 59, AGAIN);
        check(&activity, 61, Timer::Idle);
    }

    #[test]
    fn a_client_that_takes_nothing_is_left() {
        let activity = Arc::new(Activity::new());
        let _request = activity.begin(false);
        activity.write_blocked();
        check(&activity, 59, AGAIN);
        check(&activity, 61, Timer::Stalled(Limit::IdleTimeout));
        activity.write_progressed(1);
        check(&activity, 61, AGAIN);
    }

    #[test]
    fn an_http1_client_that_was_waited_for_is_idle_from_its_last_bytes_on() {
        let activity = Arc::new(Activity::new());
        for is_held_up in [false, true] {
            drop(activity.begin(false));
            activity.idle_since.clear();
            if is_held_up {
                activity.write_blocked();
            }
            activity.write_progressed(CONTROL_FRAMES + 1);
            assert_eq!(activity.idle_since.is_set(), is_held_up);
        }
    }

    fn http2() -> Arc<Activity> {
        let activity = Activity::new();
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        Arc::new(activity)
    }

    #[test]
    fn content_that_an_http2_client_leaves_no_window_for_stalls_the_connection() {
        let activity = http2();
        let request = activity.begin(true);
        check(&activity, 3600, AGAIN);
        request.handed_over();
        activity.write_progressed(CONTROL_FRAMES);
        check(&activity, 59, AGAIN);
        check(&activity, 61, Timer::Stalled(Limit::IdleTimeout));
        request.waits_for_content();
        check(&activity, 3600, AGAIN);
        request.handed_over();
        drop(request);
        assert_eq!(activity.check_at(Duration::from_secs(61), &limits()), Timer::Idle);
    }

    #[test]
    fn a_stream_that_shares_its_line_has_more_time_but_not_for_ever() {
        let activity = http2();
        let (held, other) = (activity.begin(true), activity.begin(true));
        held.handed_over();
        activity.progressed_since.set(Duration::from_secs(590));
        check(&activity, 599, AGAIN);
        check(&activity, 601, Timer::Stalled(Limit::IdleTimeout));
        drop((held, other));
    }

    #[test]
    fn the_place_of_an_answer_that_has_ended_is_used_again() {
        let activity = http2();
        for _ in 0..3 {
            let requests = [activity.begin(true), activity.begin(true)];
            requests.iter().for_each(InFlight::handed_over);
        }
        let request = activity.begin(true);
        check(&activity, 3600, AGAIN);
        assert_eq!(activity.contents.lock().unwrap().len(), 2);
        drop(request);
    }

    const SLOW: Timer = Timer::Stalled(Limit::AnswerRateMin);

    #[track_caller]
    fn check_rate(activity: &Activity, seconds: u64, expected: Timer) {
        let limits = Limits { answer_rate_min: 1024, ..limits() };
        assert_eq!(activity.check_at(Duration::from_secs(seconds), &limits), expected);
    }

    #[test]
    fn a_client_that_takes_a_few_bytes_each_time_is_left() {
        let activity = Arc::new(Activity::new());
        let _request = activity.begin(false);
        activity.pace.waited(Duration::from_secs(59));
        activity.write_progressed(1000);
        check_rate(&activity, 1, AGAIN);
        activity.pace.waited(Duration::from_secs(1));
        check_rate(&activity, 2, SLOW);
    }

    #[test]
    fn what_a_client_took_fast_gives_no_credit_for_later() {
        let activity = Arc::new(Activity::new());
        let _request = activity.begin(false);
        activity.write_progressed(1 << 30);
        activity.pace.waited(Duration::from_secs(60));
        activity.write_progressed(60 << 10);
        check_rate(&activity, 1, AGAIN);
        activity.pace.waited(Duration::from_secs(60));
        activity.write_progressed((60 << 10) - 1);
        check_rate(&activity, 2, SLOW);
    }

    #[test]
    fn time_in_which_the_client_is_not_waited_for_is_not_held_against_it() {
        let activity = Arc::new(Activity::new());
        let _request = activity.begin(false);
        activity.write_progressed(10);
        check_rate(&activity, 3600, AGAIN);
    }

    #[test]
    fn an_http2_client_that_opens_its_window_by_a_few_bytes_is_left() {
        let activity = http2();
        let request = activity.begin(true);
        request.handed_over();
        for seconds in 1..=11 {
            activity.write_progressed(CONTROL_FRAMES + 1);
            activity.progressed_since.set(Duration::from_secs(seconds * 5));
            check_rate(&activity, seconds * 5, AGAIN);
        }
        activity.progressed_since.set(Duration::from_secs(60));
        check_rate(&activity, 60, SLOW);
        request.waits_for_content();
        check_rate(&activity, 3600, AGAIN);
    }
}
