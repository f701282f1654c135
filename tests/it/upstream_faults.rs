//! Upstreams that are gone, slow, reset, fail or stop: clients get what is stale, or one error in time.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::load::{until, until_met};
use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, RawOrigin, client, field, get, h2c_client, reply};

/// Generous, and far below any timeout that a test must not meet.
const SOON: Duration = Duration::from_secs(10);

fn toml(upstream: &str, route: &str) -> String {
    format!("[upstream.api]\n{upstream}\n\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\n{route}\n")
}

/// A URL where nobody listens.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

/// Ends a connection with RST.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("a socket");
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

#[tokio::test]
async fn who_is_gone_is_bridged_by_what_is_stale_and_else_is_a_502_that_nobody_stores() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    let origin = Origin::counting(&[("cache-control", "max-age=10, stale-if-error=600")]);
    let breaker = "breaker = { failures = 1000, open = \"5s\" }";
    let write = |url: &str| std::fs::write(&path, toml(&format!("url = \"{url}\"\n{breaker}"), "")).unwrap();
    write(&origin.url());
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    get(&client, &proxy.url("/known")).await;
    write(&refusing());
    proxy.running.reload().unwrap();
    proxy.clock.advance(Duration::from_secs(30));
    let stale = get(&client, &proxy.url("/known")).await;
    assert_eq!((stale.status, stale.body.as_str()), (200, "/known 0"));
    assert!(stale.cache_status.ends_with("detail=stale-if-error"), "{stale:?}");
    for _ in 0..2 {
        let failed = get(&client, &proxy.url("/unknown")).await;
        assert_eq!(failed.status, 502);
        assert!(failed.cache_status.ends_with("detail=upstream-connect"), "{failed:?}");
    }
    write(&origin.url());
    proxy.running.reload().unwrap();
    assert_eq!(get(&client, &proxy.url("/unknown")).await.body, "/unknown 0", "the error was not stored");
}

#[tokio::test]
async fn a_name_that_is_not_found_is_a_502_at_once() {
    let upstream = "url = \"http://nobody.invalid\"\nconnect_timeout = \"20s\"";
    let proxy = Proxy::start(&toml(upstream, ""));
    let (client, begun) = (client(), Instant::now());
    let first = get(&client, &proxy.url("/a")).await;
    assert_eq!(first.status, 502, "{first:?}");
    for _ in 0..50 {
        assert_eq!(get(&client, &proxy.url("/a")).await.status, 502);
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let stats = proxy.stats().await;
    assert_eq!(stats["upstreams"]["api"]["servers"][0]["state"], "unresolved", "{stats:#}");
    assert_eq!(stats["events"]["name_not_found"], 1, "told once");
}

/// A listener whose queue of connections is full, so that the system answers no more.
fn blackhole() -> (socket2::Socket, Vec<std::net::TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
    let queued = std::iter::repeat_with(connect).take(64).map_while(|it| it).collect();
    (socket, queued)
}

#[tokio::test]
async fn a_connection_that_is_never_answered_is_given_up_in_time() {
    let (socket, queued) = blackhole();
    if queued.len() == 64 {
        eprintln!("this system's queue does not fill up: nothing to see");
        return;
    }
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let upstream = format!("url = \"http://{address}\"\nconnect_timeout = \"300ms\"");
    let proxy = Proxy::start(&toml(&upstream, ""));
    let (client, begun) = (client(), Instant::now());
    let url = proxy.url("/a");
    let answers = join_all((0..20).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|it| it.status == 504 && it.cache_status.ends_with("detail=upstream-timeout")));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

/// Answers the first request of a connection, then ends the connection when the second has been read.
fn closing_when_asked_again() -> RawOrigin {
    RawOrigin::start(|mut stream, head| async move {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", if head.contains("/b") { "b!" } else { "a!" });
        let _ = stream.write_all(answer.as_bytes()).await;
        if read_head(&mut stream).await.is_some() {
            reset(stream);
        }
    })
}

#[tokio::test]
async fn what_a_kept_connection_lost_is_asked_again_where_that_is_safe() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "a!");
    for _ in 0..3 {
        let got = get(&client, &proxy.url("/b")).await;
        assert_eq!((got.status, got.body.as_str()), (200, "b!"));
    }
    assert_eq!(proxy.stats().await["upstreams"]["api"]["servers"][0]["failures"], 0);
}

#[tokio::test]
async fn what_is_asked_again_is_asked_with_the_same_fields() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let origin = RawOrigin::start(move |mut stream, head| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push(head);
            let fields = "cache-control: max-age=0\r\netag: \"1\"\r\ncontent-length: 2";
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok").as_bytes()).await;
            if let Some(head) = read_head(&mut stream).await {
                seen.lock().unwrap().push(head);
                reset(stream);
            }
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    for _ in 0..2 {
        let asked = client.get(proxy.url("/a")).header("x-trace", "7").send().await.unwrap();
        assert_eq!((asked.status().as_u16(), asked.text().await.unwrap().as_str()), (200, "ok"));
    }
    let heads = heads.lock().unwrap().clone();
    let [_first, lost, again] = heads.as_slice() else { panic!("{heads:?}") };
    assert_eq!(lost, again);
    for field in ["if-none-match: \"1\"", "x-forwarded-for: ", "via: ", "host: ", "x-trace: 7"] {
        assert!(again.to_ascii_lowercase().contains(&format!("\r\n{field}")), "{field}: {again}");
    }
}

#[tokio::test]
async fn what_asks_for_another_protocol_is_not_asked_again_by_whichever_server() {
    for is_alone in [true, false] {
        let origin = closing_when_asked_again();
        let urls = if is_alone { vec![origin.url()] } else { vec![refusing(), origin.url()] };
        let route = "request_headers = { set = { upgrade = \"h2c\" } }";
        let proxy = Proxy::start(&toml(&format!("urls = {urls:?}"), route));
        let client = client();
        let statuses = [get(&client, &proxy.url("/a")).await.status, get(&client, &proxy.url("/b")).await.status];
        assert_eq!(statuses, [200, 502], "{urls:?}");
    }
}

#[tokio::test]
async fn what_may_have_had_an_effect_is_never_sent_twice() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "a!");
    for request in
        [client.post(proxy.url("/b")).body("x"), client.post(proxy.url("/b")), client.delete(proxy.url("/b"))]
    {
        let connections = origin.count();
        assert_eq!(request.send().await.unwrap().status(), 502);
        assert_eq!(origin.count(), connections, "no other connection saw it");
        assert_eq!(get(&client, &proxy.url("/a")).await.body, "a!");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_at_its_first_request_is_a_502() {
    let origin = RawOrigin::start(|stream, _head| async move { reset(stream) });
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    assert_eq!(get(&client(), &proxy.url("/a")).await.status, 502);
    assert_eq!(origin.count(), 1, "the answer to a first request may never come");
}

#[tokio::test]
async fn an_upstream_that_ends_its_connections_under_load_is_not_noticed() {
    // Each connection ends, without a word, after its third answer.
    let origin = RawOrigin::start(|mut stream, _head| async move {
        for nth in 0..3 {
            if nth > 0 && read_head(&mut stream).await.is_none() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    let (client, url) = (client(), proxy.url("/a"));
    let one = async || {
        for _ in 0..40 {
            let got = get(&client, &url).await;
            assert_eq!((got.status, got.body.as_str()), (200, "ok"), "{got:?}");
        }
    };
    join_all((0..8).map(|_| one())).await;
}

#[tokio::test]
async fn after_a_timeout_the_next_request_may_try_again() {
    let origin = Origin::start(|seen| async move {
        if seen.nth == 0 {
            std::future::pending::<()>().await;
        }
        reply(200, &[("cache-control", "max-age=60")], "now")
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "first_byte_timeout = \"300ms\""));
    let (client, url) = (client(), proxy.url("/a"));
    let begun = Instant::now();
    let answers = join_all((0..30).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|answer| answer.status == 504), "{answers:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "one timeout, not thirty: {:?}", begun.elapsed());
    assert_eq!(origin.count("/a"), 1);
    assert_eq!(get(&client, &url).await.body, "now");
}

#[tokio::test]
async fn what_drips_is_streamed_and_what_stalls_is_cut_and_not_stored() {
    let (drip, stall) = (Duration::from_millis(100), Duration::from_millis(600));
    let origin = RawOrigin::start(move |mut stream, head| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
        for byte in 0..10_u8 {
            // This is the upstream's slowness itself.
            tokio::time::sleep(drip).await;
            if stream.write_all(&[b'0' + byte]).await.is_err() {
                return;
            }
            if byte == 4 && head.starts_with("GET /stall ") {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                return;
            }
        }
    });
    let upstream = format!("url = \"{}\"\nidle_timeout = \"{}ms\"", origin.url(), stall.as_millis());
    let proxy = Proxy::start(&toml(&upstream, "ttl = \"1m\""));
    let client = client();
    let whole = get(&client, &proxy.url("/drip")).await;
    assert_eq!(whole.body, "0123456789");
    assert!(get(&client, &proxy.url("/drip")).await.cache_status.contains("; hit"), "slow is not wrong");
    let url = proxy.url("/stall");
    let stalled = join_all((0..5).map(|_| async { client.get(&url).send().await.unwrap().text().await })).await;
    assert!(stalled.iter().all(Result::is_err), "{stalled:?}");
    assert_eq!(proxy.stats().await["memory"]["objects"], 1);
}

#[tokio::test]
async fn a_reset_in_the_middle_is_seen_by_clients_of_both_protocols_and_nothing_is_stored() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let framing = if head.contains("/chunked") { "transfer-encoding: chunked" } else { "content-length: 100000" };
        let begin = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
        let part =
            if head.contains("/chunked") { format!("2710\r\n{}\r\n", "x".repeat(10_000)) } else { "x".repeat(10_000) };
        let _ = stream.write_all((begin + &part).as_bytes()).await;
        // The part is on its way before the reset overtakes it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset(stream);
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    for client in [client(), h2c_client()] {
        for path in ["/length", "/chunked"] {
            let url = proxy.url(path);
            let one = async || client.get(&url).send().await?.error_for_status()?.bytes().await;
            let answers = join_all((0..5).map(|_| one())).await;
            assert!(answers.iter().all(Result::is_err), "{path}: a clean end of a broken body");
            // Who waited for a length that nobody knows has no head yet, and gets a whole error.
            let statuses = answers.iter().filter_map(|it| it.as_ref().err()?.status());
            assert!(statuses.clone().all(|status| status == 502) && statuses.count() < 5, "{path}");
        }
    }
    let stats = proxy.stats().await;
    assert_eq!((&stats["memory"]["objects"], &stats["routes"]["all"]["stored"]), (&0.into(), &0.into()), "{stats:#}");
}

#[tokio::test]
async fn a_storm_of_errors_is_bridged_and_overwrites_nothing_that_is_good() {
    let (storming, storm) = tokio::sync::watch::channel(false);
    let (release, released) = tokio::sync::watch::channel(0);
    let origin = Origin::start(move |seen| {
        let (is_storming, mut released) = (*storm.borrow(), released.clone());
        async move {
            let status = [500, 502, 503, 504][seen.nth % 4];
            let fields = [("cache-control", "max-age=60, stale-if-error=600")];
            if !is_storming {
                return reply(200, &fields, &format!("good {}", seen.nth));
            }
            // Until the whole herd is there: one fetches, eight wait, and one finds no place.
            released.wait_for(|herds| *herds >= seen.nth).await.unwrap();
            reply(status, &fields, "bad")
        }
    });
    let toml = one_route(&origin.url(), "collapse_waiters = 8\nstatus_ttl = { 500 = \"1m\", 503 = \"1m\" }");
    let proxy = Proxy::start(&toml);
    let (client, url) = (client(), proxy.url("/a"));
    assert_eq!(get(&client, &url).await.body, "good 0");
    storming.send_replace(true);
    for herds in 1..=8 {
        proxy.clock.advance(Duration::from_secs(61));
        let releasing = async {
            until_met(&proxy, "collapse_waiters", herds).await;
            release.send_replace(herds as usize);
        };
        let (herd, ()) = tokio::join!(join_all((0..10).map(|_| get(&client, &url))), releasing);
        assert!(herd.iter().all(|it| it.status == 200 && it.body == "good 0"), "{herd:?}");
        assert_eq!(origin.count("/a") as u64, 1 + herds, "errors are shared, too");
    }
    storming.send_replace(false);
    proxy.clock.advance(Duration::from_secs(61));
    let back = get(&client, &url).await;
    assert!(back.body.starts_with("good ") && back.body != "good 0", "{back:?}");
}

#[tokio::test]
async fn a_server_that_breaks_connection_after_connection_is_left_alone_for_a_while() {
    let origin = RawOrigin::start(|stream, head| async move {
        let mut stream = stream;
        if head.contains("/good") {
            let fields = "cache-control: max-age=10, stale-if-error=600";
            let _ = stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n{fields}\r\n\r\ngood").as_bytes())
                .await;
        }
    });
    let upstream = format!("url = \"{}\"\nbreaker = {{ failures = 3, open = \"1h\" }}", origin.url());
    let proxy = Proxy::start(&toml(&upstream, ""));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/good")).await.body, "good");
    let bad = async |path: &str| assert_eq!(get(&client, &proxy.url(path)).await.status, 502);
    // It answered a moment ago: that it breaks one request after another shows nothing yet.
    for nth in 0..5 {
        bad(&format!("/bad/{nth}")).await;
    }
    assert_eq!(origin.count(), 1 + 5);
    let begun = Instant::now();
    while proxy.stats().await["upstreams"]["api"]["servers"][0]["state"] != "ejected" {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not left alone");
        bad("/bad/again").await;
    }
    let before = origin.count();
    for nth in 0..20 {
        bad(&format!("/bad/later/{nth}")).await;
    }
    assert_eq!(origin.count(), before, "they were answered without it");
    proxy.clock.advance(Duration::from_secs(11));
    let stale = get(&client, &proxy.url("/good")).await;
    assert_eq!((stale.body.as_str(), stale.status), ("good", 200));
    let stats = proxy.stats().await;
    assert_eq!(stats["upstreams"]["api"]["servers"][0]["state"], "ejected");
}

#[tokio::test]
async fn a_client_that_leaves_takes_along_only_what_is_nobody_elses() {
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (log_begun, log_ended) = (Arc::clone(&begun), Arc::clone(&ended));
    let origin = RawOrigin::start(move |mut stream, head| {
        let (begun, ended) = (Arc::clone(&log_begun), Arc::clone(&log_ended));
        async move {
            if !head.contains("/headless") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
            }
            begun.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read_to_end(&mut Vec::new()).await;
            ended.fetch_add(1, Ordering::SeqCst);
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    for (nth, path) in ["/headless", "/part"].into_iter().enumerate() {
        for client in [client(), h2c_client()] {
            let before = begun.load(Ordering::SeqCst);
            let url = proxy.url(path);
            let request = async { client.get(&url).send().await.unwrap().text().await };
            tokio::select! {
                _ = request => panic!("{nth}: it does not end"),
                () = until("the request is there", || begun.load(Ordering::SeqCst) > before) => {}
            }
            drop(client);
            until("the upstream is left, too", || ended.load(Ordering::SeqCst) > before).await;
        }
    }
}

#[tokio::test]
async fn a_fetch_that_cannot_be_stored_ends_with_its_client() {
    let ended = Arc::new(AtomicUsize::new(0));
    let log = Arc::clone(&ended);
    let origin = RawOrigin::start(move |mut stream, head| {
        let ended = Arc::clone(&log);
        async move {
            let why = if head.contains("/large") { "content-length: 1000000000" } else { "cache-control: no-store" };
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{why}\r\n\r\n").as_bytes()).await;
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
            ended.fetch_add(1, Ordering::SeqCst);
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    for (nth, path) in ["/large", "/private"].into_iter().enumerate() {
        let mut response = client().get(proxy.url(path)).send().await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        drop(response);
        until("the upstream is left", || ended.load(Ordering::SeqCst) > nth).await;
    }
}

#[tokio::test]
async fn what_the_validators_do_not_fit_is_asked_for_again() {
    let origin = Origin::start(|seen| async move {
        let fields = [("etag", "\"v1\""), ("cache-control", "max-age=60")];
        match (seen.nth, seen.target.as_str()) {
            (0, "/mismatch" | "/part") => reply(200, &fields, "first"),
            (_, "/mismatch") if seen.fields.contains_key("if-none-match") => reply(304, &[("etag", "\"v2\"")], ""),
            (_, "/mismatch") => reply(200, &[("etag", "\"v2\""), ("cache-control", "max-age=60")], "second"),
            (_, "/part") if seen.fields.contains_key("if-none-match") => {
                reply(206, &[("content-range", "bytes 0-1/9"), ("cache-control", "max-age=60")], "no")
            }
            (_, "/part") => reply(200, &fields, "second"),
            (_, "/304") => reply(304, &fields, ""),
            (_, "/206") => reply(206, &[("content-range", "bytes 0-3/9"), ("cache-control", "max-age=60")], "part"),
            _ => reply(416, &[("content-range", "bytes */9"), ("cache-control", "max-age=60")], ""),
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\"\nstale_if_error = \"0s\""));
    let client = client();
    for path in ["/mismatch", "/part"] {
        assert_eq!(get(&client, &proxy.url(path)).await.body, "first");
        proxy.clock.advance(Duration::from_secs(61));
        let got = get(&client, &proxy.url(path)).await;
        assert_eq!((got.status, got.body.as_str(), origin.count(path)), (200, "second", 3), "{path}");
        assert!(get(&client, &proxy.url(path)).await.cache_status.contains("; hit"), "{path}");
    }
    for nth in 1..=2 {
        let unasked = get(&client, &proxy.url("/304")).await;
        assert_eq!((unasked.status, unasked.body.as_str()), (502, "Bad Gateway\n"));
        let part = client.get(proxy.url("/206")).send().await.unwrap();
        assert!(field(&part, "cache-status").ends_with("detail=unsolicited"), "{part:?}");
        assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "part"));
        let refused = client.get(proxy.url("/416")).header("range", "bytes=50-").send().await.unwrap();
        assert_eq!(refused.status(), 416);
        assert_eq!(["/304", "/206", "/416"].map(|path| origin.count(path)), [nth; 3], "none was stored");
    }
}

#[tokio::test]
async fn a_head_changes_no_body() {
    let origin = Origin::start(|seen| async move {
        let fields =
            [("cache-control", "max-age=60"), ("etag", if seen.method == "HEAD" { "\"v2\"" } else { "\"v1\"" })];
        reply(200, &fields, if seen.nth == 0 { "whole" } else { "" })
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    assert_eq!(get(&client, &url).await.body, "whole");
    let bypassing = client.head(&url).header("x-api-key", "k").send().await.unwrap();
    assert_eq!(field(&bypassing, "etag"), "\"v2\"");
    let hit = get(&client, &url).await;
    assert_eq!((hit.body.as_str(), hit.cache_status.as_str()), ("whole", "aside; hit; ttl=60"));
    proxy.clock.advance(Duration::from_secs(61));
    assert_eq!(client.head(&url).send().await.unwrap().status(), 200);
    let after = get(&client, &url).await;
    assert!(!after.cache_status.contains("; hit"), "the HEAD told that it is another: {after:?}");
}

#[tokio::test]
async fn what_an_upstream_declares_is_served_as_declared() {
    let origin = Origin::start(|seen| async move {
        let control = ("cache-control", "max-age=60, stale-if-error=600");
        match (seen.target.as_str(), seen.nth) {
            ("/encoded", _) => reply(200, &[control, ("content-encoding", "gzip")], "not gzip at all"),
            (_, 0) => reply(200, &[control], "whole"),
            (_, 1) => reply(500, &[control], "bad"),
            _ => reply(200, &[control, ("x-empty", "yes")], ""),
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    for cached in [false, true] {
        let answer = client.get(proxy.url("/encoded")).header("accept-encoding", "gzip").send().await.unwrap();
        assert_eq!(field(&answer, "cache-status").contains("; hit"), cached);
        assert_eq!(field(&answer, "content-encoding"), "gzip");
        assert_eq!(answer.text().await.unwrap(), "not gzip at all");
    }
    for expected in ["whole", "whole", ""] {
        assert_eq!(get(&client, &proxy.url("/emptied")).await.body, expected);
        proxy.clock.advance(Duration::from_secs(61));
    }
}

#[tokio::test]
async fn who_waits_for_a_body_without_end_waits_no_longer_than_the_route_says() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
        if head.contains("patient") {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
        // It drips for as long as anybody listens.
        while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let route = one_route(&origin.url(), "ttl = \"1m\"\ncollapse_wait = \"300ms\"");
    let proxy = Proxy::start(&format!("[server]\ndrain_timeout = \"100ms\"\n\n{route}"));
    let (client, url) = (client(), proxy.url("/endless"));
    let mut leader = client.get(&url).send().await.unwrap();
    assert_eq!(leader.chunk().await.unwrap().unwrap(), "x");
    let begun = Instant::now();
    let followers = join_all((0..10).map(|_| client.get(&url).header("user-agent", "patient").send())).await;
    for follower in followers {
        assert_eq!(follower.unwrap().text().await.unwrap(), "x");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(leader.chunk().await.unwrap().is_some(), "the leader reads on");
}

#[tokio::test]
async fn a_path_that_hangs_takes_no_server_away_that_answers_others() {
    let origin = Origin::start(|seen| async move {
        if seen.target.starts_with("/hang") {
            std::future::pending::<()>().await;
        }
        reply(200, &[], &seen.target)
    });
    let toml = format!(
        "[upstream.api]\nurl = \"{}\"\nfirst_byte_timeout = \"500ms\"\nbreaker = {{ failures = 2, open = \"1h\" }}\n",
        origin.url()
    );
    let proxy = Proxy::start(&toml);
    let client = client();
    let paths: Vec<String> = (0..20).map(|nth| proxy.url(&format!("/hang/{nth}"))).collect();
    let hanging = futures_util::future::join_all(paths.iter().map(|path| get(&client, path)));
    let others = async {
        while !(0..20).all(|nth| origin.count(&format!("/hang/{nth}")) == 1) {
            tokio::task::yield_now().await;
        }
        get(&client, &proxy.url("/meanwhile")).await
    };
    let (hung, answered) = tokio::join!(hanging, others);
    assert!(hung.iter().all(|got| got.status == 504), "{hung:?}");
    assert_eq!(answered.status, 200);
    assert_eq!(get(&client, &proxy.url("/after")).await.status, 200);
    assert_eq!(proxy.stats().await["upstreams"]["api"]["servers"][0]["state"], "up");
    // Where nobody is answered, it is left alone.
    let begun = Instant::now();
    while proxy.stats().await["upstreams"]["api"]["servers"][0]["state"] != "ejected" {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not left alone");
        futures_util::future::join_all(paths.iter().take(4).map(|path| get(&client, path))).await;
    }
}
