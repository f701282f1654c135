//! Lookups that go to Redis together, on a real one.

use futures_util::future::join_all;

use super::redis::{attached, check, connected, flush, redis_config, stats, until};
use super::server::{Asked, Server};
use super::*;

fn asks(count: usize) -> Vec<Ask> {
    (0..count).map(|nth| ask(&format!("/{nth}"), &[])).collect()
}

/// So many lookups that find nothing, one after the other, that values count as short.
async fn expect_short(world: &World) {
    for nth in 0..40 {
        world.get(&ask(&format!("/nothing/{nth}"), &[])).await;
    }
}

async fn put_all(world: &World, asks: &[Ask]) {
    asks.iter().for_each(|ask| assert_eq!(world.put(ask, world.response(&[], "a")), Put::Stored));
    flush(world).await;
    expect_short(world).await;
}

fn key_of(ask: &Ask) -> String {
    format!("t:r:{{{}}}", blake3::Hash::from_bytes(*ask.address.key.as_bytes()).to_hex())
}

async fn bodies(world: &World, asks: &[Ask]) -> Vec<Result<String, Missing>> {
    let found = join_all(asks.iter().map(|ask| world.get(ask))).await;
    found.iter().map(|found| outcome(found).map(|(body, ..)| body.to_owned())).collect()
}

fn all_but_the_sixth(other: Missing) -> Vec<Result<String, Missing>> {
    (0..8).map(|nth| if nth == 5 { Err(other.clone()) } else { Ok("a".to_owned()) }).collect()
}

#[tokio::test]
async fn what_comes_together_is_asked_for_in_few_commands_and_each_gets_its_own() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(200);
    for (nth, ask) in asks.iter().enumerate().filter(|(nth, _)| nth % 10 != 0) {
        assert_eq!(world.put(ask, world.response(&[], &format!("body {nth}"))), Put::Stored);
    }
    flush(&world).await;
    expect_short(&world).await;
    let asked = Asked::of(&server);
    let told = |nth| if nth % 10 == 0 { Err(Missing::Key) } else { Ok(format!("body {nth}")) };
    assert_eq!(bodies(&world, &asks).await, (0..200).map(told).collect::<Vec<_>>());
    // The first goes alone, and 199 in commands for 16.
    assert_eq!(asked.reads(), (13, 1));
    let asked = Asked::of(&server);
    for ask in &asks[..3] {
        world.get(ask).await;
    }
    assert_eq!(asked.reads(), (0, 3), "one after the other");
    assert_eq!((stats(&world).errors, stats(&world).timeouts, stats(&world).dropped_writes), (0, 0, 0));
}

#[tokio::test]
async fn what_is_long_is_asked_for_alone() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(64);
    put_all(&world, &asks).await;
    let long: String = std::iter::repeat_with(fastrand::alphanumeric).take(200 << 10).collect();
    asks[..32].iter().for_each(|ask| assert_eq!(world.put(ask, world.response(&[], &long)), Put::Stored));
    flush(&world).await;
    let commands = async |asks: &[Ask]| {
        let asked = Asked::of(&server);
        assert!(bodies(&world, asks).await.iter().all(Result::is_ok));
        asked.reads()
    };
    assert_eq!(commands(&asks[32..]).await, (2, 1), "31 in two commands");
    commands(&asks[..32]).await;
    assert_eq!(commands(&asks[..32]).await, (0, 32));
    expect_short(&world).await;
    assert_eq!(commands(&asks[32..]).await, (2, 1));
}

#[tokio::test]
async fn a_key_of_another_type_holds_nothing_and_is_replaced() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    put_all(&world, &asks).await;
    server.command(&format!("DEL {}", key_of(&asks[5]))).unwrap();
    server.command(&format!("LPUSH {} x", key_of(&asks[5]))).unwrap();
    assert_eq!(bodies(&world, &asks).await, all_but_the_sixth(Missing::Key));
    world.put(&asks[5], world.response(&[], "b"));
    flush(&world).await;
    check(&world, &asks[5], Ok(("b", Tier::Redis))).await;
}

#[tokio::test]
async fn a_value_longer_than_any_record_is_deleted_and_harms_no_other() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    put_all(&world, &asks).await;
    server.command(&format!("SETRANGE {} {} x", key_of(&asks[5]), 3 << 20)).unwrap();
    assert_eq!(bodies(&world, &asks).await, all_but_the_sixth(Missing::Corrupt));
    flush(&world).await;
    assert_eq!((server.keys().len(), stats(&world).corrupt, stats(&world).timeouts), (7, 1, 0));
}

#[tokio::test]
async fn a_value_too_long_to_come_in_time_is_asked_for_alone_then_and_deleted() {
    let server = Server::start(&[]);
    let timeout = Duration::from_millis(50);
    let world = attached(0, RedisConfig { timeout, ..redis_config(format!("redis://127.0.0.1:{}", server.port)) });
    until("connecting", || stats(&world).state == "up").await;
    let asks = asks(8);
    put_all(&world, &asks).await;
    server.command(&format!("SETRANGE {} {} x", key_of(&asks[5]), (256 << 20) - 1)).unwrap();
    let begun = std::time::Instant::now();
    while server.keys().len() > 7 {
        for (nth, body) in bodies(&world, &asks).await.into_iter().enumerate() {
            let is_right = if nth == 5 { body.is_err() } else { body.is_err() || body == Ok("a".to_owned()) };
            assert!(is_right, "{nth}: {body:?}");
        }
        flush(&world).await;
        tokio::task::yield_now().await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it is never deleted: {:?}", stats(&world));
    }
    assert_eq!(stats(&world).corrupt, 1);
    assert!(stats(&world).timeouts > 0, "it came in time");
}

#[tokio::test]
async fn where_one_may_not_be_read_the_others_are_asked_for_alone() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    put_all(&world, &asks).await;
    let others = asks.iter().enumerate().filter(|(nth, _)| *nth != 5);
    let others: Vec<String> = others.map(|(_, ask)| format!("~{}", key_of(ask))).collect();
    server.command(&format!("ACL SETUSER default resetkeys ~t:ledger {}", others.join(" "))).unwrap();
    assert_eq!(bodies(&world, &asks).await, all_but_the_sixth(Missing::Unavailable));
    assert!(stats(&world).errors > 0, "told");
    // A refused command is one that no monitor sees, but an error each time.
    let before = stats(&world).errors;
    assert_eq!(bodies(&world, &asks).await, all_but_the_sixth(Missing::Unavailable));
    assert_eq!(stats(&world).errors - before, 1, "for some time none goes with others: the one by itself is refused");
}

#[tokio::test]
async fn a_user_without_the_right_to_mget_looks_up_one_by_one() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(50);
    put_all(&world, &asks).await;
    server.command("ACL SETUSER default -mget").unwrap();
    for _ in 0..2 {
        assert!(bodies(&world, &asks).await.into_iter().all(|body| body == Ok("a".to_owned())));
    }
    let stats = stats(&world);
    assert_eq!(
        (stats.errors, stats.timeouts, stats.breaker),
        (3, 0, "closed"),
        "one for each command of the first time"
    );
}

#[tokio::test]
async fn lookups_together_that_are_not_answered_cost_each_its_time_once() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(4);
    put_all(&world, &asks).await;
    server.signal("STOP");
    let found = bodies(&world, &asks).await;
    server.signal("CONT");
    assert!(found.iter().all(|found| *found == Err(Missing::Unavailable)), "{found:?}");
    assert_eq!(stats(&world).timeouts, 4);
}
