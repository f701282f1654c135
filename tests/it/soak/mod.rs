//! Load with random faults for as long as one likes: nothing may grow, and no client may see what the upstream did not do.

mod clients;
mod process;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::redis::free_port;
use crate::world::{Redis, client, get};
use clients::{Tally, World};
use process::{Aside, Usage};
use upstream::{MOODS, Mood, Upstream};

/// How long in all, unless `SOAK_SECONDS` says so.
const SECONDS: u64 = 600;
/// A round of load; after each the clients leave, and what is left is looked at.
const ROUND: Duration = Duration::from_secs(60);
/// How often a line is printed.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// What it may take until everything that the clients began has ended; longer than idle connections are kept.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);
/// What may differ between two rounds' ends: connections to Redis that are being made, timers, buffers.
const TASKS_SLACK: u64 = 12;
const DESCRIPTORS_SLACK: u64 = 12;
const RSS_SLACK_KIB: u64 = 16 << 10;
/// Threads for blocking work end after a while without any.
const THREADS_SLACK: u64 = 8;

/// What is left when the clients are gone.
#[derive(Clone, Copy, Debug)]
struct Rest {
    usage: Usage,
    tasks: u64,
    fills: u64,
}

struct Soak {
    aside: Aside,
    upstream: Upstream,
    world: World,
    file: std::path::PathBuf,
    begun: Instant,
}

fn toml(listen: u16, admin: u16, upstream: &Upstream, redis: &Redis, ttl: &str) -> String {
    let route = |name: &str, keys: &str| {
        format!("[[route]]\nname = \"{name}\"\npath = \"/{name}/{{*rest}}\"\nupstream = \"api\"\n{keys}\n\n")
    };
    format!(
        "[server]\nlisten = \"127.0.0.1:{listen}\"\nthreads = 2\n[server.limits]\nidle_timeout = \"5s\"\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n\n[log]\nlevel = \"warn\"\naccess = \"off\"\n\n\
         [memory]\nmax_size = \"32 MiB\"\n\n[redis]\nurl = \"{}\"\n\n\
         [upstream.api]\nurl = \"http://{}\"\nfirst_byte_timeout = \"1s\"\nidle_timeout = \"2s\"\n\
         breaker = {{ failures = 1000000000 }}\n\n{}{}{}{}{}{}{}",
        redis.url(),
        upstream.address,
        route("hot", &format!("ttl = \"{ttl}\"\nstale_while_revalidate = \"1s\"\ntags = [\"hot\"]")),
        route("cold", "stale_if_error = \"0s\""),
        route("vary", "stale_if_error = \"0s\""),
        route("cluster", "collapse = \"cluster\""),
        route("big", "max_object = \"8 MiB\""),
        route("huge", "max_object = \"8 MiB\""),
        route("upload", "cache = false"),
    )
}

/// What `make soak` runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes of load: `make soak`"]
async fn nothing_grows_and_no_client_sees_what_the_upstream_did_not_do() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let (upstream, redis) =
        (Upstream::start(), Redis::start_with(&["--maxmemory", "64mb", "--maxmemory-policy", "volatile-lfu"]));
    let (listen, admin, folder) = (free_port(), free_port(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("aside.toml");
    let texts = ["2s", "3s"].map(|ttl| toml(listen, admin, &upstream, &redis, ttl));
    std::fs::write(&file, &texts[0]).expect("a file");
    let aside = Aside::serve(&file, folder.path().join("log"));
    let world = World {
        proxy: format!("http://127.0.0.1:{listen}"),
        admin: format!("http://127.0.0.1:{admin}"),
        record: Arc::clone(&upstream.record),
        tally: Arc::<Tally>::default(),
        stopping: Arc::<AtomicBool>::default(),
    };
    let soak = Soak { aside, upstream, world, file, begun: Instant::now() };
    soak.until_ready().await;
    let faults = Faults::start(redis);
    // At least a round to warm up, and two to compare.
    let total = Duration::from_secs(seconds);
    let rounds = (total.as_secs() / ROUND.as_secs()).max(3) as u32;
    let mut rests = Vec::new();
    for round in 0..rounds {
        soak.load(total / rounds - (total / rounds).min(Duration::from_secs(8)), &texts, &faults).await;
        rests.push(soak.settle(round, &faults).await);
    }
    let events = soak.stats().await["events"].clone();
    println!("faults of redis: {}, events: {events}", faults.end());
    soak.verdict(&rests);
}

impl Soak {
    async fn until_ready(&self) {
        let begun = Instant::now();
        let url = format!("{}/readyz", self.world.admin);
        while client().get(&url).send().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not start: {}", self.aside.last_words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stats(&self) -> Value {
        let (client, url) = (client(), format!("{}/cache-stats", self.world.admin));
        let asked = tokio::time::timeout(Duration::from_secs(10), get(&client, &url));
        let got = asked.await.expect("figures");
        serde_json::from_str(&got.body).expect("JSON")
    }

    /// Clients for so long, with faults and reloads meanwhile.
    async fn load(&self, time: Duration, texts: &[String; 2], faults: &Faults) {
        self.world.stopping.store(false, Relaxed);
        faults.go_on(true);
        let (begun, clients) = (Instant::now(), clients::start(&self.world));
        let (mut told, mut reloads, mut moods) = (Instant::now(), 0, 0);
        while begun.elapsed() < time {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if begun.elapsed().as_secs() / 3 >= moods {
                moods += 1;
                // Every other time it is well.
                let mood = if moods % 2 == 0 { Mood::Calm } else { MOODS[fastrand::usize(..MOODS.len())] };
                self.upstream.record.set_mood(mood);
            }
            if begun.elapsed().as_secs() / 5 > reloads {
                reloads += 1;
                std::fs::write(&self.file, &texts[(reloads % 2) as usize]).expect("a file");
                self.aside.reload();
            }
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                self.tell().await;
            }
        }
        self.world.stopping.store(true, Relaxed);
        for client in clients {
            let ended = tokio::time::timeout(Duration::from_secs(60), client).await;
            ended.expect("every client ends").expect("no client panics");
        }
        self.upstream.record.set_mood(Mood::Calm);
        faults.go_on(false);
    }

    async fn tell(&self) {
        let (stats, usage, tally) = (self.stats().await, self.aside.usage(), &self.world.tally);
        let Usage { rss_kib, descriptors, threads } = usage;
        println!(
            "{:4}s  right {}  excused {}  cancelled {}  failures {}  purges {}  | rss {} MiB  fds {descriptors}  threads {threads}  tasks {}  fills {}  | hit ratio {}  redis {} {}  upstream {:?}, {} failures",
            self.begun.elapsed().as_secs(),
            tally.right.load(Relaxed),
            tally.excused.load(Relaxed),
            tally.cancelled.load(Relaxed),
            tally.failures.load(Relaxed),
            tally.purges.load(Relaxed),
            rss_kib >> 10,
            stats["process"]["tasks"],
            stats["process"]["fills"],
            stats["totals"]["hit_ratio"],
            stats["redis"]["state"].as_str().unwrap_or("-"),
            stats["redis"]["breaker"].as_str().unwrap_or("-"),
            self.upstream.record.mood(),
            self.upstream.record.failures.load(Relaxed),
        );
    }

    /// Waits until what the clients began has ended, and Redis is in use again; what is left then.
    async fn settle(&self, round: u32, faults: &Faults) -> Rest {
        faults.until_well();
        let begun = Instant::now();
        let mut least: Option<Rest> = None;
        // Idle connections go by and by: the least of what is seen is what stays.
        loop {
            let stats = self.stats().await;
            let figure = |name: &str| stats["process"][name].as_u64().expect("a figure");
            let now = Rest { usage: self.aside.usage(), tasks: figure("tasks"), fills: figure("fills") };
            if least.is_none_or(|least| now.tasks <= least.tasks) {
                least = Some(now);
            }
            let is_well = stats["redis"]["state"] == "up" && stats["redis"]["breaker"] == "closed" && now.fills == 0;
            let waited = begun.elapsed();
            if (is_well && waited > Duration::from_secs(7)) || waited > SETTLED_WITHIN {
                assert!(is_well, "round {round}: it does not come to rest: {stats:#}\n{}", self.aside.last_words());
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let rest = least.expect("looked at least once");
        println!("      round {round} at rest: {rest:?}");
        rest
    }

    /// Tells, and panics where something grew or a client saw what it should not. The first round is the warm-up; of
    /// the others, the most that the first half took bounds the least that the last quarter did.
    fn verdict(&self, rests: &[Rest]) {
        let (early, late) = (&rests[1..=rests.len() / 2], &rests[rests.len() - (rests.len() / 4).max(1)..]);
        let tally = &self.world.tally;
        let mut problems = tally.told.lock().unwrap().clone();
        if tally.right.load(Relaxed) < 1000 {
            problems.push("hardly anything was asked".to_owned());
        }
        let mut flat = |what: &str, of: fn(&Rest) -> u64, slack: u64| {
            let first = early.iter().map(of).max().unwrap_or_default();
            let last = late.iter().map(of).min().unwrap_or_default();
            println!("{what}: {first} in the first half, {last} at the end, {slack} more allowed");
            if last > first + slack {
                problems.push(format!("{what} grew from {first} to {last}"));
            }
        };
        flat("rss in KiB", |rest| rest.usage.rss_kib, RSS_SLACK_KIB);
        flat("descriptors", |rest| rest.usage.descriptors as u64, DESCRIPTORS_SLACK);
        flat("threads", |rest| rest.usage.threads, THREADS_SLACK);
        flat("tasks", |rest| rest.tasks, TASKS_SLACK);
        println!(
            "requests: {} right, {} failed as the upstream did, {} cancelled, {} failed otherwise",
            tally.right.load(Relaxed),
            tally.excused.load(Relaxed),
            tally.cancelled.load(Relaxed),
            tally.failures.load(Relaxed)
        );
        println!("verdict: {}", if problems.is_empty() { "flat, and no errors of our own" } else { "FAILED" });
        assert!(problems.is_empty(), "{problems:#?}\n{}", self.aside.last_words());
    }
}

/// What happens to Redis, on a thread of its own.
struct Faults {
    state: Arc<FaultState>,
    thread: std::thread::JoinHandle<usize>,
}

#[derive(Default)]
struct FaultState {
    going_on: AtomicBool,
    ending: AtomicBool,
    /// Whether a fault is under way.
    busy: AtomicBool,
}

impl Faults {
    fn start(mut redis: Redis) -> Self {
        let state = Arc::<FaultState>::default();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let (mut count, mut next) = (0, Instant::now() + Duration::from_secs(5));
            while !shared.ending.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                if !shared.going_on.load(Relaxed) || Instant::now() < next {
                    continue;
                }
                shared.busy.store(true, Relaxed);
                if shared.going_on.load(Relaxed) {
                    fault(&mut redis);
                    count += 1;
                }
                shared.busy.store(false, Relaxed);
                next = Instant::now() + Duration::from_millis(fastrand::u64(2000..8000));
            }
            count
        });
        Self { state, thread }
    }

    fn go_on(&self, going_on: bool) {
        self.state.going_on.store(going_on, Relaxed);
    }

    fn until_well(&self) {
        crate::world::redis::wait_until("redis is left in peace", || !self.state.busy.load(Relaxed));
    }

    /// How many there were.
    fn end(self) -> usize {
        self.state.ending.store(true, Relaxed);
        self.thread.join().expect("the faults end")
    }
}

fn fault(redis: &mut Redis) {
    let some_time = || std::thread::sleep(Duration::from_millis(fastrand::u64(100..3000)));
    match fastrand::u8(..5) {
        0 | 1 => {
            redis.signal("STOP");
            some_time();
            redis.signal("CONT");
        }
        2 => {
            redis.kill();
            some_time();
            redis.restart();
        }
        3 => drop(redis.tell("FLUSHALL")),
        _ => drop(redis.ask("CLIENT KILL TYPE normal")),
    }
}
