//! HTTP/2 requests that would be read otherwise once they are written as HTTP/1: refused, and nobody upstream hears of them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::protocols::frame;
use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, RawOrigin, get, h2c_client};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The static table's entries of `:status` 200 and 400 (RFC 7541, appendix A).
const OK: u8 = 0x88;
const BAD_REQUEST: u8 = 0x8c;

type Field<'f> = (&'f str, &'f [u8]);

const PATH: Field<'_> = (":path", b"/a");
const SCHEME: Field<'_> = (":scheme", b"http");
const AUTHORITY: Field<'_> = (":authority", b"a.test");

fn method(method: &str) -> Field<'_> {
    (":method", method.as_bytes())
}

/// What becomes of the stream.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The first octet of the answer's header block.
    Answered(u8),
    Reset,
    Gone,
}

/// Sends `fields` as they are, without indexing and Huffman coding, and content where there is any.
async fn send(proxy: &Proxy, fields: &[Field<'_>], content: Option<&[u8]>) -> TcpStream {
    let literal = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| [vec![0], literal(name.as_bytes()), literal(value)].concat()).collect();
    let end = if content.is_none() { END_STREAM } else { 0 };
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream.write_all(&frame(HEADERS, END_HEADERS | end, 1, &block)).await.unwrap();
    if let Some(content) = content {
        // A stream may have been reset before.
        let _ = stream.write_all(&frame(DATA, END_STREAM, 1, content)).await;
    }
    stream
}

async fn exchange(proxy: &Proxy, fields: &[Field<'_>], content: Option<&[u8]>) -> End {
    let mut stream = send(proxy, fields, content).await;
    timeout(Duration::from_secs(10), end_of(&mut stream)).await.expect("an end")
}

/// A frame's kind, flags and payload.
async fn next(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

async fn end_of(stream: &mut TcpStream) -> End {
    while let Some((kind, _flags, payload)) = next(stream).await {
        match kind {
            HEADERS => return End::Answered(payload[0]),
            RST_STREAM => return End::Reset,
            GOAWAY => return End::Gone,
            _ => {}
        }
    }
    End::Gone
}

async fn check_refused(origin: &Origin, proxy: &Proxy, fields: &[Field<'_>], content: Option<&[u8]>) {
    let end = exchange(proxy, fields, content).await;
    assert!(matches!(end, End::Answered(BAD_REQUEST) | End::Reset | End::Gone), "{fields:?}: {end:?}");
    assert!(origin.seen().is_empty(), "{fields:?}: {:?}", origin.seen());
}

#[tokio::test]
async fn what_http1_would_read_otherwise_is_refused() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let get_a = [method("GET"), SCHEME, PATH, AUTHORITY];
    for field in [
        ("connection", &b"close"[..]),
        ("keep-alive", b"1"),
        ("proxy-connection", b"close"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("te", b"gzip"),
        ("X-Upper", b"case"),
        ("x y", b"z"),
        ("x:y", b"z"),
        ("", b"z"),
        ("x", b"a\r\nsmuggled: 1"),
        ("x", b"a\nb"),
        ("x", b"a\rb"),
        ("x", b"a\0b"),
        ("x", b" leading"),
        ("x", b"trailing\t"),
        ("host", b"b.test"),
        ("transfer_encoding", b"chunked"),
        ("content-length", b"5"),
        (":path", b"/b"),
        (":unknown", b"1"),
        (":status", b"200"),
    ] {
        check_refused(&origin, &proxy, &[&get_a[..], &[field]].concat(), None).await;
    }
    let post = [method("POST"), SCHEME, PATH, AUTHORITY];
    for lengths in [&[&b"5"[..]][..], &[b"2"], &[b"3", b"3"], &[b"3, 3"], &[b"+3"], &[b"03"], &[b""], &[b"0x3"]] {
        let fields = lengths.iter().map(|length| ("content-length", *length));
        let fields: Vec<Field<'_>> = post.iter().copied().chain(fields).collect();
        check_refused(&origin, &proxy, &fields, Some(b"abc")).await;
    }
    for fields in [
        &[method("GET"), SCHEME, PATH][..],
        &[method("GET"), SCHEME, PATH, ("host", b"a.test"), ("host", b"a.test")],
        &[method("GET"), SCHEME, PATH, (":authority", b"u@a.test")],
        &[method("GET"), SCHEME, PATH, (":authority", b"a.test/b")],
        &[method("GET"), (":scheme", b"javascript"), PATH, AUTHORITY],
        &[method("GET"), PATH, AUTHORITY],
        &[method("GET"), SCHEME, AUTHORITY],
        &[method("GET"), SCHEME, (":path", b"a"), AUTHORITY],
        &[method("GET"), SCHEME, (":path", b""), AUTHORITY],
        &[method("GET"), SCHEME, (":path", b"/a b"), AUTHORITY],
        &[method("GET"), SCHEME, (":path", b"/a\r\nx: y"), AUTHORITY],
        &[method("GET /evil HTTP/1.1\r\nx:"), SCHEME, PATH, AUTHORITY],
        &[SCHEME, PATH, AUTHORITY],
        &[("x", b"before"), method("GET"), SCHEME, PATH, AUTHORITY],
    ] {
        check_refused(&origin, &proxy, fields, None).await;
    }
    let answer = get(&h2c_client(), &proxy.url("/a")).await;
    assert_eq!((answer.body.as_str(), answer.cache_status.contains("fwd=uri-miss")), ("/a 0", true));
}

#[tokio::test]
async fn what_is_as_it_should_be_passes_and_crumbs_of_cookies_are_joined() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let crumbs = [("cookie", &b"a=1"[..]), ("te", b"trailers"), ("cookie", b"b=2"), ("host", b"a.test")];
    let fields = [&[method("GET"), SCHEME, PATH, AUTHORITY], &crumbs[..]].concat();
    assert_eq!(exchange(&proxy, &fields, None).await, End::Answered(OK));
    let fields = [method("POST"), SCHEME, PATH, AUTHORITY, ("content-length", b"3")];
    assert_eq!(exchange(&proxy, &fields, Some(b"abc")).await, End::Answered(OK));
    let seen = origin.seen();
    let cookies: Vec<_> = seen[0].fields.get_all("cookie").iter().collect();
    assert!(cookies == ["a=1; b=2"] && !seen[0].fields.contains_key("te"), "{:?}", seen[0].fields);
    assert_eq!(&seen[1].body[..], b"abc");
}

/// What comes after content would be fields for whoever reads it into the head (RFC 9110 §6.5.1).
#[tokio::test]
async fn an_upstreams_trailers_reach_no_client_of_http2() {
    let origin = RawOrigin::writing(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-late\r\n\r\n4\r\nbody\r\n0\r\nx-late: evil\r\n\r\n",
    );
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    // Through the cache, and past it.
    for cookie in [None, Some(("cookie", &b"a=1"[..]))] {
        let fields = [method("GET"), SCHEME, PATH, AUTHORITY, ("te", b"trailers")];
        let fields: Vec<Field<'_>> = fields.into_iter().chain(cookie).collect();
        let mut stream = send(&proxy, &fields, None).await;
        let (mut heads, mut content) = (0, Vec::new());
        loop {
            let (kind, flags, payload) =
                timeout(Duration::from_secs(10), next(&mut stream)).await.unwrap().expect("an end");
            heads += usize::from(kind == HEADERS);
            if kind == DATA {
                content.extend(payload);
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                break;
            }
        }
        assert_eq!((heads, &content[..]), (1, &b"body"[..]), "{cookie:?}");
    }
}
