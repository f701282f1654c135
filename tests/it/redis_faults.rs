//! A Redis that is late, silent, cut off, broken or gone, under load: clients see nothing of it, and it is used again.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::world::load::{RESUME_WITHIN, paths, until_hits, until_up};
use crate::world::relay::{Fault, Relay};
use crate::world::{Load, Origin, Proxy, Redis, client, get, reply};

/// What a lookup is given.
const TIMEOUT: Duration = Duration::from_millis(250);
/// How many clients ask, each for one thing at a time.
const CLIENTS: usize = 4;
/// What may pay the timeout: five, what was in flight (the test itself asks too), writes behind answers, and what the
/// control lane asked.
const TIMEOUTS_MAX: u64 = 5 + CLIENTS as u64 + 1 + 4 + 4;
/// The clients that a proxy has: two workers', control, bulk.
const LANES: usize = 4;

/// A configuration with a memory tier or without, on the Redis behind a port.
fn toml(origin: &Origin, port: u16, memory: &str) -> String {
    format!(
        "[memory]\nmax_size = \"{memory}\"\n[redis]\nurl = \"redis://127.0.0.1:{port}\"\ntimeout = \"250ms\"\n\
         [upstream.api]\nurl = \"{}\"\n[[route]]\nname = \"one\"\npath = \"/one/{{*rest}}\"\nttl = \"10m\"\n\
         ttl_jitter = 0.0\n[[route]]\nname = \"two\"\npath = \"/two/{{*rest}}\"\nttl = \"10m\"\nttl_jitter = 0.0\n",
        origin.url()
    )
}

/// What `/cache-stats` tells of Redis.
async fn told(proxy: &Proxy) -> serde_json::Value {
    proxy.stats().await["redis"].clone()
}

async fn count(proxy: &Proxy, name: &str) -> u64 {
    told(proxy).await[name].as_u64().expect("a count")
}

/// Waits until a miss names Redis as its reason, and the figures tell of it.
async fn until_visible(proxy: &Proxy) {
    let (client, begun) = (client(), Instant::now());
    for nth in 0.. {
        let got = get(&client, &proxy.url(&format!("/two/visible-{nth}"))).await;
        assert_eq!(got.status, 200);
        let told = told(proxy).await;
        if got.cache_status.contains("; detail=redis-unavailable")
            && told["state"] == "down"
            && told["breaker"] != "closed"
        {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not told of: {got:?} {told:#}");
    }
}

/// Breaks Redis under load and mends it again: nobody gets a wrong answer, few pay the timeout, it is told of, and hits
/// come from Redis again. Returns how many connections each lane made in a second while it was broken.
async fn check(what: &str, relay: &Relay, proxy: &Proxy, fault: impl FnOnce(), repair: impl FnOnce()) -> usize {
    until_up(proxy).await;
    let load = Load::start_clients(CLIENTS, proxy, &paths("one", 16));
    until_hits(proxy, "one", 100).await;
    let (before, slow) = (count(proxy, "timeouts").await, load.slower_than(TIMEOUT));
    fault();
    until_visible(proxy).await;
    let accepted = relay.accepted();
    let begun = Instant::now();
    load.more(300).await;
    while begun.elapsed() < Duration::from_secs(1) {
        load.more(10).await;
    }
    let (late, timeouts) = (load.slower_than(TIMEOUT) - slow, count(proxy, "timeouts").await - before);
    let connections = relay.accepted() - accepted;
    assert!(timeouts <= TIMEOUTS_MAX, "{timeouts} commands paid the timeout");
    let connections = (connections as f64 / begun.elapsed().as_secs_f64()).ceil() as usize;
    repair();
    let took = until_hits(proxy, "one", 100).await;
    println!(
        "{what}: {timeouts} timeouts, {late} late answers, {connections} connections in a second, hits again after {took:?}"
    );
    load.stop().await;
    connections / LANES
}

/// The same with faults of the network, one each way.
async fn check_fault(towards_server: Fault, towards_client: Fault) -> usize {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let proxy = Proxy::start(&toml(&origin, relay.port, "0"));
    let fault = || {
        relay.set(towards_server);
        relay.set_towards_client(towards_client);
    };
    let what = format!("{towards_server:?} and {towards_client:?}");
    check(&what, &relay, &proxy, fault, || relay.set(Fault::None)).await
}

#[tokio::test]
async fn answers_that_come_too_late() {
    check_fault(Fault::None, Fault::Latency(2 * TIMEOUT)).await;
}

#[tokio::test]
async fn answers_that_come_by_the_byte() {
    check_fault(Fault::None, Fault::Drip { bytes: 1, every: Duration::from_millis(20) }).await;
}

#[tokio::test]
async fn a_network_that_loses_everything() {
    check_fault(Fault::Stall, Fault::Stall).await;
}

#[tokio::test]
async fn commands_that_are_lost() {
    check_fault(Fault::Swallow, Fault::None).await;
}

#[tokio::test]
async fn answers_that_are_lost() {
    check_fault(Fault::None, Fault::Swallow).await;
}

#[tokio::test]
async fn connections_that_are_accepted_by_nobody() {
    check_fault(Fault::HalfOpen, Fault::None).await;
}

#[tokio::test]
async fn connections_that_are_cut() {
    // Each is made, and only then ends: the pauses do not grow, but vary.
    assert!((1..=25).contains(&check_fault(Fault::Cut, Fault::Cut).await));
}

#[tokio::test]
async fn connections_that_are_reset() {
    assert!((1..=8).contains(&check_fault(Fault::Reset, Fault::Reset).await));
}

#[tokio::test]
async fn a_port_that_is_closed() {
    check_fault(Fault::Refuse, Fault::Refuse).await;
}

#[tokio::test]
async fn answers_that_break_off() {
    check_fault(Fault::None, Fault::CutAfter(50)).await;
}

#[tokio::test]
async fn answers_that_stop_in_the_middle() {
    check_fault(Fault::None, Fault::StopAfter(50)).await;
}

#[tokio::test]
async fn answers_of_another_protocol() {
    check_fault(Fault::None, Fault::Garbage(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n")).await;
}

#[tokio::test]
async fn answers_with_a_length_of_half_a_gigabyte() {
    check_fault(Fault::None, Fault::Garbage(b"$500000000\r\nxxxxxxxxxxxxxxxxxxxx")).await;
}

/// One bit in a hundred bytes is wrong: what can be told is a miss, and nobody gets a wrong body.
#[tokio::test]
async fn answers_with_wrong_bits() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let proxy = Proxy::start(&toml(&origin, relay.port, "0"));
    until_up(&proxy).await;
    let load = Load::start_clients(CLIENTS, &proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    for every in [100, 331, 57] {
        relay.set_towards_client(Fault::Corrupt { every });
        load.more(300).await;
    }
    println!("wrong bits: {:#}", told(&proxy).await);
    assert!(count(&proxy, "corrupt").await + count(&proxy, "errors").await > 0);
    relay.set(Fault::None);
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn a_process_that_is_killed() {
    let (origin, mut redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let proxy = Proxy::start(&toml(&origin, relay.port, "0"));
    let redis = std::cell::RefCell::new(&mut redis);
    check("killed", &relay, &proxy, || redis.borrow_mut().kill(), || redis.borrow_mut().restart()).await;
}

/// 64 clients, of whom half are answered from memory.
#[tokio::test]
async fn a_frozen_process_costs_five_lookups_their_time_besides_those_in_flight_and_memory_nothing() {
    const MANY: usize = 32;
    // What nobody may store is written nowhere: all that times out is lookups.
    let origin = Origin::start(|seen| async move {
        let fields: &[_] = if seen.target.starts_with("/two") { &[("cache-control", "no-store")] } else { &[] };
        reply(200, fields, &format!("{} {}", seen.target, seen.nth))
    });
    let redis = Redis::start();
    let proxy = Proxy::start(&toml(&origin, redis.port, "64 MiB"));
    until_up(&proxy).await;
    let held = Load::start_clients(MANY, &proxy, &paths("one", 16));
    held.more(200).await;
    // Ever other paths, so that each is looked for in Redis.
    let asked = Load::start_with(MANY, &proxy, |client, nth| format!("/two/{client}-{nth}"));
    asked.more(200).await;
    let (before, slow_before) = (count(&proxy, "timeouts").await, asked.slower_than(TIMEOUT));
    let held_before = held.slower_than(TIMEOUT);
    redis.signal("STOP");
    let begun = Instant::now();
    while count(&proxy, "timeouts").await < before + 5 {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing times out");
        tokio::task::yield_now().await;
    }
    asked.more(500).await;
    held.more(500).await;
    let (late, timeouts) = (asked.slower_than(TIMEOUT) - slow_before, count(&proxy, "timeouts").await - before);
    let held_late = held.slower_than(TIMEOUT) - held_before;
    println!(
        "frozen: {late} answers took longer than the timeout, {timeouts} commands timed out; {held_late} of memory"
    );
    assert!(timeouts <= MANY as u64 + 5 + 4, "{timeouts} commands timed out");
    let of_memory = proxy.stats().await["routes"]["one"].clone();
    assert_eq!(origin.seen().iter().filter(|seen| seen.target.starts_with("/one")).count(), 16, "{of_memory:#}");
    assert_eq!(
        (told(&proxy).await["state"].as_str(), proxy.stats().await["totals"]["errors"].as_u64()),
        (Some("down"), Some(0))
    );
    redis.signal("CONT");
    let begun = Instant::now();
    until_up(&proxy).await;
    assert!(begun.elapsed() < RESUME_WITHIN);
    println!("frozen: used again {:?} after the thaw", begun.elapsed());
    asked.stop().await;
    held.stop().await;
}

/// Those who wait for one read together count as if each had asked, so that the next who come wait for nothing.
#[tokio::test]
async fn a_frozen_process_costs_those_who_ask_for_one_key_their_time_once() {
    const MANY: usize = 32;
    let origin = Origin::start(|seen| async move { reply(200, &[], &format!("{} {}", seen.target, seen.nth)) });
    let redis = Redis::start();
    let proxy = Proxy::start(&toml(&origin, redis.port, "0"));
    until_up(&proxy).await;
    let asked = Load::start_with(MANY, &proxy, |_, _| "/two/same".to_owned());
    asked.more(200).await;
    let before = count(&proxy, "timeouts").await;
    redis.signal("STOP");
    let begun = Instant::now();
    while told(&proxy).await["state"] != "down" {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing times out");
        tokio::task::yield_now().await;
    }
    asked.more(200).await;
    let timeouts = count(&proxy, "timeouts").await - before;
    println!("frozen, one key: {timeouts} waited in vain");
    assert!((MANY as u64 / 2..=MANY as u64 + 9).contains(&timeouts), "{timeouts} waited in vain");
    redis.signal("CONT");
    until_up(&proxy).await;
    asked.stop().await;
}

/// Too many clients of Redis: who is turned away comes back after ever longer pauses, each at another time.
#[tokio::test]
async fn a_redis_that_takes_no_more_clients() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let relay = Relay::to(redis.port);
    let proxy = Proxy::start(&toml(&origin, relay.port, "0"));
    // The one client that there may be.
    let own = redis.connection().expect("a connection");
    let tell = |lines: &[&str]| {
        for line in lines {
            (&own).write_all(format!("{line}\r\n").as_bytes()).expect("redis listens");
        }
    };
    let full = || tell(&["CONFIG SET maxclients 1", "CLIENT KILL TYPE normal SKIPME yes", "CLIENT KILL TYPE pubsub"]);
    let connections = check("too many clients", &relay, &proxy, full, || tell(&["CONFIG SET maxclients 1000"])).await;
    assert!((1..=8).contains(&connections), "{connections}");
}

#[tokio::test]
async fn a_redis_that_is_not_there_at_the_start_and_comes_later() {
    let (origin, mut redis) = (Origin::counting(&[]), Redis::start());
    redis.kill();
    let toml = format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", toml(&origin, redis.port, "0"));
    let proxy = Proxy::start(&toml);
    let load = Load::start_clients(CLIENTS, &proxy, &paths("one", 16));
    load.more(200).await;
    assert_eq!(count(&proxy, "timeouts").await, 0, "nobody waits for what is not there");
    let admin = proxy.running.admin.expect("an admin listener");
    assert_eq!(get(&client(), &format!("http://{admin}/readyz")).await.status, 200);
    assert!(["connecting", "down"].contains(&told(&proxy).await["state"].as_str().unwrap()));
    redis.restart();
    until_up(&proxy).await;
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}
