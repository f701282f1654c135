//! The clients that the benchmark brings along, for what wrk and h2load do not do.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet, yield_now};

/// Connections that fill a cache.
const WARMING: usize = 32;
/// A thread that spins and has not looked at the clock for so long was stopped.
const STOP: Duration = Duration::from_micros(50);

/// A keep-alive connection that asks for one thing at a time.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Connects on loopback.
    pub async fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096) })
    }

    /// The content of a 200 that tells its length.
    pub async fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n");
        self.stream.write_all(head.as_bytes()).await?;
        self.read.clear();
        let (body_at, length) = loop {
            if let Some(found) = framing(&self.read)? {
                break found;
            }
            self.fill().await?;
        };
        while self.read.len() < body_at + length {
            self.fill().await?;
        }
        Ok(self.read[body_at..].to_vec())
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Where the content begins and how long it is; none before the head is complete.
fn framing(read: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    match length {
        Some(length) if head.starts_with("http/1.1 200") => Ok(Some((end + 4, length))),
        _ => Err(io::Error::other(format!("unexpected answer: {head}"))),
    }
}

/// Runs a client on this thread.
pub fn run<T>(client: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    // Polled each time: the paced client spins.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build()?;
    LocalSet::new().block_on(&runtime, client)
}

/// Asks once for each of the keys.
pub async fn warm(port: u16, prefix: String, keys: usize) -> io::Result<Value> {
    let mut clients = JoinSet::new();
    for first in 0..WARMING.min(keys) {
        let prefix = prefix.clone();
        clients.spawn_local(async move {
            let mut connection = Connection::open(port).await?;
            for key in (first..keys).step_by(WARMING) {
                connection.get(&format!("{prefix}{key}")).await?;
            }
            Ok::<_, io::Error>(())
        });
    }
    clients.join_all().await.into_iter().collect::<io::Result<()>>()?;
    Ok(Value::Null)
}

/// Asks once on each of so many connections at the same moment; tells when the last had its answer.
pub async fn herd(port: u16, path: String, count: usize) -> io::Result<Value> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(port).await?);
    }
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for mut connection in connections {
        let path = path.clone();
        clients.spawn_local(async move { connection.get(&path).await.map(|_| begun.elapsed()) });
    }
    let took = clients.join_all().await.into_iter().collect::<io::Result<Vec<Duration>>>()?;
    Ok(json!({ "last_ms": millis(took.into_iter().max().unwrap_or_default()) }))
}

/// Opens so many connections, asks once on each, tells that it has, and keeps them until its input ends.
pub async fn idle(port: u16, path: String, count: usize) -> io::Result<Value> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(port).await?;
        connection.get(&path).await?;
        connections.push(connection);
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(Value::Null)
}

/// Asks at a fixed pace, whether or not what was asked before is answered; a latency counts from when it was due.
///
/// Where this thread itself was stopped, as a virtual machine's processor is for milliseconds at a time, it does not catch up, and
/// what was due before and answered after is not counted: such a latency is not the contender's.
pub async fn paced(port: u16, path: String, count: usize, rate: f64, seconds: u64) -> io::Result<Value> {
    let (latencies, presence) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Presence::default()));
    let (mut clients, mut doors) = (JoinSet::new(), Vec::new());
    for _ in 0..count {
        let mut connection = Connection::open(port).await?;
        let (door, mut orders) = mpsc::unbounded_channel::<Instant>();
        let (path, latencies, presence) = (path.clone(), Rc::clone(&latencies), Rc::clone(&presence));
        doors.push(door);
        clients.spawn_local(async move {
            while let Some(due) = orders.recv().await {
                presence.look();
                connection.get(&path).await?;
                let answered = presence.look();
                latencies.borrow_mut().push(presence.has_been_since(due).then_some(answered - due));
            }
            Ok::<_, io::Error>(())
        });
    }
    let (begun, pace) = (presence.look(), Duration::from_secs_f64(1.0 / rate));
    let mut due = begun;
    for door in doors.iter().cycle() {
        // A timer would be late by up to a millisecond.
        while presence.look() < due {
            yield_now().await;
        }
        if due > begun + Duration::from_secs(seconds) {
            break;
        }
        let _ = door.send(due);
        due = if presence.has_been_since(due) { due + pace } else { presence.look() };
    }
    drop(doors);
    clients.join_all().await.into_iter().collect::<io::Result<()>>()?;
    let took = begun.elapsed().as_secs_f64();
    let latencies = latencies.take();
    let mut seen: Vec<Duration> = latencies.iter().copied().flatten().collect();
    seen.sort();
    let at = |part: f64| seen.get((seen.len() as f64 * part) as usize).copied().map(millis);
    let unseen = 1.0 - seen.len() as f64 / latencies.len() as f64;
    Ok(json!({
        "requests": latencies.len(), "seconds": took, "p50_ms": at(0.5), "p99_ms": at(0.99), "unseen": unseen,
    }))
}

/// Whether this thread has run without a stop.
#[derive(Default)]
struct Presence {
    last: Cell<Option<Instant>>,
    /// When the last stop ended.
    back: Cell<Option<Instant>>,
}

impl Presence {
    /// The time. From one look to the next there is little to do.
    fn look(&self) -> Instant {
        let now = Instant::now();
        if self.last.replace(Some(now)).is_some_and(|last| now - last > STOP) {
            self.back.set(Some(now));
        }
        now
    }

    fn has_been_since(&self, then: Instant) -> bool {
        self.back.get().is_none_or(|back| back < then)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
