//! A Redis that answers, and refuses: clients see nothing of it, what is stored is read on where it can be, and it is used
//! again.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::load::{RESUME_WITHIN, paths, two_routes_with_redis, until, until_hits, until_up};
use crate::world::{Certificates, Got, Load, Origin, Process, Proxy, Redis, client, get, got};

fn toml(origin: &Origin, redis: &str) -> String {
    format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", two_routes_with_redis(origin, redis))
}

fn proxy(origin: &Origin, redis: &Redis) -> Proxy {
    Proxy::start(&toml(origin, &format!("url = \"{}\"", redis.url())))
}

async fn count(proxy: &Proxy, name: &str) -> u64 {
    proxy.stats().await["redis"][name].as_u64().expect("a count")
}

/// Orders a purge of everything.
async fn purge(proxy: &Proxy) -> Got {
    let admin = proxy.running.admin.expect("an admin listener");
    let order = client().post(format!("http://{admin}/purge")).header("content-type", "application/json");
    got(order.body(json!({ "all": true }).to_string()).send().await.expect("an answer")).await
}

/// Asks for ever other paths until the figures are so.
async fn until_figures(proxy: &Proxy, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    let (client, begun) = (client(), Instant::now());
    for nth in 0.. {
        assert_eq!(get(&client, &proxy.url(&format!("/two/{what}-{nth}"))).await.status, 200);
        let told = proxy.stats().await["redis"].clone();
        if holds(&told) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "not so: {what}: {told:#}");
    }
}

/// Waits until a new path is stored in Redis.
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

/// Under load has Redis refuse writes and take them again; hits go on where `reads_go_on`. What a purge is answered
/// meanwhile.
async fn check(redis: &Redis, refuse: impl FnOnce(), reads_go_on: bool, permit: impl FnOnce()) -> u16 {
    let origin = Origin::counting(&[]);
    let proxy = proxy(&origin, redis);
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    let (dropped, errors) = (count(&proxy, "dropped_writes").await, count(&proxy, "errors").await);
    refuse();
    until_figures(&proxy, "refused", |told| told["dropped_writes"] != dropped && told["errors"] != errors).await;
    if reads_go_on {
        until_hits(&proxy, "one", 100).await;
        let told = proxy.stats().await["redis"].clone();
        assert_eq!((&told["breaker"], &told["timeouts"]), (&json!("closed"), &json!(0)), "{told:#}");
    } else {
        load.more(100).await;
    }
    let purged = purge(&proxy).await.status;
    permit();
    until_stored(&proxy, redis).await;
    until_hits(&proxy, "one", 100).await;
    until_figures(&proxy, "synced", |told| told["ledger"] == "synced" && told["state"] == "up").await;
    assert_eq!(proxy.stats().await["purge"]["unrecorded"], 0);
    load.stop().await;
    purged
}

/// How often SET was refused.
fn refused_sets(redis: &Redis) -> u64 {
    let info = redis.tell("INFO commandstats");
    let of_set = info.lines().find(|line| line.starts_with("cmdstat_set:")).expect("it was called");
    let numbers = of_set
        .split(',')
        .filter_map(|part| part.strip_prefix("rejected_calls=").or(part.strip_prefix("failed_calls=")));
    numbers.map(|number| number.trim().parse::<u64>().expect("a number")).sum()
}

#[tokio::test]
async fn a_full_one_is_read_and_asked_to_store_once_a_second() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = proxy(&origin, &redis);
    until_up(&proxy).await;
    let held = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    redis.tell("CONFIG SET maxmemory 1");
    let fresh = Load::start_with(4, &proxy, |client, nth| format!("/two/{client}-{nth}"));
    let begun = Instant::now();
    fresh.more(500).await;
    let (dropped, refused, took) = (count(&proxy, "dropped_writes").await, refused_sets(&redis), begun.elapsed());
    println!("{refused} of {dropped} writes were tried in {took:?}");
    assert!(dropped > 400, "{dropped}");
    // Besides the clients' own, those of two lanes that were under way.
    assert!(refused <= 20 * (1 + took.as_secs()), "{refused} in {took:?}");
    until_hits(&proxy, "one", 100).await;
    // A purge frees what cannot be freed otherwise: it is recorded all the same.
    assert_eq!(purge(&proxy).await.status, 200);
    assert!(get(&client(), &proxy.url("/one/0")).await.cache_status.contains("fwd="), "what was purged is gone");
    assert_eq!(count(&proxy, "timeouts").await, 0);
    redis.tell("CONFIG SET maxmemory 0");
    until_stored(&proxy, &redis).await;
    fresh.stop().await;
    held.stop().await;
}

#[tokio::test]
async fn one_whose_snapshots_fail() {
    let redis = Redis::start_with(&["--save", "3600 1"]);
    let folder = redis.tell("CONFIG GET dir").lines().last().expect("a folder").to_owned();
    let fail = || {
        std::fs::remove_dir_all(&folder).expect("its folder goes");
        redis.tell("SET other 1");
        redis.tell("BGSAVE");
        crate::world::redis::wait_until("the snapshot fails", || redis.reports("rdb_last_bgsave_status:err"));
    };
    let purged = check(&redis, fail, true, || drop(redis.tell("CONFIG SET stop-writes-on-bgsave-error no"))).await;
    assert_eq!(purged, 503);
}

#[tokio::test]
async fn one_that_lacks_replicas() {
    let redis = Redis::start();
    let fail = || drop(redis.tell("CONFIG SET min-replicas-to-write 1"));
    assert_eq!(check(&redis, fail, true, || drop(redis.tell("CONFIG SET min-replicas-to-write 0"))).await, 503);
}

#[tokio::test]
async fn one_that_lost_its_primary() {
    let redis = Redis::start();
    let fail = || {
        redis.tell("CONFIG SET replica-serve-stale-data no");
        redis.tell("REPLICAOF 127.0.0.1 1");
    };
    assert_eq!(check(&redis, fail, false, || drop(redis.tell("REPLICAOF NO ONE"))).await, 503);
}

#[tokio::test]
async fn one_that_is_busy_with_a_script_without_end() {
    let redis = Redis::start_with(&["--busy-reply-threshold", "50"]);
    let fail = || {
        let line = "EVAL \"while true do end\" 0\r\n";
        std::io::Write::write_all(&mut redis.connection().expect("a connection"), line.as_bytes()).expect("it is sent");
    };
    assert_eq!(check(&redis, fail, false, || drop(redis.tell("SCRIPT KILL"))).await, 503);
}

#[tokio::test]
async fn one_that_forgot_its_scripts() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let proxy = proxy(&origin, &redis);
    until_up(&proxy).await;
    for _ in 0..3 {
        assert_eq!(purge(&proxy).await.status, 200);
        redis.tell("SCRIPT FLUSH");
    }
    assert_eq!(count(&proxy, "errors").await, 0);
}

/// The user's rights without a command, and with it again.
async fn check_denied(command: &str, reads_go_on: bool, purged: u16) {
    let redis = Redis::start();
    let fail = || drop(redis.tell(&format!("ACL SETUSER default -{command}")));
    let answered =
        check(&redis, fail, reads_go_on, || drop(redis.tell(&format!("ACL SETUSER default +{command}")))).await;
    assert_eq!(answered, purged, "{command}");
}

#[tokio::test]
async fn one_that_denies_to_write() {
    check_denied("set", true, 200).await;
}

#[tokio::test]
async fn one_that_denies_to_read_and_write() {
    let redis = Redis::start();
    // The test itself asks with keys in its hand.
    let fail = || drop(redis.tell("ACL SETUSER default -getrange -set"));
    assert_eq!(check(&redis, fail, false, || drop(redis.tell("ACL SETUSER default +@all"))).await, 503);
}

/// A process whose password Redis no longer takes: it says so and not what it is, and goes on once it is taken again.
#[tokio::test]
async fn one_whose_password_was_changed() {
    const SECRET: &str = "geheimnis-1234";
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    redis.tell(&format!("ACL SETUSER aside on >{SECRET} ~* &* +@all"));
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, SECRET).unwrap();
    let keys = format!("url = \"{}\"\nusername = \"aside\"\npassword = \"file:{}\"", redis.url(), password.display());
    let process = Process::start(&two_routes_with_redis(&origin, &keys)).await;
    redis.tell("ACL SETUSER aside resetpass >another");
    redis.tell("CLIENT KILL USER aside");
    process.until_redis_is("down").await;
    let client = client();
    for path in paths("one", 20) {
        assert_eq!(get(&client, &process.url(&path)).await.status, 200);
    }
    redis.tell(&format!("ACL SETUSER aside resetpass >{SECRET}"));
    process.until_redis_is("up").await;
    let log = process.log();
    assert!(log.contains("warn redis is down") && log.contains("WRONGPASS"), "{log}");
    assert!(!log.contains(SECRET) && !log.contains("geheim"), "{log}");
}

/// A process that is shown a certificate it must not believe: it says why and does without Redis.
async fn check_certificate(certificate: &str, trusted: &Certificates, shown: &Certificates, why: &str) {
    let origin = Origin::counting(&[]);
    let [file, key] = ["pem", "key"].map(|kind| shown.path(&format!("{certificate}.{kind}")));
    let options = shown.redis_options().map(|(name, value)| match name {
        "tls-cert-file" => (name, file.clone()),
        "tls-key-file" => (name, key.clone()),
        _ => (name, value),
    });
    let redis = Redis::start_with_options(&options);
    let keys = format!("url = \"rediss://localhost:{}\"\n{}", redis.client_port(), trusted.client_keys());
    let process = Process::start_unconnected(&two_routes_with_redis(&origin, &keys));
    process.until_redis_is("down").await;
    let client = client();
    for path in paths("one", 20) {
        assert_eq!(get(&client, &process.url(&path)).await.status, 200);
    }
    until(why, || process.log().contains(why)).await;
    assert!(process.log().contains("warn redis is down"), "{}", process.log());
    assert!(redis.records().is_empty(), "nothing is told to who is not trusted");
    if certificate == "expired" {
        let (file, key) = (shown.path("server.pem"), shown.path("server.key"));
        redis.tell(&format!("CONFIG SET tls-cert-file {file} tls-key-file {key}"));
        process.until_redis_is("up").await;
    }
}

#[tokio::test]
async fn one_whose_certificate_has_expired() {
    let certificates = Certificates::of_server(&["localhost"]);
    check_certificate("expired", &certificates, &certificates, "InvalidCertificate(Expired").await;
}

#[tokio::test]
async fn one_whose_certificate_is_anothers() {
    let (trusted, shown) = (Certificates::of_server(&["localhost"]), Certificates::of_server(&["localhost"]));
    check_certificate("server", &trusted, &shown, "InvalidCertificate(BadSignature").await;
}
