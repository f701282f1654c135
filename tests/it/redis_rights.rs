//! A Redis user with no more rights than `config/example.toml` says it needs.

use std::path::Path;

use crate::world::load::{paths, two_routes_with_redis, until, until_hits, until_up};
use crate::world::{Cluster, Load, Origin, Proxy, Redis, Sentinels, client, get, got};

const EXAMPLE: &str = include_str!("../../config/example.toml");

/// The commands that the example tells, in its order.
fn told() -> [&'static str; 5] {
    let lines = EXAMPLE.lines().filter_map(|line| line.strip_prefix("#   ACL SETUSER "));
    let commands: Vec<&str> = lines.collect();
    commands.try_into().expect("five lines: all, cluster, sentinels, database, the sentinels' own")
}

fn grant(redis: &Redis, told: &str) {
    redis.tell(&format!("ACL SETUSER {told}"));
}

/// The keys of `[redis]`, the password beside them in `folder`.
fn credentials(folder: &Path, url: &str) -> String {
    let password = folder.join("password");
    std::fs::write(&password, "password").expect("a file");
    format!("url = \"{url}\"\nusername = \"aside\"\npassword = \"file:{}\"", password.display())
}

/// What Redis denied so far.
fn denied(redis: &Redis) -> String {
    redis.tell("ACL LOG")
}

/// Stores, finds, changes and forgets, over both lanes.
async fn live(origin: &Origin, redis: &str, servers: &[&Redis]) {
    let proxy = Proxy::start(&two_routes_with_redis(origin, redis));
    until_up(&proxy).await;
    let load = Load::start(&proxy, &paths("one", 16));
    until_hits(&proxy, "one", 100).await;
    load.stop().await;
    let records = || servers.iter().map(|server| server.records().len()).sum::<usize>();
    until("all are stored", || records() == 16).await;
    let client = client();
    get(&client, &proxy.url("/two/large")).await;
    until("a large body is stored too", || records() == 18).await;
    until_hits_of(&proxy, "/two/large").await;
    got(client.delete(proxy.url("/one/0")).send().await.expect("an answer")).await;
    assert_eq!(proxy.stats().await["purge"]["unrecorded"], 0, "what was changed is recorded");
    let stats = proxy.stats().await;
    assert_eq!((&stats["redis"]["errors"], &stats["redis"]["dropped_writes"]), (&0.into(), &0.into()), "{stats:#}");
    for server in servers {
        assert_eq!(denied(server), "");
    }
}

async fn until_hits_of(proxy: &Proxy, path: &str) {
    get(&client(), &proxy.url(path)).await;
    assert!(proxy.stats().await["routes"]["two"]["hits_redis"] != 0, "{path} is a hit from redis");
}

fn origin() -> Origin {
    Origin::start(|seen| async move {
        let letters = || std::iter::repeat_with(fastrand::alphanumeric);
        // What is compressed to less than 1 MiB is no string of its own.
        let is_large = seen.target == "/two/large";
        let large = if is_large { letters().take(2 << 20).collect() } else { format!("{} {}", seen.target, seen.nth) };
        crate::world::reply(200, &[], &large)
    })
}

#[tokio::test]
async fn suffice_for_one_server() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    grant(&redis, told()[0]);
    live(&origin(), &credentials(folder.path(), &redis.url()), &[&redis]).await;
}

#[tokio::test]
async fn suffice_for_a_database_of_its_own() {
    let (redis, folder, origin) = (Redis::start(), tempfile::tempdir().unwrap(), origin());
    grant(&redis, told()[0]);
    grant(&redis, told()[3]);
    let keys = credentials(folder.path(), &format!("{}/3", redis.url()));
    let proxy = Proxy::start(&two_routes_with_redis(&origin, &keys));
    until_up(&proxy).await;
    get(&client(), &proxy.url("/one/a")).await;
    until("it is stored there", || redis.tell("INFO keyspace").contains("db3:")).await;
    assert_eq!((redis.records().len(), denied(&redis)), (0, String::new()));
}

#[tokio::test]
async fn suffice_for_valkey() {
    let (valkey, folder) = (Redis::start_valkey(), tempfile::tempdir().unwrap());
    grant(&valkey, told()[0]);
    live(&origin(), &credentials(folder.path(), &valkey.url().replace("redis", "valkey")), &[&valkey]).await;
}

#[tokio::test]
async fn suffice_in_a_cluster() {
    let (cluster, folder) = (Cluster::start(false), tempfile::tempdir().unwrap());
    let servers: Vec<&Redis> = cluster.primaries.iter().collect();
    for server in &servers {
        grant(server, told()[0]);
        grant(server, told()[1]);
    }
    live(&origin(), &credentials(folder.path(), &cluster.url()), &servers).await;
}

#[tokio::test]
async fn suffice_behind_sentinels_with_a_user_of_their_own() {
    let (redis, folder) = (Sentinels::start(1), tempfile::tempdir().unwrap());
    grant(&redis.primary, told()[0]);
    grant(&redis.primary, told()[2]);
    for sentinel in &redis.sentinels {
        grant(sentinel, told()[4]);
        // Whoever is connected stays so; who comes without a password is refused.
        sentinel.tell("ACL SETUSER default off");
    }
    let keys = credentials(folder.path(), &redis.url());
    let password = folder.path().join("password");
    let keys = format!("{keys}\nsentinel_username = \"aside\"\nsentinel_password = \"file:{}\"", password.display());
    live(&origin(), &keys, &[&redis.primary]).await;
}

#[tokio::test]
async fn cover_the_ledger_and_locks_and_no_more() {
    let redis = Redis::start();
    grant(&redis, told()[0]);
    let dry = |command: &str| redis.ask(&format!("ACL DRYRUN aside {command}")).expect("an answer");
    for command in [
        "GETRANGE aside:p 0 9",
        "MGET aside:r aside:s",
        "STRLEN aside:p",
        "SETRANGE aside:p 0 x",
        "EVAL x 1 aside:p",
        "EVALSHA x 1 aside:p",
        "PUBLISH aside:purge x",
        "SUBSCRIBE aside:purge",
        "UNSUBSCRIBE",
        "UNLINK aside:r",
        "SET aside:lock x NX PX 9",
        "DEL aside:lock",
        "PEXPIRE aside:lock 9",
        "TIME",
    ] {
        assert_eq!(dry(command), "OK", "{command}");
    }
    for command in [
        "GET other",
        "SET other x",
        "EVAL x 1 other",
        "PUBLISH other x",
        "SUBSCRIBE other",
        "FLUSHALL",
        "KEYS *",
        "CONFIG GET *",
        "SCRIPT FLUSH",
        "CLIENT LIST",
        "ACL LIST",
        "MONITOR",
        "REPLICAOF NO ONE",
    ] {
        assert!(dry(command).contains("has no permissions"), "{command}: {}", dry(command));
    }
}
