//! The log writer: a thread that writes what request threads have queued.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::AccessLog;

/// What may wait to be written of a thread's requests, and of all events: about 15,000 lines, should the disk or the terminal
/// stall.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Queues of access lines. With no more threads than these, none waits for another.
const SHARDS: usize = 16;
/// How long the writer lets lines gather, so that it wakes at most 500 times a second. While it writes, the requests of its
/// processor wait: with 55,000 a second on one, the 99th percentile is 98 µs of 5 ms and 86 µs of 2 ms.
const GATHER: Duration = Duration::from_millis(2);
/// After less than this the writer yields, so that the next time it comes after the requests that wait, not amid them: 70 µs
/// instead of 86. After more it needs the time itself.
const YIELD_BYTES: usize = 64 << 10;

/// The handle of the writer thread; dropping it writes what is queued and ends the thread.
pub(super) struct LogWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Which of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// Requests.
    Access,
    /// Events, on standard error.
    Events,
}

/// A queue of access lines, by itself in its lines of the processor's cache.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Vec<u8>>);

thread_local! {
    /// The thread's queue of access lines.
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % SHARDS
    };
}

struct Shared {
    /// Access lines, those of a thread together and in order; each held for a copy of a line.
    access: [Shard; SHARDS],
    /// What else is queued and asked of the writer; never held while writing.
    queue: Mutex<Queue>,
    /// Wakes the writer.
    wake: Condvar,
    /// Wakes who waits in `flush`.
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Whether there are access lines.
    has_access: bool,
    events: Vec<u8>,
    reopened: Option<Sink>,
    /// How often a flush was asked for, and how many of these are done.
    flushes: u64,
    flushed: u64,
    closing: bool,
    /// Whether the writer looks again by itself: nobody needs to wake it.
    is_watched: bool,
}

/// Where access lines go, opened.
pub(super) enum Sink {
    Off,
    Stdout,
    File(File),
    Lines(SyncSender<String>),
}

impl Sink {
    /// Opens a file for appending.
    pub(super) fn open(log: &AccessLog) -> io::Result<Self> {
        Ok(match log {
            AccessLog::Off => Self::Off,
            AccessLog::Stdout => Self::Stdout,
            AccessLog::File(path) => Self::File(OpenOptions::new().create(true).append(true).open(path)?),
            AccessLog::Lines(sender) => Self::Lines(sender.clone()),
        })
    }

    /// Writes whole lines; the number of lines that could not be written.
    fn write(&mut self, lines: &[u8]) -> u64 {
        match self {
            Self::Off => 0,
            Self::Stdout => lost(lines, io::stdout().lock().write_all(lines)),
            Self::File(file) => lost(lines, file.write_all(lines)),
            Self::Lines(sender) => {
                let texts = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                texts.map(|line| u64::from(sender.try_send(String::from_utf8_lossy(line).into_owned()).is_err())).sum()
            }
        }
    }
}

fn lost(lines: &[u8], result: io::Result<()>) -> u64 {
    match result {
        Ok(()) => 0,
        Err(_) => lines.iter().map(|byte| u64::from(*byte == b'\n')).sum(),
    }
}

impl LogWriter {
    /// Starts the thread.
    pub(super) fn start(sink: Sink) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            access: Default::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("aside-log".to_owned()).spawn(move || writer.run(sink))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues one line, newline included. Never waits for the writer: past the bound the line is dropped and counted.
    pub(super) fn push(&self, log: Log, line: &[u8]) {
        match log {
            Log::Access => {
                let mut lines = self.shared.shard(SHARD.with(|shard| *shard));
                let was_empty = lines.is_empty();
                self.shared.append(&mut lines, line);
                drop(lines);
                // Until the writer has taken what is there, it knows of it: no lock that others take.
                if was_empty {
                    self.shared.queue_for(|queue| queue.has_access = true);
                }
            }
            Log::Events => self.shared.queue_for(|queue| self.shared.append(&mut queue.events, line)),
        }
    }

    /// Sends what comes from now on to another place.
    pub(super) fn redirect(&self, sink: Sink) {
        self.shared.queue().reopened = Some(sink);
        self.shared.wake.notify_one();
    }

    /// Waits until what is queued now is written, at most `within`.
    pub(super) fn flush(&self, within: Duration) {
        let mut queue = self.shared.queue();
        queue.flushes += 1;
        let asked = queue.flushes;
        self.shared.wake.notify_one();
        let done = self.shared.written.wait_timeout_while(queue, within, |queue| queue.flushed < asked);
        drop(done);
    }

    /// Lines dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues by `add`, and wakes the writer if it waits for something to do.
    fn queue_for(&self, add: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        let is_waited_for = !queue.is_watched && queue.is_idle();
        add(&mut queue);
        drop(queue);
        if is_waited_for {
            self.wake.notify_one();
        }
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Vec<u8>> {
        self.access[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, lines: &mut Vec<u8>, line: &[u8]) {
        if lines.len() + line.len() > QUEUE_BYTES_MAX {
            self.dropped.fetch_add(1, Relaxed);
        } else {
            lines.extend_from_slice(line);
        }
    }

    fn run(&self, mut sink: Sink) {
        let (mut access, mut events) = (<[Vec<u8>; SHARDS]>::default(), Vec::new());
        loop {
            let (asked, closing, reopened) = self.take(&mut events);
            let mut length = 0;
            for (index, lines) in access.iter_mut().enumerate() {
                // The empty buffer changes places with the full.
                std::mem::swap(lines, &mut self.shard(index));
                if !lines.is_empty() {
                    length += lines.len();
                    self.dropped.fetch_add(sink.write(lines), Relaxed);
                    lines.clear();
                }
            }
            self.dropped.fetch_add(lost(&events, io::stderr().lock().write_all(&events)), Relaxed);
            events.clear();
            if let Some(reopened) = reopened {
                sink = reopened;
            }
            let mut queue = self.queue();
            if queue.flushed < asked {
                queue.flushed = asked;
                self.written.notify_all();
            }
            drop(queue);
            if closing {
                return;
            }
            if length < YIELD_BYTES {
                std::thread::yield_now();
            }
        }
    }

    /// Waits for something to do, lets lines gather, and takes the events. What access lines there are by then is taken after it.
    /// Where there was something it looks again without being woken, so that a busy writer wakes once for each gathering.
    fn take(&self, events: &mut Vec<u8>) -> (u64, bool, Option<Sink>) {
        let queue = self.queue();
        let idle = self.wake.wait_while(queue, |queue| !queue.is_watched && queue.is_idle());
        let mut queue = idle.unwrap_or_else(PoisonError::into_inner);
        queue.is_watched = true;
        let gathering = self.wake.wait_timeout_while(queue, GATHER, |queue| !queue.is_urgent());
        let mut queue = gathering.unwrap_or_else(PoisonError::into_inner).0;
        queue.is_watched = !queue.is_idle();
        queue.has_access = false;
        std::mem::swap(events, &mut queue.events);
        (queue.flushes, queue.closing, queue.reopened.take())
    }
}

impl Queue {
    const fn is_idle(&self) -> bool {
        !self.has_access && self.events.is_empty() && !self.is_urgent()
    }

    const fn is_urgent(&self) -> bool {
        self.closing || self.flushes > self.flushed || self.reopened.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn lines_reach_the_callback_whole_and_in_order() {
        let (sender, receiver) = std::sync::mpsc::sync_channel(2);
        let writer = LogWriter::start(Sink::Lines(sender)).unwrap();
        for line in ["one\n", "two\n", "three\n"] {
            writer.push(Log::Access, line.as_bytes());
        }
        writer.flush(WAIT);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(writer.dropped(), 1);
    }

    #[test]
    fn no_line_of_any_thread_is_lost_or_torn() {
        const LINES: usize = 2_000;
        let (sender, receiver) = std::sync::mpsc::sync_channel(SHARDS * 2 * LINES);
        let writer = LogWriter::start(Sink::Lines(sender)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..SHARDS * 2 {
                let writer = &writer;
                scope.spawn(move || {
                    (0..LINES).for_each(|line| writer.push(Log::Access, format!("{thread} {line}\n").as_bytes()));
                });
            }
        });
        writer.flush(WAIT);
        let mut next = [0; SHARDS * 2];
        for line in receiver.try_iter() {
            let (thread, line) = line.split_once(' ').unwrap();
            let next = &mut next[thread.parse::<usize>().unwrap()];
            assert_eq!(line, next.to_string());
            *next += 1;
        }
        assert_eq!((next, writer.dropped()), ([LINES; SHARDS * 2], 0));
    }

    #[test]
    fn a_reopened_file_gets_what_comes_after() {
        let directory = tempfile::tempdir().unwrap();
        let log = AccessLog::File(directory.path().join("access.log"));
        let writer = LogWriter::start(Sink::open(&log).unwrap()).unwrap();
        writer.push(Log::Access, b"before\n");
        writer.flush(WAIT);
        std::fs::rename(directory.path().join("access.log"), directory.path().join("old.log")).unwrap();
        writer.redirect(Sink::open(&log).unwrap());
        writer.push(Log::Access, b"after\n");
        drop(writer);
        let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("old.log").starts_with("before\n"));
        assert_eq!(read("old.log") + &read("access.log"), "before\nafter\n");
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (sender, _receiver) = std::sync::mpsc::sync_channel(1);
        let writer = LogWriter::start(Sink::Lines(sender)).unwrap();
        writer.push(Log::Access, &vec![b'x'; QUEUE_BYTES_MAX + 1]);
        assert_eq!(writer.dropped(), 1);
    }
}
