//! Clients that take all they can get: connections, time, waiting places, and room for what nobody asks for again.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::protocols::raw_exchange;
use crate::world::load::{met, until_met};
use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::redis::free_port;
use crate::world::{Origin, Proxy, RawOrigin, Redis, builder, client, field, get, got, reply};

const PATIENCE: Duration = Duration::from_secs(20);
const FRESH: (&str, &str) = ("cache-control", "max-age=60");

/// With these keys of `[server.limits]`.
fn limited(limits: &str, upstream: &str, route: &str) -> String {
    format!("[server.limits]\n{limits}\n\n{}", one_route(upstream, route))
}

/// Whether the proxy has closed it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(timeout(PATIENCE, stream.read(&mut [0; 64])).await, Ok(Ok(0) | Err(_)))
}

/// Asks for `/a` and leaves the connection open.
async fn holding(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: a.test\r\n\r\n").await.unwrap();
    assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
    stream
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&limited("connections_per_address = 3", &origin.url(), ""));
    let held = [holding(&proxy).await, holding(&proxy).await, holding(&proxy).await];
    for _ in 0..5 {
        let mut more = TcpStream::connect(proxy.address).await.unwrap();
        assert!(is_closed(&mut more).await);
    }
    let other = builder().local_address(Some([127, 0, 0, 2].into())).build().unwrap();
    let answer = get(&other, &proxy.url("/a")).await;
    assert_eq!(answer.status, 200);
    drop(held);
    let served = async {
        while client().get(proxy.url("/a")).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, served).await.expect("places that are given back are there again");
    assert!(met(&proxy, "connections_per_address").await >= 5);
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_connections_as_it_wants() {
    let origin = Origin::counting(&[FRESH]);
    let toml = limited("connections_per_address = 3", &origin.url(), "");
    let proxy = Proxy::start(&format!("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n\n{toml}"));
    let held = join_all((0..10).map(|_| holding(&proxy))).await;
    assert_eq!(get(&client(), &proxy.url("/a")).await.status, 200);
    assert_eq!(met(&proxy, "connections_per_address").await, 0);
    drop(held);
}

#[tokio::test]
async fn beyond_all_connections_one_waits_for_its_turn() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&limited("connections = 2", &origin.url(), ""));
    let held = [holding(&proxy).await, holding(&proxy).await];
    let client = client();
    let url = proxy.url("/a");
    let leave = async {
        let mut waiting = TcpStream::connect(proxy.address).await.unwrap();
        waiting.write_all(b"GET /a HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await.unwrap();
        drop(held);
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    let (answer, ()) = tokio::join!(get(&client, &url), leave);
    assert_eq!(answer.status, 200);
    drop(client);
    assert!(met(&proxy, "connections").await >= 1);
}

#[tokio::test]
async fn heads_that_do_not_come_cost_their_connection_alone() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&limited("header_timeout = \"300ms\"", &origin.url(), ""));
    let url = proxy.url("/a");
    let client = client();
    let slow = join_all((0..50).map(|nth| slow_head(proxy.address, nth % 2 == 0)));
    let (closed, answer) = tokio::join!(slow, get(&client, &url));
    assert!(closed.into_iter().all(|closed| closed));
    assert_eq!(answer.status, 200);
    assert_eq!(met(&proxy, "header_timeout").await, 50);
}

#[tokio::test]
async fn handshakes_that_do_not_come_cost_their_connection_alone() {
    let origin = Origin::counting(&[FRESH]);
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let tls = format!("[server.tls]\ncert = \"{}\"\nkey = \"{}\"\n\n", cert.display(), key.display());
    let proxy = Proxy::start(&(tls + &limited("header_timeout = \"300ms\"", &origin.url(), "")));
    // A record's head, of a handshake that never comes.
    let begun = async {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        is_closed(&mut stream).await
    };
    let root = reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap();
    let client = builder().tls_certs_only([root]).resolve("localhost", proxy.address).build().unwrap();
    let base = format!("https://localhost:{}", proxy.address.port());
    let url = format!("{base}/a");
    let (closed, answer) = tokio::join!(begun, get(&client, &url));
    assert!(closed);
    assert_eq!((answer.status, answer.body.as_str()), (200, "/a 0"));
    let stats = get(&client, &format!("{base}/cache-stats")).await.body;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&stats).unwrap()["limits"]["header_timeout"], 1);
}

/// Whether a connection is closed whose head stops, or drips.
async fn slow_head(address: SocketAddr, drips: bool) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: a.test\r\nx: ").await.unwrap();
    let (mut read, mut write) = stream.split();
    let drip = async {
        while drips && write.write_all(b"x").await.is_ok() {
            // This is the client's slowness itself.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut end = [0; 64];
    tokio::select! {
        () = drip => false,
        closed = timeout(PATIENCE, read.read(&mut end)) => matches!(closed, Ok(Ok(0) | Err(_))),
    }
}

/// A POST's head with content to come in chunks.
const POST: &[u8] = b"POST /a HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn content_that_drips_is_refused() {
    let origin = Origin::counting(&[]);
    let limits = "body_idle_timeout = \"300ms\"\nbody_rate_min = \"1 KiB\"";
    let proxy = Proxy::start(&limited(limits, &origin.url(), ""));
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    write.write_all(POST).await.unwrap();
    let drip = async {
        while write.write_all(b"1\r\nx\r\n").await.is_ok() {
            // This is the client's slowness itself.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        () = drip => {}
        came = timeout(PATIENCE, read.read_exact(&mut answer)) => drop(came.expect("an answer").unwrap()),
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert_eq!(met(&proxy, "body_rate_min").await, 1);
    let fast = client().post(proxy.url("/a")).body("whole").send().await.unwrap();
    assert_eq!(fast.status(), 200);
    assert_eq!(origin.seen().len(), 1, "nothing of the slow one was taken for a request");
}

#[tokio::test]
async fn a_slow_upstream_is_not_held_against_its_client() {
    let origin = RawOrigin::start(|mut stream, _head| async move {
        let mut buffer = vec![0; 64 << 10];
        let mut end = Vec::new();
        while !end.ends_with(b"0\r\n\r\n") {
            // This is the upstream's slowness itself: longer in all than the client may take.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let came = stream.read(&mut buffer).await.unwrap();
            end = buffer[came.saturating_sub(5)..came].to_vec();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let limits = "body_idle_timeout = \"100ms\"\nbody_rate_min = \"1 GiB\"";
    let proxy = Proxy::start(&limited(limits, &origin.url(), ""));
    let content = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..24).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 64 << 10])),
    ));
    let answer = client().post(proxy.url("/a")).body(content).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_client_that_drips_through_its_answer_is_left_and_others_are_served() {
    let origin = Origin::start(|_| async { reply(200, &[FRESH], &"x".repeat(1 << 20)) });
    let limits = "idle_timeout = \"1s\"\nanswer_rate_min = \"100 MiB\"";
    let proxy = Proxy::start(&limited(limits, &origin.url(), ""));
    get(&client(), &proxy.url("/a")).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(proxy.address).await.unwrap();
    let requests = "GET /a HTTP/1.1\r\nhost: a.test\r\n\r\n".repeat(64);
    stream.write_all(requests.as_bytes()).await.unwrap();
    let dripping = async {
        let mut piece = [0; 2048];
        while let Ok(1..) = stream.read(&mut piece).await {
            // This is the client's slowness itself.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let other = client();
    let ended = async {
        // It counts as not taking anything where the system takes so much that it seldom asks for more.
        while met(&proxy, "answer_rate_min").await + met(&proxy, "idle_timeout").await == 0 {
            let answer = get(&other, &proxy.url("/a")).await;
            assert_eq!((answer.status, answer.body.len()), (200, 1 << 20));
        }
    };
    let ended = async {
        tokio::select! {
            () = dripping => {}
            () = ended => {}
        }
    };
    timeout(PATIENCE, ended).await.expect("the connection ends");
}

#[tokio::test]
async fn large_hits_that_slow_clients_hold_take_so_much_memory_and_no_more() {
    const BYTES: usize = 6 << 20;
    let origin = Origin::start(|_| async { reply(200, &[FRESH], &"x".repeat(BYTES)) });
    let redis = Redis::start();
    let toml = one_route_with_redis(&origin.url(), &redis.url(), "");
    let proxy = Proxy::start(&format!("[memory]\nmax_serving = \"8 MiB\"\n\n{toml}"));
    let (client, url) = (client(), proxy.url("/a"));
    assert_eq!(get(&client, &url).await.body.len(), BYTES);
    let written = async {
        while proxy.stats().await["redis"]["pending_writes"] != 0 || redis.records().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, written).await.expect("it is written");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(proxy.address).await.unwrap();
    let request = format!("GET /a HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.address);
    slow.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(slow.read_u8().await.unwrap(), b'H');
    let answer = get(&client, &url).await;
    assert_eq!(answer.cache_status, "aside; fwd=miss; fwd-status=200; stored; detail=serving-limit");
    assert_eq!((answer.body.len(), origin.count("/a")), (BYTES, 2));
    assert_eq!(met(&proxy, "max_serving").await, 1);
    drop(slow);
    let room_again = async { while !get(&client, &url).await.cache_status.starts_with("aside; hit") {} };
    timeout(PATIENCE, room_again).await.expect("its room is given back");
}

/// An upstream that answers nothing until it is told to.
fn held_origin() -> (Origin, Arc<watch::Sender<bool>>) {
    let (release, released) = watch::channel(false);
    let origin = Origin::start(move |seen| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            reply(200, &[FRESH], &format!("{} {}", seen.target, seen.nth))
        }
    });
    (origin, Arc::new(release))
}

#[tokio::test]
async fn only_so_many_wait_for_a_key_and_the_rest_are_told_to_come_again() {
    let (origin, release) = held_origin();
    let proxy = Proxy::start(&one_route(&origin.url(), "collapse_waiters = 5"));
    let (client, url) = (client(), proxy.url("/hot"));
    let asking = join_all((0..20).map(|_| async {
        let response = client.get(&url).send().await.unwrap();
        (field(&response, "retry-after"), got(response).await)
    }));
    let releasing = async {
        until_met(&proxy, "collapse_waiters", 14).await;
        release.send_replace(true);
    };
    let (answers, ()) = tokio::join!(asking, releasing);
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| answer.status == 200);
    assert_eq!((served.len(), refused.len()), (6, 14));
    assert!(served.iter().all(|(_, answer)| answer.body == "/hot 0"), "{served:?}");
    assert!(refused.iter().all(|(again, answer)| answer.status == 503 && again == "1"), "{refused:?}");
    assert_eq!(get(&client, &url).await.cache_status, "aside; hit; ttl=60");
    assert_eq!(origin.count("/hot"), 1);
}

#[tokio::test]
async fn only_so_many_wait_in_all() {
    let (origin, release) = held_origin();
    let proxy = Proxy::start(&limited("waiters = 6", &origin.url(), ""));
    let client = client();
    let urls: Vec<_> = (0..20).map(|nth| proxy.url(&format!("/{}", nth % 4))).collect();
    let releasing = async {
        until_met(&proxy, "waiters", 10).await;
        release.send_replace(true);
    };
    let (answers, ()) = tokio::join!(join_all(urls.iter().map(|url| get(&client, url))), releasing);
    let statuses = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((statuses(200), statuses(503)), (10, 10));
    assert_eq!(origin.seen().len(), 4);
}

#[tokio::test]
async fn who_finds_no_waiting_place_gets_what_is_stale() {
    let (release, released) = watch::channel(false);
    let origin = Origin::start(move |seen| {
        let mut released = released.clone();
        async move {
            if seen.nth > 0 {
                released.wait_for(|it| *it).await.unwrap();
            }
            reply(200, &[("cache-control", "max-age=60, stale-if-error=600")], &seen.nth.to_string())
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "collapse_waiters = 1"));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(61));
    let releasing = async {
        until_met(&proxy, "collapse_waiters", 8).await;
        release.send_replace(true);
    };
    let (answers, ()) = tokio::join!(join_all((0..10).map(|_| get(&client, &url))), releasing);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.body == "0").count(), 8, "{answers:?}");
}

#[tokio::test]
async fn a_flood_of_queries_stores_nothing_where_the_second_request_counts() {
    let origin = Origin::counting(&[FRESH]);
    let redis = Redis::start();
    let proxy = Proxy::start(&one_route_with_redis(&origin.url(), &redis.url(), "admission = \"second\""));
    let client = client();
    for chunk in (0..1000).collect::<Vec<_>>().chunks(50) {
        let urls: Vec<_> = chunk.iter().map(|nth| proxy.url(&format!("/a?x={nth}"))).collect();
        let answers = join_all(urls.iter().map(|url| get(&client, url))).await;
        assert!(answers.iter().all(|answer| answer.cache_status.ends_with("; detail=asked-once")), "{answers:?}");
    }
    let stats = proxy.stats().await;
    assert_eq!((&stats["memory"]["objects"], &stats["routes"]["all"]["stored"]), (&0.into(), &0.into()), "{stats:#}");
    assert_eq!(stats["routes"]["all"]["not_stored_reasons"], serde_json::json!({ "asked-once": 1000 }));
    assert!(redis.records().is_empty());
    let url = proxy.url("/wanted");
    assert!(get(&client, &url).await.cache_status.ends_with("detail=asked-once"));
    assert!(get(&client, &url).await.cache_status.ends_with("; stored"));
    assert_eq!(get(&client, &url).await.cache_status, "aside; hit; ttl=60");
}

#[tokio::test]
async fn a_herd_on_a_cold_key_shares_its_fetch_where_the_second_request_counts() {
    let (origin, release) = held_origin();
    let proxy = Proxy::start(&one_route(&origin.url(), "admission = \"second\""));
    let (client, url) = (client(), proxy.url("/hot"));
    let counted = async {
        until_waiting(&origin, "/hot").await;
        // Those who come later follow, or hit.
        release.send_replace(true);
    };
    let (answers, ()) = tokio::join!(join_all((0..100).map(|_| get(&client, &url))), counted);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(origin.count("/hot") <= 2, "{} fetches", origin.count("/hot"));
    assert_eq!(get(&client, &url).await.cache_status, "aside; hit; ttl=60");
}

async fn until_waiting(origin: &Origin, target: &str) {
    while origin.count(target) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_thousand_ranges_are_ignored_and_the_next_client_gets_the_whole() {
    let origin = Origin::start(|_| async { reply(200, &[FRESH], "0123456789") });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    let asking = async |ranges: &str| {
        let response = client.get(&url).header("range", format!("bytes={ranges}")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let whole = (200, "0123456789".to_owned());
    assert_eq!(asking(&vec!["0-"; 1000].join(",")).await, whole);
    assert_eq!(asking(&vec!["0-1"; 17].join(",")).await, whole);
    assert_eq!(asking("0-,0-").await, (206, "0123456789".to_owned()), "those that overlap are merged");
    assert_eq!(asking("0-3,2-5").await, (206, "012345".to_owned()));
    assert_eq!(asking("-1").await, (206, "9".to_owned()));
    assert_eq!(asking("-0").await.0, 416);
    assert_eq!(asking("99999999999999999999-").await.0, 416);
    assert_eq!(asking("").await, whole);
    let clean = get(&client, &url).await;
    assert_eq!((clean.status, clean.body.as_str()), (200, "0123456789"));
    assert_eq!((origin.count("/a"), met(&proxy, "ranges").await), (1, 2));
}

#[tokio::test]
async fn a_part_that_many_ranges_ask_for_is_never_stored_as_the_whole() {
    let part = [FRESH, ("content-range", "bytes 0-1/10")];
    let origin = Origin::start(move |seen| async move {
        let asks = seen.fields.contains_key("range");
        if asks { reply(206, &part, "01") } else { reply(200, &[FRESH], "0123456789") }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    client.get(&url).header("range", "bytes=0-1").send().await.unwrap();
    let clean = get(&client, &url).await;
    assert_eq!((clean.status, clean.body.as_str()), (200, "0123456789"));
}

#[tokio::test]
async fn heads_and_targets_beyond_their_bounds_are_refused_and_counted() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let get_with = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{fields}\r\n")
    };
    let long = |length: usize| format!("/{}", "x".repeat(length));
    let check = async |request: String, status: &str, limit: &str| {
        let before = met(&proxy, limit).await;
        let answer = refused(&proxy, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{limit}: {answer:.100}");
        // What the library refuses is told of once its client has gone, or had time to.
        let begun = Instant::now();
        while met(&proxy, limit).await == before {
            assert!(begun.elapsed() < Duration::from_secs(10), "{limit}");
        }
        assert_eq!(met(&proxy, limit).await, before + 1, "{limit}");
    };
    check(get_with(&long(8 << 10), ""), "414", "uri_length").await;
    check(get_with("/a", &format!("cookie: {}\r\n", "c".repeat(16 << 10))), "431", "header_size").await;
    check(get_with("/a", &format!("cookie: {}\r\n", "c".repeat(1 << 20))), "431", "header_size").await;
    check(get_with(&long(1 << 20), ""), "431", "header_size").await;
    assert!(origin.seen().is_empty());
    assert_eq!(get(&client(), &proxy.url("/a")).await.body, "/a 0");
}

/// What is answered to a request that may not be read to its end.
async fn refused(proxy: &Proxy, request: &str) -> String {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let mut answer = [0; 12];
    let (_, came) = tokio::join!(write.write_all(request.as_bytes()), read.read_exact(&mut answer));
    came.expect("an answer");
    format!("{} ", String::from_utf8_lossy(&answer))
}

#[tokio::test]
async fn responses_with_too_many_tags_or_too_long_ones_are_not_stored() {
    let origin = Origin::start(|seen| async move {
        let tags = match seen.target.as_str() {
            "/many" => (0..65).map(|nth| nth.to_string()).collect::<Vec<_>>().join(" "),
            "/flood" => (0..10_000).map(|nth| nth.to_string()).collect::<Vec<_>>().join(" "),
            "/long" => "t".repeat(16 << 10),
            _ => (0..64).map(|nth| nth.to_string()).collect::<Vec<_>>().join(" "),
        };
        reply(200, &[FRESH, ("surrogate-key", &tags)], &seen.nth.to_string())
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    for path in ["/many", "/flood", "/long"] {
        let answer = get(&client, &proxy.url(path)).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "0"), "{path}");
        assert!(answer.cache_status.ends_with("detail=too-many-tags"), "{path}: {}", answer.cache_status);
    }
    assert_eq!(met(&proxy, "tags").await, 3);
    get(&client, &proxy.url("/enough")).await;
    assert_eq!(get(&client, &proxy.url("/enough")).await.cache_status, "aside; hit; ttl=60");
}

#[tokio::test]
async fn ranges_tags_and_interim_responses_are_bounded_as_is_configured() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let hints = head.split("GET /hints/").nth(1).map_or(0, |rest| usize::from(rest.as_bytes()[0] - b'0'));
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".repeat(hints);
        let fields = "cache-control: max-age=60\r\nsurrogate-key: a b c\r\nconnection: close\r\ncontent-length: 4";
        let fields = if head.contains("/two") { fields.replace(" c\r", "\r") } else { fields.to_owned() };
        let _ = stream.write_all(format!("{early}HTTP/1.1 200 OK\r\n{fields}\r\n\r\nbody").as_bytes()).await;
    });
    let limits = "[server.limits]\nranges = 1\ntags = 2\ninterim = 3\n\n";
    let proxy = Proxy::start(&format!("{limits}{}", one_route(&origin.url(), "")));
    let client = client();
    assert!(get(&client, &proxy.url("/three")).await.cache_status.ends_with("detail=too-many-tags"));
    assert!(get(&client, &proxy.url("/two")).await.cache_status.ends_with("stored"));
    for (ranges, status) in [("bytes=1-2", 206), ("bytes=0-0,2-2", 200)] {
        assert_eq!(client.get(proxy.url("/two")).header("range", ranges).send().await.unwrap().status(), status);
    }
    assert_eq!(get(&client, &proxy.url("/hints/3/two")).await.status, 200);
    assert_eq!(get(&client, &proxy.url("/hints/4/two")).await.status, 502);
    for limit in ["ranges", "tags", "interim"] {
        assert_eq!(met(&proxy, limit).await, 1, "{limit}");
    }
}

#[tokio::test]
async fn variants_beyond_the_bound_and_interim_heads_beyond_theirs_are_counted() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
        let fields = "cache-control: max-age=60\r\nvary: x-a\r\nconnection: close\r\ncontent-length: 1";
        let hints = if head.starts_with("GET /hints ") { early.repeat(40) } else { String::new() };
        let _ = stream.write_all(format!("{hints}HTTP/1.1 200 OK\r\n{fields}\r\n\r\nv").as_bytes()).await;
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "vary = { max_variants = 2 }"));
    let client = client();
    for variant in 0..20 {
        let response = client.get(proxy.url("/a")).header("x-a", variant.to_string()).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "v");
    }
    assert_eq!(proxy.stats().await["memory"]["objects"], 2);
    // That the key is not to be stored is remembered: the rest are not tried.
    assert!(met(&proxy, "max_variants").await >= 1);
    let hints = "GET /hints HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    let answer = raw_exchange(proxy.address, hints).await;
    assert!(answer.matches("HTTP/1.1 103 ").count() <= 16 && answer.contains("HTTP/1.1 502 "), "{answer}");
    assert_eq!(met(&proxy, "interim").await, 1);
}

#[tokio::test]
async fn a_large_upload_streams_through_with_flat_memory() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 512;
    let origin = RawOrigin::start(|mut stream, _head| async move {
        let mut buffer = vec![0; CHUNK];
        let mut left = CHUNK * CHUNKS;
        while left > 0 {
            left -= stream.read(&mut buffer).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\"\nrequest_body_max = \"1 GiB\""));
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head =
        format!("POST /a HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", CHUNK * CHUNKS);
    stream.write_all(head.as_bytes()).await.unwrap();
    let (chunk, before, mut peak) = (vec![b'x'; CHUNK], crate::broken::resident_bytes(), 0);
    for _ in 0..CHUNKS {
        stream.write_all(&chunk).await.unwrap();
        peak = peak.max(crate::broken::resident_bytes());
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
    assert!(peak < before + 100 * (1 << 20), "{before} bytes before, {peak} at the peak");
}

/// The proxy as a process of its own with few file descriptors, killed when dropped.
struct Cramped {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Cramped {
    fn start(descriptors: usize, toml: &str) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let file = folder.path().join("aside.toml");
        let server = format!("[server]\nlisten = \"127.0.0.1:{port}\"\nthreads = 1\n\n[log]\naccess = \"off\"\n\n");
        std::fs::write(&file, server + toml).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" serve --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_aside"))
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { port, child, _folder: folder }
    }

    /// Seconds of processor time that it took so far.
    fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it lives");
        let fields: Vec<f64> = stat.rsplit(')').next().unwrap().split(' ').filter_map(|it| it.parse().ok()).collect();
        // User and system, after the state, which is no number, in hundredths.
        (fields[10] + fields[11]) / 100.0
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn without_file_descriptors_accepting_waits_and_goes_on() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Cramped::start(64, &one_route(&origin.url(), ""));
    let client = client();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", proxy.port);
    let served = async {
        loop {
            match client.get(url("/a")).send().await {
                Ok(response) => return got(response).await,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(timeout(PATIENCE, served).await.expect("it starts").body, "/a 0");
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap());
    }
    // On the connection that it has, it serves on.
    let stats =
        async || -> serde_json::Value { serde_json::from_str(&get(&client, &url("/cache-stats")).await.body).unwrap() };
    let (before, begun) = (proxy.processor_seconds(), Instant::now());
    let waiting = async {
        while stats().await["limits"]["descriptors"].as_u64().unwrap() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it pauses more than once");
    let spent = proxy.processor_seconds() - before;
    assert!(spent < 0.5, "{spent} s of processor time while nothing can be accepted");
    let (pauses, elapsed) = (stats().await["limits"]["descriptors"].as_f64().unwrap(), begun.elapsed().as_secs_f64());
    assert!(pauses < 10.0 + elapsed * 20.0, "{pauses} in {elapsed} s is no pause");
    assert_eq!(get(&client, &url("/a")).await.cache_status.split("; ttl").next(), Some("aside; hit"));
    drop(held);
    let fresh = crate::world::client();
    let answer = timeout(PATIENCE, get(&fresh, &url("/b"))).await.expect("room again");
    assert_eq!((answer.status, answer.body.as_str()), (200, "/b 0"));
}
