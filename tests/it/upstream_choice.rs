//! Nobody but the configuration says which server is asked, and no request comes round again.

use std::time::Duration;

use crate::protocols::raw_exchange;
use crate::world::load::until;
use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::{Origin, Proxy, Redis, client, get, reply};

/// Two ways to configure a route: a loop must not end in waiting for itself either.
const ROUTES: [&str; 2] = ["ttl = \"1m\"", "cache = false"];

/// A proxy whose upstream is told after its start.
struct Turning {
    proxy: Proxy,
    path: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Turning {
    fn start(upstream: &str, route: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aside.toml");
        std::fs::write(&path, one_route(upstream, route)).unwrap();
        Self { proxy: Proxy::start_file(path.clone()), path, _folder: folder }
    }

    fn turn_to(&self, upstream: &str, route: &str) {
        std::fs::write(&self.path, one_route(upstream, route)).unwrap();
        self.proxy.running.reload().unwrap();
    }
}

#[tokio::test]
async fn a_proxy_that_is_its_own_upstream_answers_508() {
    let origin = Origin::counting(&[]);
    for route in ROUTES {
        let turning = Turning::start(&origin.url(), route);
        let own = turning.proxy.url("");
        turning.turn_to(&own, route);
        let got = get(&client(), &turning.proxy.url("/a")).await;
        assert_eq!((got.status, got.body.as_str()), (508, "Loop Detected\n"), "{got:?}");
        let stats = turning.proxy.stats().await;
        assert_eq!((&stats["routes"]["all"]["requests"], &stats["memory"]["objects"]), (&2.into(), &0.into()));
        turning.turn_to(&origin.url(), route);
        assert_eq!(get(&client(), &turning.proxy.url("/a")).await.status, 200, "the error was not stored");
    }
}

#[tokio::test]
async fn a_loop_over_another_proxy_is_found_whatever_that_one_removes() {
    let origin = Origin::counting(&[]);
    for route in ROUTES {
        let first = Turning::start(&origin.url(), route);
        let hiding = format!("{route}\nforward_headers = [\"accept\"]\nrequest_headers = {{ remove = [\"via\"] }}");
        for others in [route, &hiding] {
            let second = Proxy::start(&one_route(&first.proxy.url(""), others));
            first.turn_to(&second.url(""), route);
            let got = get(&client(), &first.proxy.url("/a")).await;
            assert_eq!(got.status, 508, "{others}: {got:?}");
        }
    }
}

#[tokio::test]
async fn proxies_in_a_row_are_no_loop() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let last = Proxy::start(&one_route(&origin.url(), ""));
    let middle = Proxy::start(&one_route(&last.url(""), ""));
    let first = Proxy::start(&one_route(&middle.url(""), ""));
    let request = client().get(first.url("/a")).header("cdn-loop", "another; v=\"1\"");
    assert_eq!(request.send().await.unwrap().text().await.unwrap(), "/a 0");
    let seen = &origin.seen()[0].fields;
    let names: Vec<&str> = seen.get_all("cdn-loop").iter().map(|it| it.to_str().unwrap()).collect();
    assert_eq!((names.len(), names[0]), (4, "another; v=\"1\""), "{names:?}");
    assert!(names[1..].iter().all(|name| name.starts_with("aside-")), "{names:?}");
}

#[tokio::test]
async fn no_message_chooses_the_server() {
    let (origin, evil) = (Origin::counting(&[]), Origin::counting(&[]));
    for rule in ["upstream", "preserve"] {
        let toml = format!(
            "[upstream.api]\nurl = \"{}\"\nhost = \"{rule}\"\n\n[[route]]\npath = \"/{{*rest}}\"\nttl = \"1m\"\n",
            origin.url()
        );
        let proxy = Proxy::start(&toml);
        let there = evil.address;
        for (nth, request) in [
            format!("GET http://{there}/a HTTP/1.1\r\nhost: {there}\r\n"),
            format!("GET /b HTTP/1.1\r\nhost: {there}\r\n"),
            format!("GET /c HTTP/1.1\r\nhost: a.test\r\nx-forwarded-host: {there}\r\nforwarded: host={there}\r\n"),
            format!("GET /d HTTP/1.1\r\nhost: a.test\r\nx-original-url: http://{there}/\r\nx-host: {there}\r\n"),
            format!("GET /e?url=http://{there}/ HTTP/1.1\r\nhost: a.test\r\n"),
            "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nhost: 169.254.169.254\r\n".to_owned(),
        ]
        .into_iter()
        .enumerate()
        {
            let before = origin.seen().len();
            let answer = raw_exchange(proxy.address, &format!("{request}connection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{nth}: {answer}");
            assert_eq!(origin.seen().len(), before + 1, "{nth}");
        }
        for request in [
            "GET gopher://127.0.0.1:6379/_x HTTP/1.1\r\nhost: 127.0.0.1:6379\r\n",
            "GET ftp://a.test/ HTTP/1.1\r\nhost: a.test\r\n",
            "GET file:///etc/passwd HTTP/1.1\r\nhost: a.test\r\n",
            "GET a.test:6379 HTTP/1.1\r\nhost: a.test:6379\r\n",
        ] {
            let before = origin.seen().len();
            let answer = raw_exchange(proxy.address, &format!("{request}connection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
            assert_eq!(origin.seen().len(), before, "{request}");
        }
        let connect = format!("CONNECT {there} HTTP/1.1\r\nhost: {there}\r\n\r\n");
        assert!(raw_exchange(proxy.address, &connect).await.starts_with("HTTP/1.1 405 "));
    }
    assert_eq!(evil.seen().len(), 0);
}

#[tokio::test]
async fn a_host_that_is_not_ours_reaches_nobody_where_hosts_are_listed() {
    let origin = Origin::counting(&[]);
    let toml = format!("[server]\nhosts = [\"a.test\"]\n\n{}", one_route(&origin.url(), "ttl = \"1m\""));
    let proxy = Proxy::start(&toml);
    for request in ["GET http://169.254.169.254/ HTTP/1.1\r\nhost: a.test\r\n", "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"]
    {
        let answer = raw_exchange(proxy.address, &format!("{request}connection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{request}: {answer}");
    }
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn redirects_are_the_clients_to_follow() {
    let evil = Origin::counting(&[]);
    let location = format!("{}/secret", evil.url());
    let told = location.clone();
    let origin = Origin::start(move |seen| {
        let location = told.clone();
        let status = seen.target.trim_start_matches('/').parse().unwrap();
        async move { reply(status, &[("location", &location)], "") }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    for status in [301, 302, 303, 307, 308] {
        let answer = client().get(proxy.url(&format!("/{status}"))).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (status, &location.parse().unwrap()));
    }
    assert_eq!(evil.seen().len(), 0);
}

#[tokio::test]
async fn what_is_reflected_splits_no_response() {
    let origin = Origin::start(|seen| async move {
        reply(302, &[("location", &seen.target), ("x-host", seen.fields["x-forwarded-host"].to_str().unwrap())], "")
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "status_ttl = { 302 = \"1m\" }"));
    let split = "/%0d%0aSet-Cookie:%20x=y%0d%0a%0d%0aHTTP/1.1%20200%20OK";
    for nth in 0..2 {
        let request = format!("GET {split} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
        let answer = raw_exchange(proxy.address, &request).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 302 "), "{nth}: {answer}");
        assert!(!answer.contains("\r\nset-cookie") && answer.matches("http/1.1").count() == 2, "{nth}: {answer}");
        assert!(answer.contains(&format!("location: {}\r\n", split.to_ascii_lowercase())), "{nth}: {answer}");
    }
    for request in ["GET /a HTTP/1.1\r\nhost: a.test\rx: y\r\n\r\n", "GET /\r\x0bx: y HTTP/1.1\r\nhost: a.test\r\n\r\n"]
    {
        assert!(raw_exchange(proxy.address, request).await.starts_with("HTTP/1.1 400 "), "{request:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_stops_cuts_no_body_and_leaves_no_lock() {
    let redis = Redis::start();
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = crate::world::RawOrigin::start(move |mut stream, _head| {
        let mut released = released.clone();
        async move {
            use tokio::io::AsyncWriteExt;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\ncache-control: max-age=60\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(format!("{head}half").as_bytes()).await;
            let _ = released.wait_for(|it| *it).await;
            let _ = stream.write_all(b"half").await;
        }
    });
    let toml = one_route_with_redis(&origin.url(), &redis.url(), "collapse = \"cluster\"");
    let proxy = Proxy::start(&toml);
    while proxy.stats().await["redis"]["state"] != "up" {
        tokio::task::yield_now().await;
    }
    let (client, url) = (client(), proxy.url("/a"));
    let mut response = client.get(&url).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "half");
    assert!(redis.command("KEYS aside:l:*").unwrap().starts_with("*1"), "it holds the key's lock");
    let stopping = std::thread::spawn(move || drop(proxy));
    until("nobody is let in", || std::net::TcpStream::connect(url_address(&url)).is_err()).await;
    release.send_replace(true);
    assert_eq!(response.chunk().await.unwrap().unwrap(), "half");
    assert_eq!(response.chunk().await.unwrap(), None, "a clean end");
    let stopped = tokio::time::timeout(Duration::from_secs(10), tokio::task::spawn_blocking(move || stopping.join()));
    stopped.await.expect("it stops").unwrap().unwrap();
    assert!(redis.command("KEYS aside:l:*").unwrap().starts_with("*0"), "no lock is left");
    assert!(redis.command("KEYS aside:r:*").unwrap().starts_with("*1"), "what was fetched is stored");
}

fn url_address(url: &str) -> std::net::SocketAddr {
    url.trim_start_matches("http://").trim_end_matches("/a").parse().unwrap()
}
