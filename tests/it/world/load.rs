//! Clients that ask without pause, and what comes of Redis meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::{Origin, Proxy, client};

/// How many clients ask at one time.
const CLIENTS: usize = 4;

/// Clients that ask for the same paths over and over until they are stopped.
pub struct Load {
    stopping: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Vec<String>>>,
    /// How long each answer took, in order of their ends.
    took: Arc<Mutex<Vec<Duration>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Asks for `paths` through the proxy; an answer is right when it is a 200 with that path's body.
    pub fn start(proxy: &Proxy, paths: &[String]) -> Self {
        Self::start_clients(CLIENTS, proxy, paths)
    }

    /// The same with as many clients.
    pub fn start_clients(count: usize, proxy: &Proxy, paths: &[String]) -> Self {
        let paths = paths.to_vec();
        Self::start_with(count, proxy, move |client, nth| {
            paths[(client * paths.len() / count + nth) % paths.len()].clone()
        })
    }

    /// As many clients, each of which asks for what `path` gives for its number and that of its request.
    #[allow(clippy::disallowed_methods, reason = "the clients are awaited when they are stopped")]
    pub fn start_with(
        count: usize,
        proxy: &Proxy,
        path: impl Fn(usize, usize) -> String + Clone + Send + 'static,
    ) -> Self {
        let (stopping, answered, wrong, took) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stopping, answered, wrong, took, clients: Vec::new() };
        for nth_client in 0..count {
            let (stopping, answered, wrong, took) = (
                Arc::clone(&load.stopping),
                Arc::clone(&load.answered),
                Arc::clone(&load.wrong),
                Arc::clone(&load.took),
            );
            let (path, base) = (path.clone(), proxy.url(""));
            load.clients.push(tokio::spawn(async move {
                let client = client();
                for nth in 0.. {
                    if stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    let path = path(nth_client, nth);
                    let begun = Instant::now();
                    if let Err(what) = ask(&client, &path, &format!("{base}{path}")).await {
                        wrong.lock().unwrap().push(what);
                    }
                    took.lock().unwrap().push(begun.elapsed());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        load
    }

    /// How many answers came so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// How many answers took longer than that.
    pub fn slower_than(&self, limit: Duration) -> usize {
        self.took.lock().unwrap().iter().filter(|took| **took > limit).count()
    }

    /// Waits until as many answers more have come.
    pub async fn more(&self, answers: usize) {
        let enough = self.answered() + answers;
        let waiting = async {
            while self.answered() < enough {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("answers keep coming");
    }

    /// Stops; panics if an answer was wrong.
    pub async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("the client ends");
        }
        let wrong = self.wrong.lock().unwrap();
        assert!(
            wrong.is_empty(),
            "{} of {} answers were wrong: {:#?}",
            wrong.len(),
            self.answered.load(Ordering::Relaxed),
            &wrong[..wrong.len().min(5)]
        );
    }
}

async fn ask(client: &reqwest::Client, path: &str, url: &str) -> Result<(), String> {
    let response = client.get(url).send().await.map_err(|error| format!("{path}: {error:?}"))?;
    let (status, told) = (response.status(), super::field(&response, "cache-status"));
    let body = response.text().await.map_err(|error| format!("{path}: {error:?}"))?;
    // The upstream answers with the path and how often it was asked for it.
    let is_right = status == 200 && body.rsplit_once(' ').is_some_and(|(of, _)| of == path);
    if is_right { Ok(()) } else { Err(format!("{path}: {status} {body:?} ({told})")) }
}

/// Hits that must come from Redis, within so long after there is a primary again.
pub const RESUME_WITHIN: Duration = Duration::from_secs(5);

/// A configuration without a memory tier, with a route for each of two paths; `redis`: the keys of its table.
pub fn two_routes_with_redis(origin: &Origin, redis: &str) -> String {
    let (upstream, route) = (origin.url(), |name: &str| {
        format!("[[route]]\nname = \"{name}\"\npath = \"/{name}/{{*rest}}\"\nttl = \"10m\"\nttl_jitter = 0.0\n")
    });
    format!(
        "[memory]\nmax_size = \"0\"\n[redis]\n{redis}\ntimeout = \"250ms\"\n[upstream.api]\nurl = \"{upstream}\"\n{}{}",
        route("one"),
        route("two")
    )
}

/// As many paths of a route.
pub fn paths(route: &str, count: usize) -> Vec<String> {
    (0..count).map(|nth| format!("/{route}/{nth}")).collect()
}

/// How many of its answers came from Redis.
async fn hits_from_redis(proxy: &Proxy, route: &str) -> u64 {
    proxy.stats().await["routes"][route]["hits_redis"].as_u64().expect("a count")
}

/// Waits until Redis is used.
pub async fn until_up(proxy: &Proxy) {
    let begun = Instant::now();
    loop {
        let stats = proxy.stats().await;
        if stats["redis"]["state"] == "up" && stats["redis"]["breaker"] == "closed" {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "redis was not reached: {stats:#}");
    }
}

/// Waits until as many more hits come from Redis; how long that took.
pub async fn until_hits(proxy: &Proxy, route: &str, more: u64) -> Duration {
    let begun = Instant::now();
    let enough = hits_from_redis(proxy, route).await + more;
    while hits_from_redis(proxy, route).await < enough {
        assert!(begun.elapsed() < RESUME_WITHIN, "no hits from redis: {:#}", proxy.stats().await["redis"]);
        tokio::task::yield_now().await;
    }
    begun.elapsed()
}

/// Waits, bounded, without keeping the load from going on.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How often a limit was met.
pub async fn met(proxy: &Proxy, limit: &str) -> u64 {
    proxy.stats().await["limits"][limit].as_u64().expect("a limit that is counted")
}

/// Waits until a limit was met as often.
pub async fn until_met(proxy: &Proxy, limit: &str, times: u64) {
    let waiting = async {
        while met(proxy, limit).await < times {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("{limit} is not met {times} times"));
}
