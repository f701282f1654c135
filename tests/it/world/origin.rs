//! Upstreams: one that speaks HTTP through hyper, and one that writes the bytes it is told.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub fields: HeaderMap,
    pub body: Bytes,
    /// How many requests for this target came before.
    pub nth: usize,
}

type Reply = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;
type Log = Arc<Mutex<Vec<Seen>>>;

/// A hyper server on a free port, on a thread of its own; it stops when dropped.
pub struct Origin {
    pub address: SocketAddr,
    seen: Log,
    stop: Option<oneshot::Sender<()>>,
}

impl Origin {
    /// Answers each request with what `answer` makes of it.
    pub fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let answer: Arc<dyn Fn(Seen) -> Reply + Send + Sync> = Arc::new(move |seen| Box::pin(answer(seen)));
        let seen: Log = Arc::default();
        let log = Arc::clone(&seen);
        let (address, stop) = serve(move |stream| speak(stream, Arc::clone(&answer), Arc::clone(&log)));
        Self { address, seen, stop: Some(stop) }
    }

    /// Answers every GET with `fields` and a body that tells the target and how many came before.
    pub fn counting(fields: &'static [(&'static str, &'static str)]) -> Self {
        Self::start(move |seen| async move { reply(200, fields, &format!("{} {}", seen.target, seen.nth)) })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests came for `target`.
    pub fn count(&self, target: &str) -> usize {
        self.seen().iter().filter(|seen| seen.target == target).count()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// A response of an upstream.
pub fn reply(status: u16, fields: &[(&str, &str)], body: &str) -> Response<Bytes> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Bytes::copy_from_slice(body.as_bytes())).expect("a valid response")
}

/// An upstream that reads a request's head and lets `script` do the rest on the raw connection.
pub struct RawOrigin {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
}

impl RawOrigin {
    pub fn start<F, A>(script: F) -> Self
    where
        F: Fn(TcpStream, String) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&heads);
        let script = Arc::new(script);
        let (address, stop) = serve(move |mut stream| {
            let (log, script) = (Arc::clone(&log), Arc::clone(&script));
            async move {
                let Some(head) = read_head(&mut stream).await else { return };
                log.lock().unwrap().push(head.clone());
                script(stream, head).await;
            }
        });
        Self { address, heads, stop: Some(stop) }
    }

    /// Writes `bytes` to each request and closes.
    pub fn writing(bytes: &'static [u8]) -> Self {
        Self::start(move |mut stream, _head| async move {
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn count(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Hands each connection on a free port to `connection`, on a thread of its own, until the sender is used or dropped.
#[allow(clippy::disallowed_methods, reason = "an upstream's connections end with its runtime")]
pub fn serve<F, A>(connection: F) -> (SocketAddr, oneshot::Sender<()>)
where
    F: Fn(TcpStream) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a listener");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let accept = async {
                while let Ok((stream, _peer)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(connection(stream));
                }
            };
            tokio::select! { () = accept => {}, _ = stopped => {} }
        });
    });
    (address, stop)
}

async fn speak(stream: TcpStream, answer: Arc<dyn Fn(Seen) -> Reply + Send + Sync>, log: Log) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let target = parts.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
            let seen = {
                let mut log = log.lock().unwrap();
                let nth = log.iter().filter(|seen| seen.target == target).count();
                log.push(Seen { method: parts.method, target, fields: parts.headers, body, nth });
                log.last().cloned().expect("just pushed")
            };
            Ok::<_, hyper::Error>(answer(seen).await.map(Full::new))
        }
    });
    // A client that goes away is no concern of the upstream's.
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // The proxy's clock may be elsewhere than the system's, which hyper's own Date would tell.
    server.http1().auto_date_header(false);
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}
