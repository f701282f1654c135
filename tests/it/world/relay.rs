//! A TCP relay in front of a server that can be told to fail, each way, while it runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::redis::free_port;

/// What a relay does to the bytes of one direction. Counts of bytes are for each connection, from when it was set.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing: they are passed on.
    None,
    /// They are late by so much.
    Latency(Duration),
    /// They are passed on so many at a time, so often.
    Drip { bytes: usize, every: Duration },
    /// They wait until another fault is set: a network that loses everything, and which TCP makes up for.
    Stall,
    /// They are lost. A connection that lost any passes on nothing more.
    Swallow,
    /// A bit is flipped in every nth of them.
    Corrupt { every: usize },
    /// These come in place of what is read, at each read.
    Garbage(&'static [u8]),
    /// What this makes of what is read comes in its place.
    Rewrite(fn(&[u8]) -> Vec<u8>),
    /// Connections, those to come as well, end with FIN.
    Cut,
    /// The same, with RST.
    Reset,
    /// The same as `Reset`, and the port is closed.
    Refuse,
    /// Connections to come are accepted and go nowhere; those that there are stall.
    HalfOpen,
    /// So many more are passed on, then `Swallow`.
    StopAfter(usize),
    /// So many more are passed on, then `Cut`.
    CutAfter(usize),
    /// So many more are passed on, then `Reset`.
    ResetAfter(usize),
}

/// How long a connection that was cut is read from.
const LINGER: Duration = Duration::from_secs(1);

/// What is set, and how often something was.
type Set = (usize, Fault);

/// Passes bytes on both ways; it ends when dropped.
pub struct Relay {
    pub port: u16,
    towards_server: watch::Sender<Set>,
    towards_client: watch::Sender<Set>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Connections before the one with this number swallow.
    swallowing: AtomicUsize,
    is_listening: AtomicUsize,
}

impl Relay {
    /// To a port on this machine.
    pub fn to(port: u16) -> Self {
        let own = free_port();
        let shared = Arc::new(Shared::default());
        let (towards_server, to_server) = watch::channel((0, Fault::None));
        let (towards_client, to_client) = watch::channel((0, Fault::None));
        let faults = Faults { to_server, to_client, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(faults.accept(own, port));
        });
        let relay = Self { port: own, towards_server, towards_client, shared };
        relay.until_listening(true);
        relay
    }

    /// For both directions, from now on.
    pub fn set(&self, fault: Fault) {
        self.towards_client.send_modify(|set| *set = (set.0 + 1, fault));
        self.set_towards_server(fault);
        self.until_listening(!matches!(fault, Fault::Refuse));
    }

    /// For what clients send. Not for `Refuse`, which has no direction.
    pub fn set_towards_server(&self, fault: Fault) {
        self.towards_server.send_modify(|set| *set = (set.0 + 1, fault));
    }

    /// For what the server sends. Not for `Refuse` and `HalfOpen`.
    pub fn set_towards_client(&self, fault: Fault) {
        self.towards_client.send_modify(|set| *set = (set.0 + 1, fault));
    }

    /// Every connection so far stays open and passes nothing on; later ones do.
    pub fn swallow(&self) {
        self.shared.swallowing.store(self.accepted(), Ordering::SeqCst);
    }

    /// How many connections were accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    fn until_listening(&self, is_so: bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while (self.shared.is_listening.load(Ordering::SeqCst) == 1) != is_so {
            assert!(Instant::now() < until, "the relay does not do as told");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[derive(Clone)]
struct Faults {
    to_server: watch::Receiver<Set>,
    to_client: watch::Receiver<Set>,
    shared: Arc<Shared>,
}

/// Why a direction ended.
enum End {
    /// As the sender wanted.
    Finished,
    Cut,
    Reset,
}

impl Faults {
    /// Until the relay is dropped.
    async fn accept(mut self, own: u16, server: u16) {
        let address = SocketAddr::from(([127, 0, 0, 1], own));
        let mut listener = Some(TcpListener::bind(address).await.expect("the port is free"));
        loop {
            self.shared.is_listening.store(usize::from(listener.is_some()), Ordering::SeqCst);
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = accepted => if let Ok((client, _)) = accepted { self.accepted(client, server) },
                changed = self.to_server.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if matches!(self.to_server.borrow_and_update().1, Fault::Refuse) {
                        listener = None;
                    } else if listener.is_none() {
                        listener = Some(TcpListener::bind(address).await.expect("the port is still free"));
                    }
                }
            }
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a connection ends with its runtime")]
    fn accepted(&self, client: TcpStream, server: u16) {
        let nth = self.shared.accepted.fetch_add(1, Ordering::SeqCst);
        let faults = self.clone();
        tokio::spawn(async move {
            faults.shared.open.fetch_add(1, Ordering::SeqCst);
            let _ = faults.clone().connected(nth, client, server).await;
            faults.shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    async fn connected(self, nth: usize, mut client: TcpStream, port: u16) -> io::Result<()> {
        client.set_nodelay(true)?;
        if matches!(self.to_server.borrow().1, Fault::HalfOpen) {
            // The connection is of no use afterwards either.
            return std::future::pending().await;
        }
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        server.set_nodelay(true)?;
        let end = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let there =
                Direction { fault: self.to_server, shared: &self.shared, nth, nth_set: 0, passed: 0, has_lost: false };
            let back =
                Direction { fault: self.to_client, shared: &self.shared, nth, nth_set: 0, passed: 0, has_lost: false };
            let (there, back) = (there.pass(from_client, to_server), back.pass(from_server, to_client));
            tokio::pin!(there, back);
            let (first, there_is_first) =
                tokio::select! { end = &mut there => (end, true), end = &mut back => (end, false) };
            match first {
                End::Finished if there_is_first => back.await,
                End::Finished => there.await,
                broken => broken,
            }
        };
        if matches!(end, End::Reset) {
            client.set_zero_linger()?;
            server.set_zero_linger()?;
            return Ok(());
        }
        // What is left unread when a socket is closed would make the system send RST.
        for stream in [&mut client, &mut server] {
            stream.shutdown().await?;
            let _ = tokio::time::timeout(LINGER, tokio::io::copy(stream, &mut tokio::io::sink())).await;
        }
        Ok(())
    }
}

/// One way of a connection.
struct Direction<'s> {
    fault: watch::Receiver<Set>,
    shared: &'s Shared,
    nth: usize,
    nth_set: usize,
    /// How many bytes since the fault was set.
    passed: usize,
    /// Whether any were swallowed.
    has_lost: bool,
}

impl Direction<'_> {
    async fn pass(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut buffer = vec![0; 65536];
        loop {
            match self.now() {
                Fault::Cut => return End::Cut,
                Fault::Reset | Fault::Refuse => return End::Reset,
                // What is not read fills the sender's socket.
                Fault::Stall | Fault::HalfOpen => {
                    if self.fault.changed().await.is_err() {
                        return End::Cut;
                    }
                    continue;
                }
                _ => {}
            }
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                is_set = self.fault.changed() => if is_set.is_ok() { continue } else { return End::Cut },
            };
            match read {
                Ok(0) => {
                    let _ = to.shutdown().await;
                    return End::Finished;
                }
                Ok(length) => {
                    if let Err(end) = self.pass_all(&buffer[..length], &mut to).await {
                        return end;
                    }
                }
                Err(_) => return End::Reset,
            }
        }
    }

    /// What is set now.
    fn now(&mut self) -> Fault {
        let (nth_set, fault) = *self.fault.borrow_and_update();
        if nth_set != self.nth_set {
            (self.nth_set, self.passed) = (nth_set, 0);
        }
        let swallows = self.has_lost || self.nth < self.shared.swallowing.load(Ordering::SeqCst);
        match fault {
            Fault::Cut | Fault::Reset | Fault::Refuse => fault,
            _ if swallows => Fault::Swallow,
            Fault::StopAfter(bytes) if self.passed >= bytes => Fault::Swallow,
            Fault::CutAfter(bytes) if self.passed >= bytes => Fault::Cut,
            Fault::ResetAfter(bytes) if self.passed >= bytes => Fault::Reset,
            _ => fault,
        }
    }

    async fn pass_all(&mut self, mut rest: &[u8], to: &mut WriteHalf<'_>) -> Result<(), End> {
        while !rest.is_empty() {
            let mut take = rest.len();
            let mut instead = None;
            match self.now() {
                Fault::None => {}
                Fault::Latency(late) => tokio::time::sleep(late).await,
                Fault::Drip { bytes, every } => {
                    tokio::time::sleep(every).await;
                    take = take.min(bytes);
                }
                Fault::Stall | Fault::HalfOpen => {
                    self.fault.changed().await.map_err(|_| End::Cut)?;
                    continue;
                }
                Fault::Swallow => {
                    self.has_lost = true;
                    return Ok(());
                }
                Fault::Corrupt { every } => {
                    let flips = |nth: usize| if (self.passed + nth) % every == every - 1 { 1 } else { 0 };
                    instead = Some(rest.iter().enumerate().map(|(nth, byte)| byte ^ flips(nth)).collect());
                }
                Fault::Garbage(bytes) => instead = Some(bytes.to_vec()),
                Fault::Rewrite(rewritten) => instead = Some(rewritten(rest)),
                Fault::Cut => return Err(End::Cut),
                Fault::Reset | Fault::Refuse => return Err(End::Reset),
                Fault::StopAfter(bytes) | Fault::CutAfter(bytes) | Fault::ResetAfter(bytes) => {
                    take = take.min(bytes - self.passed);
                }
            }
            to.write_all(instead.as_deref().unwrap_or(&rest[..take])).await.map_err(|_| End::Reset)?;
            self.passed += take;
            rest = &rest[take..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpListener as Listener;

    use super::*;

    /// A server that sends back what it is sent.
    fn echo() -> u16 {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        port
    }

    fn connect(relay: &Relay) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(("127.0.0.1", relay.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream
    }

    /// What comes back of `abcdef`, and how that ends.
    fn told(mut stream: &std::net::TcpStream) -> (String, Result<(), ErrorKind>) {
        if let Err(error) = stream.write_all(b"abcdef") {
            return (String::new(), Err(error.kind()));
        }
        let (mut got, mut byte) = (Vec::new(), [0]);
        while got.len() < 6 {
            match stream.read(&mut byte) {
                Ok(0) => return (String::from_utf8(got).unwrap(), Ok(())),
                Ok(_) => got.push(byte[0]),
                Err(error) => return (String::from_utf8(got).unwrap(), Err(error.kind())),
            }
        }
        (String::from_utf8(got).unwrap(), Ok(()))
    }

    fn answer(text: &str, end: Result<(), ErrorKind>) -> (String, Result<(), ErrorKind>) {
        (text.to_owned(), end)
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let relay = Relay::to(echo());
        let nothing = Err(ErrorKind::WouldBlock);
        for (fault, expected) in [
            (Fault::None, answer("abcdef", Ok(()))),
            (Fault::Latency(Duration::from_millis(10)), answer("abcdef", Ok(()))),
            (Fault::Drip { bytes: 2, every: Duration::from_millis(1) }, answer("abcdef", Ok(()))),
            (Fault::Stall, answer("", nothing)),
            (Fault::Swallow, answer("", nothing)),
            (Fault::Corrupt { every: 3 }, answer("abbdeg", Ok(()))),
            (Fault::Garbage(b"foobar"), answer("foobar", Ok(()))),
            (Fault::Rewrite(|read| read.to_ascii_uppercase()), answer("ABCDEF", Ok(()))),
            (Fault::Cut, answer("", Ok(()))),
            (Fault::Reset, answer("", Err(ErrorKind::ConnectionReset))),
            (Fault::HalfOpen, answer("", nothing)),
            (Fault::StopAfter(4), answer("abcd", nothing)),
            (Fault::CutAfter(4), answer("abcd", Ok(()))),
            (Fault::ResetAfter(4), answer("abcd", Err(ErrorKind::ConnectionReset))),
        ] {
            let before = connect(&relay);
            assert_eq!(told(&before), answer("abcdef", Ok(())), "before {fault:?}");
            relay.set_towards_client(fault);
            let is_for_new_ones = matches!(fault, Fault::HalfOpen);
            if !is_for_new_ones {
                assert_eq!(told(&before), expected, "{fault:?}, on a connection that was there");
            }
            relay.set_towards_server(if is_for_new_ones { fault } else { Fault::None });
            assert_eq!(told(&connect(&relay)), expected, "{fault:?}, on a new connection");
            relay.set(Fault::None);
        }
    }

    #[test]
    fn what_is_stalled_comes_later_and_what_is_swallowed_never() {
        let relay = Relay::to(echo());
        let (stalled, swallowed) = (connect(&relay), connect(&relay));
        relay.set(Fault::Stall);
        assert_eq!(told(&stalled).0, "");
        relay.set(Fault::None);
        assert_eq!(told(&stalled), answer("abcdef", Ok(())));
        relay.set(Fault::Swallow);
        assert_eq!(told(&swallowed).0, "");
        relay.set(Fault::None);
        assert_eq!(told(&swallowed).0, "");
    }

    #[test]
    fn a_closed_port_refuses_until_it_is_opened() {
        let relay = Relay::to(echo());
        let before = connect(&relay);
        assert_eq!(told(&before).0, "abcdef");
        relay.set(Fault::Refuse);
        let refused = std::net::TcpStream::connect(("127.0.0.1", relay.port)).map(|_| ());
        assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
        while relay.open() != 0 {
            std::thread::yield_now();
        }
        assert_eq!(told(&before), answer("", Err(ErrorKind::ConnectionReset)));
        relay.set(Fault::None);
        let after = connect(&relay);
        assert_eq!(told(&after).0, "abcdef");
        assert_eq!((relay.accepted(), relay.open()), (2, 1));
    }
}
