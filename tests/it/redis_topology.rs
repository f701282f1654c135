//! Redis behind sentinels and Redis as a cluster: failover, resharding, and clients that notice nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::world::cluster::slot;
use crate::world::{Cluster, Load, Origin, Proxy, Redis, Sentinels, client, get, got, reply};

/// Hits that must come from Redis, within so long after there is a primary again.
const RESUME_WITHIN: Duration = Duration::from_secs(5);

/// A proxy without a memory tier, and a route for each of two paths.
fn configuration(origin: &Origin, redis: &str) -> String {
    let (upstream, route) = (origin.url(), |name: &str| {
        format!("[[route]]\nname = \"{name}\"\npath = \"/{name}/{{*rest}}\"\nttl = \"10m\"\nttl_jitter = 0.0\n")
    });
    format!(
        "[memory]\nmax_size = \"0\"\n[redis]\nurl = \"{redis}\"\ntimeout = \"250ms\"\n[upstream.api]\nurl = \"{upstream}\"\n{}{}",
        route("one"),
        route("two")
    )
}

fn paths(route: &str, count: usize) -> Vec<String> {
    (0..count).map(|nth| format!("/{route}/{nth}")).collect()
}

async fn hits_from_redis(proxy: &Proxy, route: &str) -> u64 {
    proxy.stats().await["routes"][route]["hits_redis"].as_u64().expect("a count")
}

/// Waits until Redis is used.
async fn until_up(proxy: &Proxy) {
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
async fn until_hits(proxy: &Proxy, route: &str, more: u64) -> Duration {
    let begun = Instant::now();
    let enough = hits_from_redis(proxy, route).await + more;
    while hits_from_redis(proxy, route).await < enough {
        assert!(begun.elapsed() < RESUME_WITHIN, "no hits from redis: {:#}", proxy.stats().await["redis"]);
        tokio::task::yield_now().await;
    }
    begun.elapsed()
}

/// Waits, bounded, without keeping the load from going on.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn when_sentinels_promote_a_replica_of_a_killed_primary_clients_see_nothing_and_hits_resume() {
    let (origin, mut redis) = (Origin::counting(&[]), Sentinels::start(2));
    let proxy = Proxy::start(&configuration(&origin, &redis.url()));
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    redis.primary.kill();
    until("a replica is promoted", || redis.promoted().is_some()).await;
    let took = until_hits(&proxy, "one", 100).await;
    println!("hits from redis {took:?} after the promotion, {} answers", load.answered());
    load.stop().await;
    let (client, before) = (client(), redis.promoted().expect("a primary").records().len());
    assert_eq!(before, 16, "what was stored was replicated, or is stored again");
    get(&client, &proxy.url("/two/new")).await;
    until("the new primary is written to", || redis.promoted().is_some_and(|it| it.records().len() > before)).await;
}

/// Paths of route `two` whose records a primary of the cluster has, found by storing them one after another.
async fn paths_on(cluster: &Cluster, proxy: &Proxy, primary: usize, count: usize) -> Vec<String> {
    let (client, mut found) = (client(), Vec::new());
    for path in paths("two", 100) {
        let before = cluster.records();
        get(&client, &proxy.url(&path)).await;
        until("it is stored", || cluster.records() != before).await;
        if cluster.records()[primary] > before[primary] {
            found.push(path);
        }
        if found.len() == count {
            break;
        }
    }
    found
}

#[tokio::test]
async fn when_a_replica_replaces_a_killed_primary_of_a_cluster_clients_see_nothing_and_hits_resume_for_its_slots() {
    let (origin, mut cluster) = (Origin::counting(&[]), Cluster::start(true));
    let proxy = Proxy::start(&configuration(&origin, &cluster.url()));
    until_up(&proxy).await;
    let lost = paths_on(&cluster, &proxy, 0, 4).await;
    let load = Load::start(&proxy, &paths("one", 16));
    let load_of_lost = Load::start(&proxy, &lost);
    until_hits(&proxy, "one", 100).await;
    until_hits(&proxy, "two", 100).await;
    // One of the two nodes that the URL names.
    cluster.primaries[0].kill();
    until("its replica is promoted", || cluster.replicas[0].is_primary()).await;
    let (others, own) = (until_hits(&proxy, "one", 100).await, until_hits(&proxy, "two", 100).await);
    println!("hits from redis {others:?} after the promotion, of its slots {own:?} later, {} answers", load.answered());
    load.stop().await;
    load_of_lost.stop().await;
}

#[tokio::test]
async fn while_a_slot_moves_clients_see_nothing_and_the_redis_client_lives() {
    let (origin, cluster) = (Origin::counting(&[]), Cluster::start(false));
    let proxy = Proxy::start(&configuration(&origin, &cluster.url()));
    until_up(&proxy).await;
    let moved = paths_on(&cluster, &proxy, 0, 1).await;
    let record = cluster.primaries[0].records().remove(0);
    let of_record = slot(&cluster.primaries[0], &record);
    let load = Load::start(&proxy, &paths("one", 16));
    let load_of_moved = Load::start(&proxy, &moved);
    until_hits(&proxy, "two", 100).await;
    let midway = async || {
        // Its commands are answered with ASK; the others' go on.
        load_of_moved.more(100).await;
        until_hits(&proxy, "one", 100).await;
    };
    cluster.migrate(of_record, 0, 1, midway).await;
    until_hits(&proxy, "two", 100).await;
    until_hits(&proxy, "one", 100).await;
    assert!(cluster.primaries[1].records().contains(&record), "it is where its slot is");
    assert_eq!(proxy.stats().await["redis"]["corrupt"], 0, "no command got the answer to another");
    load.stop().await;
    load_of_moved.stop().await;
}

#[tokio::test]
async fn a_response_its_variants_and_their_bodies_share_a_slot() {
    let large: &'static str = "0123456789abcdef".repeat(80_000).leak();
    let vary = [("vary", "accept-language"), ("cache-control", "max-age=600")];
    let origin = Origin::start(move |_| async move { reply(200, &vary, large) });
    let cluster = Cluster::start(false);
    let proxy = Proxy::start(&configuration(&origin, &cluster.url()));
    until_up(&proxy).await;
    for language in ["en", "de"] {
        let request = client().get(proxy.url("/one/a")).header("accept-language", language);
        got(request.send().await.expect("an answer")).await;
    }
    // A marker, two variants, and the one body, of which both are made.
    until("all are stored", || cluster.records().iter().sum::<usize>() == 4).await;
    let records: Vec<String> = cluster.primaries.iter().flat_map(Redis::records).collect();
    let slots: BTreeSet<usize> = records.iter().map(|key| slot(&cluster.primaries[0], key)).collect();
    assert_eq!(slots.len(), 1, "{records:?}");
    for language in ["en", "de"] {
        let request = client().get(proxy.url("/one/a")).header("accept-language", language);
        let answer = got(request.send().await.expect("an answer")).await;
        assert!(answer.cache_status.starts_with("aside; hit") && answer.body == large, "{}", answer.cache_status);
    }
}
