//! HTTP/1.1, h2c, TLS, upgrades and event streams.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, RawOrigin, builder, client, field, get, h2c_client};

/// Sends `request` on a connection of its own and reads to its end.
pub async fn raw_exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn http2_with_prior_knowledge_shares_the_store_with_http1() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    get(&client(), &proxy.url("/a")).await;
    let response = h2c_client().get(proxy.url("/a")).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(field(&response, "cache-status"), "aside; hit; ttl=60");
    assert_eq!(response.text().await.unwrap(), "/a 0");
}

#[tokio::test]
async fn tls_offers_http2_and_http1() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let toml = format!(
        "[server]\ntls = {{ cert = \"{}\", key = \"{}\" }}\n\n{}",
        cert.display(),
        key.display(),
        one_route(&origin.url(), "")
    );
    let proxy = Proxy::start(&toml);
    let url = format!("https://localhost:{}/a", proxy.address.port());
    let trusting = || {
        let root = reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap();
        builder().tls_certs_only([root]).resolve("localhost", proxy.address)
    };
    let h2 = trusting().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!(h2.version(), reqwest::Version::HTTP_2);
    drop(h2.text().await);
    let h1 = trusting().http1_only().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!(h1.version(), reqwest::Version::HTTP_11);
    assert_eq!(field(&h1, "cache-status"), "aside; hit; ttl=60");
}

#[tokio::test]
async fn a_websocket_passes_untouched() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word.map(|letter| letter.to_ascii_uppercase())).await.unwrap();
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream
        .write_all(b"GET /chat HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"PING");
}

#[tokio::test]
async fn a_tunnel_whose_client_has_left_ends_though_the_upstream_stays() {
    let origin = RawOrigin::start(|mut stream, _head| async move {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let toml = format!("[server.limits]\nidle_timeout = \"1s\"\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let ask = b"GET /chat HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 101");
    assert_eq!(proxy.stats().await["process"]["tunnels"], 1);
    drop(stream);
    let begun = std::time::Instant::now();
    while proxy.stats().await["process"]["tunnels"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the tunnel stays");
    }
}

#[tokio::test]
async fn an_event_stream_arrives_as_it_comes() {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = RawOrigin::start(move |mut stream, _head| {
        let mut released = released.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
            released.wait_for(|it| *it).await.unwrap();
            stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.unwrap();
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    let mut response = client().get(proxy.url("/events")).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n", "before the second exists");
    release.send(true).unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 2\n\n");
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn requests_without_a_clear_host_are_refused() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let check = async |request: &str, expected: &str| {
        let answer = raw_exchange(proxy.address, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{request:?}: {answer}");
    };
    check("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "400").await;
    check("GET / HTTP/1.1\r\nhost: a.test\r\nhost: b.test\r\nconnection: close\r\n\r\n", "400").await;
    check("GET / HTTP/1.1\r\nhost: a@b\r\nconnection: close\r\n\r\n", "400").await;
    check("CONNECT a.test:80 HTTP/1.1\r\nhost: a.test:80\r\nconnection: close\r\n\r\n", "405").await;
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn a_hosts_list_lets_no_other_host_through() {
    let origin = Origin::counting(&[]);
    let toml = format!("[server]\nhosts = [\"a.test\"]\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let answer = raw_exchange(proxy.address, "GET / HTTP/1.1\r\nhost: b.test\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let answer = raw_exchange(proxy.address, "GET / HTTP/1.1\r\nhost: A.test.\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_client_cannot_pass_for_a_proxy() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let request = client().get(proxy.url("/a")).header("x-forwarded-host", "evil").header("x-original-url", "/admin");
    request.header("x-forwarded-for", "203.0.113.9").send().await.unwrap();
    let seen = &origin.seen()[0].fields;
    assert!(origin.seen()[0].body.is_empty());
    assert_eq!(seen["x-forwarded-host"], proxy.address.to_string());
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!(seen["via"], "1.1 aside");
    assert!(!seen.contains_key("x-original-url"));
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a GET for `/a` at `a.test`, without compression of what the static table does not hold.
pub const GET_A: &[u8] = b"\x82\x86\x04\x02/a\x01\x06a.test";

#[tokio::test]
async fn an_http2_client_that_gives_no_window_is_left() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let toml = format!("[server.limits]\nidle_timeout = \"1s\"\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE of nothing, then 60 requests.
    begin.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    (0..60).for_each(|nth| begin.extend(frame(1, 5, 1 + 2 * nth, GET_A)));
    stream.write_all(&begin).await.unwrap();
    let conversation = async {
        let (mut heads, mut head) = (0, [0; 9]);
        // Everything is acknowledged, and the connection kept busy with questions.
        while stream.read_exact(&mut head).await.is_ok() {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            heads += usize::from(head[3] == 1);
            assert!(head[3] != 0 || length == 0, "content without a window");
            let answer = match (head[3], head[4] & ACK) {
                (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
                (PING, 0) => frame(PING, ACK, 0, &payload),
                _ => continue,
            };
            // The connection may be at its end.
            let _ = stream.write_all(&answer).await;
        }
        heads
    };
    let heads = tokio::time::timeout(Duration::from_secs(20), conversation).await.expect("the connection ends");
    assert_eq!(heads, 60, "every request was answered");
    let all_ended = async {
        while proxy.stats().await["routes"]["all"]["requests"] != 60 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_ended).await.expect("the answers end with it");
}
