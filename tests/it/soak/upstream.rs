//! An upstream that fails on purpose, and knows for which targets it did.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What it does to one request in four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Nothing.
    Calm,
    /// Takes its time.
    Slow,
    /// Answers with a 5xx.
    Errors,
    /// Closes without an answer.
    Resets,
    /// Ends its content too early.
    Broken,
    /// Answers with what is no HTTP.
    Garbage,
    /// Does not answer.
    Silent,
}

pub const MOODS: [Mood; 7] =
    [Mood::Calm, Mood::Slow, Mood::Errors, Mood::Resets, Mood::Broken, Mood::Garbage, Mood::Silent];

/// How long before a request a failure of its target may be what it sees: others may have waited for the same fetch.
const EXCUSED_FOR: Duration = Duration::from_secs(8);

/// What it did.
#[derive(Default)]
pub struct Record {
    mood: AtomicU8,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    /// When it last failed, by target.
    failed: Mutex<HashMap<String, Instant>>,
}

impl Record {
    pub fn mood(&self) -> Mood {
        MOODS[usize::from(self.mood.load(Relaxed))]
    }

    pub fn set_mood(&self, mood: Mood) {
        let place = MOODS.iter().position(|it| *it == mood).expect("one of them");
        self.mood.store(place as u8, Relaxed);
    }

    fn fail(&self, target: &str) {
        self.failures.fetch_add(1, Relaxed);
        let (now, mut failed) = (Instant::now(), self.failed.lock().unwrap());
        if failed.len() > 10_000 {
            failed.retain(|_, at| now.duration_since(*at) < 2 * EXCUSED_FOR);
        }
        failed.insert(target.to_owned(), now);
    }

    /// Whether a client that asked at `begun` may have seen a failure of ours.
    pub fn excuses(&self, target: &str, begun: Instant) -> bool {
        self.failed.lock().unwrap().get(target).is_some_and(|at| *at + EXCUSED_FOR > begun)
    }
}

/// The running upstream; it stops when dropped.
pub struct Upstream {
    pub address: SocketAddr,
    pub record: Arc<Record>,
    _stop: oneshot::Sender<()>,
}

impl Upstream {
    #[allow(clippy::disallowed_methods, reason = "its connections end with its runtime")]
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let record = Arc::<Record>::default();
        let shared = Arc::clone(&record);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let record = Arc::clone(&shared);
                        tokio::spawn(async move {
                            // A client that goes away is no concern of the upstream's.
                            let _ = speak(stream, &record).await;
                        });
                    }
                };
                tokio::select! { () = accept => {}, _ = stopped => {} }
            });
        });
        Self { address, record, _stop: stop }
    }
}

/// The line that a target's content repeats, in this language.
pub fn line(target: &str, language: &str) -> Vec<u8> {
    format!("{target} {language}\n").into_bytes()
}

/// How long a target's content is.
pub fn length(target: &str) -> usize {
    match target.split('/').nth(1) {
        Some("big") => 2 << 20,
        // Above the route's `max_object`.
        Some("huge") => 9 << 20,
        Some("cluster") => 16 << 10,
        _ => 3 << 10,
    }
}

struct Asked {
    method: String,
    target: String,
    language: String,
    is_conditional: bool,
}

async fn speak(stream: TcpStream, record: &Record) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await? {
        record.requests.fetch_add(1, Relaxed);
        let mood = if fastrand::u8(..4) == 0 { record.mood() } else { Mood::Calm };
        if !matches!(mood, Mood::Calm | Mood::Slow) {
            record.fail(&asked.target);
        }
        match mood {
            Mood::Calm => tokio::time::sleep(Duration::from_millis(fastrand::u64(..5))).await,
            Mood::Slow => tokio::time::sleep(Duration::from_millis(fastrand::u64(20..300))).await,
            Mood::Errors => {
                let status = ["500 A", "502 B", "503 C", "504 D"][fastrand::usize(..4)];
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\noops");
                stream.write_all(head.as_bytes()).await?;
                continue;
            }
            Mood::Resets => {
                // Pending bytes make the close a reset.
                stream.get_ref().set_zero_linger()?;
                return Ok(());
            }
            Mood::Garbage => {
                stream.write_all(b"no http at all\r\n\r\n").await?;
                return Ok(());
            }
            Mood::Silent => tokio::time::sleep(Duration::from_secs(3)).await,
            Mood::Broken => {}
        }
        if !answer(&mut stream, &asked, mood == Mood::Broken).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// A request with its content, which is read and forgotten.
async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut asked = Asked { method: String::new(), target: String::new(), language: "-".into(), is_conditional: false };
    let (mut text, mut length) = (String::new(), 0);
    loop {
        text.clear();
        if stream.read_line(&mut text).await? == 0 {
            return Ok(None);
        }
        let line = text.trim_end();
        if asked.method.is_empty() {
            let mut words = line.split(' ');
            asked.method = words.next().unwrap_or_default().to_owned();
            asked.target = words.next().unwrap_or_default().to_owned();
        } else if line.is_empty() {
            tokio::io::copy(&mut (&mut *stream).take(length), &mut tokio::io::sink()).await?;
            return Ok(Some(asked));
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or(0),
                "accept-language" => asked.language = value.to_owned(),
                "if-none-match" => asked.is_conditional = true,
                _ => {}
            }
        }
    }
}

/// Whether the connection can go on.
async fn answer(stream: &mut BufReader<TcpStream>, asked: &Asked, broken: bool) -> std::io::Result<bool> {
    let fields = "cache-control: max-age=3\r\netag: \"v\"\r\nsurrogate-key: k\r\nvary: accept-language\r\n";
    if asked.is_conditional && !broken {
        stream.write_all(format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").as_bytes()).await?;
        return Ok(true);
    }
    let (line, length) = (line(&asked.target, &asked.language), length(&asked.target));
    let is_chunked = broken && fastrand::bool();
    let framing =
        if is_chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {length}") };
    stream.write_all(format!("HTTP/1.1 200 OK\r\n{fields}{framing}\r\n\r\n").as_bytes()).await?;
    let piece = line.repeat((64 << 10) / line.len());
    let mut left = if broken { length / 2 } else { length };
    while left > 0 {
        let part = &piece[..left.min(piece.len())];
        if is_chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
        }
        stream.write_all(part).await?;
        if is_chunked {
            stream.write_all(b"\r\n").await?;
        }
        left -= part.len();
    }
    Ok(!broken)
}
