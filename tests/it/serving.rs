//! Misses, hits, freshness, and what passes the cache by.

use std::time::Duration;

use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, client, field, get, reply};

#[tokio::test]
async fn a_miss_is_followed_by_hits_until_the_ttl_has_passed() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\"\nttl_jitter = 0.0"));
    let (client, url) = (client(), proxy.url("/a"));
    let miss = get(&client, &url).await;
    assert_eq!(
        (miss.body.as_str(), miss.cache_status.as_str()),
        ("/a 0", "aside; fwd=uri-miss; fwd-status=200; stored")
    );
    proxy.clock.advance(Duration::from_secs(18));
    let hit = get(&client, &url).await;
    assert_eq!((hit.body.as_str(), hit.cache_status.as_str()), ("/a 0", "aside; hit; ttl=42"));
    proxy.clock.advance(Duration::from_secs(42));
    let stale = get(&client, &url).await;
    assert_eq!(
        (stale.body.as_str(), stale.cache_status.as_str()),
        ("/a 1", "aside; fwd=stale; fwd-status=200; stored")
    );
}

#[tokio::test]
async fn the_origins_freshness_wins_over_the_routes_ttl() {
    let origin = Origin::counting(&[("cache-control", "max-age=10")]);
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1h\""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    assert_eq!(get(&client, &url).await.cache_status, "aside; hit; ttl=10");
    proxy.clock.advance(Duration::from_secs(11));
    assert_eq!(get(&client, &url).await.body, "/a 1");
}

#[tokio::test]
async fn a_stale_response_is_validated_and_freshened_by_a_304() {
    let origin = Origin::start(|seen| async move {
        match seen.fields.get("if-none-match") {
            Some(_) => reply(304, &[("etag", "\"v1\""), ("cache-control", "max-age=60")], ""),
            None => reply(200, &[("etag", "\"v1\""), ("cache-control", "max-age=60")], "content"),
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(61));
    let validated = get(&client, &url).await;
    assert_eq!(validated.cache_status, "aside; fwd=stale; fwd-status=304; stored");
    assert_eq!(validated.body, "content");
    assert_eq!(get(&client, &url).await.cache_status, "aside; hit; ttl=60");
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn conditions_and_ranges_of_the_client_are_answered_from_the_store() {
    let origin =
        Origin::start(|_| async { reply(200, &[("etag", "\"v1\""), ("cache-control", "max-age=60")], "0123456789") });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    let matching = client.get(&url).header("if-none-match", "\"v1\"").send().await.unwrap();
    assert_eq!(matching.status(), 304);
    let range = client.get(&url).header("range", "bytes=2-4").send().await.unwrap();
    assert_eq!((range.status().as_u16(), field(&range, "content-range")), (206, "bytes 2-4/10".to_owned()));
    assert_eq!(range.text().await.unwrap(), "234");
    let ranges = client.get(&url).header("range", "bytes=0-0,8-9").send().await.unwrap();
    assert_eq!(ranges.status(), 206);
    assert!(field(&ranges, "content-type").starts_with("multipart/byteranges; boundary="));
    let beyond = client.get(&url).header("range", "bytes=10-").send().await.unwrap();
    assert_eq!((beyond.status().as_u16(), field(&beyond, "content-range")), (416, "bytes */10".to_owned()));
    let head = client.head(&url).send().await.unwrap();
    assert_eq!((head.status().as_u16(), field(&head, "content-length")), (200, "10".to_owned()));
    assert_eq!(origin.count("/a"), 1);
}

#[tokio::test]
async fn requests_with_cookies_or_credentials_never_meet_the_store() {
    let origin = Origin::start(|seen| async move {
        let who = ["cookie", "authorization", "x-api-key"]
            .map(|name| seen.fields.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default());
        reply(200, &[("cache-control", "max-age=60")], &format!("for {}", who.concat()))
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    for (name, detail) in [("cookie", "cookie"), ("authorization", "credentials"), ("x-api-key", "credentials")] {
        let answer = client.get(&url).header(name, "alice").send().await.unwrap();
        assert_eq!(field(&answer, "cache-status"), format!("aside; fwd=bypass; fwd-status=200; detail={detail}"));
        assert_eq!(answer.text().await.unwrap(), "for alice");
        assert_eq!(get(&client, &url).await.body, "for ");
    }
    assert_eq!(origin.count("/a"), 4, "three bypasses and one miss");
}

#[tokio::test]
async fn a_response_that_sets_a_cookie_is_not_stored() {
    let origin = Origin::counting(&[("cache-control", "max-age=60"), ("set-cookie", "id=1")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    let first = get(&client, &url).await;
    assert_eq!(first.cache_status, "aside; fwd=uri-miss; fwd-status=200; detail=set-cookie");
    assert_eq!(get(&client, &url).await.body, "/a 1");
}

#[tokio::test]
async fn a_failing_upstream_is_bridged_by_what_is_stale() {
    let origin = Origin::start(|seen| async move {
        if seen.nth == 0 { reply(200, &[("cache-control", "max-age=10")], "good") } else { reply(500, &[], "bad") }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(30));
    let stale = get(&client, &url).await;
    assert_eq!((stale.status, stale.body.as_str()), (200, "good"));
    assert_eq!(stale.cache_status, "aside; hit; ttl=-20; detail=stale-if-error");
    proxy.clock.advance(Duration::from_secs(60));
    assert_eq!(get(&client, &url).await.status, 500, "a minute is the default window");
}

#[tokio::test]
async fn a_dead_upstream_is_bridged_too_and_without_a_stored_response_is_a_502() {
    let origin = Origin::counting(&[("cache-control", "max-age=10")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    drop(origin);
    proxy.clock.advance(Duration::from_secs(30));
    // The pooled connection may outlive its listener for one answer; what is stored is served either way.
    assert_eq!(get(&client, &url).await.status, 200);
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_fetches_behind() {
    let origin = Origin::counting(&[("cache-control", "max-age=10, stale-while-revalidate=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(20));
    let stale = get(&client, &url).await;
    assert_eq!(
        (stale.body.as_str(), stale.cache_status.as_str()),
        ("/a 0", "aside; hit; ttl=-10; detail=stale-while-revalidate")
    );
    while get(&client, &url).await.body == "/a 0" {
        tokio::task::yield_now().await;
    }
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn what_no_route_matches_is_proxied_uncached() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let toml =
        format!("[upstream.api]\nurl = \"{}\"\n\n[[route]]\npath = \"/v1/{{*rest}}\"\nttl = \"1m\"\n", origin.url());
    let proxy = Proxy::start(&toml);
    let (client, url) = (client(), proxy.url("/other"));
    assert_eq!(get(&client, &url).await.cache_status, "aside; fwd=bypass; fwd-status=200; detail=no-route");
    assert_eq!(get(&client, &url).await.body, "/other 1");
}

#[tokio::test]
async fn unkeyed_parameters_reach_neither_key_nor_upstream() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), "key = { query = { deny = [\"tracking\"] } }"));
    let client = client();
    get(&client, &proxy.url("/a?b=2&utm_source=x&a=1")).await;
    let hit = get(&client, &proxy.url("/a?a=1&b=2&gclid=7")).await;
    assert_eq!(hit.body, "/a?a=1&b=2 0");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn cache_stats_tell_what_happened() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    for _ in 0..4 {
        get(&client, &proxy.url("/a")).await;
    }
    let cookie = client.get(proxy.url("/a")).header("cookie", "a=b").send().await.unwrap();
    drop(cookie.text().await);
    let stats = proxy.stats().await;
    let route = &stats["routes"]["all"];
    assert_eq!(route["requests"], 5, "{stats:#}");
    assert_eq!((&route["hits"], &route["hits_memory"], &route["misses"]), (&3.into(), &3.into(), &1.into()));
    assert_eq!((&route["bypassed"], &route["bypass_reasons"]["cookie"]), (&1.into(), &1.into()));
    assert_eq!(route["hit_ratio"], 0.75);
    assert_eq!(stats["memory"]["objects"], 1);
    assert_eq!(stats["redis"], serde_json::Value::Null);
    assert_eq!(stats["config"]["generation"], 1);
    assert_eq!((&stats["process"]["fills"], &stats["process"]["tunnels"]), (&0.into(), &0.into()));
    assert!(stats["process"]["tasks"].as_u64().is_some_and(|tasks| tasks > 0), "{stats:#}");
}

#[tokio::test]
async fn every_request_leaves_one_access_log_line() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let toml = format!("[log]\nformat = \"json\"\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let client = client();
    get(&client, &proxy.url("/a?b=c")).await;
    get(&client, &proxy.url("/a?b=c")).await;
    let lines: Vec<serde_json::Value> =
        proxy.stopped_lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, cache_status) in lines.iter().zip(["aside; fwd=uri-miss; fwd-status=200; stored", "aside; hit; ttl=60"])
    {
        assert_eq!((&line["method"], &line["path"], &line["status"]), (&"GET".into(), &"/a?b=c".into(), &200.into()));
        assert_eq!((&line["cache_status"], &line["bytes"]), (&cache_status.into(), &8.into()));
    }
}
