//! HTTP/1 requests: the reader in front of hyper sees each head that hyper hands out, whatever came before it.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use aside::server::front::{Front, Verdict};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

#[allow(dead_code, reason = "the fuzzer has seeds of its own")]
pub const SEEDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n01234GET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\na: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\r\n\r\nPUT /a HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length:\t2 \r\n\r\nabGET / HTTP/1.1\nhost: a\n\n",
    b"HEAD * HTTP/1.1\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\nGET /\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\n\r\nGET / HTTP/1.1\r\n\r\n\r\n",
];

/// Bytes of a connection.
pub fn check(data: &[u8]) {
    let (heads, ambiguous) = read(data, data.len());
    for piece in [1, 3, 24] {
        assert_eq!(read(data, piece), (heads, ambiguous), "in pieces of {piece}");
    }
    let handed_out = handed_out(data);
    // The service refuses the ambiguous one, and hyper hands out no more.
    let bound = ambiguous.unwrap_or(heads);
    assert!(handed_out.min(ambiguous.unwrap_or(u64::MAX)) <= bound, "hyper handed out {handed_out} of {heads}");
}

fn read(data: &[u8], piece: usize) -> (u64, Option<u64>) {
    let (mut front, verdict) = (Front::default(), Verdict::default());
    data.chunks(piece.max(1)).for_each(|piece| front.read(piece, &verdict));
    (front.heads(), verdict.ambiguous())
}

/// How many requests hyper makes of it.
fn handed_out(data: &[u8]) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let count = Rc::new(Cell::new(0));
        let seen = Rc::clone(&count);
        let service = service_fn(move |request: Request<Incoming>| {
            seen.set(seen.get() + 1);
            async move {
                // To the end of its content, or what breaks it.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        let client = async {
            let _ = client.write_all(data).await;
            let _ = client.shutdown().await;
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        };
        let _ = tokio::join!(connection, client);
        count.get()
    })
}
