//! How a connection to a server is made.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::gather;

/// When a connection that is silent is asked whether it is still there, how often then, and how many times.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

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

/// Connects to one server.
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

    /// Connects; no later than the timeout.
    pub async fn connect(&self) -> io::Result<Stream> {
        let timeout = self.timeout;
        let in_vain = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"));
        tokio::time::timeout(timeout, self.reach()).await.map_err(in_vain)?
    }

    async fn reach(&self) -> io::Result<Stream> {
        let mut connector = self.tcp.clone();
        poll_fn(|context| connector.poll_ready(context)).await.map_err(io::Error::other)?;
        let tcp = connector.call(self.server.clone()).await.map_err(from_tcp)?.into_inner();
        if self.server.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Ok(Stream::Plain(tcp));
        }
        let Some(Tls { connector, name }) = &self.tls else {
            return Err(io::Error::other("the server's name cannot be verified: expected a DNS name or an IP address"));
        };
        let tls = connector.connect(name.clone(), tcp).await?;
        Ok(Stream::Tls(Box::new(tls)))
    }
}

/// Keeps a time-out recognisable: the connector wraps the system's error.
fn from_tcp(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let inner = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    io::Error::new(inner.map_or(io::ErrorKind::Other, io::Error::kind), super::error::chain(&error))
}

/// A connection's bytes.
pub(super) enum Stream {
    /// As they are.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether HTTP/2 was agreed on.
    pub fn is_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
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
            Self::Plain(tcp) => gather::poll_write(Pin::new(tcp), context, slices),
            Self::Tls(tls) => gather::poll_write(Pin::new(tls), context, slices),
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::header::{CONNECTION, HOST, UPGRADE};
    use http::{HeaderValue, Request, Response, Version};
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;

    use super::super::tests::{SOON, config, fetch, get, holding, post, text, upstream};
    use super::super::{CallOptions, HostRule, UpstreamConfig, UpstreamError};
    use super::*;

    /// What the server takes at one time over a connection of HTTP/2.
    const STREAMS_MAX: u32 = 10;

    /// A TLS server for `localhost` and `literal.test` that answers with version, authority, Host, server name, and the
    /// request's content. How many connections were made to it is counted.
    #[allow(clippy::disallowed_methods, reason = "a test's server ends with its runtime")]
    async fn tls_server() -> (SocketAddr, Arc<rustls::ClientConfig>, Arc<AtomicUsize>) {
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
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
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
                    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    builder.http2().max_concurrent_streams(STREAMS_MAX);
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (address, Arc::new(client.with_no_client_auth()), made)
    }

    #[tokio::test]
    async fn https_speaks_http_2_and_verifies_the_name_it_sends() {
        let (address, tls, _) = tls_server().await;
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
            let response = upstream.fetch(0, get("/"), &options, None).await.expect("a response");
            assert_eq!(response.version(), Version::HTTP_2);
            assert_eq!(text(response).await, format!("HTTP/2.0 {authority}  {name}"));
            let mut request = get("/");
            request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            let response = upstream.fetch(0, request, &options, None).await.expect("a response");
            assert_eq!(text(response).await, format!("HTTP/1.1  {authority} {name}"));
        }
    }

    #[tokio::test]
    async fn requests_share_a_connection_of_http_2_whatever_their_host() {
        let (address, tls, made) = tls_server().await;
        let own = format!("https://localhost:{}", address.port());
        let upstream = upstream(UpstreamConfig { host: HostRule::Preserve, tls, ..config(&[own]) });
        for host in ["shop.test", "other.test"] {
            let client_host = Some(HeaderValue::from_static(host));
            let options = CallOptions { client_host, ..CallOptions::default() };
            let response = upstream.fetch(0, get("/"), &options, None).await.expect("a response");
            assert_eq!(text(response).await, format!("HTTP/2.0 {host}  localhost"));
        }
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_server_that_takes_few_requests_at_one_time_refuses_none_at_the_start() {
        let (address, tls, _) = tls_server().await;
        for _ in 0..4 {
            let own = format!("https://localhost:{}", address.port());
            let upstream = upstream(UpstreamConfig { tls: Arc::clone(&tls), ..config(&[own]) });
            let answers = (0..20 * STREAMS_MAX).map(|_| fetch(&upstream, get("/")));
            for answer in futures_util::future::join_all(answers).await {
                assert_eq!(answer.expect("a response").version(), Version::HTTP_2);
            }
        }
    }

    #[tokio::test]
    async fn content_travels_over_http_2() {
        let (address, tls, _) = tls_server().await;
        let upstream = upstream(UpstreamConfig { tls, ..config(&[format!("https://localhost:{}", address.port())]) });
        let request = post("hello");
        let answer = text(fetch(&upstream, request).await.expect("a response")).await;
        assert_eq!(answer, format!("HTTP/2.0 localhost:{}  localhosthello", address.port()));
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_refused() {
        let (address, ..) = tls_server().await;
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
