//! What the client library does not do for us, done right on a real Redis.

use futures_util::future::join_all;

use super::redis::{attached, check, connected, flush, redis_config, stats, until};
use super::server::Server;
use super::*;
use crate::store::ledger::PurgeKind;

/// fred's own bound on its queue wedges a client for good once it is reached; ours lets the rest wait its turn.
#[tokio::test]
async fn more_lookups_at_once_than_may_be_in_flight_are_all_answered_and_so_are_later_ones() {
    let server = Server::start(&[]);
    let mut config = redis_config(format!("redis://127.0.0.1:{}", server.port));
    config.timeout = Duration::from_secs(10);
    let world = attached(0, config);
    until("connecting", || stats(&world).state == "up").await;
    let asks: Vec<Ask> = (0..4000).map(|nth| ask(&format!("/{nth}"), &[])).collect();
    for batch in asks.chunks(1000) {
        batch.iter().for_each(|ask| assert_eq!(world.put(ask, world.response(&[], "a")), Put::Stored));
        flush(&world).await;
    }
    for _ in 0..2 {
        let found = join_all(asks.iter().map(|ask| world.get(ask))).await;
        assert!(found.iter().all(|found| outcome(found) == Ok(("a", Tier::Redis, false))));
    }
    check(&world, &asks[0], Ok(("a", Tier::Redis))).await;
    assert_eq!((stats(&world).errors, stats(&world).timeouts), (0, 0));
}

/// A write that was given up may still be applied, late; it does not live longer for that.
#[tokio::test]
async fn what_is_written_late_ends_when_it_would_have_ended() {
    let server = Server::start(&[]);
    let world = connected(&server, 8 << 20).await;
    let ask = ask("/a", &[]);
    let response = world.response(&[], "a");
    let useless_after = response.useless_after().as_millis();
    server.signal("STOP");
    world.put(&ask, response);
    until("giving up", || stats(&world).dropped_writes > 0).await;
    server.signal("CONT");
    until("recovery", || stats(&world).breaker == "closed" && stats(&world).state == "up").await;
    for key in server.keys() {
        assert_eq!(server.command(&format!("PEXPIRETIME {key}")).unwrap(), format!(":{useless_after}\r\n"));
    }
    world.put(&ask, world.response(&[], "b"));
    flush(&world).await;
    assert_eq!(server.command(&format!("PEXPIRETIME {}", server.keys()[0])).unwrap(), format!(":{useless_after}\r\n"));
}

/// A receiver that falls behind is told so once and then nothing more, where fred's own loops are used.
#[tokio::test]
async fn a_flood_of_messages_hides_no_purge() {
    let server = Server::start(&[]);
    let (one, other) = (connected(&server, 8 << 20).await, connected(&server, 8 << 20).await);
    let ask = ask("/a", &[]);
    one.put(&ask, one.response(&[], "a"));
    flush(&one).await;
    check(&other, &ask, Ok(("a", Tier::Redis))).await;
    // Several times what the channel holds, all at once; and what cannot be read as messages is none.
    for channel in ["t:wake", "t:ledger", "t:purge"] {
        let flood = format!("EVAL \"for i = 1, 20000 do redis.call('publish', '{channel}', 'x' .. i) end return 1\" 0");
        assert_eq!(server.command(&flood).unwrap(), ":1\r\n");
    }
    let purged = one.store.purge(&[Tag::url(&ask.target)], PurgeKind::Hard, one.now, Duration::from_secs(5)).await;
    assert_eq!(purged.acknowledged, Ok(()));
    until("the purge", || {
        let lookup = other.with(&ask, &[], |query| other.store.get_local(query));
        !matches!(lookup, Some(Lookup::Found(_)))
    })
    .await;
}

#[tokio::test]
async fn a_frozen_redis_costs_a_few_lookups_their_timeout_and_is_used_again_within_a_second() {
    let server = Server::start(&[]);
    let mut config = redis_config(format!("redis://127.0.0.1:{}", server.port));
    config.timeout = Duration::from_millis(50);
    let world = attached(0, config);
    until("connecting", || stats(&world).state == "up").await;
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    flush(&world).await;
    server.signal("STOP");
    for _ in 0..200 {
        check(&world, &ask, Err(Missing::Unavailable)).await;
    }
    // Five, and what was in flight: the look at the epoch, on the control lane.
    let timeouts = stats(&world).timeouts;
    assert!((5..=7).contains(&timeouts), "{timeouts} commands paid the timeout");
    assert_eq!((stats(&world).state, stats(&world).breaker == "closed"), ("down", false));
    server.signal("CONT");
    let begun = std::time::Instant::now();
    let found = async {
        while matches!(world.get(&ask).await, Lookup::Missing(_)) {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_killed_redis_is_used_again_when_it_is_back() {
    let server = Server::start(&[]);
    let port = server.port;
    let world = connected(&server, 0).await;
    drop(server);
    let ask = ask("/a", &[]);
    for _ in 0..20 {
        check(&world, &ask, Err(Missing::Unavailable)).await;
    }
    until("the breaker's opening", || stats(&world).state == "down").await;
    let server = Server::start_on(port, &[]);
    until("recovery", || stats(&world).state == "up" && stats(&world).breaker == "closed").await;
    world.put(&ask, world.response(&[], "a"));
    flush(&world).await;
    assert_eq!(server.keys().len(), 1);
}

#[tokio::test]
async fn a_full_redis_is_read_and_not_written_to() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let (held, refused) = (ask("/a", &[]), ask("/b", &[]));
    world.put(&held, world.response(&[], "a"));
    flush(&world).await;
    server.command("CONFIG SET maxmemory 1");
    world.put(&refused, world.response(&[], "b"));
    flush(&world).await;
    assert_eq!(stats(&world).dropped_writes, 1);
    check(&world, &held, Ok(("a", Tier::Redis))).await;
    check(&world, &refused, Err(Missing::Key)).await;
    assert_eq!(stats(&world).breaker, "closed");
}
