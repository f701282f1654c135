//! Calls against real servers on the loopback interface.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::Clock;
use crate::telemetry::{AccessLog, Format, Level, LogConfig};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
pub(super) const SOON: Duration = Duration::from_millis(50);

pub(super) fn config(urls: &[String]) -> UpstreamConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.expect("versions").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    UpstreamConfig {
        name: "api".into(),
        urls: urls.iter().map(|url| url.parse().expect("a url")).collect(),
        host: HostRule::Upstream,
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(10),
        first_byte_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(10),
        retries: 1,
        max_concurrent: 0,
        max_pending: 0,
        resolve_interval: Duration::from_secs(30),
        breaker: Breaker { failures: 5, open: Duration::from_secs(3600) },
        health: None,
        tls: Arc::new(tls),
        fingerprint: 0,
    }
}

pub(super) fn telemetry() -> Arc<Telemetry> {
    let log = LogConfig { level: Level::Error, format: Format::Text, access: AccessLog::Off };
    Arc::new(Telemetry::new(log, Clock::System).expect("telemetry"))
}

pub(super) fn upstream(config: UpstreamConfig) -> Arc<Upstream> {
    looking_up(config, roster::system())
}

/// The same with names of the test's own. It is tended until the test's runtime ends.
#[allow(clippy::disallowed_methods, reason = "it ends with the test")]
pub(super) fn looking_up(config: UpstreamConfig, lookup: Lookup) -> Arc<Upstream> {
    let upstream = Arc::new(Upstream::new(config, 1, &telemetry(), lookup, None));
    let tended = Arc::clone(&upstream);
    tokio::spawn(async move { tended.tend().await });
    upstream
}

fn content(bytes: &'static str) -> RequestBody {
    Full::from(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(super) fn get(target: &str) -> Request<RequestBody> {
    Request::get(target).body(Empty::new().map_err(|never| match never {}).boxed_unsync()).expect("a request")
}

pub(super) fn post(bytes: &'static str) -> Request<RequestBody> {
    Request::post("/").body(content(bytes)).expect("a request")
}

pub(super) async fn fetch(
    upstream: &Upstream,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, UpstreamError> {
    upstream.fetch(0, request, &CallOptions::default(), None).await
}

pub(super) async fn text(response: Response<ResponseBody>) -> String {
    let bytes = response.into_body().collect().await.expect("whole content").to_bytes();
    String::from_utf8(bytes.into()).expect("text")
}

/// A server that reads a head and lets `script` do the rest.
#[allow(clippy::disallowed_methods, reason = "a test's server ends with its runtime")]
async fn raw<A>(script: impl Fn(TcpStream, String) -> A + Send + 'static) -> String
where
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            tokio::spawn(script(stream, String::from_utf8(head).expect("text")));
        }
    });
    format!("http://{address}")
}

/// A server that writes `answer` to each first request of a connection, counts, and closes.
pub(super) async fn answering(answer: &'static str) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let url = raw(move |mut stream, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { stream.write_all(answer.as_bytes()).await.expect("a reader") }
    });
    (url.await, count)
}

/// A server that writes `answer` and keeps the connection open.
pub(super) async fn holding(answer: &'static str) -> String {
    raw(move |mut stream, _| async move {
        stream.write_all(answer.as_bytes()).await.expect("a reader");
        std::future::pending().await
    })
    .await
}

/// A URL where nobody listens.
pub(super) async fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

#[tokio::test]
async fn base_path_and_host_rule_shape_what_is_sent() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heads);
    let url = raw(move |mut stream, head| {
        log.lock().unwrap().push(head);
        async move { stream.write_all(OK.as_bytes()).await.expect("a reader") }
    })
    .await;
    let own = url.strip_prefix("http://").expect("http").to_owned();
    let options = CallOptions { client_host: Some(HeaderValue::from_static("shop.test")), ..CallOptions::default() };
    for (rule, base, expected) in [
        (HostRule::Upstream, "/base", own.as_str()),
        (HostRule::Preserve, "", "shop.test"),
        (HostRule::Literal(HeaderValue::from_static("literal.test:81")), "", "literal.test:81"),
    ] {
        let upstream = upstream(UpstreamConfig { host: rule, ..config(&[format!("{url}{base}")]) });
        let response = upstream.fetch(0, get("/a?b=c"), &options, None).await.expect("a response");
        assert_eq!(text(response).await, "ok");
        let head = heads.lock().unwrap().pop().expect("a head");
        assert_eq!(head, format!("GET {base}/a?b=c HTTP/1.1\r\nhost: {expected}\r\n\r\n"));
    }
}

#[tokio::test]
async fn interim_responses_reach_the_callback() {
    let url =
        holding("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let upstream = upstream(config(&[url.await]));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let on_interim = OnInterim::new(move |status, fields| {
        let link = fields["link"].to_str().expect("text").to_owned();
        log.lock().unwrap().push(format!("{} {link}", status.as_u16()));
    });
    let options = CallOptions { on_interim: Some(on_interim), ..CallOptions::default() };
    let response = upstream.fetch(0, get("/"), &options, None).await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(*seen.lock().unwrap(), ["103 </a.css>"]);
}

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways() {
    let url = raw(|mut stream, _| async move {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(head).await.expect("a reader");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.expect("four bytes");
        stream.write_all(&bytes).await.expect("a reader");
    });
    let upstream = upstream(config(&[url.await]));
    let mut request = get("/");
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    let response = fetch(&upstream, request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    tunnel.write_all(b"ping").await.expect("a reader");
    let mut bytes = [0; 4];
    tunnel.read_exact(&mut bytes).await.expect("four bytes");
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn what_is_not_clearly_http_is_refused() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "",
    ] {
        let (url, count) = answering(answer).await;
        let upstream = upstream(config(&[url]));
        assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Protocol), "{answer}");
        assert_eq!(count.load(Ordering::SeqCst), 1, "{answer}");
        assert_eq!(upstream.stats()[0].failures, 1);
    }
}

#[tokio::test]
async fn content_that_breaks_off_ends_in_an_error() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    ] {
        let upstream = upstream(config(&[answering(answer).await.0]));
        let response = fetch(&upstream, get("/")).await.expect("a head");
        assert!(response.into_body().collect().await.is_err(), "{answer}");
        assert_eq!(upstream.stats()[0].failures, 1);
        assert_eq!(upstream.roster.now()[0].in_flight(), 0);
    }
}

#[tokio::test]
async fn a_refused_connection_leads_to_another_server_with_the_whole_content() {
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let log = Arc::clone(&received);
    let good = raw(move |mut stream, _| {
        let log = Arc::clone(&log);
        async move {
            let mut bytes = vec![0; 5];
            stream.read_exact(&mut bytes).await.expect("five bytes");
            log.lock().unwrap().append(&mut bytes);
            stream.write_all(OK.as_bytes()).await.expect("a reader");
        }
    });
    let upstream = upstream(config(&[refusing().await, good.await]));
    let response = fetch(&upstream, post("hello")).await.expect("the other server's");
    assert_eq!(text(response).await, "ok");
    assert_eq!(*received.lock().unwrap(), b"hello");
    let figures: Vec<_> = upstream.stats().into_iter().map(|it| (it.requests, it.failures)).collect();
    assert_eq!(figures, [(1, 1), (1, 0)]);
}

#[tokio::test]
async fn what_may_have_been_written_to_a_new_connection_is_never_sent_again() {
    let (breaking, _) = answering("").await;
    let (good, count) = answering(OK).await;
    let upstream = upstream(config(&[breaking, good]));
    assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Protocol));
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn retries_0_asks_one_server_only() {
    let (good, count) = answering(OK).await;
    let upstream = upstream(UpstreamConfig { retries: 0, ..config(&[refusing().await, good]) });
    assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Connect));
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let upstream = upstream(config(&[holding("").await]));
    let options = CallOptions { first_byte_timeout: Some(SOON), ..CallOptions::default() };
    let error = upstream.fetch(0, get("/"), &options, None).await.err();
    assert_eq!(error, Some(UpstreamError::FirstByteTimeout));
    assert_eq!(upstream.roster.now()[0].in_flight(), 0);
}

#[tokio::test]
async fn content_that_stalls_ends_in_an_error() {
    let url = holding("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await;
    let upstream = upstream(UpstreamConfig { idle_timeout: SOON, ..config(&[url]) });
    let mut content = fetch(&upstream, get("/")).await.expect("a head").into_body();
    let first = content.frame().await.expect("a frame").expect("content").into_data().expect("data");
    assert_eq!(first, "ok");
    let error = content.frame().await.expect("an end").expect_err("a stall");
    assert_eq!(error.to_string(), "no content for 50ms");
}

#[tokio::test]
async fn a_place_is_held_until_the_content_is_dropped() {
    let url = holding("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await;
    let upstream = upstream(UpstreamConfig { max_concurrent: 1, ..config(&[url]) });
    let response = fetch(&upstream, get("/")).await.expect("a head");
    assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Overloaded));
    drop(response);
    assert!(fetch(&upstream, get("/")).await.is_ok());
}

#[tokio::test]
async fn an_ejected_server_is_not_asked() {
    let breaker = Breaker { failures: 2, open: Duration::from_secs(3600) };
    let upstream = upstream(UpstreamConfig { breaker, ..config(&[refusing().await]) });
    for expected in [UpstreamError::Connect, UpstreamError::Connect, UpstreamError::NoServer, UpstreamError::NoServer] {
        assert_eq!(fetch(&upstream, get("/")).await.err(), Some(expected));
    }
    let stats = &upstream.stats()[0];
    assert_eq!((stats.state, stats.requests, stats.failures), ("ejected", 2, 2));
}

#[tokio::test]
async fn an_error_status_is_an_answer() {
    let (url, _) = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let breaker = Breaker { failures: 1, open: Duration::from_secs(3600) };
    let upstream = upstream(UpstreamConfig { breaker, ..config(&[url]) });
    assert_eq!(fetch(&upstream, get("/")).await.expect("an answer").status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.stats()[0].state, "up");
}

#[tokio::test]
async fn a_request_whose_own_content_fails_does_not_blame_the_server() {
    let upstream = upstream(config(&[holding("").await]));
    let failing = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from("x"))), Err("gone".into())]);
    let content = http_body_util::BodyExt::boxed_unsync(http_body_util::StreamBody::new(failing));
    let request = Request::post("/").body(content).expect("a request");
    assert_eq!(fetch(&upstream, request).await.err(), Some(UpstreamError::RequestBody));
    assert_eq!(upstream.stats()[0].failures, 0);
}

#[tokio::test]
async fn an_unchanged_upstream_survives_a_reload() {
    let url = refusing().await;
    let telemetry = telemetry();
    let first = Upstreams::new(vec![config(std::slice::from_ref(&url))], 1, None, &telemetry);
    let same = Upstreams::new(vec![config(std::slice::from_ref(&url))], 1, Some(&first), &telemetry);
    let changed = UpstreamConfig { retries: 7, ..config(&[url]) };
    let other = Upstreams::new(vec![changed], 1, Some(&first), &telemetry);
    let [first, same, other] = [&first, &same, &other].map(|it| it.find("api").expect("it is there"));
    assert!(Arc::ptr_eq(first, same));
    assert!(!Arc::ptr_eq(first, other));
}
