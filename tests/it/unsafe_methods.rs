//! What an unsafe request makes invalid.

use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::{Origin, Proxy, Redis, client, get, reply};

fn origin() -> Origin {
    Origin::start(|seen| async move {
        match (seen.method.as_str(), seen.target.as_str()) {
            ("GET", _) => reply(200, &[("cache-control", "max-age=60")], &format!("{} {}", seen.target, seen.nth)),
            (_, "/fail") => reply(500, &[], ""),
            (_, "/elsewhere") => reply(201, &[("location", "/a")], ""),
            _ => reply(204, &[], ""),
        }
    })
}

#[tokio::test]
async fn a_successful_unsafe_request_invalidates_its_target_before_its_answer() {
    let origin = origin();
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    for (method, target, expected) in
        [("POST", "/a", "/a 2"), ("PUT", "/a", "/a 4"), ("DELETE", "/a", "/a 6"), ("POST", "/elsewhere", "/a 7")]
    {
        get(&client, &proxy.url("/a")).await;
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        client.request(method, proxy.url(target)).body("x").send().await.unwrap();
        assert_eq!(get(&client, &proxy.url("/a")).await.body, expected);
    }
}

#[tokio::test]
async fn a_failed_one_invalidates_nothing() {
    let origin = origin();
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    get(&client, &proxy.url("/fail")).await;
    client.post(proxy.url("/fail")).send().await.unwrap();
    assert_eq!(get(&client, &proxy.url("/fail")).await.body, "/fail 0");
}

#[tokio::test]
async fn the_routes_own_tags_are_purged_by_what_it_invalidates() {
    let origin = origin();
    let toml = format!(
        "[upstream.api]\nurl = \"{}\"\n\n\
         [[route]]\npath = \"/products/{{id}}\"\ntags = [\"product:{{id}}\"]\n\n\
         [[route]]\npath = \"/orders/{{id}}\"\nmethods = [\"POST\"]\ncache = true\nkey = {{ body = \"raw\" }}\n\n\
         [[route]]\npath = \"/stock/{{id}}\"\nmethods = [\"PUT\", \"GET\"]\ninvalidates = [\"product:{{id}}\"]\n",
        origin.url()
    );
    let proxy = Proxy::start(&toml);
    let client = client();
    get(&client, &proxy.url("/products/1")).await;
    get(&client, &proxy.url("/products/2")).await;
    client.put(proxy.url("/stock/1")).body("5").send().await.unwrap();
    assert_eq!(get(&client, &proxy.url("/products/1")).await.body, "/products/1 1");
    assert_eq!(get(&client, &proxy.url("/products/2")).await.body, "/products/2 0");
}

#[tokio::test]
async fn what_a_route_invalidates_does_not_wait_for_it_to_know_the_method() {
    let origin = origin();
    let toml = format!(
        "[upstream.api]\nurl = \"{}\"\n\n\
         [[route]]\npath = \"/lists/{{id}}\"\ntags = [\"list:{{id}}\"]\n\n\
         [[route]]\npath = \"/items/{{list}}\"\ninvalidates = [\"list:{{list}}\"]\n",
        origin.url()
    );
    let proxy = Proxy::start(&toml);
    let client = client();
    get(&client, &proxy.url("/lists/1")).await;
    get(&client, &proxy.url("/lists/2")).await;
    client.post(proxy.url("/items/1")).body("5").send().await.unwrap();
    assert_eq!(get(&client, &proxy.url("/lists/1")).await.body, "/lists/1 1");
    assert_eq!(get(&client, &proxy.url("/lists/2")).await.body, "/lists/2 0");
}

#[tokio::test]
async fn a_post_that_is_what_a_get_would_get_is_stored_for_gets() {
    let origin = Origin::start(|seen| async move {
        let fields = [("cache-control", "max-age=60"), ("content-location", "/a")];
        reply(200, &fields, &format!("{} {}", seen.method, seen.nth))
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    get(&client, &proxy.url("/a")).await;
    let posted = client.post(proxy.url("/a")).body("x").send().await.unwrap();
    assert_eq!(posted.text().await.unwrap(), "POST 1");
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "POST 1");
    let with_cookie = client.post(proxy.url("/a")).header("cookie", "id=1").body("x").send().await.unwrap();
    assert_eq!(with_cookie.text().await.unwrap(), "POST 2");
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "GET 3", "an answer to a cookie is nobody else's");
}

/// Posts `/a?b=1` with `fields`, which is answered with its own Content-Location; what a GET of it gets then.
async fn got_after_post(toml: &str, fields: &[(&str, &str)]) -> String {
    let proxy = Proxy::start(toml);
    let client = client();
    let url = proxy.url("/a?b=1");
    let mut post = client.post(&url).body("x");
    for (name, value) in fields {
        post = post.header(*name, *value);
    }
    assert_eq!(post.send().await.unwrap().text().await.unwrap(), "POST");
    let mut get = client.get(&url);
    for (name, value) in fields {
        get = get.header(*name, *value);
    }
    get.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_post_that_was_sent_otherwise_than_a_get_would_be_is_not_stored_for_gets() {
    let origin = Origin::start(|seen| async move {
        reply(200, &[("cache-control", "max-age=60"), ("content-location", &seen.target)], seen.method.as_str())
    });
    let check = async |route: &str, fields: &[(&str, &str)], expected: &str| {
        let got = got_after_post(&one_route(&origin.url(), route), fields).await;
        assert_eq!(got, expected, "{route} {fields:?}");
    };
    let choices = "{ name = \"x-a\", choices = [\"1\", \"2\"] }";
    let reduced = format!("key = {{ headers = [{choices}] }}");
    check("cookies = \"ignore\"", &[("x-a", "1")], "POST").await;
    check("cookies = \"ignore\"", &[("cookie", "id=1")], "GET").await;
    check("cookies = \"ignore\"\nkey = { cookies = [\"id\"] }", &[("cookie", "id=1")], "POST").await;
    check("cookies = \"ignore\"\nkey = { cookies = [\"id\"] }", &[("cookie", "id=1; other=2")], "GET").await;
    check("key = { query = { deny = [\"c\"] } }", &[], "POST").await;
    check("key = { query = { deny = [\"b\"] } }", &[], "GET").await;
    check(&reduced, &[("x-a", "2")], "POST").await;
    check(&reduced, &[("x-a", "3")], "GET").await;
    check(&reduced, &[], "GET").await;
    check("forward_headers = [\"x-b\"]", &[("x-a", "1")], "GET").await;
    let only = "methods = [\"GET\", \"POST\"]\nforward_headers = [\"x-b\"]";
    check(only, &[("x-a", "1")], "POST").await;
    check(&format!("{only}\nkey = {{ headers = [\"x-a\"] }}"), &[("x-a", "1")], "GET").await;
}

#[tokio::test]
async fn a_post_that_another_change_overtakes_is_not_stored_for_gets() {
    let redis = Redis::start();
    check_overtaken(|origin| one_route(origin, "")).await;
    check_overtaken(|origin| one_route_with_redis(origin, &redis.url(), "")).await;
}

/// A POST whose answer was made before a PUT to its target was, and comes after that.
async fn check_overtaken(toml: impl FnOnce(&str) -> String) {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = Origin::start(move |seen| {
        let mut released = released.clone();
        async move {
            let fields = [("cache-control", "max-age=60"), ("content-location", "/a")];
            match (seen.method.as_str(), seen.body.as_ref()) {
                ("PUT", _) => reply(204, &[], ""),
                ("POST", b"slow") => {
                    released.wait_for(|it| *it).await.unwrap();
                    reply(200, &fields, "before the PUT")
                }
                (method, _) => reply(200, &fields, method),
            }
        }
    });
    let proxy = Proxy::start(&toml(&origin.url()));
    if proxy.stats().await["redis"] != serde_json::Value::Null {
        crate::world::load::until_up(&proxy).await;
    }
    let client = client();
    let url = proxy.url("/a");
    let slow = async { client.post(&url).body("slow").send().await.unwrap().text().await.unwrap() };
    let put = async {
        while origin.count("/a") == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.put(&url).body("x").send().await.unwrap().status(), 204);
        release.send(true).unwrap();
    };
    let (posted, ()) = tokio::join!(slow, put);
    assert_eq!(posted, "before the PUT");
    assert_eq!(get(&client, &url).await.body, "GET");
    client.post(&url).body("quick").send().await.unwrap().text().await.unwrap();
    assert_eq!(get(&client, &url).await.body, "POST", "what nothing overtakes is stored");
}
