//! Changes of a key that overtake what waits for Redis, or comes from it.

use futures_util::FutureExt;

use super::redis::{attached, check, connected, flush, redis_config, state, stats, until};
use super::server::Server;
use super::*;

#[tokio::test]
async fn what_is_put_while_redis_answers_is_not_replaced_by_what_it_held() {
    let server = Server::start(&[]);
    let (one, other) = (connected(&server, 8 << 20).await, connected(&server, 8 << 20).await);
    let ask = ask("/a", &[("accept-language", "en")]);
    one.put(&ask, one.response(&[], "before"));
    flush(&one).await;
    let mut lookup = std::pin::pin!(other.get(&ask));
    assert!(lookup.as_mut().now_or_never().is_none());
    until("redis to answer", || server.command("INFO commandstats").unwrap().contains("cmdstat_getrange:")).await;
    other.put(&ask, other.response(&["accept-language"], "after"));
    flush(&other).await;
    assert_eq!(outcome(&lookup.await), Ok(("before", Tier::Redis, false)));
    check(&other, &ask, Ok(("after", Tier::Memory))).await;
}

#[tokio::test]
async fn what_waits_to_be_written_is_removed_however_much_else_waits() {
    let server = Server::start(&[]);
    let port = server.port;
    drop(server);
    let world = attached(0, redis_config(format!("redis://127.0.0.1:{port}")));
    let (a, full) = (ask("/a", &[]), ask("/full", &[]));
    assert_eq!(world.put(&a, world.response(&[], "a")), Put::Stored);
    let mut removed = 0;
    while stats(&world).dropped_writes == 0 {
        world.remove(&ask(&format!("/{removed}"), &[]));
        removed += 1;
        assert!(removed < 100_000, "there is a bound on what waits");
    }
    assert_eq!(world.put(&full, world.response(&[], "full")), Put::NoRoom);
    check(&world, &a, Ok(("a", Tier::Memory))).await;
    let dropped = stats(&world).dropped_writes;
    world.remove(&a);
    check(&world, &a, Err(Missing::Key)).await;
    assert_eq!(stats(&world).dropped_writes, dropped, "it takes the place of what waited");
    let server = Server::start_on(port, &[]);
    until("connecting", || state(&world) == "up").await;
    flush(&world).await;
    assert_eq!(server.keys(), Vec::<String>::new());
}
