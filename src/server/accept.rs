//! Listeners, and how a connection gets from them to a worker.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::sync::mpsc::UnboundedSender;
use tokio_rustls::TlsAcceptor;

use super::occupancy::{Occupancy, Place, Source};
use crate::config::{Listen, ServerConfig};
use crate::generation::Shared;
use crate::target::Scheme;
use crate::telemetry::events::Event;
use crate::telemetry::limits::Limit;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;
/// How long accepting pauses when the process is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// A client that is gone without a word, behind an upgraded connection that nobody writes to, is found in a minute and a
/// half: it would hold its place for ever.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(3);

/// A bound listener.
pub struct Listener {
    socket: TcpListener,
    /// How its connections speak.
    speech: Arc<Speech>,
}

/// How the connections of a listener speak.
pub struct Speech {
    /// The scheme of its requests.
    pub scheme: Scheme,
    /// TLS, where it is https, and the certificate that is shown.
    pub tls: Option<(TlsAcceptor, CertificateDer<'static>)>,
}

/// An accepted connection on its way to its worker.
pub struct Accepted {
    /// The connection.
    pub stream: std::net::TcpStream,
    /// Whose it is.
    pub peer: SocketAddr,
    /// How it speaks.
    pub speech: Arc<Speech>,
    /// Given back when the connection ends.
    pub place: Place,
}

/// Where a worker takes its connections from. The queue is bounded by `limits.connections`: each has a [`Place`].
pub type Door = UnboundedSender<Accepted>;

/// Binds an address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // What is accepted inherits it.
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.bind(&address.into()).map_err(|error| named(address, &error))?;
    socket.listen(BACKLOG).map_err(|error| named(address, &error))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn named(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

impl Listener {
    /// Binds what the configuration names.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        let scheme = if listen.tls.is_some() { Scheme::Https } else { Scheme::Http };
        let tls = listen.tls.clone().map(|tls| (TlsAcceptor::from(tls.config), tls.certificate));
        Ok(Self { socket: bind(listen.address)?, speech: Arc::new(Speech { scheme, tls }) })
    }

    /// Where it is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until dropped, and hands each connection to the worker with the fewest.
    pub async fn run(self, doors: Arc<[Door]>, occupancy: Arc<Occupancy>, shared: Arc<Shared>) {
        let listener = match tokio::net::TcpListener::from_std(self.socket) {
            Ok(listener) => listener,
            Err(error) => return shared.telemetry.emit(&Event::AcceptFailed { error: error.to_string() }),
        };
        loop {
            if occupancy.room(|| shared.generation.load().server.limits.connections).await {
                shared.telemetry.limited(Limit::Connections);
            }
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(place) = occupancy.enter(source(peer, &shared.generation.load().server)) else {
                        shared.telemetry.limited(Limit::ConnectionsPerAddress);
                        continue;
                    };
                    if let Ok(stream) = prepare(stream) {
                        let door = &doors[place.worker.0];
                        let accepted = Accepted { stream, peer, speech: Arc::clone(&self.speech), place };
                        // A worker that is gone has panicked; the connection is closed.
                        drop(door.send(accepted));
                    }
                }
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    shared.telemetry.limited(Limit::Descriptors);
                    shared.telemetry.emit(&Event::AcceptFailed { error: error.to_string() });
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Whose connections are counted; a trusted proxy's are those of many clients.
fn source(peer: SocketAddr, server: &ServerConfig) -> Option<Source> {
    let address = peer.ip().to_canonical();
    let bound = server.limits.connections_per_address;
    let is_trusted = server.trusted_proxies.iter().any(|network| network.contains(&address));
    (bound > 0 && !is_trusted).then_some(Source { address, bound })
}

/// Leaves the control thread's runtime, so that the worker's can have it.
fn prepare(stream: tokio::net::TcpStream) -> io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.into_std()
}

/// Whether only the connection that was to be accepted is lost (accept(2)).
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn what_is_accepted_is_asked_whether_it_is_still_there() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.keepalive_time().unwrap(), Duration::from_secs(60));
    }
}
