//! Requests whose framing two readers could read differently: refused, and never more than one request upstream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::origin::Seen;
use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, RawOrigin, client, get, reply};

/// Writes `bytes` on a connection of its own; what comes until the proxy closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The proxy may have left before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    // What a connection that was reset had brought counts too.
    let _ = read.await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the answers in `text`.
fn statuses(text: &str) -> Vec<u16> {
    let heads = text.split("HTTP/1.").skip(1);
    heads.map(|head| head[2..5].parse().expect("a status")).collect()
}

async fn told(seen: Seen) -> Response<Bytes> {
    reply(200, &[("cache-control", "max-age=60")], &format!("{} {}", seen.target, seen.body.len()))
}

const LAST: &str = "GET /last HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a.test\r\n\r\n";

/// `request` is refused with `status`, the connection is closed, and the upstream hears nothing.
async fn check_refused(origin: &Origin, proxy: &Proxy, request: &str, status: u16) {
    let answer = exchange(proxy.address, format!("{request}{SMUGGLED}").as_bytes()).await;
    assert_eq!(statuses(&answer), [status], "{request:?}: {answer}");
    assert!(origin.seen().is_empty(), "{request:?}");
}

#[tokio::test]
async fn what_hyper_hides_or_lets_through_is_refused() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nhost: a.test\r\n{fields}\r\n\r\n");
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 5",
        "content-length: 05",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 1_0",
        "content-length: 5 5",
        "content-length:",
        "content-length: 99999999999999999999",
        "content_length: 5",
        "transfer_encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding : chunked",
        "transfer-encoding:\u{b}chunked",
        "content-length : 5",
        "x: y\r\n folded",
        ": empty name",
        "x\0y: z",
        "x: y\0z",
        "x: y\rz",
        "x: y\nz: bare",
    ] {
        check_refused(&origin, &proxy, &post(fields), 400).await;
    }
    check_refused(&origin, &proxy, "POST / HTTP/1.0\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n", 400).await;
    check_refused(&origin, &proxy, "GET / HTTP/1.1\nhost: a.test\n\n", 400).await;
    check_refused(&origin, &proxy, "GET / HTTP/1.1\r\nhost: a.test\r\n\n", 400).await;
    check_refused(&origin, &proxy, "GET /\r\n\r\n", 400).await;
    check_refused(&origin, &proxy, "GET / HTTP/1.2\r\nhost: a.test\r\n\r\n", 400).await;
    check_refused(&origin, &proxy, "GET / HTTP/2.0\r\nhost: a.test\r\n\r\n", 400).await;
    check_refused(&origin, &proxy, "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", 400).await;
    check_refused(&origin, &proxy, "CONNECT b.test:80 HTTP/1.1\r\nhost: b.test:80\r\n\r\n", 405).await;
    check_refused(&origin, &proxy, &post("expect: y 100-continue\r\ncontent-length: 5"), 417).await;
    check_refused(&origin, &proxy, &post("expect: 200-ok"), 417).await;
    // A request that is as it should be passes, pipelined with another.
    let answer = exchange(proxy.address, format!("{}{SMUGGLED}{LAST}", post("content-length: 0")).as_bytes()).await;
    assert_eq!(statuses(&answer), [200, 200, 200], "{answer}");
}

#[tokio::test]
async fn refusals_are_counted_and_logged_whoever_refuses() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    exchange(proxy.address, b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n").await;
    exchange(proxy.address, b"GET / HTTP/1.1\r\nhost: a.test\r\nx: y\nz: v\r\n\r\n").await;
    exchange(proxy.address, format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "v".repeat(100_000)).as_bytes()).await;
    // What the library refuses is told of once its connection has ended, which the client sees first.
    let begun = Instant::now();
    while proxy.stats().await["totals"]["requests"] != 3 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", proxy.stats().await);
    }
    let lines = proxy.stopped_lines();
    let of = |status: &str| lines.iter().filter(|line| line.contains(status)).count();
    assert_eq!((lines.len(), of(" 400 "), of(" 431 ")), (3, 2, 1), "{lines:?}");
}

/// The host in the log is the one that was asked for, not the one that another field names.
#[tokio::test]
async fn a_host_that_is_refused_is_the_one_in_the_log() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&format!("server = {{ hosts = [\"a.test\"] }}\n{}", one_route(&origin.url(), "")));
    exchange(proxy.address, b"GET http://evil.test/x HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await;
    exchange(proxy.address, b"CONNECT evil.test:443 HTTP/1.1\r\nhost: evil.test:443\r\n\r\n").await;
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let request = http2.get(proxy.url("/y")).header("user-agent", "x");
    assert_eq!(request.send().await.expect("an answer").status(), 421);
    let lines = proxy.stopped_lines();
    let authority = " 127.0.0.1:";
    let expected = [" evil.test /x HTTP/1.1 421 ", " evil.test:443 - HTTP/1.1 405 ", authority];
    let has = |end: &str| {
        lines.iter().any(|line| line.contains(end) && (end != authority || line.contains(" /y HTTP/2.0 421 ")))
    };
    assert!(lines.len() == 3 && expected.iter().all(|end| has(end)), "{lines:?}");
}

/// Nobody has had the answer to a request whose client has left: it is neither counted nor logged.
#[tokio::test]
async fn what_hyper_does_not_answer_is_not_recorded() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    get(&client(), &proxy.url("/hot")).await;
    let mut answered = 0;
    for _ in 0..30 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"GET /hot HTTP/1.1\r\nhost: a.test\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answered += u64::from(!answer.is_empty());
    }
    assert_eq!(proxy.stats().await["totals"]["requests"], 1 + answered);
    assert_eq!(proxy.stopped_lines().len() as u64, 1 + answered);
}

/// What smuggling tests do to a Transfer-Encoding field: every octet that might be taken for white space or a line's end,
/// in each place where it might be, and the tricks with names.
fn mutations() -> Vec<Vec<u8>> {
    let octets = (0x01..=0x20_u8).chain(0x7f..=0xff);
    let mut all: Vec<Vec<u8>> = octets
        .flat_map(|octet| {
            let with = |before: &[u8], after: &[u8]| [before, &[octet], after].concat();
            [
                with(b"Transfer-Encoding:", b"chunked"),
                with(b"Transfer-Encoding", b": chunked"),
                with(b"", b"Transfer-Encoding: chunked"),
                with(b"Transfer-Encoding: chunked", b""),
                with(b"X: X", b"Transfer-Encoding: chunked"),
                with(b"Transfer-Encoding: chunked", b"X: X"),
                with(b"X: X\r", b"Transfer-Encoding: chunked"),
                with(b"X: X", b"\nTransfer-Encoding: chunked"),
                with(b"Transfer-Encoding: chunked\r", b"X: X"),
                with(b"Transfer-Encoding: chunked", b"\nX: X"),
                with(b"Transfer", b"Encoding: chunked"),
            ]
        })
        .collect();
    let tricks = [
        " Transfer-Encoding: chunked",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding\t:\tchunked",
        "Transfer Encoding: chunked",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:chunked",
        "Transfer-Encoding:  chunked",
        "Transfer-Encoding: chunked, cow",
        "Transfer-Encoding: cow, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked-false",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\n chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chunk",
        "TrAnSFer-EnCODinG: cHuNkeD",
        "TRANSFER-ENCODING: CHUNKED",
        "Transfer-Encoding: identity, chunked, identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
        "Content-Encoding: chunked",
        "X: X\nTransfer-Encoding: chunked",
        "Foo: bar\r\n\rTransfer-Encoding: chunked",
        "Transfer-\r\nEncoding: chunked",
        "Transf\u{e9}r-Encoding: chunked",
    ];
    all.extend(tricks.iter().map(|trick| trick.as_bytes().to_vec()));
    all
}

/// However the field is written, either both fields' request is refused, or it is read by its Content-Length, and what
/// the upstream is sent is framed anew. What follows in the content is never a request.
#[tokio::test]
async fn no_spelling_of_transfer_encoding_smuggles() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let content = format!("0\r\n\r\n{SMUGGLED}");
    let mutations = mutations();
    assert!(mutations.len() > 1700);
    for mutation in mutations {
        let length = format!("Content-Length: {}\r\n", content.len());
        let mut request = b"POST /first HTTP/1.1\r\nHost: a.test\r\n".to_vec();
        request.extend_from_slice(length.as_bytes());
        request.extend_from_slice(&mutation);
        request.extend_from_slice(b"\r\n\r\n");
        request.extend_from_slice(content.as_bytes());
        request.extend_from_slice(LAST.as_bytes());
        let answer = exchange(proxy.address, &request).await;
        let shown = String::from_utf8_lossy(&mutation).into_owned();
        match *statuses(&answer) {
            [400] => {}
            [200, 200] => assert!(answer.ends_with("/last 0"), "{shown:?}: {answer}"),
            ref other => panic!("{shown:?}: {other:?} {answer}"),
        }
    }
    let seen = origin.seen();
    let (first, last): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.target == "/first");
    assert!(first.iter().all(|seen| seen.body == content), "content is passed on whole");
    assert!(last.iter().all(|seen| seen.target == "/last"), "nothing was smuggled");
    assert!(
        seen.iter().all(
            |seen| !seen.fields.contains_key("transfer-encoding") && !seen.fields.contains_key("transfer_encoding")
        )
    );
}

#[tokio::test]
async fn chunked_content_is_read_strictly_and_framed_anew() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let post =
        |content: &str| format!("POST /c HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n{content}");
    for content in [
        "x\r\n",
        "\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "1_0\r\na\r\n0\r\n\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1;x\n\r\na\r\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "10000000000000000\r\na\r\n0\r\n\r\n",
        "fffffffffffffffff\r\na\r\n0\r\n\r\n",
        &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(100_000)),
    ] {
        let answer = exchange(proxy.address, format!("{}{SMUGGLED}", post(content)).as_bytes()).await;
        let statuses = statuses(&answer);
        assert!(statuses.is_empty() || statuses == [400], "{content:.40?}: {answer}");
    }
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
    // Two readers may see different ends of these trailers: what follows is not trusted, whichever it is.
    let doubtful = format!("{}{SMUGGLED}{SMUGGLED}", post("0\r\na: b\n\r\n"));
    assert_eq!(statuses(&exchange(proxy.address, doubtful.as_bytes()).await), [200, 400]);
    assert_eq!((origin.count("/c"), origin.seen().len()), (1, 1));
    let plain = "1;a=\"b\"\r\nx\r\n2 ;;\r\nyz\r\n0\r\nhost: evil\r\nauthorization: evil\r\ncontent-length: 9\r\nset-cookie: evil\r\n\r\n";
    let answer = exchange(proxy.address, format!("{}{LAST}", post(plain)).as_bytes()).await;
    assert_eq!(statuses(&answer), [200, 200], "{answer}");
    let seen = &origin.seen()[1];
    assert_eq!((seen.target.as_str(), &seen.body[..]), ("/c", &b"xyz"[..]));
    assert!(!format!("{:?}", seen.fields).contains("evil"), "{:?}", seen.fields);
}

/// A hit, a refusal or an error leaves content unread: the connection goes on behind it, or ends, and the content is
/// never a request.
#[tokio::test]
async fn content_that_nobody_reads_is_never_a_request() {
    let origin = Origin::start(told);
    let toml = one_route(&origin.url(), "ttl = \"1m\"\nrequest_body_max = \"1 KiB\"");
    let proxy = Proxy::start(&toml);
    get(&client(), &proxy.url("/hit")).await;
    let host = proxy.address;
    for (line, status) in [
        ("GET /hit", 200),
        ("HEAD /hit", 200),
        ("GET *", 400),
        ("GET /cache-stats", 200),
        ("OPTIONS *", 204),
        ("POST /large", 200),
    ] {
        for times in [1, 10_000] {
            let content = SMUGGLED.repeat(times);
            let head = format!("{line} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", content.len());
            let answer = exchange(proxy.address, format!("{head}{content}{LAST}").as_bytes()).await;
            let statuses = statuses(&answer);
            let first = statuses.first().copied();
            assert!(first == Some(status) || times > 1 && first == Some(413), "{line} {times}: {answer}");
            let goes_on = statuses.len() == 2 && answer.ends_with("/last 0");
            assert!(goes_on || statuses.len() == 1, "{line} {times}: {answer}");
        }
    }
    assert_eq!(origin.count("/smuggled"), 0);
}

#[tokio::test]
async fn an_expectation_is_met_here_and_not_passed_on() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    get(&client(), &proxy.url("/hit")).await;
    let host = proxy.address;
    // A hit has its final answer; the content that was announced is never a request.
    let expecting = |line: &str, content: &str| {
        let length = content.len();
        format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n{content}{LAST}"
        )
    };
    let answer = exchange(proxy.address, expecting("GET /hit", "").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("aside; hit"), "{answer}");
    let answer = exchange(proxy.address, expecting("POST /sent", SMUGGLED).as_bytes()).await;
    assert!(answer.contains(&format!("/sent {}", SMUGGLED.len())), "{answer}");
    let seen = origin.seen();
    assert!(seen.iter().all(|seen| !seen.fields.contains_key("expect")), "{seen:?}");
    assert_eq!(origin.count("/smuggled"), 0);
}

#[tokio::test]
async fn only_what_a_route_names_is_upgraded_to_and_only_once_the_upstream_agrees() {
    let origin = Origin::start(told);
    let proxy = Proxy::start(&one_route(&origin.url(), "upgrade = [\"websocket\"]"));
    let asking = |nth: usize, protocol: &str| {
        format!(
            "GET /{nth} HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: {protocol}\r\n\
             http2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n{SMUGGLED}{LAST}"
        )
    };
    for (nth, protocol) in ["h2c", "h2c, websocket", "websocket, h2c", "tls/1.0", "WebSocket"].into_iter().enumerate() {
        let answer = exchange(proxy.address, asking(nth, protocol).as_bytes()).await;
        // The upstream did not switch: what follows are requests like any other.
        assert_eq!(statuses(&answer), [200, 200, 200], "{protocol}: {answer}");
        let seen = origin.seen().into_iter().find(|seen| seen.target == format!("/{nth}")).expect("it was sent on");
        let upgrade = seen.fields.get("upgrade").map(|value| value.to_str().unwrap().to_lowercase());
        assert!(upgrade.is_none_or(|upgrade| upgrade == "websocket"), "{protocol}: {:?}", seen.fields);
        assert!(!seen.fields.contains_key("http2-settings"), "{protocol}: {:?}", seen.fields);
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_what_it_can_read() {
    let origin = RawOrigin::writing(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncache-control: max-age=60\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    );
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for nth in 0..2 {
        let answer = exchange(proxy.address, b"GET /a HTTP/1.0\r\nhost: a.test\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(!head.to_lowercase().contains("transfer-encoding") && body == "body", "{nth}: {answer}");
    }
    assert_eq!(origin.count(), 1);
}

/// What comes after content would be fields for whoever reads it into the head (RFC 9110 §6.5.1).
#[tokio::test]
async fn an_upstreams_trailers_reach_no_client() {
    let origin = RawOrigin::writing(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-late\r\ncache-control: max-age=60\r\n\r\n\
          4\r\nbody\r\n0\r\nset-cookie: evil=1\r\nx-late: evil\r\ncontent-length: 9\r\n\r\n",
    );
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for (path, fields) in [("/cold", ""), ("/cold", ""), ("/te", "te: trailers\r\n"), ("/past", "cookie: a=1\r\n")] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{fields}connection: close\r\n\r\n");
        let answer = exchange(proxy.address, request.as_bytes()).await;
        assert!(answer.contains("body") && !answer.contains("evil") && !answer.contains("trailer:"), "{answer}");
    }
}
