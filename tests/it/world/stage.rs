//! An upstream behind two proxies, one that caches and one that does not: what a client of the first gets after an
//! attack is compared with what a client of the second gets.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::origin::{Origin, Seen, reply};
use super::proxy::{Proxy, one_route};

/// The parts.
pub struct Stage {
    pub origin: Origin,
    pub cached: Proxy,
    uncached: Proxy,
}

/// An answer, with the fields that depend on the time and on whether it was stored apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub cache_status: String,
    pub fields: Vec<String>,
    pub body: String,
}

impl Answer {
    pub fn is_hit(&self) -> bool {
        self.cache_status.contains("; hit")
    }

    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Stage {
    /// Before an upstream that answers as `answer` says.
    pub fn before<F>(route: &str, answer: F) -> Self
    where
        F: Fn(Seen) -> Response<Bytes> + Send + Sync + 'static,
    {
        let origin = Origin::start(move |seen| std::future::ready(answer(seen)));
        Self::with(origin, |url| one_route(url, route))
    }

    /// Before an upstream that tells all it was sent.
    pub fn before_mirror(route: &str) -> Self {
        Self::before(route, |seen| reply(200, &[], &told(&seen)))
    }

    /// With a configuration of its own, the second time without the cache.
    pub fn with(origin: Origin, toml: impl Fn(&str) -> String) -> Self {
        let toml = toml(&origin.url());
        let cached = Proxy::start(&toml);
        let uncached = Proxy::start(&toml.replace("[[route]]", "[[route]]\ncache = false"));
        Self { origin, cached, uncached }
    }

    /// What the attacker gets.
    pub async fn attack(&self, request: impl AsRef<[u8]>) -> Answer {
        send(self.cached.address, request.as_ref()).await
    }

    /// What a client gets, after it was found to be what one without a cache gets.
    pub async fn clean(&self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        let answer = send(self.cached.address, request).await;
        let uncached = send(self.uncached.address, request).await;
        let asked = String::from_utf8_lossy(request);
        assert_eq!(
            (answer.status, &answer.fields, &answer.body),
            (uncached.status, &uncached.fields, &uncached.body),
            "{asked}{}",
            answer.cache_status
        );
        answer
    }

    /// The attack, then the clean request: it gets what is its own, and nothing that the attacker caused to be stored.
    pub async fn check(&self, attack: impl AsRef<[u8]>, clean: impl AsRef<[u8]>) {
        let attacked = self.attack(&attack).await;
        let answer = self.clean(&clean).await;
        let asked = String::from_utf8_lossy(attack.as_ref()).into_owned();
        assert!(!answer.is_hit(), "{asked}{}\n{}", attacked.cache_status, answer.cache_status);
    }
}

/// A GET to `a.test` with further lines, each with its CRLF.
pub fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{lines}\r\n")
}

/// A GET to another host.
pub fn get_from(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

/// All that an upstream was sent, but for the name that each process gives itself.
pub fn told(seen: &Seen) -> String {
    let fields = seen.fields.iter().filter(|(name, _)| *name != "cdn-loop");
    let mut lines: Vec<String> =
        fields.map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect();
    lines.sort();
    format!("{} {}\n{}\n\n{}", seen.method, seen.target, lines.join("\n"), seen.body.escape_ascii())
}

/// Sends a request as it is and reads the answer to the connection's end.
pub async fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Whoever refuses a request need not read all of it.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    let _ = end.await.expect("an end");
    parsed(&String::from_utf8_lossy(&answer))
}

fn parsed(answer: &str) -> Answer {
    const OF_THE_MOMENT: [&str; 6] =
        ["age:", "cache-status:", "connection:", "date:", "content-length:", "transfer-encoding:"];
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    let cache_status = lines.iter().find_map(|line| line.strip_prefix("cache-status: ")).unwrap_or_default().to_owned();
    let mut fields: Vec<String> =
        lines.into_iter().filter(|line| !OF_THE_MOMENT.iter().any(|name| line.starts_with(name))).collect();
    fields.sort();
    Answer { status, cache_status, fields, body: body.to_owned() }
}
