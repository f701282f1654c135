//! The servers that the benchmark brings along: the origin, and hyper with nothing around it.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

/// What tells how many requests the origin was asked; it is not counted itself.
pub const COUNT_PATH: &str = "/count";
/// No longer body is asked for.
const BODY_MAX: usize = 16 << 20;

/// Answers `…/WAIT/LENGTH/NAME` after so many milliseconds with so many bytes, which may be cached for an hour.
pub fn origin(port: u16) -> std::io::Result<()> {
    let asked = Rc::new(Cell::new(0_u64));
    serve(port, async move |stream| {
        let service = service_fn(|request| answer(Rc::clone(&asked), request));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
}

async fn answer<B>(asked: Rc<Cell<u64>>, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if path == COUNT_PATH {
        return Ok(Response::new(asked.get().to_string().into()));
    }
    asked.set(asked.get() + 1);
    let mut parts = path.rsplit('/').skip(1).map_while(|part| part.parse::<u64>().ok());
    let (length, wait) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if wait > 0 {
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    let mut response = Response::new(body(usize::try_from(length).unwrap_or(BODY_MAX).min(BODY_MAX)));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    fields.insert(ETAG, HeaderValue::from_static("\"v1\""));
    Ok(response)
}

/// The least that a server on hyper does: the same body for every request, over HTTP/1.1 and HTTP/2.
pub fn bare_hyper(port: u16, length: usize) -> std::io::Result<()> {
    let body = body(length);
    serve(port, async move |stream: TcpStream| {
        let body = body.clone();
        let service = service_fn(move |_| {
            let mut response = Response::new(body.clone());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        // HTTP/2 begins with PRI, and nobody here asks for anything but GET.
        let mut first = [0];
        let is_http2 = stream.peek(&mut first).await.is_ok() && first == *b"P";
        let stream = TokioIo::new(stream);
        if is_http2 {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
        } else {
            let _ = http1::Builder::new().serve_connection(stream, service).await;
        }
    })
}

/// Rows as an API would send them, cut to a length.
fn body(length: usize) -> Full<Bytes> {
    let mut text = String::with_capacity(length + 40);
    for id in 1_u64.. {
        if text.len() >= length {
            break;
        }
        text += &format!("{{\"id\":{id},\"price\":{}}},", id * 7919 % 9973);
    }
    text.truncate(length);
    Full::new(text.into())
}

/// Serves for ever, on this thread.
fn serve(port: u16, each: impl AsyncFn(TcpStream) + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let each = Rc::new(each);
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let each = Rc::clone(&each);
            spawn_local(async move { each(stream).await });
        }
    })
}
