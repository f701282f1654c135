//! A real `redis-server` on a free port, ended by its id when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A Redis process that keeps nothing on disk.
pub(super) struct Server {
    pub(super) port: u16,
    process: Child,
}

impl Server {
    pub(super) fn start(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        Self::start_on(port, arguments)
    }

    pub(super) fn start_on(port: u16, arguments: &[&str]) -> Self {
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed: `make test` does so");
        let server = Self { port, process };
        let until = Instant::now() + Duration::from_secs(10);
        while server.command("PING").is_none() {
            assert!(Instant::now() < until, "redis-server does not answer on port {port}");
            std::thread::yield_now();
        }
        server
    }

    /// Sends a signal by name: `STOP`, `CONT`.
    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// A connection whose answers are waited for no longer than two seconds.
    fn connection(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        Some(stream)
    }

    /// Sends one inline command on a connection of its own and returns what comes first.
    pub(super) fn command(&self, line: &str) -> Option<String> {
        let mut stream = self.connection()?;
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut answer = [0; 65536];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Holds these bytes under a key, for a minute.
    pub(super) fn set(&self, key: &str, value: &[u8]) {
        let mut stream = self.connection().unwrap();
        let parts = [b"SET", key.as_bytes(), value, b"EX", b"60"];
        let mut command = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            command.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            command.extend_from_slice(&[part, b"\r\n"].concat());
        }
        stream.write_all(&command).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// What a key holds.
    pub(super) fn value(&self, key: &str) -> Vec<u8> {
        let mut stream = BufReader::new(self.connection().unwrap());
        stream.get_mut().write_all(format!("GET {key}\r\n").as_bytes()).unwrap();
        let mut length = String::new();
        stream.read_line(&mut length).unwrap();
        let length = length.trim_start_matches('$').trim().parse().expect("the key holds a string");
        let mut value = vec![0; length];
        stream.read_exact(&mut value).unwrap();
        value
    }

    /// The keys of records and bodies.
    pub(super) fn keys(&self) -> Vec<String> {
        let answer = self.command("KEYS t:r:*").expect("redis answers");
        let mut keys: Vec<String> = answer.lines().filter(|line| line.starts_with("t:")).map(str::to_owned).collect();
        keys.sort();
        keys
    }
}

/// What a server is asked from when this is made.
pub(super) struct Asked<'s> {
    server: &'s Server,
    lines: BufReader<TcpStream>,
}

impl<'s> Asked<'s> {
    pub(super) fn of(server: &'s Server) -> Self {
        let mut stream = server.connection().unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut answer = String::new();
        lines.read_line(&mut answer).unwrap();
        assert_eq!(answer, "+OK\r\n");
        Self { server, lines }
    }

    /// How many `MGET`, and how many `GETRANGE` of records: the ledger is looked at every second.
    pub(super) fn reads(self) -> (usize, usize) {
        self.server.command("ECHO until-here").expect("redis answers");
        let lines = self.lines.lines().map(|line| line.expect("redis tells all"));
        let lines: Vec<String> = lines.take_while(|line| !line.contains("until-here")).collect();
        let count = |begin: &str| lines.iter().filter(|line| line.contains(begin)).count();
        (count("] \"MGET\" \"t:r:"), count("] \"GETRANGE\" \"t:r:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
