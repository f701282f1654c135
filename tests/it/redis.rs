//! Two processes on one Redis, restarts, and Redis gone.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use crate::world::proxy::one_route_with_redis;
use crate::world::{Origin, Proxy, Redis, client, field, get, reply};

/// Waits for what happens behind the response, bounded.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what} did not happen");
        tokio::task::yield_now().await;
    }
}

fn stored(redis: &Redis) -> usize {
    redis
        .command("EVAL \"return #redis.call('keys','aside:r:*')\" 0")
        .unwrap()
        .trim()
        .trim_start_matches(':')
        .parse()
        .unwrap()
}

async fn until_connected(proxy: &Proxy) {
    let begun = std::time::Instant::now();
    while proxy.stats().await["redis"]["state"] != "up" {
        assert!(begun.elapsed() < Duration::from_secs(10), "redis was not reached");
    }
}

#[tokio::test]
async fn what_one_process_stored_is_a_hit_in_another_and_after_a_restart_of_both() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let toml =
        one_route_with_redis(&origin.url(), &redis.url(), "ttl = \"1m\"\nttl_jitter = 0.0\nkey = { host = false }");
    let client = client();
    {
        let (one, two) = (Proxy::start(&toml), Proxy::start(&toml));
        until_connected(&one).await;
        until_connected(&two).await;
        assert_eq!(get(&client, &one.url("/a")).await.cache_status, "aside; fwd=uri-miss; fwd-status=200; stored");
        until("the write to redis", || stored(&redis) == 1).await;
        let other = get(&client, &two.url("/a")).await;
        assert_eq!(other.body, "/a 0");
        assert!(other.cache_status.starts_with("aside; hit; ttl="), "{}", other.cache_status);
        let stats = two.stats().await;
        assert_eq!(stats["totals"]["hits_redis"], 1, "{stats:#}");
    }
    let again = Proxy::start(&toml);
    until_connected(&again).await;
    assert!(get(&client, &again.url("/a")).await.cache_status.starts_with("aside; hit; ttl="));
    assert_eq!(origin.count("/a"), 1);
    again.clock.advance(Duration::from_secs(61));
    assert_eq!(get(&client, &again.url("/a")).await.body, "/a 1");
}

#[tokio::test]
async fn requests_go_on_when_redis_is_killed_and_it_is_used_again_when_it_is_back() {
    let (origin, mut redis) = (Origin::counting(&[("cache-control", "max-age=60")]), Redis::start());
    let proxy = Proxy::start(&one_route_with_redis(&origin.url(), &redis.url(), ""));
    until_connected(&proxy).await;
    let client = client();
    get(&client, &proxy.url("/held")).await;
    redis.kill();
    for nth in 0..50 {
        assert_eq!(get(&client, &proxy.url(&format!("/{nth}"))).await.status, 200);
        assert_eq!(get(&client, &proxy.url(&format!("/{nth}"))).await.body, format!("/{nth} 0"), "memory serves on");
    }
    redis.restart();
    until_connected(&proxy).await;
    let begun = std::time::Instant::now();
    let mut nth = 100;
    while stored(&redis) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "redis is not written to again");
        assert_eq!(get(&client, &proxy.url(&format!("/{nth}"))).await.status, 200);
        nth += 1;
    }
}

#[tokio::test]
async fn a_redis_that_was_never_there_keeps_nobody_from_starting() {
    let (origin, mut redis) = (Origin::counting(&[("cache-control", "max-age=60")]), Redis::start());
    redis.kill();
    let proxy = Proxy::start(&one_route_with_redis(&origin.url(), &redis.url(), ""));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.status, 200);
    assert!(get(&client, &proxy.url("/a")).await.cache_status.starts_with("aside; hit"));
}

#[tokio::test]
async fn with_the_memory_tier_off_every_hit_comes_from_redis() {
    let (origin, redis) =
        (Origin::counting(&[("cache-control", "max-age=60"), ("vary", "accept-language")]), Redis::start());
    let toml = format!("[memory]\nmax_size = \"0\"\n{}", one_route_with_redis(&origin.url(), &redis.url(), ""));
    let proxy = Proxy::start(&toml);
    until_connected(&proxy).await;
    let client = client();
    get(&client, &proxy.url("/a")).await;
    assert!(
        get(&client, &proxy.url("/a")).await.cache_status.starts_with("aside; hit"),
        "readable before redis has it"
    );
    until("the write to redis", || stored(&redis) == 2).await;
    assert!(get(&client, &proxy.url("/a")).await.cache_status.starts_with("aside; hit"));
    assert_eq!(origin.count("/a"), 1);
}

/// As many bytes drawn from '0' and the `kinds` that follow it.
fn drawn(length: usize, kinds: u8) -> Bytes {
    let mut random = fastrand::Rng::with_seed(8);
    (0..length).map(|_| b'0'.wrapping_add(random.u8(..=kinds))).collect()
}

#[tokio::test]
async fn what_is_compressed_in_redis_reaches_a_client_byte_for_byte() {
    // Of digits a good half is saved; what is left of 3 MiB is a string of its own. The last is noise under a coding.
    let kinds = [("/small", 5_000, 9), ("/middle", 500_000, 9), ("/large", 3 << 20, 9), ("/coded", 50_000, 255)];
    let redis = Redis::start();
    let origin = Origin::start(move |seen| async move {
        let (path, length, kinds) = kinds.into_iter().find(|kind| kind.0 == seen.target).expect("a path of ours");
        let mut response = reply(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "");
        if path == "/coded" {
            response.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
        }
        *response.body_mut() = drawn(length, kinds);
        response
    });
    let toml = one_route_with_redis(&origin.url(), &redis.url(), "key = { host = false }");
    let client = client();
    {
        let proxy = Proxy::start(&toml);
        until_connected(&proxy).await;
        for (path, length, kinds) in kinds {
            let body = client.get(proxy.url(path)).send().await.unwrap().bytes().await.unwrap();
            assert!(body == drawn(length, kinds), "{path}");
        }
        until("the write to redis", || stored(&redis) == 5).await;
    }
    let sum = "local n = 0 for _,k in ipairs(redis.call('keys','aside:r:*')) do n = n + redis.call('strlen',k) end";
    let bytes = redis.command(&format!("EVAL \"{sum} return n\" 0")).unwrap();
    let bytes: usize = bytes.trim().trim_start_matches(':').parse().unwrap();
    assert!(bytes < 2 << 20, "{bytes} bytes in redis");
    let proxy = Proxy::start(&toml);
    until_connected(&proxy).await;
    for (path, length, kinds) in kinds {
        let answer = client.get(proxy.url(path)).header("range", "bytes=1000-1999").send().await.unwrap();
        assert_eq!((answer.status().as_u16(), field(&answer, "cache-status").starts_with("aside; hit")), (206, true));
        assert!(answer.bytes().await.unwrap() == drawn(length, kinds)[1000..2000], "a part of {path}");
        let answer = client.get(proxy.url(path)).send().await.unwrap();
        assert_eq!(field(&answer, "content-length"), length.to_string());
        assert!(answer.bytes().await.unwrap() == drawn(length, kinds), "{path}");
        assert_eq!(origin.count(path), 1);
    }
}

#[tokio::test]
async fn a_corrupt_value_is_a_miss_and_deleted() {
    let (origin, redis) = (Origin::counting(&[("cache-control", "max-age=60")]), Redis::start());
    let toml = one_route_with_redis(&origin.url(), &redis.url(), "key = { host = false }");
    let client = client();
    {
        let proxy = Proxy::start(&toml);
        until_connected(&proxy).await;
        get(&client, &proxy.url("/a")).await;
        until("the write to redis", || stored(&redis) == 1).await;
    }
    redis.command(
        "EVAL \"for _,k in ipairs(redis.call('keys','aside:r:*')) do redis.call('setrange',k,20,'XXXX') end\" 0",
    );
    let proxy = Proxy::start(&toml);
    until_connected(&proxy).await;
    let answer = get(&client, &proxy.url("/a")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "/a 1"));
    assert!(answer.cache_status.contains("detail=corrupt-record"), "{}", answer.cache_status);
}
