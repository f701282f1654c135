//! With a real Redis.

use super::server::Server;
use super::*;
use crate::store::ledger::PurgeKind;
use crate::store::redis::{RedisConfig, Seal};

pub(super) fn redis_config(url: String) -> RedisConfig {
    RedisConfig {
        url,
        username: String::new(),
        password: None,
        sentinel_username: String::new(),
        sentinel_password: None,
        tls: None,
        prefix: "t".to_owned(),
        timeout: Duration::from_millis(500),
        max_object: 8 << 20,
        compress: true,
        seal: Seal::plain(),
    }
}

/// A store on the server, its workers attached and the epoch known.
pub(super) async fn connected(server: &Server, memory_max_size: u64) -> World {
    let redis = redis_config(format!("redis://127.0.0.1:{}", server.port));
    let world = attached(memory_max_size, redis);
    until("connecting", || state(&world) == "up").await;
    world
}

pub(super) fn attached(memory_max_size: u64, redis: RedisConfig) -> World {
    let world = World::new(&StoreConfig { redis: Some(redis), ..config(memory_max_size) });
    world.store.attach(WorkerId(0));
    world.store.attach(WorkerId(1));
    world
}

pub(super) fn stats(world: &World) -> RedisStats {
    world.store.stats().redis.unwrap()
}

pub(super) fn state(world: &World) -> &'static str {
    stats(world).state
}

/// Lets the store's tasks run until it holds, bounded.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("{what} took too long"));
}

pub(super) async fn flush(world: &World) {
    world.store.flush(Duration::from_secs(10)).await;
    assert_eq!(stats(world).pending_writes, 0);
}

pub(super) async fn check(world: &World, ask: &Ask, expected: Result<(&str, Tier), Missing>) {
    let found = world.get(ask).await;
    assert_eq!(outcome(&found), expected.map(|(body, tier)| (body, tier, false)));
}

#[tokio::test]
async fn a_second_process_serves_what_the_first_stored() {
    let server = Server::start(&[]);
    let one = connected(&server, 8 << 20).await;
    let ask = ask("/a", &[]);
    one.put(&ask, one.response(&[], "a"));
    check(&one, &ask, Ok(("a", Tier::Memory))).await;
    flush(&one).await;
    assert_eq!(server.keys().len(), 1);
    let other = connected(&server, 8 << 20).await;
    check(&other, &ask, Ok(("a", Tier::Redis))).await;
    check(&other, &ask, Ok(("a", Tier::Memory))).await;
    assert_eq!(one.store.synced().epoch, other.store.synced().epoch);
}

#[tokio::test]
async fn with_the_memory_tier_off_every_hit_comes_from_redis_but_what_waits() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let en = ask("/a", &[("accept-language", "en")]);
    let de = ask("/a", &[("accept-language", "de")]);
    assert_eq!(world.put(&en, world.response(&["accept-language"], "hello")), Put::Stored);
    check(&world, &en, Ok(("hello", Tier::Memory))).await;
    flush(&world).await;
    check(&world, &en, Ok(("hello", Tier::Redis))).await;
    check(&world, &de, Err(variant_of(&["accept-language"]))).await;
    let other = connected(&server, 0).await;
    check(&other, &de, Err(variant_of(&["accept-language"]))).await;
    check(&other, &en, Ok(("hello", Tier::Redis))).await;
    assert_eq!((world.store.stats().objects, server.keys().len()), (0, 2));
}

#[tokio::test]
async fn a_marker_replaced_by_another_process_is_seen() {
    let server = Server::start(&[]);
    let (one, other) = (connected(&server, 8 << 20).await, connected(&server, 8 << 20).await);
    let [en, de] = ["en", "de"].map(|language| ask("/a", &[("accept-language", language)]));
    one.put(&en, one.response(&["accept-language"], "hello"));
    flush(&one).await;
    check(&other, &en, Ok(("hello", Tier::Redis))).await;
    one.put(&en, one.response(&[], "for all"));
    flush(&one).await;
    check(&other, &de, Ok(("for all", Tier::Redis))).await;
}

#[tokio::test]
async fn what_is_put_before_redis_is_reached_is_written_once_it_is() {
    let server = Server::start(&[]);
    let port = server.port;
    drop(server);
    let world = attached(8 << 20, redis_config(format!("redis://127.0.0.1:{port}")));
    let ask = ask("/a", &[]);
    check(&world, &ask, Err(Missing::Unavailable)).await;
    world.put(&ask, world.response(&[], "a"));
    let server = Server::start_on(port, &[]);
    until("connecting", || state(&world) == "up").await;
    flush(&world).await;
    check(&world, &ask, Ok(("a", Tier::Memory))).await;
    check(&connected(&server, 8 << 20).await, &ask, Ok(("a", Tier::Redis))).await;
}

#[tokio::test]
async fn a_large_body_is_a_string_of_its_own() {
    let server = Server::start(&[]);
    let config = redis_config(format!("redis://127.0.0.1:{}", server.port));
    let world = attached(64 << 20, RedisConfig { compress: false, ..config });
    until("connecting", || state(&world) == "up").await;
    let ask = ask("/large", &[]);
    let body = "0123456789abcdef".repeat(3 << 16);
    world.put(&ask, world.response(&[], &body));
    check(&world, &ask, Ok((&body, Tier::Memory))).await;
    flush(&world).await;
    let keys = server.keys();
    assert_eq!(keys.iter().map(|key| key.contains("}:b:")).collect::<Vec<_>>(), [false, true]);
    check(&world, &ask, Ok((&body, Tier::Redis))).await;
    server.command(&format!("SETRANGE {} 9 X", keys[1]));
    check(&world, &ask, Err(Missing::Corrupt)).await;
    world.put(&ask, world.response(&[], &body));
    flush(&world).await;
    server.command(&format!("DEL {}", keys[1]));
    check(&world, &ask, Err(Missing::Key)).await;
    let mut larger = world.response(&[], "");
    larger.body = Bytes::from(vec![0; (8 << 20) + 1]);
    assert_eq!(world.put(&ask, larger), Put::NoRoom);
}

#[tokio::test]
async fn what_cannot_be_read_is_a_miss_deleted_and_counted() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    flush(&world).await;
    let key = server.keys().remove(0);
    let spoils: [&[&str]; 3] = [&["SETRANGE {} 30 XX"], &["SET {} foreign"], &["DEL {}", "LPUSH {} 1"]];
    for (nth, spoil) in spoils.into_iter().enumerate() {
        for command in spoil {
            server.command(&command.replace("{}", &key));
        }
        check(&world, &ask, Err(Missing::Corrupt)).await;
        flush(&world).await;
        assert_eq!((server.keys().len(), stats(&world).corrupt), (0, nth as u64 + 1), "{spoil:?}");
        check(&world, &ask, Err(Missing::Key)).await;
        world.put(&ask, world.response(&[], "a"));
        flush(&world).await;
    }
}

#[tokio::test]
async fn a_value_of_another_key_is_refused() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let (one, other) = (ask("/a", &[]), ask("/b", &[]));
    world.put(&one, world.response(&[], "a"));
    flush(&world).await;
    let from = server.keys().remove(0);
    world.put(&other, world.response(&[], "b"));
    flush(&world).await;
    let to = server.keys().into_iter().find(|key| *key != from).unwrap();
    server.command(&format!("COPY {from} {to} REPLACE"));
    check(&world, &other, Err(Missing::Corrupt)).await;
}

#[tokio::test]
async fn what_is_removed_is_gone_from_redis_too() {
    let server = Server::start(&[]);
    let world = connected(&server, 8 << 20).await;
    let [en, de] = ["en", "de"].map(|language| ask("/a", &[("accept-language", language)]));
    for ask in [&en, &de] {
        world.put(ask, world.response(&["accept-language"], "text"));
    }
    flush(&world).await;
    assert_eq!(server.keys().len(), 3);
    world.remove(&en);
    check(&world, &de, Err(Missing::Key)).await;
    flush(&world).await;
    assert_eq!(server.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn the_purge_ledger_rules_what_redis_holds() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    flush(&world).await;
    world.purge(Tag::url(&ask.target), PurgeKind::Soft).await;
    assert_eq!(outcome(&world.get(&ask).await), Ok(("a", Tier::Redis, true)));
    world.purge(Tag::url(&ask.target), PurgeKind::Hard).await;
    check(&world, &ask, Err(Missing::Purged)).await;
    world.put(&ask, world.response(&[], "b"));
    flush(&world).await;
    check(&world, &ask, Ok(("b", Tier::Redis))).await;
}

#[tokio::test]
async fn a_lost_epoch_invalidates_what_memory_holds_too() {
    let server = Server::start(&[]);
    let world = connected(&server, 8 << 20).await;
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    let before = world.store.synced().epoch;
    server.command("FLUSHALL");
    until("a new epoch", || world.store.synced().epoch != before).await;
    check(&world, &ask, Err(Missing::Purged)).await;
    world.put(&ask, world.response(&[], "b"));
    flush(&world).await;
    check(&connected(&server, 0).await, &ask, Ok(("b", Tier::Redis))).await;
}

#[tokio::test]
async fn credentials_and_a_unix_socket_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let aside = ["--user", "aside", "on", ">secret", "~t:*", "+@all"];
    let arguments = [&["--unixsocket", socket][..], &aside, &["--user", "default", "off"]].concat();
    let server = Server::start(&arguments);
    let mut wrong = redis_config(format!("redis+unix://{socket}"));
    let right = RedisConfig { username: "aside".to_owned(), password: Some("secret".to_owned()), ..wrong.clone() };
    let world = attached(0, right);
    until("connecting", || state(&world) == "up").await;
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    flush(&world).await;
    check(&world, &ask, Ok(("a", Tier::Redis))).await;
    wrong.password = Some("guess".to_owned());
    let world = attached(0, wrong);
    until("a refusal", || state(&world) == "down").await;
    assert!(server.port > 0);
}

#[tokio::test]
async fn tls_is_verified_against_the_given_authority() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("cert"), own.cert.pem()).unwrap();
    std::fs::write(path("key"), own.signing_key.serialize_pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port_text, cert, key) = (port.to_string(), path("cert"), path("key"));
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let _server = Server::start(&[&["--tls-port", &port_text, "--tls-auth-clients", "no"][..], &files].concat());
    let untrusting = redis_config(format!("rediss://127.0.0.1:{port}"));
    let trusting = RedisConfig { tls: Some(trust(own.cert.der())), ..untrusting.clone() };
    let world = attached(0, trusting);
    until("connecting", || state(&world) == "up").await;
    let world = attached(0, untrusting);
    until("a refusal", || state(&world) == "down").await;
}

fn trust(certificate: &rustls_pki_types::CertificateDer<'static>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(versions.with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn a_url_that_no_client_can_be_built_from_is_told_with_what_was_expected() {
    let fine = |url: &str| assert_eq!(redis_config(url.to_owned()).problem(), None, "{url}");
    fine("redis://localhost");
    fine("valkey://user:pw@localhost:1/3");
    fine("rediss://localhost:6380");
    fine("valkeys://localhost");
    fine("redis+unix:///run/redis.sock");
    fine("valkey+unix:///run/valkey.sock");
    fine("redis-cluster://a:7000?node=b:7001&node=c:7002");
    fine("rediss-cluster://a:7000");
    fine("valkey-cluster://a");
    fine("valkeys-cluster://user:pw@a");
    fine("redis-sentinel://a:26379?sentinelServiceName=main&node=b:26380");
    fine("rediss-sentinel://a/2?sentinelServiceName=main");
    fine("valkey-sentinel://a?sentinelServiceName=main&sentinelUsername=u&sentinelPassword=p");
    let check = |url: &str, expected: &str| {
        let problem = redis_config(url.to_owned()).problem().unwrap_or_default();
        assert!(problem.contains(expected), "{url}: {problem:?}");
    };
    check("http://localhost", "has a scheme that is not known; expected redis, rediss, redis+unix, redis-cluster");
    check("rediss+unix:///run/redis.sock", "has a scheme that is not known");
    check("redis-ring://a", "has a scheme that is not known");
    check("localhost:6379", "is not a URL; expected for example \"redis://127.0.0.1:6379\"");
    check("redis://", "has no host");
    check("redis://user@:6379", "has no host");
    check("redis+unix://", "has no path; expected for example \"redis+unix:///run/redis.sock\"");
    check("redis://localhost/x", "has a path that is not a database; expected a number of 0 to 255");
    check("redis://localhost:port", "has a host or port that cannot be read (InvalidPort)");
    check("redis://a?node=b:1", "has a parameter that is not known here; expected none, or redis-cluster://");
    check("redis-cluster://a/1", "has a database, which a cluster does not");
    check("redis-cluster://a?nodes=b:1", "has a parameter that is not known here; expected for example");
    check("redis-cluster://a?node=b", "has a node that is not a host with its port");
    check("redis-sentinel://a:26379", "does not say which service the sentinels watch; expected for example");
    check("redis-sentinel://a:26379?sentinelServiceName=", "does not say which service the sentinels watch");
    let stray = RedisConfig { sentinel_password: Some("pw".to_owned()), ..redis_config("redis://a".to_owned()) };
    assert!(stray.problem().unwrap_or_default().starts_with("names no sentinels"), "{:?}", stray.problem());
}
