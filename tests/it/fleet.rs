//! Several proxies on one Redis behave as one cache: what one is told to purge, none serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::load::{until, until_up};
use crate::world::relay::Relay;
use crate::world::{Cluster, Got, Origin, Proxy, Redis, Sentinels, client, get, reply};

struct Fleet {
    proxies: Vec<Proxy>,
    client: reqwest::Client,
}

/// One route over everything, tagged by the first segment, whose keys all hosts share; with further tables.
fn toml(upstream: &str, redis: &str, more: &str) -> String {
    format!(
        "{more}\n[admin]\nlisten = \"127.0.0.1:0\"\n[redis]\nurl = \"{redis}\"\ntimeout = \"250ms\"\n\
         [upstream.api]\nurl = \"{upstream}\"\n[[route]]\nname = \"all\"\npath = \"/{{tag}}/{{*rest}}\"\nttl = \"10m\"\n\
         ttl_jitter = 0.0\ntags = [\"tag:{{tag}}\"]\nkey = {{ host = false }}\n"
    )
}

impl Fleet {
    /// As many proxies as there are Redis URLs.
    async fn start(origin: &Origin, redis: &[String], more: &str) -> Self {
        let proxies: Vec<Proxy> = redis.iter().map(|url| Proxy::start(&toml(&origin.url(), url, more))).collect();
        for proxy in &proxies {
            until_up(proxy).await;
        }
        Self { proxies, client: client() }
    }

    async fn get(&self, proxy: usize, path: &str) -> Got {
        get(&self.client, &self.proxies[proxy].url(path)).await
    }

    /// Has each proxy hold the path in memory; the body is then the same everywhere.
    async fn hold(&self, path: &str) {
        for proxy in 0..self.proxies.len() {
            let url = self.proxies[proxy].url(path);
            let begun = Instant::now();
            // The write to Redis goes on behind the first answer; another proxy may be earlier, and fetch for itself.
            while !get(&self.client, &url).await.cache_status.starts_with("aside; hit") {
                assert!(begun.elapsed() < Duration::from_secs(10), "{path} is not held");
            }
        }
    }

    /// Whether a proxy answers from the store.
    async fn hits(&self, proxy: usize, path: &str) -> bool {
        self.get(proxy, path).await.cache_status.starts_with("aside; hit")
    }

    async fn purge(&self, proxy: usize, order: &Value) -> (u16, Value) {
        let admin = self.proxies[proxy].running.admin.expect("an admin listener");
        let request = self.client.post(format!("http://{admin}/purge")).header("content-type", "application/json");
        let answer = request.body(order.to_string()).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON"))
    }

    async fn purged(&self, proxy: usize, order: Value) -> u64 {
        let (status, answer) = self.purge(proxy, &order).await;
        assert_eq!((status, &answer["acknowledged"]), (200, &json!(true)), "{answer}");
        answer["purge"].as_u64().expect("a number")
    }

    /// Waits until every proxy knows a purge, which a message tells it of.
    async fn until_obeyed(&self, number: u64) {
        let begun = Instant::now();
        for proxy in &self.proxies {
            while proxy.stats().await["purge"]["last"].as_u64().expect("a number") < number {
                assert!(begun.elapsed() < Duration::from_secs(10), "purge {number} was not heard of");
            }
        }
    }

    async fn ledger(&self, proxy: usize) -> Value {
        self.proxies[proxy].stats().await["redis"]["ledger"].clone()
    }
}

fn three(redis: &Redis) -> [String; 3] {
    [redis.url(), redis.url(), redis.url()]
}

#[tokio::test]
async fn what_one_proxy_is_told_to_purge_none_serves() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let fleet = Fleet::start(&origin, &three(&redis), "").await;
    let paths = |tag: usize| (0..4).map(move |nth| format!("/{tag}/{nth}"));
    for path in (0..10).flat_map(paths) {
        fleet.hold(&path).await;
    }
    for (nth, order) in [
        json!({ "tags": ["tag:0"] }),
        json!({ "urls": ["http://any.example/1/0", "http://any.example/1/1", "http://any.example/1/2", "http://any.example/1/3"] }),
        json!({ "prefixes": ["http://any.example/2/"] }),
    ]
    .into_iter()
    .enumerate()
    {
        let number = fleet.purged(nth, order).await;
        fleet.until_obeyed(number).await;
        // Each proxy's own copies, and Redis': the first to miss fetches, the others find that or fetch too.
        for path in paths(nth) {
            let before = origin.count(&path);
            for proxy in [2, 0, 1] {
                let got = fleet.get(proxy, &path).await;
                assert!(got.body != format!("{path} {}", before - 1), "{path} of proxy {proxy}: {got:?}");
            }
        }
        for path in (nth + 1..10).flat_map(paths) {
            for proxy in 0..3 {
                assert!(fleet.hits(proxy, &path).await, "{path} was not purged");
            }
        }
    }
    let number = fleet.purged(0, json!({ "all": true })).await;
    fleet.until_obeyed(number).await;
    for path in (3..10).flat_map(paths) {
        assert!(!fleet.hits(2, &path).await, "{path} was purged");
    }
}

#[tokio::test]
async fn a_fleet_on_a_cluster_obeys_too() {
    let (origin, cluster) = (Origin::counting(&[]), Cluster::start(false));
    let fleet = Fleet::start(&origin, &[cluster.url(), cluster.url(), cluster.url()], "").await;
    for nth in 0..10 {
        let (purged, other) = (format!("/a{nth}/1"), format!("/b{nth}/1"));
        fleet.hold(&purged).await;
        fleet.hold(&other).await;
        let number = fleet.purged(nth % 3, json!({ "tags": [format!("tag:a{nth}")] })).await;
        fleet.until_obeyed(number).await;
        for proxy in 0..3 {
            assert!(fleet.get(proxy, &purged).await.body != format!("{purged} 0"));
            assert!(fleet.hits(proxy, &other).await);
        }
    }
}

#[tokio::test]
async fn a_fill_that_a_purge_overtakes_is_never_served() {
    const TRIES: usize = 1000;
    let arrivals: Arc<std::sync::Mutex<Vec<(String, Instant)>>> = Arc::default();
    let log = Arc::clone(&arrivals);
    let origin = Origin::start(move |seen| {
        let log = Arc::clone(&log);
        async move {
            let nth = {
                let mut log = log.lock().unwrap();
                log.push((seen.target.clone(), Instant::now()));
                log.iter().filter(|(target, _)| *target == seen.target).count() - 1
            };
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
            reply(200, &[], &nth.to_string())
        }
    });
    let redis = Redis::start();
    let fleet = Fleet::start(&origin, &three(&redis), "").await;
    let attempt = |nth: usize| {
        let (fleet, arrivals) = (&fleet, &arrivals);
        async move {
            let (by, path) = (fastrand::usize(0..3), format!("/{nth}/a"));
            let purge = async {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(0..25_000))).await;
                let asked = Instant::now();
                let number = fleet.purged(fastrand::usize(0..3), json!({ "tags": [format!("tag:{nth}")] })).await;
                (asked, number)
            };
            let (first, (asked, number)) = tokio::join!(fleet.get(by, &path), purge);
            assert_eq!(first.status, 200);
            fleet.until_obeyed(number).await;
            let began = arrivals.lock().unwrap().iter().find(|(target, _)| *target == path).expect("it was asked").1;
            for proxy in 0..3 {
                let got = fleet.get(proxy, &path).await;
                assert!(began >= asked || got.body != "0", "{path} of {by} at proxy {proxy}: {got:?}");
            }
            began < asked
        }
    };
    let mut overtaken = 0;
    for batch in 0..TRIES / 50 {
        let tries = (batch * 50..(batch + 1) * 50).map(attempt);
        overtaken += futures_util::future::join_all(tries).await.into_iter().filter(|it| *it).count();
    }
    assert!(overtaken > TRIES / 4, "only {overtaken} purges came while or after a fill went on");
}

#[tokio::test]
async fn a_purge_that_redis_cannot_record_is_said_so_and_made_up_for() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let fleet = Fleet::start(&origin, &three(&redis), "").await;
    fleet.hold("/a/1").await;
    redis.signal("STOP");
    let (status, answer) = fleet.purge(1, &json!({ "tags": ["tag:a"] })).await;
    assert_eq!((status, &answer["acknowledged"]), (503, &json!(false)), "{answer}");
    assert!(answer["error"].as_str().expect("a reason").contains("redis"), "{answer}");
    assert!(!fleet.hits(1, "/a/1").await, "obeyed where it was asked for");
    assert!(fleet.hits(1, "/a/1").await, "and fetched again");
    let before = fleet.get(0, "/a/1").await;
    assert!(before.cache_status.starts_with("aside; hit"), "believed for the residence: {before:?}");
    for proxy in &fleet.proxies {
        proxy.clock.advance(Duration::from_secs(8));
    }
    let after = fleet.get(0, "/a/1").await;
    assert!(after.body != before.body, "validated once it is over: {after:?}");
    assert!(fleet.hits(0, "/a/1").await, "at most once in a residence");
    redis.signal("CONT");
    let begun = Instant::now();
    while fleet.ledger(1).await != "synced" || fleet.proxies[1].stats().await["purge"]["unrecorded"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the ledger is not followed again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("in sync {:?} after redis went on", begun.elapsed());
    let number = fleet.proxies[1].stats().await["purge"]["last"].as_u64().expect("a number");
    fleet.until_obeyed(number).await;
    let stale = fleet.get(2, "/a/1").await;
    assert!(stale.body != before.body, "{stale:?}");
}

#[tokio::test]
async fn a_proxy_cut_off_from_redis_serves_what_another_purged_no_longer_than_the_residence() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let cut_off = format!("redis://127.0.0.1:{}", relay.port);
    let fleet = Fleet::start(&origin, &[redis.url(), cut_off], "[memory]\nunsynced_residence = \"3s\"").await;
    fleet.hold("/a/1").await;
    relay.swallow();
    fleet.purged(0, json!({ "tags": ["tag:a"] })).await;
    let purged = fleet.get(0, "/a/1").await;
    let stale = fleet.get(1, "/a/1").await;
    if stale.body != purged.body {
        // It cannot know better yet.
        fleet.proxies[1].clock.advance(Duration::from_secs(5));
    }
    let begun = Instant::now();
    while fleet.get(1, "/a/1").await.body == stale.body && stale.body != purged.body {
        // A poll may still have been answered just before the cut.
        assert!(begun.elapsed() < Duration::from_secs(10), "still serving what was purged");
        fleet.proxies[1].clock.advance(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_flushed_redis_empties_every_proxy() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let fleet = Fleet::start(&origin, &three(&redis), "").await;
    fleet.hold("/a/1").await;
    let held = fleet.get(0, "/a/1").await.body;
    redis.tell("FLUSHALL");
    for proxy in 0..3 {
        let begun = Instant::now();
        while fleet.get(proxy, "/a/1").await.body == held {
            assert!(begun.elapsed() < Duration::from_secs(2), "proxy {proxy} serves what redis was flushed of");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_failover_that_lost_the_last_purge_brings_nothing_back() {
    let (origin, mut redis) = (Origin::counting(&[]), Sentinels::start(2));
    let url = redis.url();
    let fleet = Fleet::start(&origin, &[url.clone(), url.clone(), url], "").await;
    fleet.hold("/a/1").await;
    fleet.hold("/b/1").await;
    let held = fleet.get(0, "/a/1").await.body;
    let key_count = redis.primary.records().len();
    until("the replicas have them", || redis.replicas.iter().all(|it| it.records().len() == key_count)).await;
    redis.replicas.iter().for_each(|replica| replica.signal("STOP"));
    // What is written from now on is in no replica's socket either.
    redis.primary.tell("CLIENT KILL TYPE replica");
    let number = fleet.purged(0, json!({ "tags": ["tag:a"] })).await;
    fleet.until_obeyed(number).await;
    redis.primary.kill();
    redis.replicas.iter().for_each(|replica| replica.signal("CONT"));
    until("a replica is promoted", || redis.promoted().is_some()).await;
    let begun = Instant::now();
    loop {
        for proxy in 0..3 {
            assert!(fleet.get(proxy, "/a/1").await.body != held, "proxy {proxy} serves what was purged");
        }
        let stats = fleet.proxies[1].stats().await;
        if stats["redis"]["ledger"] == "synced" && stats["purge"]["last"].as_u64().is_some_and(|last| last > number) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "the purge is not recorded again: {stats:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that starts now knows only what the new primary holds.
    let late = Fleet::start(&origin, &[redis.url()], "").await;
    assert!(late.get(0, "/a/1").await.body != held);
    assert!(late.hits(0, "/b/1").await, "what was not purged is there");
}
