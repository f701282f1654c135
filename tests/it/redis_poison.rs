//! What somebody else has put into Redis: it is a miss, counted and deleted, and no client sees anything of it.

use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::json;
use tempfile::TempDir;

use crate::world::load::{until, until_up};
use crate::world::{Got, Origin, Proxy, Redis, client, get, got, reply};

/// One route without a memory tier, whose keys all hosts share; with further keys of `[redis]`.
fn toml(upstream: &str, redis: &Redis, more: &str) -> String {
    format!(
        "[memory]\nmax_size = \"0\"\n[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{more}\n[upstream.api]\n\
         url = \"{upstream}\"\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\nttl = \"10m\"\nttl_jitter = 0.0\n\
         key = {{ host = false }}\n",
        redis.url()
    )
}

async fn connected(upstream: &str, redis: &Redis, more: &str) -> Proxy {
    let proxy = Proxy::start(&toml(upstream, redis, more));
    until_up(&proxy).await;
    proxy
}

/// What Redis' part of the figures is once nothing waits to be written.
async fn settled(proxy: &Proxy) -> serde_json::Value {
    let begun = Instant::now();
    loop {
        let told = proxy.stats().await["redis"].clone();
        if told["pending_writes"] == 0 {
            return told;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "writes are not done: {told:#}");
    }
}

/// Something of Redis' that is not what the proxy has put there.
struct Poisoned<'a> {
    client: Client,
    origin: &'a Origin,
    redis: &'a Redis,
    proxy: Proxy,
    key: String,
}

impl<'a> Poisoned<'a> {
    /// Stores `/a` in an empty Redis.
    async fn new(origin: &'a Origin, redis: &'a Redis, more: &str) -> Self {
        let (client, proxy) = (client(), connected(&origin.url(), redis, more).await);
        get(&client, &proxy.url("/a")).await;
        settled(&proxy).await;
        let key = redis.records().pop().expect("a record");
        Self { client, origin, redis, proxy, key }
    }

    async fn ask(&self) -> Got {
        get(&self.client, &self.proxy.url("/a")).await
    }

    /// What `poison` does to the record is a miss that is told and counted; the next request is a hit of what was fetched.
    async fn check(&self, what: &str, poison: impl FnOnce(&Redis, &str)) {
        let before = settled(&self.proxy).await;
        let nth = self.origin.count("/a");
        poison(self.redis, &self.key);
        let clean = self.ask().await;
        assert_eq!((clean.status, clean.body), (200, format!("/a {nth}")), "{what}");
        assert_eq!(clean.cache_status, "aside; fwd=miss; fwd-status=200; stored; detail=corrupt-record", "{what}");
        let after = settled(&self.proxy).await;
        let corrupt = |told: &serde_json::Value| told["corrupt"].as_u64().expect("a count");
        assert_eq!(corrupt(&after), corrupt(&before) + 1, "{what}");
        assert_eq!((&after["timeouts"], &after["breaker"]), (&json!(0), &json!("closed")), "{what}");
        let again = self.ask().await;
        assert!(again.cache_status.starts_with("aside; hit"), "{what}: {again:?}");
        assert_eq!(again.body, format!("/a {nth}"), "{what}");
    }
}

#[tokio::test]
async fn records_that_were_changed() {
    let (origin, redis) = (Origin::counting(&[("x-mine", "yes")]), Redis::start());
    let poisoned = Poisoned::new(&origin, &redis, "").await;
    let length = redis.value(&poisoned.key).len();
    // The head byte by byte, the rest in strides: each record is of the same length, but for its times.
    for at in (0..24).chain((24..length).step_by(11)) {
        poisoned
            .check(&format!("byte {at}"), |redis, key| {
                let mut record = redis.value(key);
                record[at] ^= 1 << (at % 8);
                redis.set(key, &record);
            })
            .await;
    }
    for cut in [1, 2, 3, 18, 19, 20, length / 2, length - 1] {
        poisoned.check(&format!("cut at {cut}"), |redis, key| redis.set(key, &redis.value(key)[..cut])).await;
    }
    poisoned.check("longer", |redis, key| redis.set(key, &[&redis.value(key)[..], b"x"].concat())).await;
}

#[tokio::test]
async fn values_that_never_were_records() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let poisoned = Poisoned::new(&origin, &redis, "").await;
    for value in [
        &b"{\"json\":1}"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        b"\xC0",
        b"\xC0\x01\x01older",
        b"\xC0\xFF\x01newer",
        b"\0",
        &[0xC0; 4096],
    ] {
        poisoned.check(&format!("{value:?}"), |redis, key| redis.set(key, value)).await;
    }
    for (kind, command) in [
        ("a list", "LPUSH {} a b"),
        ("a hash", "HSET {} a b"),
        ("a set", "SADD {} a b"),
        ("a sorted set", "ZADD {} 1 a"),
        ("a stream", "XADD {} * a b"),
        ("a bitmap", "SETBIT {} 9999 1"),
        ("64 MiB", "SETRANGE {} 67108864 x"),
    ] {
        let poison = |redis: &Redis, key: &str| {
            redis.tell(&format!("DEL {key}"));
            redis.tell(&command.replace("{}", key));
        };
        poisoned.check(kind, poison).await;
    }
    // No string is none at all.
    let nth = origin.count("/a");
    redis.set(&poisoned.key, b"");
    assert_eq!(poisoned.ask().await.body, format!("/a {nth}"));
}

#[tokio::test]
async fn records_of_another_key() {
    let (origin, redis) = (Origin::counting(&[]), Redis::start());
    let poisoned = Poisoned::new(&origin, &redis, "").await;
    get(&poisoned.client, &poisoned.proxy.url("/evil")).await;
    settled(&poisoned.proxy).await;
    let other = redis.records().into_iter().find(|key| *key != poisoned.key).expect("another");
    poisoned.check("another's", |redis, key| redis.set(key, &redis.value(&other))).await;
}

#[tokio::test]
async fn large_bodies_that_were_changed() {
    let body = (0..3 << 20).map(|_| char::from(fastrand::u8(b'a'..=b'z'))).collect::<String>();
    let sent = body.clone();
    let origin = Origin::start(move |_| {
        let body = sent.clone();
        async move { reply(200, &[], &body) }
    });
    let redis = Redis::start();
    let proxy = connected(&origin.url(), &redis, "").await;
    let client = client();
    let url = proxy.url("/large");
    let ask = || get(&client, &url);
    assert_eq!(ask().await.body, body);
    for (nth, poison) in
        ["SETRANGE {} 1000 evil", "APPEND {} evil", "SET {} evil", "SETRANGE {} 67108864 x"].iter().enumerate()
    {
        settled(&proxy).await;
        let key = redis.records().into_iter().find(|key| key.contains(":b:")).expect("a body");
        redis.tell(&poison.replace("{}", &key));
        let clean = ask().await;
        assert!(
            clean.body == body && clean.cache_status.contains("detail=corrupt-record"),
            "{poison}: {}",
            clean.cache_status
        );
        assert_eq!(settled(&proxy).await["corrupt"], nth as u64 + 1, "{poison}");
        let again = ask().await;
        assert!(again.body == body && again.cache_status.starts_with("aside; hit"), "{poison}: {}", again.cache_status);
    }
}

/// A key in a file, and the line that names it.
fn key_line(folder: &TempDir, key: &str) -> String {
    let path = folder.path().join(key.replace(' ', "-"));
    std::fs::write(&path, key).expect("a file");
    format!("mac_key = \"file:{}\"", path.display())
}

/// Who writes to Redis has all but the key: what it plants is a whole record, as a proxy of its own would write it.
#[tokio::test]
async fn with_a_key_only_who_has_it_can_plant_a_response() {
    let (origin, evil, redis) =
        (Origin::counting(&[]), Origin::start(|_| async { reply(200, &[], "evil") }), Redis::start());
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (key_line(&folder, "the key of all of us"), key_line(&folder, "the key of somebody else"));
    let poisoned = Poisoned::new(&origin, &redis, &ours).await;
    for more in ["", &theirs] {
        let attacker = connected(&evil.url(), &redis, more).await;
        let plant = |redis: &Redis, key: &str| drop(redis.tell(&format!("DEL {key}")));
        plant(&redis, &poisoned.key);
        assert_eq!(get(&poisoned.client, &attacker.url("/a")).await.body, "evil");
        settled(&attacker).await;
        assert_eq!(redis.records(), std::slice::from_ref(&poisoned.key), "it is the same key");
        poisoned.check("planted", |_, _| {}).await;
    }
    let other = connected(&evil.url(), &redis, &ours).await;
    let shared = get(&poisoned.client, &other.url("/a")).await;
    assert!(shared.cache_status.starts_with("aside; hit"), "who has the key shares: {shared:?}");
    assert!(shared.body.starts_with("/a "), "{shared:?}");
}

/// Without the key, a record planted so is served: Redis is trusted then. It shows that the test above tests something.
#[tokio::test]
async fn without_a_key_redis_is_trusted() {
    let (origin, evil, redis) =
        (Origin::counting(&[]), Origin::start(|_| async { reply(200, &[], "evil") }), Redis::start());
    let (one, other) = (connected(&evil.url(), &redis, "").await, connected(&origin.url(), &redis, "").await);
    let client = client();
    get(&client, &one.url("/a")).await;
    settled(&one).await;
    assert_eq!(get(&client, &other.url("/a")).await.body, "evil");
}

/// What clients write never reaches a key of Redis as they wrote it.
#[tokio::test]
async fn keys_in_redis_are_hashes_whatever_clients_send() {
    let origin = Origin::start(|seen| async move {
        let varies = seen.fields.get("x-kind").map(|it| it.as_bytes().escape_ascii().to_string()).unwrap_or_default();
        reply(200, &[("vary", "x-kind")], &format!("{} {varies}", seen.target))
    });
    let redis = Redis::start();
    let toml = toml(&origin.url(), &redis, "").replace("key = { host = false }", "key = { host = true }");
    let proxy = Proxy::start(&toml);
    until_up(&proxy).await;
    let client = client();
    let paths = [
        "/%0D%0ASET%20aside:r:x%20evil%0D%0A",
        "/%00",
        "/{a}",
        "/%7Ba%7D",
        "/aside:r:%7B0%7D",
        "/*",
        "/?q=%0D%0ADEL%20*",
        "/?{a}=}{",
        "/%F0%9F%92%A9",
    ];
    for (nth, path) in paths.iter().enumerate() {
        for kind in ["{0}", "}{", "a b", "*"] {
            for host in ["{a}.example", "xn--a", "a.example:1"] {
                let request = || client.get(proxy.url(path)).header("x-kind", kind).header("host", host).send();
                let first = got(request().await.expect("an answer")).await;
                if first.status == 400 {
                    continue;
                }
                settled(&proxy).await;
                let again = got(request().await.expect("an answer")).await;
                assert_eq!((first.status, again.status), (200, 200), "{nth} {path} {kind} {host}");
                assert_eq!(first.body, again.body);
                assert!(again.cache_status.starts_with("aside; hit"), "{path} {kind} {host}: {again:?}");
                assert!(again.body.ends_with(&format!(" {kind}")), "{again:?}");
            }
        }
    }
    until("all are written", || redis.records().len() > 8).await;
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for key in redis.tell("KEYS *").lines() {
        let hashes: Vec<&str> = key.strip_prefix("aside:r:").map(|rest| rest.split(':').collect()).unwrap_or_default();
        let is_record = hashes.iter().all(|hash| is_hex(hash.trim_start_matches('{').trim_end_matches('}')));
        assert!(key == "aside:ledger" || (is_record && (1..=2).contains(&hashes.len())), "{key:?}");
    }
}
