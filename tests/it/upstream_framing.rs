//! Upstreams whose messages are malformed, ambiguous, too many or too large: what passes, and what never does.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::protocols::raw_exchange;
use crate::world::proxy::one_route;
use crate::world::{Proxy, RawOrigin, client, get};

const ROUTE: &str = "ttl = \"1m\"\nstale_if_error = \"0s\"\nfirst_byte_timeout = \"2s\"";

/// An upstream that answers the first request of each connection, and then none: who uses one twice waits in vain.
struct Once {
    origin: RawOrigin,
    closed: Arc<AtomicUsize>,
}

impl Once {
    fn start<F, A>(answer: F) -> Self
    where
        F: Fn(TcpStream, String) -> A + Send + Sync + 'static,
        A: Future<Output = TcpStream> + Send + 'static,
    {
        let closed = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::new(answer), Arc::clone(&closed));
        let origin = RawOrigin::start(move |stream, head| {
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            async move {
                let mut stream = answer(stream, head).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { origin, closed }
    }

    fn writing(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::start(move |mut stream, _head| {
            let bytes = Arc::clone(&bytes);
            async move {
                let _ = stream.write_all(&bytes).await;
                stream
            }
        })
    }

    /// Waits until the proxy has closed that many of the connections.
    async fn closed(&self, count: usize) {
        let reached = async {
            while self.closed.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("the connection is closed");
    }
}

/// Each request is a fetch of its own that ends in 502, and the connection is not used again.
async fn check_refused(what: &str, answer: impl Into<Vec<u8>>) {
    let once = Once::writing(answer);
    let proxy = Proxy::start(&one_route(&once.origin.url(), ROUTE));
    let client = client();
    for fetches in 1..=2 {
        let got = get(&client, &proxy.url("/a")).await;
        assert_eq!(got.status, 502, "{what}: {got:?}");
        assert!(got.cache_status.ends_with("detail=upstream-protocol"), "{what}: {got:?}");
        assert_eq!((got.body.as_str(), once.origin.count()), ("Bad Gateway\n", fetches), "{what}");
    }
    assert_eq!(proxy.stats().await["memory"]["objects"], 0, "{what}");
}

/// Two requests, which get the same; what follows the response is nobody's, and its connection is not used again.
async fn check_cut(what: &str, route: &str, answer: impl Into<Vec<u8>>, status: u16, body: &str) {
    let once = Once::writing(answer);
    let proxy = Proxy::start(&one_route(&once.origin.url(), route));
    let client = client();
    for _ in 0..2 {
        let got = get(&client, &proxy.url("/a")).await;
        assert_eq!((got.status, got.body.as_str()), (status, body), "{what}");
        assert_eq!(get(&client, &proxy.url("/b")).await.body, body, "{what}");
    }
    once.closed(once.origin.count()).await;
}

#[tokio::test]
async fn ambiguous_framing_is_a_502_and_not_stored() {
    for (fields, content) in [
        ("content-length: 5\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ncontent-length: 5", "5\r\nhello\r\n0\r\n\r\n"),
        ("content-length: 5\r\ncontent-length: 6", "hello"),
        ("content-length: 5\r\ncontent-length: 5", "hello"),
        ("content-length: 5, 5", "hello"),
        ("content-length: +5", "hello"),
        ("content-length: 0x5", "hello"),
        ("content-length:", "hello"),
        ("content-length: 99999999999999999999999", "hello"),
        ("transfer-encoding: gzip, chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked, gzip", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked, chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: xchunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding: \"chunked\"", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding:", "hello"),
        ("transfer-encoding: identity", "hello"),
    ] {
        check_refused(fields, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{content}")).await;
    }
    check_refused("1.0", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn what_is_not_http_is_a_502_and_not_stored() {
    for answer in [
        "hello\r\n",
        "<html>hello</html>",
        "\x16\x03\x01\x02\x00\x01",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 999 High\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 1000 High\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: x\0y\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: x\ry\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: x\r\n y\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na : x\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: x\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 0\r\n\r\n",
    ] {
        check_refused(answer, answer).await;
    }
}

#[tokio::test]
async fn a_head_beyond_all_bounds_is_a_502_and_not_stored() {
    let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
    check_refused("100 fields and one", with(&"a: x\r\n".repeat(100))).await;
    for size in [65, 127, 300, 2000] {
        check_refused(&format!("{size} KiB"), with(&format!("a: {}\r\n", "x".repeat(size * 1024)))).await;
    }
    let large = with(&format!("{}b: {}\r\n", "a: x\r\n".repeat(90), "x".repeat(60 * 1024)));
    let once = Once::writing(large);
    let proxy = Proxy::start(&one_route(&once.origin.url(), ROUTE));
    assert_eq!(get(&client(), &proxy.url("/a")).await.status, 200, "large, but within bounds");
}

#[tokio::test]
async fn interim_responses_are_bounded_and_protocols_switched_on_request_alone() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let after = |count: usize, interim: &str| format!("{}{OK}", interim.repeat(count));
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    check_refused("101", format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n{OK}")).await;
    for interim in [early, "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n"] {
        check_refused(interim, after(17, interim)).await;
        let once = Once::writing(after(16, interim));
        let proxy = Proxy::start(&one_route(&once.origin.url(), ROUTE));
        let got = get(&client(), &proxy.url("/a")).await;
        assert_eq!((got.status, got.body.as_str()), (200, "ok"), "sixteen {interim}");
    }
    check_refused("10,000", after(10_000, early)).await;
    let endless = Once::start(|mut stream, _head| async move {
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {}
        stream
    });
    let proxy = Proxy::start(&one_route(&endless.origin.url(), "first_byte_timeout = \"1h\""));
    assert_eq!(get(&client(), &proxy.url("/a")).await.status, 502);
    endless.closed(1).await;
}

#[tokio::test]
async fn what_follows_a_response_is_nobodys() {
    const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\ncache-control: max-age=60\r\n\r\npoison";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for route in [ROUTE, "cache = false\nfirst_byte_timeout = \"2s\""] {
        for extra in ["x", "\r\n", POISON] {
            check_cut(extra, route, format!("{ok}{extra}"), 200, "hello").await;
            check_cut(extra, route, format!("{chunked}{extra}"), 200, "hello").await;
        }
        let empty = "HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison";
        check_cut("204 with content", route, empty, 204, "").await;
        check_cut("204 and another", route, format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"), 204, "").await;
    }
}

#[tokio::test]
async fn a_204_is_sent_on_without_the_length_it_must_not_have() {
    let once = Once::writing("HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison");
    let proxy = Proxy::start(&one_route(&once.origin.url(), ROUTE));
    let request = "GET /a HTTP/1.1\r\nhost: a.test\r\n\r\nGET /a HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    let answers = raw_exchange(proxy.address, request).await;
    assert_eq!(answers.matches("HTTP/1.1 204 No Content\r\n").count(), 2, "{answers}");
    assert!(!answers.contains("content-length") && !answers.contains("poison"), "{answers}");
}

#[tokio::test]
async fn content_after_the_head_of_a_head_is_discarded() {
    for route in [ROUTE, "cache = false\nfirst_byte_timeout = \"2s\""] {
        let once = Once::writing("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        let proxy = Proxy::start(&one_route(&once.origin.url(), route));
        let client = client();
        for _ in 0..2 {
            let head = client.head(proxy.url("/a")).send().await.unwrap();
            assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"5".parse().unwrap()));
        }
        once.closed(2).await;
        assert_eq!(get(&client, &proxy.url("/a")).await.body, "hello", "a whole one, not what a HEAD left behind");
    }
}

#[tokio::test]
async fn what_comes_on_an_idle_connection_answers_nobody() {
    let (written, mut seen) = tokio::sync::watch::channel(false);
    let written = Arc::new(written);
    let origin = Once::start(move |mut stream, head| {
        let written = Arc::clone(&written);
        async move {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";
            let _ = stream.write_all(answer.as_bytes()).await;
            if head.starts_with("GET /first ") {
                let _ = stream.write_all(answer.replace("good", "evil").as_bytes()).await;
                written.send_replace(true);
            }
            stream
        }
    });
    let proxy = Proxy::start(&one_route(&origin.origin.url(), ROUTE));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/first")).await.body, "good");
    seen.wait_for(|it| *it).await.unwrap();
    assert_eq!(get(&client, &proxy.url("/second")).await.body, "good");
    origin.closed(1).await;
    assert_eq!(get(&client, &proxy.url("/second")).await.body, "good");
}

#[tokio::test]
async fn bare_line_feeds_are_read_and_never_sent_on() {
    let once = Once::writing("HTTP/1.1 200 OK\nx-a: 1\nx-b: 2\ncontent-length: 5\n\nhello");
    let proxy = Proxy::start(&one_route(&once.origin.url(), ROUTE));
    let answer = raw_exchange(proxy.address, "GET /a HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("\r\nx-a: 1\r\n") && answer.contains("\r\nx-b: 2\r\n"), "{answer}");
    assert_eq!(answer.matches('\n').count(), answer.matches("\r\n").count(), "{answer}");
}

#[tokio::test]
async fn an_answer_that_came_before_its_request_leaves_none_behind() {
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{body}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = Proxy::start(&one_route(&format!("http://{address}"), ROUTE));
    let (client, url) = (client(), proxy.url("/first"));
    let hasty = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(answer("early").as_bytes()).await;
        // The request, or the end of what the proxy does not trust.
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer("first").as_bytes()).await;
        stream
    };
    let (first, stream) = tokio::join!(get(&client, &url), hasty);
    assert!(first.status == 502 || first.body == "early" || first.body == "first", "{first:?}");
    let url = proxy.url("/second");
    let honest = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer("clean").as_bytes()).await;
        stream
    };
    let (second, _stream) = tokio::join!(get(&client, &url), honest);
    assert_eq!(second.body, "clean");
    drop(stream);
}

#[tokio::test]
async fn http_1_0_is_understood_and_its_open_ends_are_not_stored() {
    for (answer, is_stored) in [
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", true),
        ("HTTP/1.0 200 OK\r\n\r\nhello", false),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nhello", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", false),
    ] {
        let origin = RawOrigin::start(move |mut stream, _head| async move {
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        let proxy = Proxy::start(&one_route(&origin.url(), ROUTE));
        for _ in 0..2 {
            let got = get(&client(), &proxy.url("/a")).await;
            assert_eq!((got.status, got.body.as_str()), (200, "hello"), "{answer}");
        }
        assert_eq!(origin.count(), if is_stored { 1 } else { 2 }, "{answer}");
    }
}
