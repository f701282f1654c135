//! One fetch for many requests over many processes.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::world::proxy::one_route_with_redis;
use crate::world::{Cluster, Got, Origin, Process, Proxy, Redis, client, get, got, reply};

/// The upstream is slow, so that all requests come while the first is being fetched.
const SLOW: Duration = Duration::from_millis(200);
const ROUTE: &str = "collapse = \"cluster\"\nkey = { host = false }";

fn slow_origin(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::start(move |seen| async move {
        // This is the upstream's slowness itself.
        tokio::time::sleep(SLOW).await;
        let language = seen.fields.get("accept-language").map(|it| it.to_str().unwrap().to_owned());
        reply(200, fields, &format!("{} {}", seen.nth, language.unwrap_or_default()))
    })
}

async fn until_connected(proxy: &Proxy) {
    let begun = Instant::now();
    while proxy.stats().await["redis"]["state"] != "up" {
        assert!(begun.elapsed() < Duration::from_secs(10), "redis was not reached");
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what} did not happen");
        tokio::task::yield_now().await;
    }
}

/// Three proxies on one Redis that hear of each other.
async fn fleet(origin: &Origin, redis: &Redis, route: &str) -> [Proxy; 3] {
    let proxies = started(origin, redis, route).await;
    until("subscriptions", || redis.command("PUBSUB NUMSUB aside:wake").unwrap().contains(":3")).await;
    proxies
}

/// Three proxies on one Redis.
async fn started(origin: &Origin, redis: &Redis, route: &str) -> [Proxy; 3] {
    started_on(origin, &redis.url(), route).await
}

async fn started_on(origin: &Origin, redis: &str, route: &str) -> [Proxy; 3] {
    let toml = one_route_with_redis(&origin.url(), redis, &format!("{ROUTE}\n{route}"));
    let proxies = [0; 3].map(|_| Proxy::start(&toml));
    for proxy in &proxies {
        until_connected(proxy).await;
    }
    proxies
}

/// Waits, bounded, for the last lock to be let go: a process that finds the record may answer before. None may have ended
/// with its lease, which SCAN counts as it passes and KEYS does not.
async fn until_released(servers: &[Redis]) {
    let has_lock = |server: &Redis| server.tell("SCAN 0 MATCH aside:l:* COUNT 1000").contains("aside:l:");
    until("release", || !servers.iter().any(has_lock)).await;
    assert!(servers.iter().all(|it| it.reports("expired_keys:0")), "a lock outlived its fetch");
}

/// As many GETs of `path` over all of them at once.
async fn herd(proxies: &[Proxy], path: &str, count: usize) -> Vec<Got> {
    let client = client();
    let urls: Vec<String> = proxies.iter().map(|proxy| proxy.url(path)).collect();
    join_all((0..count).map(|nth| get(&client, &urls[nth % urls.len()]))).await
}

#[tokio::test]
async fn many_requests_on_a_cold_key_over_all_processes_are_one_fetch() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let answers = herd(&proxies, "/cold", 300).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "0 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 1);
    let collapsed = answers.iter().filter(|answer| answer.cache_status.contains("; collapsed")).count();
    let hits = answers.iter().filter(|answer| answer.cache_status.contains("; hit")).count();
    assert_eq!(collapsed + hits, 299, "all but the leader shared its fetch");
    until_released(&[redis]).await;
}

#[tokio::test]
async fn on_a_cluster_they_are_one_fetch_too() {
    let (origin, cluster) = (slow_origin(&[("cache-control", "max-age=60")]), Cluster::start(false));
    let proxies = started_on(&origin, &cluster.url(), "").await;
    for path in ["/a", "/b", "/c", "/d"] {
        let answers = herd(&proxies, path, 60).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "0 "), "{answers:?}");
        assert_eq!(origin.count(path), 1, "{path}");
        until_released(&cluster.primaries).await;
    }
}

#[tokio::test]
async fn without_messages_and_memory_they_look_for_themselves() {
    let origin = slow_origin(&[("cache-control", "max-age=60")]);
    let redis = Redis::start_with(&["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-subscribe"]);
    let proxies = started(&origin, &redis, "[memory]\nmax_size = \"0\"").await;
    let answers = herd(&proxies, "/cold", 150).await;
    assert!(answers.iter().all(|answer| answer.body == "0 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 1);
}

#[tokio::test]
async fn what_has_become_stale_is_fetched_once_too() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    herd(&proxies, "/a", 30).await;
    proxies.iter().for_each(|proxy| proxy.clock.advance(Duration::from_secs(61)));
    let answers = herd(&proxies, "/a", 300).await;
    assert!(answers.iter().all(|answer| answer.body == "1 "), "{answers:?}");
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn a_validation_in_the_background_is_one_for_all() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60, stale-while-revalidate=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    herd(&proxies, "/a", 30).await;
    proxies.iter().for_each(|proxy| proxy.clock.advance(Duration::from_secs(61)));
    let answers = herd(&proxies, "/a", 300).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let begun = Instant::now();
    while herd(&proxies, "/a", 3).await.iter().any(|answer| answer.body != "1 ") {
        assert!(begun.elapsed() < Duration::from_secs(10), "what was validated is in use everywhere");
    }
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn nobody_gets_anothers_language() {
    let (origin, redis) =
        (slow_origin(&[("cache-control", "max-age=60"), ("vary", "accept-language")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let (client, urls) = (client(), proxies.each_ref().map(|proxy| proxy.url("/cold")));
    let answers = join_all((0..300).map(|nth| {
        let language = if nth % 2 == 0 { "en" } else { "de" };
        let request = client.get(&urls[nth % 3]).header("accept-language", language);
        async move { (language, got(request.send().await.unwrap()).await) }
    }))
    .await;
    for (language, answer) in answers {
        assert!(answer.body.ends_with(language), "asked for {language}, got {answer:?}");
    }
    assert_eq!(origin.count("/cold"), 2);
}

#[tokio::test]
async fn what_cannot_be_shared_does_not_queue() {
    let (origin, redis) = (slow_origin(&[("cache-control", "no-store")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let begun = Instant::now();
    let mut bodies: Vec<_> = herd(&proxies, "/private", 30).await.into_iter().map(|answer| answer.body).collect();
    // Thirty in a row would be 6 s; this is a bound on serialisation, not a measurement.
    assert!(begun.elapsed() < SLOW * 15, "{:?}", begun.elapsed());
    assert_eq!(origin.count("/private"), 30);
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 30, "each got its own");
}

#[tokio::test]
async fn a_failed_fetch_makes_nobody_queue() {
    let origin = Origin::start(|_| async {
        tokio::time::sleep(SLOW).await;
        reply(500, &[], "no")
    });
    let redis = Redis::start();
    let proxies = fleet(&origin, &redis, "").await;
    let begun = Instant::now();
    let answers = herd(&proxies, "/a", 30).await;
    assert!(answers.iter().all(|answer| answer.status == 500), "{answers:?}");
    assert!(begun.elapsed() < SLOW * 15, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_fetch_that_others_wait_for() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let (one, url) = (client(), proxies[0].url("/cold"));
    let first = one.get(&url).send();
    tokio::select! {
        _ = first => panic!("the first client leaves before the answer"),
        () = until("the fetch", || origin.count("/cold") == 1) => {}
    }
    drop(one);
    let answers = herd(&proxies[1..], "/cold", 100).await;
    assert!(answers.iter().all(|answer| answer.body == "0 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 1);
}

#[tokio::test]
async fn a_process_that_stops_leaves_no_lock() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let [one, two, _three] = fleet(&origin, &redis, "").await;
    let (client, url) = (client(), one.url("/cold"));
    let stopped = async {
        until("the fetch", || origin.count("/cold") == 1).await;
        tokio::task::spawn_blocking(move || one.running.shutdown()).await.expect("it stops");
        redis.command("KEYS aside:l:*").expect("redis answers")
    };
    let (answer, locks) = tokio::join!(get(&client, &url), stopped);
    assert_eq!((answer.body.as_str(), locks.trim()), ("0 ", "*0"));
    assert_eq!(get(&client, &two.url("/cold")).await.body, "0 ", "and what it fetched is there");
}

#[tokio::test]
async fn a_frozen_redis_is_no_ones_error() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let herds = async { herd(&proxies, "/cold", 300).await };
    let frozen = async {
        until("the fetch", || origin.count("/cold") == 1).await;
        redis.signal("STOP");
    };
    let (answers, ()) = tokio::join!(herds, frozen);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    // At most each process has fetched for itself.
    assert!(origin.count("/cold") <= 3, "{}", origin.count("/cold"));
    redis.signal("CONT");
}

#[tokio::test]
async fn a_holder_that_is_killed_costs_the_others_its_lease_at_most() {
    let (origin, redis) = (slow_origin(&[("cache-control", "max-age=60")]), Redis::start());
    let proxies = fleet(&origin, &redis, "").await;
    let holder = Process::start(&one_route_with_redis(&origin.url(), &redis.url(), ROUTE)).await;
    let client = client();
    let url = format!("http://127.0.0.1:{}/cold", holder.port);
    let doomed = async { client.get(&url).send().await.and_then(reqwest::Response::error_for_status) };
    let (lost, ()) = tokio::join!(doomed, async {
        until("the fetch", || origin.count("/cold") == 1).await;
        drop(holder);
    });
    assert!(lost.is_err(), "its client gets nothing");
    assert!(redis.command("KEYS aside:l:*").unwrap().starts_with("*1"), "its lock outlives it");
    let begun = Instant::now();
    let answers = herd(&proxies, "/cold", 300).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "1 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 2);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
