//! A TCP relay in front of a server, whose connections can be made to swallow what they are sent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Passes bytes on both ways; it ends with the process.
pub struct Relay {
    pub port: u16,
    /// Connections made before this many were accepted swallow.
    swallowing: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl Relay {
    /// To a port on this machine.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let relay = Self { port: own, swallowing: Arc::default(), accepted: Arc::default() };
        let (swallowing, accepted) = (Arc::clone(&relay.swallowing), Arc::clone(&relay.accepted));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let nth = accepted.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let both = |from: &TcpStream, to: &TcpStream| Some((from.try_clone().ok()?, to.try_clone().ok()?));
                for (from, to) in [both(&client, &server), both(&server, &client)].into_iter().flatten() {
                    let swallowing = Arc::clone(&swallowing);
                    std::thread::spawn(move || pass(from, to, || nth < swallowing.load(Ordering::SeqCst)));
                }
            }
        });
        relay
    }

    /// Every connection so far stays open and passes nothing on; later ones do.
    pub fn swallow(&self) {
        self.swallowing.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallows: impl Fn() -> bool) {
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !swallows() && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
