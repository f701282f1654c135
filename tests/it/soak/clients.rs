//! Clients of every kind, which check what they are answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::json;
use tokio::task::JoinHandle;

use super::upstream::{self, Record};
use crate::world::{client, h2c_client};

/// A client that waits for longer is one that hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many of the failures are kept to be told.
const KEPT_MAX: usize = 20;

/// What the clients saw, all together.
#[derive(Default)]
pub struct Tally {
    pub right: AtomicU64,
    pub excused: AtomicU64,
    pub cancelled: AtomicU64,
    pub purges: AtomicU64,
    pub failures: AtomicU64,
    pub told: Mutex<Vec<String>>,
}

/// What a client needs.
#[derive(Clone)]
pub struct World {
    pub proxy: String,
    pub admin: String,
    pub record: Arc<Record>,
    pub tally: Arc<Tally>,
    pub stopping: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Hits,
    Misses,
    Variants,
    Cluster,
    Http2,
    Big,
    Huge,
    SlowReader,
    Cancelling,
    Uploads,
    Purges,
}

const KINDS: [(Kind, usize); 11] = [
    (Kind::Hits, 8),
    (Kind::Misses, 4),
    (Kind::Variants, 3),
    (Kind::Cluster, 3),
    (Kind::Http2, 6),
    (Kind::Big, 2),
    (Kind::Huge, 1),
    (Kind::SlowReader, 3),
    (Kind::Cancelling, 3),
    (Kind::Uploads, 2),
    (Kind::Purges, 1),
];

/// Starts them all; each ends soon after `stopping` is set.
#[allow(clippy::disallowed_methods, reason = "the clients are awaited when they are stopped")]
pub fn start(world: &World) -> Vec<JoinHandle<()>> {
    let http2 = h2c_client();
    let mut clients = Vec::new();
    for (kind, count) in KINDS {
        for _ in 0..count {
            let world = world.clone();
            let client = if matches!(kind, Kind::Http2) { http2.clone() } else { client() };
            clients.push(tokio::spawn(async move {
                while !world.stopping.load(Relaxed) {
                    world.act(kind, &client).await;
                }
            }));
        }
    }
    clients
}

impl World {
    async fn act(&self, kind: Kind, client: &Client) {
        let target = |route: &str, count: u32| format!("/{route}/{}", fastrand::u32(..count));
        let pause = match kind {
            Kind::Hits | Kind::Http2 => {
                self.get(client, &target("hot", 100), "-").await;
                2
            }
            Kind::Misses => {
                self.get(client, &target("cold", u32::MAX), "-").await;
                5
            }
            Kind::Variants => {
                let language = ["de", "en", "fr", "it", "pt", "xx"][fastrand::usize(..6)];
                self.get(client, &target("vary", 20), language).await;
                5
            }
            Kind::Cluster => {
                self.get(client, &target("cluster", 50), "-").await;
                5
            }
            Kind::Big => {
                self.get(client, &target("big", 10), "-").await;
                100
            }
            Kind::Huge => {
                self.get(client, &target("huge", 10), "-").await;
                500
            }
            Kind::SlowReader => {
                self.read_slowly(client, &target("big", 10)).await;
                10
            }
            Kind::Cancelling => {
                self.cancel(client, &target(["hot", "cold", "big", "huge", "cluster"][fastrand::usize(..5)], 30)).await;
                5
            }
            Kind::Uploads => {
                self.upload(client, &target("upload", 100)).await;
                50
            }
            Kind::Purges => {
                self.purge(client).await;
                200
            }
        };
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..2 * pause))).await;
    }

    fn failed(&self, target: &str, begun: Instant, what: &str) {
        if self.record.excuses(target, begun) {
            self.tally.excused.fetch_add(1, Relaxed);
        } else {
            self.wrong(format!("{target}: {what}"));
        }
    }

    fn wrong(&self, what: String) {
        self.tally.failures.fetch_add(1, Relaxed);
        let mut told = self.tally.told.lock().unwrap();
        if told.len() < KEPT_MAX {
            told.push(what);
        }
    }

    async fn get(&self, client: &Client, target: &str, language: &str) {
        let begun = Instant::now();
        let reading = self.read(client, target, language, Duration::ZERO);
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(())) => drop(self.tally.right.fetch_add(1, Relaxed)),
            Ok(Err(Some(what))) => self.failed(target, begun, &what),
            Ok(Err(None)) => {}
            Err(_) => self.wrong(format!("{target}: hangs")),
        }
    }

    /// Reads an answer to its end. An error without a text has been told of: no upstream excuses it.
    async fn read(&self, client: &Client, target: &str, language: &str, pause: Duration) -> Result<(), Option<String>> {
        let told = |error: reqwest::Error| Some(format!("{error:?}"));
        let url = format!("{}{target}", self.proxy);
        let mut response = client.get(url).header("accept-language", language).send().await.map_err(told)?;
        let status = response.status();
        if status != 200 {
            return Err(Some(format!("{status} {:?}", response.headers().get("cache-status"))));
        }
        let (line, mut seen) = (upstream::line(target, language), 0);
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            if !is_repeated(&chunk, &line, seen) {
                self.wrong(format!("{target}: somebody else's content at {seen}"));
                return Err(None);
            }
            seen += chunk.len();
            tokio::time::sleep(pause).await;
            if !pause.is_zero() && self.stopping.load(Relaxed) {
                return Ok(());
            }
        }
        if seen != upstream::length(target) {
            self.wrong(format!("{target}: {seen} bytes with a clean end"));
            return Err(None);
        }
        Ok(())
    }

    async fn read_slowly(&self, client: &Client, target: &str) {
        let begun = Instant::now();
        match self.read(client, target, "-", Duration::from_millis(20)).await {
            Ok(()) => drop(self.tally.right.fetch_add(1, Relaxed)),
            Err(Some(what)) => self.failed(target, begun, &what),
            Err(None) => {}
        }
    }

    async fn cancel(&self, client: &Client, target: &str) {
        let within = Duration::from_millis(fastrand::u64(..20));
        let _ = tokio::time::timeout(within, self.read(client, target, "-", Duration::ZERO)).await;
        self.tally.cancelled.fetch_add(1, Relaxed);
    }

    async fn upload(&self, client: &Client, target: &str) {
        let begun = Instant::now();
        let request = client.request(Method::POST, format!("{}{target}", self.proxy)).header("accept-language", "-");
        let request = request.body(vec![b'x'; fastrand::usize(..256 << 10)]).send();
        let sending = async {
            let response = request.await.map_err(|error| format!("{error:?}"))?;
            let status = response.status();
            let body = response.bytes().await.map_err(|error| format!("{error:?}"))?;
            let is_right = status == 200 && body.len() == upstream::length(target);
            if is_right { Ok(()) } else { Err(format!("{status}, {} bytes", body.len())) }
        };
        match tokio::time::timeout(PATIENCE, sending).await {
            Ok(Ok(())) => drop(self.tally.right.fetch_add(1, Relaxed)),
            Ok(Err(what)) => self.failed(target, begun, &what),
            Err(_) => self.wrong(format!("{target}: hangs")),
        }
    }

    async fn purge(&self, client: &Client) {
        let url = format!("{}/hot/{}", self.proxy, fastrand::u32(..100));
        let order = match fastrand::u8(..20) {
            0 => json!({ "all": true, "soft": fastrand::bool() }),
            1..5 => json!({ "tags": ["k"], "soft": true }),
            5..8 => json!({ "prefixes": [format!("{}/cluster/", self.proxy)] }),
            _ => json!({ "urls": [url] }),
        };
        let request = client.post(format!("{}/purge", self.admin)).header("content-type", "application/json");
        match tokio::time::timeout(PATIENCE, request.body(order.to_string()).send()).await {
            // 503: obeyed here, and Redis could not be told.
            Ok(Ok(answer)) if matches!(answer.status().as_u16(), 200 | 503) => {
                let _ = answer.bytes().await;
                self.tally.purges.fetch_add(1, Relaxed);
            }
            Ok(Ok(answer)) => self.wrong(format!("purge {order}: {}", answer.status())),
            Ok(Err(error)) => self.wrong(format!("purge {order}: {error:?}")),
            Err(_) => self.wrong(format!("purge {order}: hangs")),
        }
    }
}

/// Whether `part`, which begins at `from`, is of `line` over and over.
fn is_repeated(part: &[u8], line: &[u8], from: usize) -> bool {
    part.iter().enumerate().all(|(at, byte)| *byte == line[(from + at) % line.len()])
}
