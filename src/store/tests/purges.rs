//! The purge ledger in a real Redis, followed by several stores.

use super::redis::{check, connected, flush, redis_config, stats, until};
use super::server::Server;
use super::*;
use crate::store::ledger::PurgeKind;

/// Two stores on one server hold the same response, in memory.
async fn two(server: &Server, ask: &Ask) -> [World; 2] {
    let worlds = [connected(server, 8 << 20).await, connected(server, 8 << 20).await];
    worlds[0].put(ask, worlds[0].response(&[], "a"));
    flush(&worlds[0]).await;
    check(&worlds[1], ask, Ok(("a", Tier::Redis))).await;
    worlds
}

fn is_purged(world: &World, ask: &Ask) -> bool {
    let lookup = world.with(ask, &[], |query| world.store.get_local(query));
    !matches!(lookup, Some(Lookup::Found(_)))
}

async fn purge_url(world: &World, ask: &Ask, within: Duration) -> Purged {
    world.store.purge(&[Tag::url(&ask.target)], PurgeKind::Hard, world.now, within).await
}

const SOON: Duration = Duration::from_secs(5);

/// The ledger's header: epoch and last number.
fn header(server: &Server) -> (u64, u64) {
    let length = "EVAL \"local h = redis.call('getrange', 't:ledger', 8, 23); return string.format('%.0f %.0f', \
                  struct.unpack('<I8', h), struct.unpack('<I8', h, 9))\" 0";
    let answer = server.command(length).expect("redis answers");
    let words = answer.lines().nth(1).expect("a bulk string").split(' ').map(|word| word.parse::<f64>().unwrap());
    let [epoch, number] = words.map(|word| word as u64).collect::<Vec<_>>().try_into().unwrap();
    (epoch, number)
}

#[tokio::test]
async fn a_purge_is_obeyed_by_every_store_within_a_messages_time() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let [one, other] = two(&server, &a).await;
    let late = one.response(&[], "a fill that began before");
    let purged = purge_url(&one, &a, SOON).await;
    assert_eq!(purged.acknowledged, Ok(()));
    assert_eq!(purged.number.0.abs_diff(header(&server).1), 0);
    until("the message", || is_purged(&other, &a)).await;
    assert!(is_purged(&one, &a));
    one.put(&a, late);
    flush(&one).await;
    check(&other, &a, Err(Missing::Purged)).await;
    one.put(&a, one.response(&[], "after"));
    flush(&one).await;
    check(&other, &a, Ok(("after", Tier::Redis))).await;
}

#[tokio::test]
async fn a_lost_message_is_found_by_the_next_poll() {
    let (server, a) = (Server::start(&["--notify-keyspace-events", ""]), ask("/a", &[]));
    let [one, other] = two(&server, &a).await;
    // What a message that nobody heard would have left behind: the slots and the number, no publication.
    let silent = "EVAL \"local l = 't:ledger'; redis.call('setrange', l, 64, string.rep('\\255', 6 * 1)); \
                  local n = struct.unpack('<I8', redis.call('getrange', l, 16, 23)) + 1; \
                  redis.call('setrange', l, 16, struct.pack('<I8', n)); return 1\" 0";
    assert!(server.command(silent).unwrap().starts_with(":1"));
    let (_, number) = header(&server);
    until("the poll", || other.store.synced().to.0 == number && one.store.synced().to.0 == number).await;
    check(&other, &a, Ok(("a", Tier::Memory))).await;
}

#[tokio::test]
async fn of_a_hundred_thousand_responses_a_tags_are_gone_at_once_and_the_others_stay() {
    const RESPONSES: usize = 100_000;
    const TAGS: usize = 50;
    let server = Server::start(&[]);
    let [one, other, third] =
        [connected(&server, 1 << 30).await, connected(&server, 1 << 30).await, connected(&server, 0).await];
    let asks: Vec<Ask> = (0..RESPONSES).map(|nth| ask(&format!("/{nth}"), &[])).collect();
    for (nth, ask) in asks.iter().enumerate() {
        let mut response = one.response(&[], "a");
        response.provenance.tags = Box::new([format!("tag:{}", nth % TAGS).into()]);
        one.put(ask, response);
        if nth % 2000 == 0 {
            flush(&one).await;
        }
    }
    flush(&one).await;
    assert_eq!(server.command("DBSIZE").unwrap(), format!(":{}\r\n", RESPONSES + 1), "with the ledger");
    let purged = || asks.iter().skip(7).step_by(TAGS);
    let kept = || asks.iter().enumerate().filter(|(nth, _)| nth % TAGS != 7).map(|(_, ask)| ask).step_by(41);
    for ask in purged().chain(kept()) {
        check(&other, ask, Ok(("a", Tier::Redis))).await;
    }
    one.purge(Tag::Surrogate("tag:7".into()), PurgeKind::Hard).await;
    until("the message", || [&other, &third].iter().all(|it| it.store.synced().to == one.store.synced().to)).await;
    for world in [&one, &other, &third] {
        for ask in purged() {
            check(world, ask, Err(Missing::Purged)).await;
        }
    }
    for ask in kept() {
        check(&one, ask, Ok(("a", Tier::Memory))).await;
        check(&other, ask, Ok(("a", Tier::Memory))).await;
        check(&third, ask, Ok(("a", Tier::Redis))).await;
    }
}

#[tokio::test]
async fn connections_that_were_killed_hear_messages_again() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let [one, other] = two(&server, &a).await;
    let subscribers = || server.command("PUBSUB NUMSUB t:ledger").unwrap().contains(":2");
    for _ in 0..5 {
        until("subscriptions", subscribers).await;
        server.command("CLIENT KILL TYPE pubsub");
    }
    until("subscriptions", subscribers).await;
    // It may still be on the connection that is gone.
    while purge_url(&one, &a, SOON).await.acknowledged.is_err() {}
    until("the message", || is_purged(&other, &a)).await;
}

#[tokio::test]
async fn a_purge_while_redis_is_frozen_is_obeyed_here_and_recorded_later() {
    let (server, [a, b]) = (Server::start(&[]), ["/a", "/b"].map(|path| ask(path, &[])));
    let [one, other] = two(&server, &a).await;
    other.put(&b, other.response(&[], "b"));
    server.signal("STOP");
    let purged = purge_url(&one, &a, Duration::from_millis(100)).await;
    assert!(purged.acknowledged.unwrap_err().contains("redis"));
    assert!(is_purged(&one, &a) && !is_purged(&other, &a));
    one.put(&a, one.response(&[], "after"));
    assert!(!is_purged(&one, &a), "what was fetched after it is good here");
    server.signal("CONT");
    until("recording", || one.store.purge_stats(one.now).unrecorded == 0 && is_purged(&other, &a)).await;
    assert!(!is_purged(&other, &b));
}

#[tokio::test]
async fn a_flushed_redis_empties_every_store() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let worlds = two(&server, &a).await;
    server.command("FLUSHALL");
    until("the poll", || worlds.iter().all(|world| is_purged(world, &a))).await;
    until("one epoch", || worlds[0].store.synced().epoch == worlds[1].store.synced().epoch).await;
}

#[tokio::test]
async fn what_a_restored_snapshot_has_forgotten_is_purged_again() {
    let (directory, a) = (tempfile::tempdir().unwrap(), ask("/a", &[]));
    let arguments = ["--dir", directory.path().to_str().unwrap(), "--dbfilename", "snapshot.rdb"];
    let server = Server::start(&arguments);
    let [one, other] = two(&server, &a).await;
    assert!(server.command("SAVE").unwrap().starts_with("+OK"));
    let purged = purge_url(&one, &a, SOON).await.number;
    until("the message", || is_purged(&other, &a)).await;
    let port = server.port;
    drop(server);
    let server = Server::start_on(port, &arguments);
    assert_eq!(server.keys().len(), 1, "the purged response is back in redis");
    until("purging again", || header(&server).1 > purged.0).await;
    let third = connected(&server, 8 << 20).await;
    check(&third, &a, Err(Missing::Purged)).await;
    for world in [&one, &other] {
        until("following", || stats(world).ledger == "synced").await;
        assert!(matches!(world.get(&a).await, Lookup::Missing(_)));
    }
}

#[tokio::test]
async fn a_snapshot_from_before_a_flush_brings_nothing_back() {
    let (directory, a) = (tempfile::tempdir().unwrap(), ask("/a", &[]));
    let arguments = ["--dir", directory.path().to_str().unwrap(), "--dbfilename", "snapshot.rdb"];
    let server = Server::start(&arguments);
    let [one, other] = two(&server, &a).await;
    assert!(server.command("SAVE").unwrap().starts_with("+OK"));
    server.command("FLUSHALL");
    until("the poll", || is_purged(&one, &a) && is_purged(&other, &a)).await;
    purge_url(&one, &a, SOON).await;
    let port = server.port;
    server.signal("KILL");
    drop(server);
    std::fs::metadata(directory.path().join("snapshot.rdb")).unwrap();
    let server = Server::start_on(port, &arguments);
    assert_eq!(server.keys().len(), 1, "the response of before is back in redis");
    for world in [&one, &other] {
        until("following", || stats(world).ledger == "synced").await;
        assert!(matches!(world.get(&a).await, Lookup::Missing(_)));
    }
    let third = connected(&server, 8 << 20).await;
    assert!(matches!(third.get(&a).await, Lookup::Missing(_)));
}

#[tokio::test]
async fn a_subscription_that_ends_while_a_message_is_waited_for_is_made_again() {
    let server = Server::start(&[]);
    let world = connected(&server, 8 << 20).await;
    let subscribed = || server.command("PUBSUB NUMSUB t:ledger").unwrap().ends_with(":1\r\n");
    until("a subscription", subscribed).await;
    for round in 0..20 {
        // A number without a message: who has subscribed again looks, finds it, and waits for the message, when the
        // connection ends once more.
        let number = (1_u64 << 52) + round;
        server.command(&format!("EVAL \"redis.call('setrange','t:ledger',16,struct.pack('<I8',{number}))\" 0"));
        server.command("CLIENT KILL TYPE pubsub");
        until("a subscription", subscribed).await;
    }
    until("following", || stats(&world).ledger == "synced").await;
}

#[tokio::test]
async fn a_full_redis_records_purges_and_a_forgotten_script_is_sent_again() {
    let (server, a) = (Server::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]), ask("/a", &[]));
    let world = connected(&server, 8 << 20).await;
    world.put(&a, world.response(&[], "a"));
    assert_eq!(purge_url(&world, &a, SOON).await.acknowledged, Ok(()));
    assert!(server.command("SCRIPT FLUSH").unwrap().starts_with("+OK"));
    assert_eq!(purge_url(&world, &a, SOON).await.acknowledged, Ok(()));
    assert_eq!(stats(&world).ledger, "synced");
}

#[tokio::test]
async fn an_order_that_all_were_told_is_recorded_once() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let [one, other] = two(&server, &a).await;
    let [mut orders, mut others] = [&one, &other].map(|world| world.store.take_orders().expect("taken once"));
    assert!(one.store.take_orders().is_none());
    for _ in 0..20 {
        server.command("PUBLISH t:purge '{\"all\":true}'");
        for orders in [&mut orders, &mut others] {
            let order = tokio::time::timeout(SOON, orders.recv()).await.expect("an order").expect("an order");
            assert_eq!(order, "{\"all\":true}");
        }
        let (_, before) = header(&server);
        let everything = [Tag::All];
        let (first, second) = tokio::join!(
            one.store.purge_with_others(&everything, PurgeKind::Hard, one.now, SOON),
            other.store.purge_with_others(&everything, PurgeKind::Hard, other.now, SOON)
        );
        assert_eq!((first.acknowledged, second.acknowledged), (Ok(()), Ok(())));
        assert!(is_purged(&one, &a) && is_purged(&other, &a));
        assert!(header(&server).1 > before);
    }
    let recorded = server.command("INFO commandstats").unwrap();
    let calls = recorded.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls=")).unwrap();
    let calls: u32 = calls.split(',').next().unwrap().parse().unwrap();
    // 20 orders and the ledger's own messages: about one for each, fewer than the two that both would have written.
    assert!(calls < 20 + 1 + 35, "{calls}");
}

#[tokio::test]
async fn reading_the_whole_ledger_never_keeps_redis_busy_for_long() {
    let server = Server::start(&["--slowlog-log-slower-than", "5000"]);
    let world = connected(&server, 8 << 20).await;
    let everywhere: Vec<Tag> = (0..2000).map(|seed: u32| Tag::Surrogate(seed.to_string().into())).collect();
    for kind in [PurgeKind::Hard, PurgeKind::Soft] {
        world.store.purge(&everywhere, kind, world.now, SOON).await.acknowledged.unwrap();
    }
    assert!(server.command("SLOWLOG RESET").unwrap().starts_with("+OK"));
    let other = connected(&server, 8 << 20).await;
    assert_eq!(other.store.synced(), Synced { own: 0, ..world.store.synced() });
    assert_eq!(server.command("SLOWLOG LEN").unwrap(), ":0\r\n");
}

#[tokio::test]
async fn a_foreign_value_in_the_ledgers_place_is_replaced_and_another_size_is_refused() {
    let server = Server::start(&[]);
    server.command("RPUSH t:ledger what is this");
    let world = connected(&server, 8 << 20).await;
    assert_eq!(purge_url(&world, &ask("/a", &[]), SOON).await.acknowledged, Ok(()));
    let redis = redis_config(format!("redis://127.0.0.1:{}", server.port));
    let other = World::new(&StoreConfig { redis: Some(redis), purge_slots: 1 << 10, ..config(8 << 20) });
    other.store.attach(WorkerId(0));
    other.store.attach(WorkerId(1));
    until("the refusal", || stats(&other).state == "down").await;
    assert_eq!(stats(&other).ledger, "unknown");
    assert!(purge_url(&other, &ask("/a", &[]), SOON).await.acknowledged.is_err());
}

#[tokio::test]
async fn a_ledger_that_lost_its_end_or_its_epoch_is_made_anew() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let world = connected(&server, 8 << 20).await;
    for length in [0, 8, 15, 16, 31, 32, 64] {
        let whole = server.value("t:ledger");
        server.set("t:ledger", &whole[..length]);
        assert_eq!(purge_url(&world, &a, SOON).await.acknowledged, Ok(()), "{length} bytes are left");
        let mut nameless = server.value("t:ledger");
        nameless[8..16].fill(0);
        server.set("t:ledger", &nameless);
        assert_eq!(purge_url(&world, &a, SOON).await.acknowledged, Ok(()), "no epoch is left");
    }
    let (epoch, number) = header(&server);
    until("the ledger to be followed", || stats(&world).ledger == "synced").await;
    assert!(epoch != 0 && number != 0);
}

/// Purges `ask` for a response that nothing had purged at `valid_at`; whether that may be stored, and is then found.
async fn outlives(world: &World, ask: &Ask, valid_at: Synced) -> bool {
    let tags = [Tag::url(&ask.target)];
    let (purged, stands) = world.store.purge_after(valid_at, &tags, PurgeKind::Hard, world.now, SOON).await;
    assert_eq!(purged.acknowledged, Ok(()));
    let Some(Synced { to, epoch, own }) = stands else { return false };
    let mut response = world.response(&[], "its own");
    response.provenance = Provenance { synced_to: to, epoch, own, tags: Box::default() };
    world.put(ask, response);
    !is_purged(world, ask)
}

#[tokio::test]
async fn what_a_purge_brings_outlives_it_if_nothing_else_was_purged() {
    let (server, a) = (Server::start(&[]), ask("/a", &[]));
    let [one, other] = two(&server, &a).await;
    let level = async || {
        let number = header(&server).1;
        until("the same ledger", || [&one, &other].iter().all(|world| world.store.synced().to.0 == number)).await;
        one.store.synced()
    };
    level().await;
    assert!(outlives(&one, &a, one.store.synced()).await);
    flush(&one).await;
    check(&other, &a, Ok(("its own", Tier::Redis))).await;
    let before = level().await;
    purge_url(&other, &ask("/b", &[]), SOON).await;
    assert!(!outlives(&one, &a, before).await, "another process purged meanwhile");
    let before = level().await;
    purge_url(&one, &ask("/b", &[]), SOON).await;
    assert!(!outlives(&one, &a, before).await, "this process purged meanwhile");
    let before = level().await;
    tokio::join!(outlives(&one, &a, before), purge_url(&one, &a, SOON));
    assert!(is_purged(&one, &a), "a purge at the same time is obeyed");
    let before = level().await;
    assert!(outlives(&one, &a, before).await);
    purge_url(&other, &a, SOON).await;
    until("a later purge", || is_purged(&one, &a)).await;
}

#[tokio::test]
async fn what_a_purge_brings_outlives_it_without_redis_too() {
    let (world, a) = (World::new(&config(8 << 20)), ask("/a", &[]));
    let before = world.store.synced();
    assert!(outlives(&world, &a, before).await);
    assert!(!outlives(&world, &a, before).await, "the first came between");
    assert!(is_purged(&world, &a));
}
