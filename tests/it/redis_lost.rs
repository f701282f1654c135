//! What Redis has lost, what a proxy cannot reach, and clocks that disagree: nothing purged comes back, nothing hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aside::clock::Clock;
use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::Client;
use serde_json::json;

use crate::world::load::{until, until_up};
use crate::world::relay::{Fault, Relay};
use crate::world::{Got, Load, Origin, Proxy, Redis, client, get, got, reply};

/// One route over everything, whose keys all hosts share.
fn toml(upstream: &str, redis_port: u16, memory: &str, route: &str) -> String {
    format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\n[memory]\n{memory}\n[redis]\nurl = \"redis://127.0.0.1:{redis_port}\"\n\
         timeout = \"250ms\"\n[upstream.api]\nurl = \"{upstream}\"\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\n\
         ttl = \"10m\"\nttl_jitter = 0.0\nkey = {{ host = false }}\n{route}\n"
    )
}

/// A proxy that has reached Redis.
async fn connected(origin: &Origin, redis_port: u16, memory: &str) -> Proxy {
    let proxy = Proxy::start(&toml(&origin.url(), redis_port, memory, ""));
    until_up(&proxy).await;
    proxy
}

async fn ask(client: &Client, proxy: &Proxy, path: &str) -> Got {
    get(client, &proxy.url(path)).await
}

fn is_hit(got: &Got) -> bool {
    got.cache_status.starts_with("aside; hit")
}

/// Orders a purge of a path for all hosts; the answer's status.
async fn purge(proxy: &Proxy, path: &str) -> u16 {
    let admin = proxy.running.admin.expect("an admin listener");
    let order = client().post(format!("http://{admin}/purge")).header("content-type", "application/json");
    got(order.body(json!({ "urls": [proxy.url(path)] }).to_string()).send().await.expect("an answer")).await.status
}

/// Waits, two seconds and some, until a path is not answered with this body.
async fn until_not(client: &Client, proxy: &Proxy, path: &str, body: &str) {
    let begun = Instant::now();
    while ask(client, proxy, path).await.body == body {
        assert!(begun.elapsed() < Duration::from_secs(4), "{path} is still served as it was");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_brings_nothing_back_and_memory_obeys() {
    let client = client();
    let (origin, mut redis) = (Origin::counting(&[]), Redis::start());
    let proxy = connected(&origin, redis.port, "").await;
    for path in ["/held", "/purged"] {
        ask(&client, &proxy, path).await;
        assert_eq!(ask(&client, &proxy, path).await.body, format!("{path} 0"));
    }
    redis.kill();
    assert_eq!(purge(&proxy, "/purged").await, 503);
    assert_eq!(ask(&client, &proxy, "/purged").await.body, "/purged 1", "obeyed here");
    assert_eq!(ask(&client, &proxy, "/held").await.body, "/held 0", "believed for the residence");
    redis.restart();
    until_not(&client, &proxy, "/held", "/held 0").await;
    assert!(ask(&client, &proxy, "/purged").await.body != "/purged 0");
    until_up(&proxy).await;
    let other = connected(&origin, redis.port, "").await;
    assert!(ask(&client, &other, "/purged").await.body != "/purged 0");
}

#[tokio::test]
async fn a_flushed_database_and_an_evicted_ledger_empty_memory() {
    let client = client();
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = connected(&origin, redis.port, "").await;
    for lose in ["FLUSHDB", "FLUSHALL ASYNC", "DEL aside:ledger"] {
        ask(&client, &proxy, "/held").await;
        let held = ask(&client, &proxy, "/held").await;
        assert!(is_hit(&held));
        redis.tell(lose);
        until_not(&client, &proxy, "/held", &held.body).await;
    }
}

#[tokio::test]
async fn a_redis_that_evicts_everything_costs_hits_and_nothing_else() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = connected(&origin, redis.port, "max_size = \"0\"").await;
    let paths: Vec<String> = (0..16).map(|nth| format!("/{nth}")).collect();
    let load = Load::start(&proxy, &paths);
    load.more(200).await;
    redis.tell("CONFIG SET maxmemory-policy allkeys-random");
    redis.tell("CONFIG SET maxmemory 1");
    load.more(500).await;
    redis.tell("CONFIG SET maxmemory 0");
    let hits = || async { proxy.stats().await["totals"]["hits_redis"].as_u64().expect("a count") };
    let (before, begun) = (hits().await, Instant::now());
    while hits().await < before + 100 {
        assert!(begun.elapsed() < Duration::from_secs(5), "no hits from redis");
        tokio::task::yield_now().await;
    }
    load.stop().await;
}

/// Three proxies whose clocks are an hour apart, and Redis' the one in the middle.
#[tokio::test]
async fn clocks_that_are_an_hour_apart_neither_lengthen_nor_shorten_what_is_fresh() {
    let client = client();
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let hour = Duration::from_secs(3600);
    let start = |behind: Duration, ahead: Duration| {
        let millis = Clock::System.now().as_millis() - u64::try_from(behind.as_millis()).unwrap();
        let clock = Clock::manual(aside::clock::Timestamp::from_millis(millis).plus(ahead));
        // Each clock is moved faster than Redis is asked.
        let memory = "unsynced_residence = \"3h\"";
        Proxy::start_with_clock(&toml(&origin.url(), redis.port, memory, ""), clock)
    };
    let zero = Duration::ZERO;
    let proxies = [start(hour, zero), start(zero, zero), start(zero, hour)];
    for (nth, proxy) in proxies.iter().enumerate() {
        until_up(proxy).await;
        let path = format!("/{nth}");
        ask(&client, proxy, &path).await;
        assert!(is_hit(&ask(&client, proxy, &path).await), "{nth}");
        proxy.clock.advance(Duration::from_secs(599));
        assert!(is_hit(&ask(&client, proxy, &path).await), "{nth}: fresh to its last second");
        proxy.clock.advance(Duration::from_secs(2));
        assert!(!is_hit(&ask(&client, proxy, &path).await), "{nth}: and no longer");
    }
    // What one that is ahead has stored is no hit for who is behind: it would be fresh for an hour too long.
    until("it is stored", || !redis.records().is_empty()).await;
    assert!(!is_hit(&ask(&client, &proxies[0], "/2").await));
    // A purge by any is obeyed by all, whatever their clocks say.
    for (nth, by) in proxies.iter().enumerate() {
        let path = format!("/purged-{nth}");
        let mut held = Vec::new();
        for proxy in &proxies {
            ask(&client, proxy, &path).await;
            held.push(ask(&client, proxy, &path).await.body);
        }
        assert_eq!(purge(by, &path).await, 200);
        for (proxy, held) in proxies.iter().zip(&held) {
            until_not(&client, proxy, &path, held).await;
        }
        assert!(is_hit(&ask(&client, by, &path).await), "and what is fetched then is kept");
    }
}

/// A network on which 16 MiB take more than a second: small things have connections of their own.
#[tokio::test]
async fn large_bodies_hold_up_no_small_ones() {
    let client = client();
    const LARGE: usize = 16 << 20;
    let body = Bytes::from((0..LARGE).map(|_| fastrand::u8(..)).collect::<Vec<u8>>());
    let origin = Origin::start(move |seen| {
        let body = if seen.target.starts_with("/large") { Some(body.clone()) } else { None };
        async move { body.map_or_else(|| reply(200, &[], &format!("{} {}", seen.target, seen.nth)), http::Response::new) }
    });
    let redis = Redis::start();
    let relay = Relay::to(redis.port);
    let toml = toml(&origin.url(), relay.port, "max_size = \"0\"", "max_object = \"32 MiB\"");
    let proxy = Proxy::start(
        &toml.replace("timeout = \"250ms\"", "timeout = \"1s\"\nmax_object = \"32 MiB\"\ncompress = false"),
    );
    until_up(&proxy).await;
    let paths: Vec<String> = (0..8).map(|nth| format!("/{nth}")).collect();
    for path in paths.iter().chain([&"/large".to_owned()]) {
        ask(&client, &proxy, path).await;
    }
    until("all are stored", || redis.records().len() == 10).await;
    relay.set_towards_client(Fault::Drip { bytes: 32 << 10, every: Duration::from_millis(1) });
    let load = Load::start(&proxy, &paths);
    // A machine that is busy elsewhere may not manage it in the time that there is.
    for attempts in 1.. {
        while proxy.stats().await["redis"]["pending_writes"] != 0 {}
        let (begun, fetched) = (Instant::now(), origin.count("/large"));
        let whole = client.get(proxy.url("/large")).send().await.expect("an answer").bytes().await.expect("all of it");
        println!("{} bytes in {:?} beside {} answers", whole.len(), begun.elapsed(), load.answered());
        assert_eq!(whole.len(), LARGE);
        if origin.count("/large") == fetched {
            break;
        }
        assert!(attempts < 5, "it does not come from redis");
    }
    let opened = proxy.stats().await["events"]["breaker_opened"].clone();
    assert!(opened.is_null(), "small ones time out one after the other");
    load.stop().await;
}

#[tokio::test]
async fn a_purge_on_a_proxy_that_is_cut_off_says_so_and_reaches_all_when_it_is_no_more() {
    let client = client();
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let (near, far) = (connected(&origin, redis.port, "").await, connected(&origin, relay.port, "").await);
    for proxy in [&near, &far] {
        ask(&client, proxy, "/a").await;
        assert!(is_hit(&ask(&client, proxy, "/a").await));
    }
    let held = ask(&client, &near, "/a").await.body;
    relay.set(Fault::Stall);
    assert_eq!(purge(&far, "/a").await, 503);
    assert!(ask(&client, &far, "/a").await.body != held, "obeyed where it was asked for");
    assert_eq!(ask(&client, &near, "/a").await.body, held, "the other cannot know");
    relay.set(Fault::None);
    until_not(&client, &near, "/a", &held).await;
    let begun = Instant::now();
    while far.stats().await["purge"]["unrecorded"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is not recorded");
    }
    // Nor does what was on its way to Redis when it was cut off bring it back.
    for proxy in [&near, &far] {
        assert!(ask(&client, proxy, "/a").await.body != held);
    }
    assert!(ask(&client, &connected(&origin, redis.port, "").await, "/a").await.body != held);
}

/// A body on its way into a frozen Redis, and purged meanwhile.
#[tokio::test]
async fn what_reaches_redis_late_is_not_served_when_it_was_purged_meanwhile() {
    let client = client();
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = connected(&origin, redis.port, "").await;
    ask(&client, &proxy, "/warm").await;
    redis.signal("STOP");
    let old: Vec<String> = (0..4).map(|nth| format!("/late-{nth}")).collect();
    join_all(old.iter().map(|path| ask(&client, &proxy, path))).await;
    for path in &old {
        assert_eq!(purge(&proxy, path).await, 503);
    }
    redis.signal("CONT");
    let begun = Instant::now();
    while proxy.stats().await["purge"]["unrecorded"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the purges are not recorded");
    }
    println!("{} records were written late", redis.records().len() - 1);
    let other = connected(&origin, redis.port, "").await;
    for path in &old {
        assert_eq!(ask(&client, &other, path).await.body, format!("{path} 1"));
    }
}

#[tokio::test]
async fn a_lock_that_is_lost_costs_a_second_fetch_at_most_for_each() {
    let client = client();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.expect("a permit").forget();
            reply(200, &[], &format!("{} {}", seen.target, seen.nth))
        }
    });
    let redis = Redis::start();
    let toml = toml(&origin.url(), redis.port, "", "collapse = \"cluster\"");
    let proxies = [Proxy::start(&toml), Proxy::start(&toml)];
    for proxy in &proxies {
        until_up(proxy).await;
    }
    let herd = join_all((0..40).map(|nth| ask(&client, &proxies[nth % 2], "/a")));
    let lose = async {
        until("one has it", || !redis.tell("KEYS aside:l:*").is_empty()).await;
        for _ in 0..3 {
            for key in redis.tell("KEYS aside:l:*").lines() {
                redis.tell(&format!("DEL {key}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        gate.add_permits(100);
    };
    let (answers, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), herd), lose);
    assert!(answers.expect("nobody waits for ever").iter().all(|got| got.status == 200));
    assert!(origin.count("/a") <= 2, "{}", origin.count("/a"));
}

#[tokio::test]
async fn with_redis_and_upstream_gone_memory_serves_what_it_may_and_the_rest_fails_at_once_and_together() {
    let client = client();
    let (origin, mut redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(origin.address.port());
    let toml = toml(&format!("http://127.0.0.1:{}", relay.port), redis.port, "", "stale_if_error = \"1h\"");
    let proxy = Proxy::start(&toml);
    until_up(&proxy).await;
    ask(&client, &proxy, "/held").await;
    redis.kill();
    // A breaker that opens must not be what answers.
    relay.set(Fault::Cut);
    assert!(is_hit(&ask(&client, &proxy, "/held").await), "fresh");
    proxy.clock.advance(Duration::from_secs(700));
    let stale = ask(&client, &proxy, "/held").await;
    assert!((stale.status, stale.body.as_str()) == (200, "/held 0"), "{stale:?}");
    assert!(stale.cache_status.contains("detail=stale-if-error"), "{stale:?}");
    let (before, begun) = (relay.accepted(), Instant::now());
    let answers = join_all((0..200).map(|_| ask(&client, &proxy, "/cold"))).await;
    let took = begun.elapsed();
    assert!(answers.iter().all(|got| matches!(got.status, 502..=504)), "{:?}", answers[0]);
    let fetches = relay.accepted() - before;
    println!("200 answers in {took:?}, {fetches} connections to the upstream");
    assert!(took < Duration::from_secs(2) && fetches <= 20, "{took:?}, {fetches} connections");
    relay.set(Fault::None);
    let begun = Instant::now();
    while ask(&client, &proxy, "/cold").await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the upstream is not asked again");
        proxy.clock.advance(Duration::from_secs(1));
    }
}
