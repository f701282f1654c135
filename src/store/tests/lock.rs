//! The lock of a key among processes.

use tokio::time::Instant;

use super::redis::{attached, connected, flush, redis_config, state, until};
use super::server::Server;
use super::*;

const KEY: CacheKey = CacheKey::from_bytes([0xAB; 32]);

/// Its name in Redis.
fn name() -> String {
    format!("t:l:{}", "ab".repeat(32))
}

async fn lock(world: &World) -> Lock {
    world.store.lock(WORKER, KEY).await
}

async fn held(world: &World) -> Guard {
    match lock(world).await {
        Lock::Held(guard) => guard,
        Lock::Taken(_) => panic!("another has it"),
        Lock::Unavailable => panic!("redis is there"),
    }
}

async fn taken(world: &World) -> Waiter {
    match lock(world).await {
        Lock::Taken(waiter) => waiter,
        Lock::Held(_) => panic!("nobody has it"),
        Lock::Unavailable => panic!("redis is there"),
    }
}

/// What Redis answers to a command about the lock.
fn ask_redis(server: &Server, command: &str) -> String {
    server.command(&command.replace("{}", &name())).unwrap().trim().to_owned()
}

fn is_there(server: &Server) -> bool {
    ask_redis(server, "EXISTS {}") == ":1"
}

/// How long the lock lives without its holder.
fn life(server: &Server) -> i64 {
    ask_redis(server, "PTTL {}").trim_start_matches(':').parse().unwrap()
}

/// Two processes that hear of each other.
async fn two(server: &Server) -> (World, World) {
    let worlds = (connected(server, 8 << 20).await, connected(server, 8 << 20).await);
    until("subscriptions", || server.command("PUBSUB NUMSUB t:wake").unwrap().contains(":2")).await;
    worlds
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[tokio::test]
async fn one_has_it_until_it_lets_go() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let guard = held(&one).await;
    let waiter = taken(&other).await;
    assert_eq!(taken(&one).await.holder(), waiter.holder());
    assert!((1..=2000).contains(&life(&server)), "it ends by itself should its holder die");
    drop(guard);
    until("release", || !is_there(&server)).await;
    let guard = held(&other).await;
    assert_ne!(taken(&one).await.holder(), waiter.holder());
    drop(guard);
}

#[tokio::test]
async fn who_waits_is_woken_and_told_what_became_of_it() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let ends: [(fn(Guard), Wake); 3] =
        [(|guard| guard.not_shared(), Wake::NotShared), (|guard| guard.found(), Wake::Stored), (drop, Wake::Unsure)];
    for (end, expected) in ends {
        let guard = held(&one).await;
        let mut waiter = taken(&other).await;
        let begun = Instant::now();
        end(guard);
        assert_eq!(waiter.wait(later()).await, expected);
        assert!(begun.elapsed() < Duration::from_secs(5), "not by its deadline");
        assert!(!is_there(&server), "it is released before");
    }
}

#[tokio::test]
async fn only_its_token_releases_or_renews_it() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let guard = held(&one).await;
    let mut waiter = taken(&other).await;
    ask_redis(&server, "SET {} foreign");
    guard.not_shared();
    one.store.flush(Duration::from_secs(10)).await;
    assert_eq!(ask_redis(&server, "GET {}").lines().last(), Some("foreign"));
    assert_eq!(ask_redis(&server, "PTTL {}"), ":-1", "nor does it get a life");
    assert_eq!(waiter.wait(Instant::now() + Duration::from_millis(50)).await, Wake::Unsure);
    assert_eq!(taken(&one).await.holder(), b"foreign");
}

#[tokio::test]
async fn it_is_renewed_while_it_is_held_and_ends_without_its_holder() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let guard = held(&one).await;
    ask_redis(&server, "PEXPIRE {} 1500");
    // Nothing but a renewal lengthens it.
    until("renewal", || life(&server) > 1600).await;
    // As when the holder has been away for longer than its lease.
    ask_redis(&server, "PEXPIRE {} 1");
    until("its end", || !is_there(&server)).await;
    let next = held(&other).await;
    let token = ask_redis(&server, "GET {}");
    drop(guard);
    one.store.flush(Duration::from_secs(10)).await;
    assert_eq!(ask_redis(&server, "GET {}"), token, "what was lost is not released");
    drop(next);
}

#[tokio::test]
async fn who_hears_nothing_looks_again_at_its_deadline_and_finds_it_free() {
    let server = Server::start(&["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-subscribe"]);
    let (one, other) = (connected(&server, 8 << 20).await, connected(&server, 8 << 20).await);
    let guard = held(&one).await;
    let mut waiter = taken(&other).await;
    guard.found();
    until("release", || !is_there(&server)).await;
    assert_eq!(waiter.wait(Instant::now() + Duration::from_millis(100)).await, Wake::Unsure);
    held(&other).await;
}

#[tokio::test]
async fn it_is_released_once_the_record_and_its_marker_are_in_redis() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    for vary in [&[][..], &["accept-language"]] {
        let ask = ask(&format!("/{}", vary.len()), &[("accept-language", "en")]);
        let guard = held(&one).await;
        let mut waiter = taken(&other).await;
        one.put(&ask, one.response(vary, "a"));
        one.with(&ask, &[], |query| one.store.release_when_written(&guard, query));
        assert_eq!(waiter.wait(later()).await, Wake::Stored);
        assert_eq!(outcome(&other.get(&ask).await), Ok(("a", Tier::Redis, false)), "{vary:?}");
        flush(&one).await;
    }
}

#[tokio::test]
async fn a_write_that_redis_refuses_is_not_shared() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let ask = ask("/a", &[]);
    let guard = held(&one).await;
    let mut waiter = taken(&other).await;
    server.command("CONFIG SET maxmemory 1");
    one.put(&ask, one.response(&[], "a"));
    one.with(&ask, &[], |query| one.store.release_when_written(&guard, query));
    assert_eq!(waiter.wait(later()).await, Wake::NotShared);
}

#[tokio::test]
async fn what_is_only_in_memory_is_not_shared() {
    let server = Server::start(&[]);
    let (one, other) = two(&server).await;
    let guard = held(&one).await;
    let mut waiter = taken(&other).await;
    one.with(&ask("/a", &[]), &[], |query| one.store.release_when_written(&guard, query));
    assert_eq!(waiter.wait(later()).await, Wake::NotShared);
}

#[tokio::test]
async fn a_newer_response_of_another_process_is_found_behind_a_stale_one() {
    let server = Server::start(&[]);
    let (mut one, mut other) = (connected(&server, 8 << 20).await, connected(&server, 8 << 20).await);
    for vary in [&[][..], &["accept-language"]] {
        let ask = ask(&format!("/{}", vary.len()), &[("accept-language", "en")]);
        one.put(&ask, one.response(vary, "old"));
        flush(&one).await;
        assert_eq!(outcome(&other.get(&ask).await), Ok(("old", Tier::Redis, false)));
        for world in [&mut one, &mut other] {
            world.now = world.now.plus(Duration::from_secs(61));
        }
        one.put(&ask, one.response(vary, "new"));
        flush(&one).await;
        assert_eq!(outcome(&other.get(&ask).await), Ok(("old", Tier::Memory, false)), "stale, but nearer");
        let tags = other.tags(&ask);
        let newest = other.store.get_newest(WORKER, &other.query(&ask, &[], &tags)).await;
        assert_eq!(outcome(&newest), Ok(("new", Tier::Redis, false)), "{vary:?}");
        assert_eq!(outcome(&other.get(&ask).await), Ok(("new", Tier::Memory, false)));
    }
}

#[tokio::test]
async fn a_frozen_redis_gives_no_lock_in_time_and_gives_it_again_later() {
    let server = Server::start(&[]);
    let config = RedisConfig { timeout: Duration::from_millis(100), ..redis_config(url(&server)) };
    let world = attached(0, config);
    until("connecting", || state(&world) == "up").await;
    server.signal("STOP");
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(matches!(lock(&world).await, Lock::Unavailable));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.signal("CONT");
    let locked = async {
        while !matches!(lock(&world).await, Lock::Held(_)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), locked).await.expect("redis is back");
}

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}", server.port)
}
