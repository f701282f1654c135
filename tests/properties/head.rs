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
