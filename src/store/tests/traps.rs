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
