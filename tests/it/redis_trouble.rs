//! A Redis that refuses, loads, freezes or goes silent: clients see nothing of it, and it is used again.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use crate::world::load::{RESUME_WITHIN, paths, two_routes_with_redis, until, until_hits, until_up};
use crate::world::relay::Relay;
use crate::world::{Load, Origin, Proxy, Redis, client, get, reply};

/// A proxy on the Redis at `url`, with further keys of its table.
fn proxy(origin: &Origin, url: &str, more: &str) -> Proxy {
    Proxy::start(&two_routes_with_redis(origin, &format!("url = \"{url}\"\n{more}")))
}

/// Waits until `/cache-stats` tells it of Redis.
async fn until_told(proxy: &Proxy, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    let begun = Instant::now();
    loop {
        let told = proxy.stats().await["redis"].clone();
        if holds(&told) {
            return;
        }
        assert!(begun.elapsed().as_secs() < 20, "not so: {what}: {told:#}");
        tokio::task::yield_now().await;
    }
}

/// Asks for ever new paths until one of them is stored.
async fn until_stored(proxy: &Proxy, redis: &Redis) {
    let (client, before, begun) = (client(), redis.records().len(), Instant::now());
    for nth in 0.. {
        assert_eq!(get(&client, &proxy.url(&format!("/two/{before}-{nth}"))).await.status, 200);
        if redis.records().len() > before {
            return;
        }
        assert!(begun.elapsed() < RESUME_WITHIN, "redis is not written to");
    }
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_read_on_and_written_to_when_it_is_a_primary_again() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = proxy(&origin, &redis.url(), "");
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    // What the other has is what this one had.
    let other = Redis::start_replica_of(&redis);
    other.tell("REPLICAOF NO ONE");
    redis.tell(&format!("REPLICAOF 127.0.0.1 {}", other.port));
    until("it follows", || redis.reports("master_link_status:up")).await;
    let client = client();
    get(&client, &proxy.url("/two/refused")).await;
    until_told(&proxy, "a write is refused", |told| told["dropped_writes"] != 0).await;
    until_hits(&proxy, "one", 100).await;
    redis.tell("REPLICAOF NO ONE");
    until_stored(&proxy, &redis).await;
    load.stop().await;
}

#[tokio::test]
async fn a_replica_that_was_never_a_primary_is_used_once_it_is_one() {
    let (origin, primary) = (Origin::counting(&[]), Redis::start());
    let replica = Redis::start_replica_of(&primary);
    let proxy = proxy(&origin, &replica.url(), "");
    let load = Load::start(&proxy, &paths("one", 16));
    until_told(&proxy, "it is refused", |told| told["state"] == "down").await;
    load.more(100).await;
    replica.tell("REPLICAOF NO ONE");
    until_up(&proxy).await;
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn a_redis_that_loads_its_data_is_waited_for_by_nobody() {
    let slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
    let (origin, mut redis) = (Origin::counting(&[]), Redis::start_with(&slow));
    let proxy = proxy(&origin, &redis.url(), "");
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    redis.tell("EVAL \"for i=1,1000 do redis.call('set','x'..i,string.rep('x',100)) end\" 0");
    redis.tell("SAVE");
    redis.restart();
    assert!(redis.reports("loading:1"));
    load.more(100).await;
    assert!(redis.reports("loading:1"), "it is still loading");
    until("it has loaded", || redis.reports("loading:0")).await;
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn a_password_that_is_wrong_at_first_is_tried_until_it_is_right() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    redis.tell("ACL SETUSER aside on >other ~* &* +@all");
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    let credentials = format!("username = \"aside\"\npassword = \"file:{}\"", password.display());
    let proxy = proxy(&origin, &redis.url(), &credentials);
    let load = Load::start(&proxy, &paths("one", 16));
    until_told(&proxy, "it is refused", |told| told["state"] == "down").await;
    load.more(100).await;
    redis.tell("ACL SETUSER aside >secret");
    until_up(&proxy).await;
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn a_redis_that_wants_a_password_all_at_once_is_used_again_when_it_wants_none() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = proxy(&origin, &redis.url(), "");
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    redis.tell("CONFIG SET requirepass secret");
    redis.session(&["AUTH secret", "CLIENT KILL TYPE normal SKIPME yes"]);
    until_told(&proxy, "it is refused", |told| told["state"] == "down").await;
    load.more(100).await;
    redis.session(&["AUTH secret", "CONFIG SET requirepass \"\""]);
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn connections_that_are_killed_are_made_anew() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = proxy(&origin, &redis.url(), "");
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    for _ in 0..5 {
        until_hits(&proxy, "one", 100).await;
        redis.tell("CLIENT KILL TYPE normal SKIPME yes");
        load.more(20).await;
    }
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn connections_that_swallow_what_they_are_sent_are_replaced() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let proxy = proxy(&origin, &format!("redis://127.0.0.1:{}", relay.port), "");
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    relay.swallow();
    let took = until_hits(&proxy, "one", 100).await;
    println!("hits from redis {took:?} after all connections went silent");
    load.stop().await;
}

/// The bytes that connections to a port on this machine have not got rid of.
fn unsent(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the system's connections");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let to_it = rows.filter(|row| row[2].ends_with(&format!(":{port:04X}")));
    to_it.map(|row| u64::from_str_radix(row[4].split(':').next().unwrap(), 16).unwrap()).sum()
}

/// An upstream whose answers on route `two` are as long and wait for a permit.
fn large_origin(body_bytes: usize, permits: Arc<Semaphore>) -> Origin {
    let body = Bytes::from(vec![b'x'; body_bytes]);
    Origin::start(move |seen| {
        let (body, permits) = (body.clone(), Arc::clone(&permits));
        async move {
            if !seen.target.starts_with("/two") {
                return reply(200, &[], &format!("{} {}", seen.target, seen.nth));
            }
            permits.acquire().await.expect("a permit").forget();
            http::Response::new(body)
        }
    })
}

/// Freezes Redis just before it is sent more than sockets hold, and thaws it once the connection is given up.
async fn check_stuck_write(body_bytes: usize, bodies: usize) {
    let permits = Arc::new(Semaphore::new(0));
    let (origin, redis) = (large_origin(body_bytes, Arc::clone(&permits)), Redis::start());
    let limits = "max_object = \"64 MiB\"";
    let toml = two_routes_with_redis(&origin, &format!("url = \"{}\"\ncompress = false\n{limits}", redis.url()));
    let proxy = Proxy::start(&format!("{toml}\n{limits}"));
    until_up(&proxy).await;
    let client = client();
    for path in paths("one", 16) {
        get(&client, &proxy.url(&path)).await;
    }
    let urls: Vec<String> = paths("two", bodies).iter().map(|path| proxy.url(path)).collect();
    let answers = join_all(urls.iter().map(|url| get(&client, url)));
    let freeze = async {
        until("all are asked for", || origin.seen().len() == 16 + bodies).await;
        redis.signal("STOP");
        permits.add_permits(1000);
    };
    let (answers, ()) = tokio::join!(answers, freeze);
    assert!(answers.iter().all(|answer| (answer.status, answer.body.len()) == (200, body_bytes)));
    until("more is sent than sockets hold", || unsent(redis.port) > 1 << 20).await;
    let load = Load::start(&proxy, &paths("one", 16));
    load.more(100).await;
    until("the connection is given up", || unsent(redis.port) < 1 << 20).await;
    redis.signal("CONT");
    let took = until_hits(&proxy, "one", 100).await;
    println!("hits from redis {took:?} after the thaw, {} answers", load.answered());
    let begun = Instant::now();
    for url in urls.iter().cycle() {
        let before = proxy.stats().await["routes"]["two"]["hits_redis"].clone();
        assert_eq!(get(&client, url).await.body.len(), body_bytes);
        if proxy.stats().await["routes"]["two"]["hits_redis"] != before {
            break;
        }
        assert!(begun.elapsed() < RESUME_WITHIN, "no large body comes from redis");
    }
    load.stop().await;
}

#[tokio::test]
async fn one_large_write_stuck_in_a_frozen_redis_keeps_nobody_from_using_it_afterwards() {
    check_stuck_write(24 << 20, 1).await;
}

#[tokio::test]
async fn a_workers_own_connection_stuck_in_many_writes_is_given_up_and_made_anew() {
    check_stuck_write(1000 << 10, 24).await;
}
