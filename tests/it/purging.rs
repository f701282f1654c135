//! What each way to purge purges, what it leaves, and whom it refuses.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::load::until_up;
use crate::world::proxy::one_route;
use crate::world::{Got, Origin, Proxy, Redis, client, field, get, got, reply};

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n\n";
const FRESH: (&str, &str) = ("cache-control", "max-age=60");

/// One route over everything, and an admin listener.
fn with_admin(origin: &Origin, route: &str) -> String {
    format!("{ADMIN}{}", one_route(&origin.url(), route))
}

fn admin(proxy: &Proxy, path: &str) -> String {
    format!("http://{}{path}", proxy.running.admin.expect("an admin listener"))
}

/// Posts an order; status and answer.
async fn order(proxy: &Proxy, order: &Value) -> (u16, Value) {
    let request = client().post(admin(proxy, "/purge")).header("content-type", "application/json");
    let got = got(request.body(order.to_string()).send().await.expect("an answer")).await;
    (got.status, serde_json::from_str(&got.body).expect("JSON"))
}

/// An order that is obeyed and acknowledged.
async fn purge(proxy: &Proxy, what: Value) {
    let (status, answer) = order(proxy, &what).await;
    assert_eq!((status, &answer["acknowledged"]), (200, &json!(true)), "{what}: {answer}");
    assert!(answer["purge"].as_u64().is_some_and(|number| number > 0), "{answer}");
    assert!(answer["took_ms"].as_f64().is_some_and(|millis| millis >= 0.0), "{answer}");
}

/// GETs a URL of the proxy by the name that its host goes by.
async fn get_of(proxy: &Proxy, url: &str) -> Got {
    let (host, path) = url.split_at(url.find('/').expect("host/path"));
    got(client().get(proxy.url(path)).header("host", host).send().await.expect("an answer")).await
}

/// Which of some URLs are hits; those that are not are stored by asking.
async fn hits(proxy: &Proxy, urls: &[&str]) -> Vec<bool> {
    let mut hits = Vec::new();
    for url in urls {
        hits.push(get_of(proxy, url).await.cache_status.starts_with("aside; hit"));
    }
    hits
}

/// Stores `urls`, orders, and looks which of them are gone.
async fn check(proxy: &Proxy, urls: &[&str], what: Value, gone: &[&str]) {
    hits(proxy, urls).await;
    assert_eq!(hits(proxy, urls).await, vec![true; urls.len()], "{urls:?} are stored");
    purge(proxy, what.clone()).await;
    let expected: Vec<bool> = urls.iter().map(|url| !gone.contains(url)).collect();
    assert_eq!(hits(proxy, urls).await, expected, "{what} leaves {urls:?}");
}

#[tokio::test]
async fn an_order_purges_what_it_names_and_nothing_else() {
    let origin = Origin::start(|seen| async move {
        let tags = [FRESH, ("surrogate-key", "k1 k2"), ("cache-tag", "c d, e")];
        reply(200, if seen.target.starts_with("/pages/x") { &tags } else { &tags[..1] }, &seen.target)
    });
    let proxy = Proxy::start(&format!(
        "{ADMIN}[upstream.api]\nurl = \"{}\"\n\n\
         [[route]]\nname = \"products\"\npath = \"/products/{{id}}\"\ntags = [\"product:{{id}}\"]\n\n\
         [[route]]\nname = \"pages\"\npath = \"/pages/{{*rest}}\"\n",
        origin.url()
    ));
    let [p1, p2, other] = ["a.example/products/1", "a.example/products/2?b=1", "b.example:81/products/1"];
    let [x, below_x, xy] = ["a.example/pages/x", "a.example/pages/x/y", "a.example/pages/xy"];
    let all = [p1, p2, other, x, below_x, xy];
    let check = async |what, gone: &[&str]| check(&proxy, &all, what, gone).await;
    check(json!({ "urls": ["http://A.example:80/products/%31"] }), &[p1]).await;
    check(json!({ "urls": ["https://a.example/products/2"] }), &[]).await;
    check(json!({ "urls": ["http://b.example:81/products/1", "http://a.example/products/2?b=1"] }), &[other, p2]).await;
    check(json!({ "prefixes": ["http://a.example/pages/x/"] }), &[x, below_x]).await;
    check(json!({ "prefixes": ["http://a.example/"] }), &[p1, p2, x, below_x, xy]).await;
    check(json!({ "tags": ["product:1"] }), &[p1, other]).await;
    check(json!({ "tags": ["k2"] }), &[x, below_x, xy]).await;
    check(json!({ "tags": ["c d", "product:2"] }), &[x, below_x, xy, p2]).await;
    check(json!({ "routes": ["products"] }), &[p1, p2, other]).await;
    check(json!({ "hosts": ["b.example"] }), &[other]).await;
    check(json!({ "all": true }), &all).await;
}

#[tokio::test]
async fn what_is_purged_softly_is_validated_and_covers_a_failing_upstream() {
    let origin = Origin::start(|seen| async move {
        let tagged = [FRESH, ("etag", "\"v1\"")];
        match seen.nth {
            0 => reply(200, &tagged, "content"),
            1 if seen.fields.contains_key("if-none-match") => reply(304, &tagged, ""),
            _ => reply(500, &[], ""),
        }
    });
    let proxy = Proxy::start(&with_admin(&origin, ""));
    get_of(&proxy, "a.example/a").await;
    purge(&proxy, json!({ "urls": ["http://a.example/a"], "soft": true })).await;
    let validated = get_of(&proxy, "a.example/a").await;
    assert_eq!((validated.body.as_str(), origin.count("/a")), ("content", 2), "{validated:?}");
    purge(&proxy, json!({ "all": true, "soft": true })).await;
    let stale = get_of(&proxy, "a.example/a").await;
    assert_eq!((stale.status, stale.body.as_str(), origin.count("/a")), (200, "content", 3), "{stale:?}");
    purge(&proxy, json!({ "all": true })).await;
    assert_eq!(get_of(&proxy, "a.example/a").await.status, 500, "nothing is left");
}

#[tokio::test]
async fn all_variants_and_all_contents_of_a_url_are_purged() {
    let origin = Origin::start(|seen| async move {
        let language = seen.fields.get("accept-language").map(|value| value.to_str().unwrap().to_owned());
        let body = format!("{} {language:?} {}", String::from_utf8_lossy(&seen.body), seen.nth);
        reply(200, &[FRESH, ("vary", "accept-language")], &body)
    });
    let proxy = Proxy::start(&format!(
        "{}\n[[route]]\nname = \"search\"\npath = \"/search\"\nmethods = [\"POST\"]\nkey = {{ body = \"json\" }}\n",
        with_admin(&origin, "")
    ));
    let ask = async |method: Method, path: &str, language: &str, body: &'static str| {
        let request = client().request(method, proxy.url(path)).header("accept-language", language);
        got(request.header("host", "a.example").body(body).send().await.unwrap()).await.cache_status
    };
    let asks = [
        ("GET", "/a", "en", ""),
        ("GET", "/a", "de", ""),
        ("POST", "/search", "en", "{}"),
        ("POST", "/search", "en", "[]"),
    ];
    for round in 0..3 {
        for (method, path, language, body) in asks {
            let status = ask(method.parse().unwrap(), path, language, body).await;
            let is_hit = status.starts_with("aside; hit");
            assert_eq!(is_hit, round == 1, "{method} {path} {language} {body}: {status}");
        }
        if round == 1 {
            purge(&proxy, json!({ "urls": ["http://a.example/a", "http://a.example/search"] })).await;
        }
    }
}

#[tokio::test]
async fn a_url_means_all_that_has_its_key() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&with_admin(&origin, "key = { query = \"tracking\" }"));
    let check_one = async |stored: &str, ordered: &str| {
        check(&proxy, &[stored, "a.example/kept"], json!({ "urls": [ordered] }), &[stored]).await;
    };
    check_one("a.example/a?utm_source=x", "http://a.example/a").await;
    check_one("a.example/a", "http://a.example/a?gclid=1").await;
    check_one("a.example/a?y=2&x=1", "http://a.example/a?x=1&y=2").await;
    check_one("a.example/a?x=1&y=2", "http://a.example/a?y=2&fbclid=3&x=1").await;
    check_one("a.example/a?x=%7Eb&%79=%c3%a9", "http://a.example/a?x=~b&y=\u{e9}").await;
    check_one("a.example/a?", "http://a.example/a").await;
    check_one("a.example:443/a", "https://a.example/a").await;
    check_one("a.example/a", "https://a.example/a?").await;
    check(&proxy, &["a.example/a?x=1"], json!({ "urls": ["http://a.example/a?x=2"] }), &[]).await;
    check(&proxy, &["a.example:8080/a"], json!({ "urls": ["http://a.example/a"] }), &[]).await;
}

#[tokio::test]
async fn a_parameter_in_a_tag_is_what_the_path_means() {
    let origin = Origin::counting(&[FRESH]);
    let toml = format!(
        "{ADMIN}[upstream.api]\nurl = \"{}\"\n\n[[route]]\npath = \"/p/{{id}}\"\ntags = [\"product:{{id}}\"]\n",
        origin.url()
    );
    let proxy = Proxy::start(&toml);
    let urls = ["a.example/p/a%20b", "a.example/p/%c3%a9", "a.example/p/a%0Ab", "a.example/p/%ff"];
    check(&proxy, &urls, json!({ "tags": ["product:a b"] }), &urls[..1]).await;
    check(&proxy, &urls, json!({ "tags": ["product:\u{e9}"] }), &urls[1..2]).await;
    check(&proxy, &urls, json!({ "tags": ["product:a%0Ab"] }), &urls[2..3]).await;
    check(&proxy, &urls, json!({ "tags": ["product:%FF"] }), &urls[3..]).await;
}

#[tokio::test]
async fn a_pattern_is_a_name_like_any_other() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&with_admin(&origin, "tags = [\"product\"]"));
    let urls = ["a.example/a", "a.example/b/c"];
    check(&proxy, &urls, json!({ "tags": [".*", "prod*", "(a+)+$"] }), &[]).await;
    check(&proxy, &urls, json!({ "urls": ["http://a.example/.*", "http://a.example/*"] }), &[]).await;
}

#[tokio::test]
async fn what_is_stored_for_every_host_is_purged_by_any() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&with_admin(&origin, "key = { host = false, query = { allow = [\"id\"] } }"));
    let urls = ["a.example/b/c?id=1&x=2", "a.example/d"];
    let check = async |what| check(&proxy, &urls, what, &urls[..1]).await;
    check(json!({ "urls": ["http://other.example/b/c?id=1"] })).await;
    check(json!({ "urls": ["/b/c?y=1&id=1"] })).await;
    check(json!({ "prefixes": ["http://other.example:81/b/"] })).await;
    check(json!({ "prefixes": ["/b/"] })).await;
    hits(&proxy, &urls).await;
    purge(&proxy, json!({ "hosts": ["other.example"] })).await;
    assert_eq!(hits(&proxy, &urls).await, [false, false]);
    let deleted = client().delete(proxy.url("/b/c?x=1&id=1")).header("host", "third.example").send().await.unwrap();
    assert_eq!(deleted.status(), 200);
    assert_eq!(hits(&proxy, &urls).await, [false, true], "an unsafe request for an alias");
}

#[tokio::test]
async fn orders_that_are_none_are_refused_with_what_was_expected() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&with_admin(&origin, ""));
    hits(&proxy, &["a.example/a"]).await;
    let refused = async |what: Value, problems: &[&str]| {
        let (status, answer) = order(&proxy, &what).await;
        let error = answer["error"].as_str().expect("an error");
        assert_eq!(status, 400, "{what}");
        problems.iter().for_each(|problem| assert!(error.contains(problem), "{what}: {error}"));
    };
    refused(json!({}), &["names nothing"]).await;
    refused(json!({ "urls": ["/a"] }), &["\"/a\" has no host"]).await;
    refused(json!({ "urls": "x", "all": 1, "route": [] }), &["urls is not", "all is not", "\"route\" is not known"])
        .await;
    refused(json!({ "all": true, "routes": ["pages"] }), &["\"pages\" is not a route", "\"all\""]).await;
    refused(json!({ "tags": vec!["a"; 1001] }), &["1001"]).await;
    let large = order(&proxy, &json!({ "tags": ["x".repeat(70_000)] })).await;
    assert_eq!((large.0, large.1["error"].is_string()), (413, true), "{large:?}");
    assert_eq!(hits(&proxy, &["a.example/a"]).await, [true], "a refused order purges nothing");
    assert_eq!(proxy.stats().await["events"]["purged"], Value::Null);
}

#[tokio::test]
async fn only_who_may_purges_on_the_admin_listener() {
    let origin = Origin::counting(&[FRESH]);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "geheim\n").unwrap();
    let open = Proxy::start(&with_admin(&origin, ""));
    let guarded = with_admin(&origin, "")
        .replace("127.0.0.1:0\"\n", &format!("127.0.0.1:0\"\ntoken = \"file:{}\"\n", secret.path().display()));
    let guarded = Proxy::start(&guarded);
    let ask = async |proxy: &Proxy, method: Method, fields: &[(&str, &str)]| {
        let mut request = client().request(method, admin(proxy, "/purge")).body("{\"all\":true}");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.send().await.expect("an answer")
    };
    let json = ("content-type", "application/json");
    let status =
        async |proxy: &Proxy, fields: &[(&str, &str)]| ask(proxy, Method::POST, fields).await.status().as_u16();
    assert_eq!(status(&open, &[json]).await, 200);
    assert_eq!(status(&open, &[("content-type", "text/plain")]).await, 415);
    assert_eq!(status(&open, &[]).await, 415);
    assert_eq!(status(&open, &[json, ("origin", "http://evil.test")]).await, 403);
    assert_eq!(status(&open, &[json, ("host", "evil.test")]).await, 421);
    let bearer = ("authorization", "Bearer geheim");
    assert_eq!(status(&guarded, &[json]).await, 401);
    assert_eq!(status(&guarded, &[json, ("authorization", "Bearer x")]).await, 401);
    assert_eq!(status(&guarded, &[json, bearer]).await, 200);
    assert_eq!(status(&guarded, &[json, bearer, ("origin", "http://admin.test")]).await, 200);
    assert_eq!(status(&guarded, &[bearer]).await, 415);
    let read = ask(&open, Method::GET, &[]).await;
    assert_eq!((read.status().as_u16(), field(&read, "allow")), (405, "POST".to_owned()));
    assert_eq!(get(&client(), &admin(&open, "/healthz")).await.status, 200);
}

#[tokio::test]
async fn the_method_purge_is_a_method_like_any_other_unless_it_is_on() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let passed = client().request(Method::from_bytes(b"PURGE").unwrap(), proxy.url("/a")).send().await.unwrap();
    assert_eq!(passed.status(), 200);
    assert_eq!(origin.seen()[0].method.as_str(), "PURGE");
}

#[tokio::test]
async fn the_method_purge_purges_its_url_for_who_may() {
    let origin = Origin::start(|seen| async move {
        let fields = [FRESH, ("etag", "\"v1\"")];
        let status = if seen.fields.contains_key("if-none-match") { 304 } else { 200 };
        reply(status, &fields, if status == 200 { "content" } else { "" })
    });
    let toml =
        |server: &str| format!("[server]\n{server}\n\n{}", one_route(&origin.url(), "key = { query = \"tracking\" }"));
    let send = async |proxy: &Proxy, url: &str, fields: &[(&str, &str)]| {
        let (host, path) = url.split_at(url.find('/').unwrap());
        let mut request = client().request(Method::from_bytes(b"PURGE").unwrap(), proxy.url(path)).header("host", host);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let got = got(request.send().await.expect("an answer")).await;
        (got.status, serde_json::from_str::<Value>(&got.body).expect("JSON"))
    };
    let proxy = Proxy::start(&toml("purge = { allow = [\"127.0.0.0/8\"] }"));
    let urls = ["a.example/a?utm_source=x", "a.example/b", "b.example/a"];
    hits(&proxy, &urls).await;
    let (status, answer) = send(&proxy, "a.example/a", &[]).await;
    assert_eq!((status, &answer["acknowledged"]), (200, &json!(true)), "{answer}");
    assert_eq!(hits(&proxy, &urls).await, [false, true, true]);
    assert_eq!(send(&proxy, "a.example/b", &[("soft-purge", "1")]).await.0, 200);
    let validated = get_of(&proxy, "a.example/b").await;
    assert!(validated.cache_status.contains("fwd-status=304"), "{validated:?}");
    assert_eq!(send(&proxy, "a.example/b", &[("soft-purge", "yes")]).await.0, 400);
    for forwarded in [("x-forwarded-for", "127.0.0.1"), ("via", "1.1 x"), ("forwarded", "for=127.0.0.1")] {
        let (status, answer) = send(&proxy, "a.example/a", &[forwarded]).await;
        assert_eq!((status, answer["error"].is_string()), (403, true), "{forwarded:?}");
    }
    assert_eq!(hits(&proxy, &urls).await, [true, true, true]);

    let distant = Proxy::start(&toml("purge = { allow = [\"10.0.0.0/8\"] }\ntrusted_proxies = [\"127.0.0.1\"]"));
    hits(&distant, &urls).await;
    assert_eq!(send(&distant, "a.example/b", &[]).await.0, 403);
    assert_eq!(send(&distant, "a.example/b", &[("x-forwarded-for", "192.0.2.1")]).await.0, 403);
    assert_eq!(hits(&distant, &urls).await, [true, true, true]);
    assert_eq!(send(&distant, "a.example/b", &[("x-forwarded-for", "10.1.1.1")]).await.0, 200);
    assert_eq!(hits(&distant, &urls).await, [true, false, true]);
    assert!(origin.seen().iter().all(|seen| seen.method == "GET"), "no PURGE reaches the upstream");
}

#[tokio::test]
async fn an_unsafe_request_purges_what_routes_cache_and_its_cache_groups() {
    let origin = Origin::start(|seen| async move {
        match seen.method.as_str() {
            "GET" if seen.target.starts_with("/cached/g") => {
                reply(200, &[FRESH, ("cache-groups", "\"shop\"")], &seen.target)
            }
            "GET" => reply(200, &[FRESH], &seen.target),
            _ if seen.target == "/groups" => reply(204, &[("cache-group-invalidation", "\"shop\"")], ""),
            _ => reply(204, &[], ""),
        }
    });
    let proxy = Proxy::start(&format!(
        "{ADMIN}[upstream.api]\nurl = \"{}\"\n\n[[route]]\npath = \"/cached/{{*rest}}\"\nkey = {{ query = \"tracking\" }}\n",
        origin.url()
    ));
    let post = async |path: &str| {
        client().post(proxy.url(path)).header("host", "a.example").body("x").send().await.unwrap();
    };
    let purges = async || proxy.stats().await["events"]["purged"].as_u64().unwrap_or(0);
    let urls = ["a.example/cached/g1", "a.example/cached/g2", "a.example/cached/a?gclid=1"];
    hits(&proxy, &urls).await;
    post("/elsewhere").await;
    assert_eq!(purges().await, 0, "no route caches it");
    post("/cached/a?gclid=2").await;
    assert_eq!((hits(&proxy, &urls).await, purges().await), (vec![true, true, false], 1));
    let (status, answer) = order(&proxy, &json!({ "tags": [format!("group:http://a.example shop")] })).await;
    assert_eq!(status, 400, "{answer}");
    post("/groups").await;
    assert_eq!((hits(&proxy, &urls).await, purges().await), (vec![false, false, true], 2));
}

/// Two processes on one Redis.
async fn two(origin: &Origin, redis: &Redis) -> [Proxy; 2] {
    let toml = format!(
        "[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n\n{}",
        redis.url(),
        with_admin(origin, "tags = [\"all\"]\nkey = { host = false }")
    );
    let proxies = [Proxy::start(&toml), Proxy::start(&toml)];
    for proxy in &proxies {
        until_up(proxy).await;
    }
    proxies
}

#[tokio::test]
async fn an_order_is_obeyed_by_every_process_and_told_of_when_redis_is_gone() {
    let (origin, mut redis) = (Origin::counting(&[FRESH]), Redis::start());
    let [one, two] = two(&origin, &redis).await;
    hits(&one, &["x/a"]).await;
    hits(&two, &["x/a"]).await;
    assert_eq!(hits(&two, &["x/a"]).await, [true]);
    let before = origin.count("/a");
    purge(&one, json!({ "tags": ["all"] })).await;
    let begun = std::time::Instant::now();
    while origin.count("/a") == before {
        get_of(&two, "x/a").await;
        assert!(begun.elapsed() < Duration::from_secs(10), "the other process did not obey");
    }
    redis.kill();
    hits(&one, &["x/c", "x/c"]).await;
    let (status, answer) = order(&one, &json!({ "urls": ["/c"] })).await;
    assert_eq!((status, &answer["acknowledged"], &answer["purge"]), (503, &json!(false), &Value::Null), "{answer}");
    assert!(answer["error"].as_str().is_some_and(|why| why.starts_with("redis ")), "{answer}");
    assert_eq!(hits(&one, &["x/c"]).await, [false], "it is obeyed all the same");
}

#[tokio::test]
async fn the_backend_orders_through_redis() {
    let (origin, redis) = (Origin::counting(&[FRESH]), Redis::start());
    let [one, two] = two(&origin, &redis).await;
    let publish = |order: &str| {
        let heard = redis.command(&format!("PUBLISH aside:purge '{order}'")).expect("redis answers");
        assert_eq!(heard.trim(), ":2", "both processes hear it");
    };
    for proxy in [&one, &two] {
        assert_eq!(hits(proxy, &["x/a", "x/b"]).await.len(), 2);
        assert_eq!(hits(proxy, &["x/a", "x/b"]).await, [true, true]);
    }
    for wrong in ["{", "{\"tag\":[\"all\"]}", "{}"] {
        publish(wrong);
    }
    publish("{\"urls\":[\"/a\"]}");
    for proxy in [&one, &two] {
        let begun = std::time::Instant::now();
        while proxy.stats().await["events"]["purged"] != 1 {
            assert!(begun.elapsed() < Duration::from_secs(10), "the order is not obeyed");
        }
        assert_eq!(proxy.stats().await["events"]["purge_refused"], 1, "told once, not for each");
    }
    let asked = origin.count("/a");
    assert_eq!(hits(&one, &["x/a", "x/b"]).await, [false, true]);
    assert_eq!(origin.count("/a"), asked + 1);
    let other = get_of(&two, "x/a").await;
    assert!(other.body == format!("/a {asked}") || origin.count("/a") == asked + 2, "{other:?}");
    assert_eq!(hits(&two, &["x/b"]).await, [true]);
}
