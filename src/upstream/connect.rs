//! How a connection to a server is made, and the clients that keep such connections.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::outgoing::OutgoingBody;

/// Common servers close idle connections after 5 s or more; being first keeps requests from meeting the close.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Idle connections that one worker keeps to one server.
const POOL_IDLE_MAX: usize = 256;
/// When a connection that is silent is asked whether it is still there, how often then, and how many times.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// Bytes of the read buffer, which bounds a head before it is judged.
const HEAD_MAX: usize = 128 * 1024;
/// What a response may fill before its reader takes it; bounds the memory that slow readers hold.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const H2_SEND_BUFFER: usize = 256 * 1024;
/// A silent HTTP/2 connection is asked for a sign of life, for all its requests would wait for their timeout.
const H2_PING_EVERY: Duration = Duration::from_secs(10);
const H2_PING_WAIT: Duration = Duration::from_secs(5);

/// One worker's connections to one server.
pub(super) type PooledClient = Client<Connector, OutgoingBody>;

/// Builds the client. Its connection tasks run on the runtime of the worker that calls it, and end with it; drain
/// waits for the requests that use them.
pub(super) fn client(connector: Connector) -> PooledClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        // Only requests that hyper never began to write, on connections that the server closed meanwhile.
        .retry_canceled_requests(true)
        .http1_max_buf_size(HEAD_MAX)
        .http2_max_header_list_size(HEAD_MAX as u32)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
        .http2_max_send_buf_size(H2_SEND_BUFFER)
        .http2_keep_alive_interval(H2_PING_EVERY)
        .http2_keep_alive_timeout(H2_PING_WAIT)
        .build(connector)
}

/// How many requests a connection has been given; shared by whoever has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses(Arc<AtomicUsize>);

impl Uses {
    /// Counts one more on the connection that `extras` tell of; whether there were any before. Where nothing is known,
    /// there were none.
    pub fn begin(extras: &Extensions) -> bool {
        extras.get::<Self>().is_some_and(|Self(uses)| uses.fetch_add(1, Ordering::Relaxed) > 0)
    }
}

/// What the connector said of a connection that gave no response; a response has it among its own extensions.
pub(super) fn extras(connection: &CaptureConnection) -> Extensions {
    let mut extras = Extensions::new();
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.get_extras(&mut extras);
    }
    extras
}

/// The protocols offered in a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// HTTP/2, else HTTP/1.1.
    Any,
    /// HTTP/1.1 alone: only it can upgrade.
    Http1,
}

/// `tls`, offering these protocols.
pub(super) fn offering(tls: &rustls::ClientConfig, offer: Offer) -> Arc<rustls::ClientConfig> {
    let mut tls = tls.clone();
    tls.alpn_protocols = match offer {
        Offer::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Offer::Http1 => vec![b"http/1.1".to_vec()],
    };
    Arc::new(tls)
}

/// Connects to one server, whatever authority a request's URI names.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    server: Uri,
    tls: Option<Tls>,
    timeout: Duration,
}

/// TLS and the name that is sent and verified.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// None when `host` is neither a DNS name nor an IP address.
    pub fn new(config: Arc<rustls::ClientConfig>, host: &str) -> Option<Self> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).ok()?;
        Some(Self { connector: TlsConnector::from(config), name })
    }
}

impl Connector {
    /// `timeout` covers name resolution, TCP and TLS.
    pub fn new(server: Uri, tls: Option<Tls>, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // An upstream that is gone without a word, behind an upgraded connection that nobody writes to, is found.
        tcp.set_keepalive(Some(KEEPALIVE_TIME));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        // Shared out over a name's addresses, so that one that swallows packets leaves time for the next.
        tcp.set_connect_timeout(Some(timeout));
        Self { tcp, server, tls, timeout }
    }

    async fn connect(mut self) -> io::Result<TokioIo<Stream>> {
        poll_fn(|context| self.tcp.poll_ready(context)).await.map_err(io::Error::other)?;
        let tcp = self.tcp.call(self.server.clone()).await.map_err(from_tcp)?.into_inner();
        if self.server.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Ok(TokioIo::new(Stream::Plain(tcp)));
        }
        let Some(Tls { connector, name }) = self.tls else {
            return Err(io::Error::other("the server's name cannot be verified: expected a DNS name or an IP address"));
        };
        let tls = connector.connect(name, tcp).await?;
        Ok(TokioIo::new(Stream::Tls(Box::new(tls))))
    }
}

/// Keeps a time-out recognisable: the connector wraps the system's error.
fn from_tcp(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let inner = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    io::Error::new(inner.map_or(io::ErrorKind::Other, io::Error::kind), super::error::chain(&error))
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let timeout = connector.timeout;
            match tokio::time::timeout(timeout, connector.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"))),
            }
        })
    }
}

/// A connection's bytes.
pub(super) enum Stream {
    /// As they are.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            Self::Plain(_) | Self::Tls(_) => Connected::new(),
        }
        .extra(Uses::default())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use http::header::{CONNECTION, HOST, UPGRADE};
    use http::{HeaderValue, Request, Response, Version};
    use http_body_util::{BodyExt, Full};
    use tokio::net::TcpListener;

    use super::super::tests::{SOON, config, fetch, get, holding, post, text, upstream};
    use super::super::{CallOptions, HostRule, UpstreamConfig, UpstreamError};
    use super::*;

    /// A TLS server for `localhost` and `literal.test` that answers with version, authority, Host, server name, and the
    /// request's content.
    #[allow(clippy::disallowed_methods, reason = "a test's server ends with its runtime")]
    async fn tls_server() -> (SocketAddr, Arc<rustls::ClientConfig>) {
        let names = ["localhost".to_owned(), "literal.test".to_owned()];
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls_pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = server.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let mut server = server.with_single_cert(vec![cert.der().clone()], key).expect("a certificate");
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a certificate");
        let client = rustls::ClientConfig::builder_with_provider(provider);
        let client = client.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                    let host = request.headers().get(HOST).map(|it| it.to_str().expect("text")).unwrap_or_default();
                    let mut answer = format!("{:?} {authority} {host} {name}", request.version()).into_bytes();
                    async move {
                        answer.extend(request.into_body().collect().await?.to_bytes());
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer))))
                    }
                });
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (address, Arc::new(client.with_no_client_auth()))
    }

    #[tokio::test]
    async fn https_speaks_http_2_and_verifies_the_name_it_sends() {
        let (address, tls) = tls_server().await;
        let own = format!("localhost:{}", address.port());
        let options =
            CallOptions { client_host: Some(HeaderValue::from_static("shop.test")), ..CallOptions::default() };
        for (rule, authority, name) in [
            (HostRule::Upstream, own.as_str(), "localhost"),
            (HostRule::Preserve, "shop.test", "localhost"),
            (HostRule::Literal(HeaderValue::from_static("literal.test")), "literal.test", "literal.test"),
        ] {
            let config = UpstreamConfig { host: rule, tls: Arc::clone(&tls), ..config(&[format!("https://{own}")]) };
            let upstream = upstream(config);
            let response = upstream.fetch(0, get("/"), &options).await.expect("a response");
            assert_eq!(response.version(), Version::HTTP_2);
            assert_eq!(text(response).await, format!("HTTP/2.0 {authority}  {name}"));
            let mut request = get("/");
            request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            let response = upstream.fetch(0, request, &options).await.expect("a response");
            assert_eq!(text(response).await, format!("HTTP/1.1  {authority} {name}"));
        }
    }

    #[tokio::test]
    async fn content_travels_over_http_2() {
        let (address, tls) = tls_server().await;
        let upstream = upstream(UpstreamConfig { tls, ..config(&[format!("https://localhost:{}", address.port())]) });
        let request = post("hello");
        let answer = text(fetch(&upstream, request).await.expect("a response")).await;
        assert_eq!(answer, format!("HTTP/2.0 localhost:{}  localhosthello", address.port()));
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_refused() {
        let (address, _) = tls_server().await;
        let upstream = upstream(config(&[format!("https://localhost:{}", address.port())]));
        assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Connect));
    }

    #[tokio::test]
    async fn a_server_that_does_not_finish_tls_is_given_up() {
        let url = holding("").await.replace("http:", "https:");
        let upstream = upstream(UpstreamConfig { connect_timeout: SOON, ..config(&[url]) });
        assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::ConnectTimeout));
    }
}
