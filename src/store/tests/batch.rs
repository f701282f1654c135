//! Commands that go to Redis together, on a real one.

use futures_util::future::join_all;

use super::redis::{check, connected, flush, stats};
use super::server::Server;
use super::*;

fn asks(count: usize) -> Vec<Ask> {
    (0..count).map(|nth| ask(&format!("/{nth}"), &[])).collect()
}

/// Letters that no compression makes much shorter.
fn letters(length: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}

/// How often Redis was sent a command since its statistics were reset, scripts' own calls included.
fn calls(server: &Server, command: &str) -> usize {
    let stats = server.command("INFO commandstats").unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

fn reset(server: &Server) {
    server.command("CONFIG RESETSTAT").unwrap();
}

fn put_all(world: &World, asks: &[Ask]) {
    asks.iter().for_each(|ask| assert_eq!(world.put(ask, world.response(&[], "a")), Put::Stored));
}

async fn bodies(world: &World, asks: &[Ask]) -> Vec<Result<String, Missing>> {
    let found = join_all(asks.iter().map(|ask| world.get(ask))).await;
    found.iter().map(|found| outcome(found).map(|(body, ..)| body.to_owned())).collect()
}

#[tokio::test]
async fn what_comes_together_is_written_and_read_in_few_commands_and_each_gets_its_own() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(200);
    reset(&server);
    for (nth, ask) in asks.iter().enumerate().filter(|(nth, _)| nth % 10 != 0) {
        assert_eq!(world.put(ask, world.response(&[], &format!("body {nth}"))), Put::Stored);
    }
    let ends = world.response(&[], "").useless_after().as_millis();
    flush(&world).await;
    assert_eq!((server.keys().len(), calls(&server, "set")), (180, 180));
    assert!(calls(&server, "evalsha") <= 8, "{} commands for 180 writes", calls(&server, "evalsha"));
    for key in server.keys() {
        assert_eq!(server.command(&format!("PEXPIRETIME {key}")).unwrap(), format!(":{ends}\r\n"));
    }
    let told = |nth| if nth % 10 == 0 { Err(Missing::Key) } else { Ok(format!("body {nth}")) };
    let expected: Vec<_> = (0..200).map(told).collect();
    // The second time Redis has forgotten the script.
    for _ in 0..2 {
        reset(&server);
        assert_eq!(bodies(&world, &asks).await, expected);
        // The first goes alone; a script that is not known is sent again.
        let commands = calls(&server, "evalsha") + calls(&server, "eval");
        assert!((7..=16).contains(&commands), "{commands} commands for 199 lookups");
        assert_eq!(calls(&server, "getrange"), 200, "each key is read once");
        server.command("SCRIPT FLUSH").unwrap();
    }
    assert_eq!((stats(&world).errors, stats(&world).timeouts, stats(&world).dropped_writes), (0, 0, 0));
}

#[tokio::test]
async fn what_is_long_is_written_and_read_alone() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(20);
    let bodies_put: Vec<String> = (0..20).map(|nth| letters(if nth % 2 == 0 { 100 << 10 } else { 10 })).collect();
    for (ask, body) in asks.iter().zip(&bodies_put) {
        assert_eq!(world.put(ask, world.response(&[], body)), Put::Stored);
    }
    flush(&world).await;
    reset(&server);
    let found = bodies(&world, &asks).await;
    assert!(found.into_iter().eq(bodies_put.into_iter().map(Ok)));
    assert_eq!(calls(&server, "getrange"), 29, "the first and, in the batch, 19; then the 9 long ones of these, alone");
}

#[tokio::test]
async fn a_key_of_another_type_harms_no_other_and_is_replaced() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    put_all(&world, &asks);
    flush(&world).await;
    let key = format!("t:r:{{{}}}", blake3::Hash::from_bytes(*asks[5].address.key.as_bytes()).to_hex());
    server.command(&format!("DEL {key}")).unwrap();
    server.command(&format!("LPUSH {key} x")).unwrap();
    let mut expected = vec![Ok("a".to_owned()); 8];
    expected[5] = Err(Missing::Corrupt);
    assert_eq!(bodies(&world, &asks).await, expected);
    assert_eq!((stats(&world).corrupt, stats(&world).breaker), (1, "closed"));
    flush(&world).await;
    assert_eq!(server.keys().len(), 7, "it is deleted");
    world.put(&asks[5], world.response(&[], "b"));
    flush(&world).await;
    check(&world, &asks[5], Ok(("b", Tier::Redis))).await;
}

#[tokio::test]
async fn a_value_of_64_mib_is_deleted_and_harms_no_other() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    put_all(&world, &asks);
    flush(&world).await;
    let key = format!("t:r:{{{}}}", blake3::Hash::from_bytes(*asks[5].address.key.as_bytes()).to_hex());
    server.command(&format!("SETRANGE {key} {} x", (64 << 20) - 1)).unwrap();
    let mut expected = vec![Ok("a".to_owned()); 8];
    expected[5] = Err(Missing::Corrupt);
    assert_eq!(bodies(&world, &asks).await, expected);
    flush(&world).await;
    assert_eq!((server.keys().len(), stats(&world).corrupt, stats(&world).timeouts), (7, 1, 0));
}

#[tokio::test]
async fn where_one_may_not_be_touched_the_others_go_alone() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    let hex = blake3::Hash::from_bytes(*asks[5].address.key.as_bytes()).to_hex();
    let others: Vec<String> = asks
        .iter()
        .enumerate()
        .filter(|(nth, _)| *nth != 5)
        .map(|(_, ask)| format!("~t:r:{{{}}}", blake3::Hash::from_bytes(*ask.address.key.as_bytes()).to_hex()))
        .collect();
    server.command(&format!("ACL SETUSER default resetkeys ~t:ledger {}", others.join(" "))).unwrap();
    put_all(&world, &asks);
    flush(&world).await;
    assert_eq!(stats(&world).dropped_writes, 1);
    server.command("ACL SETUSER default allkeys").unwrap();
    assert_eq!(server.keys().len(), 7);
    assert!(server.keys().iter().all(|key| !key.contains(hex.as_str())));
    server.command(&format!("ACL SETUSER default resetkeys ~t:ledger {}", others.join(" "))).unwrap();
    let mut expected = vec![Ok("a".to_owned()); 8];
    expected[5] = Err(Missing::Unavailable);
    reset(&server);
    assert_eq!(bodies(&world, &asks).await, expected);
    assert_eq!(calls(&server, "evalsha"), 0, "for some time none goes with others");
    assert!(stats(&world).errors > 0, "told");
}

#[tokio::test]
async fn what_the_script_could_not_store_is_not_said_to_be_stored() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(8);
    server.command("ACL SETUSER default -set").unwrap();
    put_all(&world, &asks);
    flush(&world).await;
    assert_eq!((stats(&world).dropped_writes, server.keys().len()), (8, 0));
    server.command("ACL SETUSER default +set").unwrap();
    put_all(&world, &asks);
    flush(&world).await;
    assert_eq!((stats(&world).dropped_writes, server.keys().len()), (8, 8));
}

#[tokio::test]
async fn a_batch_that_is_not_answered_costs_each_its_time_once() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(4);
    put_all(&world, &asks);
    flush(&world).await;
    server.signal("STOP");
    let found = bodies(&world, &asks).await;
    server.signal("CONT");
    assert!(found.iter().all(|found| *found == Err(Missing::Unavailable)), "{found:?}");
    assert_eq!(stats(&world).timeouts, 4);
}

#[tokio::test]
async fn a_user_without_the_right_to_scripts_looks_up_one_by_one() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let asks = asks(50);
    put_all(&world, &asks);
    flush(&world).await;
    server.command("ACL SETUSER default -evalsha -eval").unwrap();
    for _ in 0..2 {
        assert!(bodies(&world, &asks).await.into_iter().all(|body| body == Ok("a".to_owned())));
    }
    let stats = stats(&world);
    assert_eq!(
        (stats.errors, stats.timeouts, stats.breaker),
        (2, 0, "closed"),
        "one for each command of the first time"
    );
}
