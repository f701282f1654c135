//! The path of a request, step by step.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::target::Scheme;

/// What is known of the connection a request came over.
#[derive(Debug)]
pub struct Connection {
    /// The peer's address.
    pub peer: SocketAddr,
    /// The listener's scheme.
    pub scheme: Scheme,
    /// Where interim responses (103) go, on HTTP/1.1.
    pub interim: Option<Interim>,
}

/// A sender of interim responses to one HTTP/1.1 client; the server's socket wrapper writes them.
#[derive(Clone, Debug)]
pub struct Interim(pub Arc<dyn InterimSink>);

/// Takes an interim head, to be written before the next final response.
pub trait InterimSink: Send + Sync + std::fmt::Debug {
    /// Queues it; bounded, more than the bound is dropped.
    fn send(&self, status: http::StatusCode, fields: &http::HeaderMap);
}

/// The content of an answer.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// One worker's view of the proxy.
pub struct Proxy {
    _private: (),
}

impl Proxy {
    /// Answers a request. Never fails.
    pub async fn handle(self: &Arc<Self>, connection: &Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        todo!("{connection:?} {request:?}")
    }
}
