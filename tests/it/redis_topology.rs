//! Redis behind sentinels and Redis as a cluster: failover, resharding, and clients that notice nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::world::cluster::slot;
use crate::world::load::{RESUME_WITHIN, paths, two_routes_with_redis, until, until_hits, until_up};
use crate::world::{Cluster, Load, Origin, Proxy, Redis, Sentinels, client, get, got, reply};

/// What goes on after a promotion.
struct Promoted {
    redis: Sentinels,
    proxy: Proxy,
    load: Load,
    _origin: Origin,
}

impl Promoted {
    /// Asks for ever new paths until the new primary has one of them.
    async fn until_stored(&self) {
        let (client, begun) = (client(), Instant::now());
        let count = || self.redis.promoted().map_or(0, |it| it.records().len());
        let (before, mut nth) = (count(), 0);
        while count() <= before {
            assert!(begun.elapsed() < RESUME_WITHIN, "the new primary is not written to");
            get(&client, &self.proxy.url(&format!("/two/{nth}"))).await;
            nth += 1;
        }
    }
}

/// Makes the sentinels promote a replica while clients ask; `displace` is done to the primary.
async fn check_promotion(displace: impl FnOnce(&mut Sentinels)) -> Promoted {
    let (origin, mut redis) = (Origin::counting(&[]), Sentinels::start(2));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", redis.url())));
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    displace(&mut redis);
    until("a replica is promoted", || redis.promoted().is_some()).await;
    let took = until_hits(&proxy, "one", 100).await;
    println!("100 hits from redis {took:?} after the promotion, {} answers", load.answered());
    Promoted { redis, proxy, load, _origin: origin }
}

#[tokio::test]
async fn when_sentinels_replace_a_killed_primary_clients_see_nothing_and_hits_resume() {
    let promoted = check_promotion(|redis| redis.primary.kill()).await;
    promoted.until_stored().await;
    promoted.load.stop().await;
}

#[tokio::test]
async fn when_sentinels_replace_a_frozen_primary_its_thaw_changes_nothing() {
    let promoted = check_promotion(|redis| redis.primary.signal("STOP")).await;
    promoted.until_stored().await;
    let old = &promoted.redis.primary;
    old.signal("CONT");
    until("it follows the new primary", || !old.is_primary()).await;
    promoted.until_stored().await;
    until_hits(&promoted.proxy, "one", 100).await;
    promoted.load.stop().await;
}

#[tokio::test]
async fn when_sentinels_demote_a_primary_clients_see_nothing_and_writes_go_to_the_new_one() {
    let promoted = check_promotion(|redis| redis.fail_over()).await;
    // Sentinels let a primary that lives go on for some seconds; what it is sent then is lost, and costs a fetch.
    until("the old one follows", || !promoted.redis.primary.is_primary()).await;
    promoted.until_stored().await;
    until_hits(&promoted.proxy, "one", 100).await;
    promoted.load.stop().await;
}

#[tokio::test]
async fn when_the_sentinels_that_a_client_learnt_of_are_gone_it_asks_those_it_was_told_of() {
    let (origin, mut redis) = (Origin::counting(&[]), Sentinels::start(0));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", redis.url())));
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    // Of the two that the URL names the second is asked first, and tells of the two others.
    redis.sentinels[0].kill();
    redis.sentinels[2].kill();
    redis.primary.tell("CLIENT KILL TYPE normal SKIPME yes");
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
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

/// Has a replica replace the one node of a cluster that the URL names, while clients ask; `displace` is done to it.
async fn check_replacement(displace: impl FnOnce(&mut Redis)) {
    let (origin, mut cluster) = (Origin::counting(&[]), Cluster::start(true));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", cluster.url())));
    until_up(&proxy).await;
    let lost = paths_on(&cluster, &proxy, 0, 4).await;
    let load = Load::start(&proxy, &paths("one", 16));
    let load_of_lost = Load::start(&proxy, &lost);
    until_hits(&proxy, "one", 100).await;
    until_hits(&proxy, "two", 100).await;
    displace(&mut cluster.primaries[0]);
    until("its replica is promoted", || cluster.replicas[0].is_primary()).await;
    let (others, own) = (until_hits(&proxy, "one", 100).await, until_hits(&proxy, "two", 100).await);
    println!("hits from redis {others:?} after the promotion, of its slots {own:?} later, {} answers", load.answered());
    load.stop().await;
    load_of_lost.stop().await;
}

#[tokio::test]
async fn when_a_replica_replaces_a_killed_primary_of_a_cluster_clients_see_nothing_and_hits_resume_for_its_slots() {
    check_replacement(Redis::kill).await;
}

#[tokio::test]
async fn when_a_replica_replaces_a_frozen_primary_of_a_cluster_hits_resume_as_well() {
    check_replacement(|primary| primary.signal("STOP")).await;
}

#[tokio::test]
async fn a_cluster_that_lost_slots_for_good_is_done_without_until_they_are_served_again() {
    let (origin, mut cluster) = (Origin::counting(&[]), Cluster::start(false));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", cluster.url())));
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    cluster.primaries[2].kill();
    until("the others know", || cluster.primaries[0].tell("CLUSTER INFO").contains("cluster_state:fail")).await;
    load.more(100).await;
    cluster.primaries[2].restart();
    until("all is served", || cluster.primaries.iter().all(|it| it.tell("CLUSTER INFO").contains("cluster_state:ok")))
        .await;
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
}

#[tokio::test]
async fn while_a_slot_moves_clients_see_nothing_and_the_redis_client_lives() {
    let (origin, cluster) = (Origin::counting(&[]), Cluster::start(false));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", cluster.url())));
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
    let large: String = std::iter::repeat_with(fastrand::alphanumeric).take(2 << 20).collect();
    let large: &'static str = large.leak();
    let vary = [("vary", "accept-language"), ("cache-control", "max-age=600")];
    let origin = Origin::start(move |_| async move { reply(200, &vary, large) });
    let cluster = Cluster::start(false);
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &format!("url = \"{}\"", cluster.url())));
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
