//! `aside purge`: an order sent to the admin listener of a running proxy.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use http::Uri;
use serde_json::{Value, json};

use super::{local, print, refuse};
use crate::config;

/// What it exits with when the order is none, or nobody can be found to send it to.
const BAD_INPUT: u8 = 2;
/// How long it waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long sending the order and its answer may take: the listener waits a second for Redis.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The bound on an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Where the token is, unless the configuration says.
const TOKEN_VARIABLE: &str = "ASIDE_ADMIN_TOKEN";

/// What the command line says.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Have it validated before its next use rather than forgotten
    #[arg(long, global = true)]
    soft: bool,
    /// The configuration that the proxy runs with; it tells the admin listener and its token
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The admin listener, for example http://127.0.0.1:9090; the token is $ASIDE_ADMIN_TOKEN where no FILE has one
    #[arg(long, global = true, value_name = "URL", value_parser = admin)]
    admin: Option<Listener>,
}

#[derive(Subcommand)]
enum What {
    /// URLs, with all their variants: http://shop.example/a?b=1
    Url(Values),
    /// All below a path: http://shop.example/products/
    Prefix(Values),
    /// What has one of these tags, from the origin's Surrogate-Key or Cache-Tag, or from the route
    Tag(Values),
    /// All of a route
    Route(Values),
    /// All of a host
    Host(Values),
    /// Everything
    All,
}

#[derive(Args)]
struct Values {
    #[arg(required = true, value_name = "VALUE")]
    values: Vec<String>,
}

/// Where an admin listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listener {
    /// For Host.
    authority: String,
    /// A name or an address without brackets.
    host: String,
    port: u16,
}

/// Sends the order and tells what became of it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (listener, token) = match find(arguments) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if token.as_deref().is_some_and(|token| token.chars().any(char::is_control)) {
        return tell(BAD_INPUT, "the token has a control character; expected one line of text");
    }
    match ask(&listener, token.as_deref(), &order(&arguments.what, arguments.soft)) {
        Ok((status, content)) => outcome(status, &content),
        Err(error) => tell(1, &format!("http://{}: {error}", listener.authority)),
    }
}

fn tell(code: u8, what: &str) -> ExitCode {
    eprintln!("aside: {what}");
    ExitCode::from(code)
}

/// The listener and its token: as the command line says, else the configuration, else what `serve` has by default.
fn find(arguments: &Arguments) -> Result<(Listener, Option<String>), ExitCode> {
    let configured = match &arguments.config {
        None => None,
        Some(path) => match config::load(path) {
            Ok((config, _warnings)) => config.admin,
            Err(problems) => return Err(refuse(&problems)),
        },
    };
    let listener = match (&arguments.admin, &configured, &arguments.config) {
        (Some(listener), _, _) => listener.clone(),
        (None, Some(admin), _) => Listener::at(local(admin.listen)),
        (None, None, Some(path)) => {
            return Err(tell(
                BAD_INPUT,
                &format!("{}: no [admin]; expected the table, or --admin URL", path.display()),
            ));
        }
        (None, None, None) => Listener::at(SocketAddr::from(([127, 0, 0, 1], 9090))),
    };
    let token = configured.and_then(|admin| admin.token);
    Ok((listener, token.or_else(|| std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()))))
}

impl Listener {
    fn at(address: SocketAddr) -> Self {
        Self { authority: address.to_string(), host: address.ip().to_string(), port: address.port() }
    }
}

fn admin(text: &str) -> Result<Listener, String> {
    const EXPECTED: &str = "expected for example http://127.0.0.1:9090";
    let uri: Uri = text.parse().map_err(|_| EXPECTED.to_owned())?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
    let is_bare = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    let authority = authority.filter(|_| is_bare).ok_or_else(|| EXPECTED.to_owned())?;
    Ok(Listener {
        authority: authority.to_string(),
        host: authority.host().trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16().unwrap_or(80),
    })
}

fn order(what: &What, soft: bool) -> String {
    let order = match what {
        What::Url(named) => json!({ "urls": named.values, "soft": soft }),
        What::Prefix(named) => json!({ "prefixes": named.values, "soft": soft }),
        What::Tag(named) => json!({ "tags": named.values, "soft": soft }),
        What::Route(named) => json!({ "routes": named.values, "soft": soft }),
        What::Host(named) => json!({ "hosts": named.values, "soft": soft }),
        What::All => json!({ "all": true, "soft": soft }),
    };
    order.to_string()
}

/// Posts the order; the answer's status and content.
fn ask(listener: &Listener, token: Option<&str>, order: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = connect(listener)?;
    let until = Instant::now() + ANSWER_TIMEOUT;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let (host, length) = (&listener.authority, order.len());
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "POST /purge HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         {authorization}connection: close\r\n\r\n{order}"
    );
    // An order that is refused before its end has an answer all the same.
    let written = stream.write_all(request.as_bytes());
    let answer = read(&mut stream, until);
    let parsed = answer.as_deref().ok().and_then(parse);
    parsed.ok_or_else(|| {
        let cause = written.err().or(answer.err());
        cause.unwrap_or_else(|| io::Error::new(ErrorKind::InvalidData, "this is no admin listener's answer"))
    })
}

fn connect(listener: &Listener) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (listener.host.as_str(), listener.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads to the end, or to the bound.
fn read(stream: &mut TcpStream, until: Instant) -> io::Result<Vec<u8>> {
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A connection that is cut after the answer has given it.
            Err(_) if parse(&answer).is_some() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// The status and content of an answer that has its whole head.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let line = answer.strip_prefix(b"HTTP/1.1 ")?;
    let status = std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

/// One line for people, and what to exit with.
fn outcome(status: u16, content: &[u8]) -> ExitCode {
    let answer: Value = serde_json::from_slice(content).unwrap_or_default();
    if status == 200 && answer["acknowledged"] == true {
        return print(&format!("purged: number {}, took {} ms\n", answer["purge"], answer["took_ms"]));
    }
    let text = answer["error"].as_str().map_or_else(|| String::from_utf8_lossy(content).into_owned(), str::to_owned);
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match status {
        400 | 413 => tell(BAD_INPUT, &format!("not purged: {text}")),
        503 => tell(1, &format!("not acknowledged: {text}")),
        _ => tell(1, &format!("not purged: {status}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_listener_is_an_http_url_without_a_path() {
        let check = |text, expected: Option<(&str, &str, u16)>| {
            let listener = admin(text).ok();
            let found = listener.as_ref().map(|it| (it.authority.as_str(), it.host.as_str(), it.port));
            assert_eq!(found, expected, "{text}");
        };
        check("http://127.0.0.1:9090", Some(("127.0.0.1:9090", "127.0.0.1", 9090)));
        check("http://[::1]:9090/", Some(("[::1]:9090", "::1", 9090)));
        check("http://admin.example", Some(("admin.example", "admin.example", 80)));
        for text in ["", "127.0.0.1:9090", "https://a", "http://a/purge", "http://a/?b", "http://u@a", "ftp://a"] {
            check(text, None);
        }
    }

    #[test]
    fn an_answer_has_a_head_and_content() {
        let check = |answer: &str, expected: Option<(u16, &str)>| {
            let expected = expected.map(|(status, content)| (status, content.as_bytes().to_vec()));
            assert_eq!(parse(answer.as_bytes()), expected, "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\na: b\r\n\r\n{}\n", Some((200, "{}\n")));
        check("HTTP/1.1 503 x\r\n\r\n", Some((503, "")));
        for answer in ["", "HTTP/1.1 200 OK\r\n", "+PONG\r\n\r\n", "HTTP/1.1 2"] {
            check(answer, None);
        }
    }
}
