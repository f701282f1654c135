//! A real `redis-server` on a free port, ended by its id when dropped.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A Redis process that keeps nothing on disk, in a folder of its own.
pub struct Redis {
    pub port: u16,
    tls_port: Option<u16>,
    program: OsString,
    arguments: Vec<String>,
    folder: TempDir,
    process: Option<Child>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further command-line arguments of `redis-server`.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_program("redis-server".into(), arguments)
    }

    /// Valkey, which takes the same arguments.
    pub fn start_valkey() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/valkey/valkey-server");
        assert!(program.exists(), "{} is not there: `make test` fetches it", program.display());
        Self::start_program(program.into(), &[])
    }

    fn start_program(program: OsString, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let mut redis = Self { port: free_port(), tls_port: None, program, arguments, folder, process: None };
        redis.restart();
        redis
    }

    /// With options of its configuration; where these set up TLS, on a port for that too.
    pub fn start_with_options(options: &[(&str, String)]) -> Self {
        let (tls_port, options) = with_tls_port(options);
        let arguments: Vec<String> =
            options.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut redis = Self::start_with(&arguments);
        redis.tls_port = tls_port;
        redis
    }

    /// One that follows another, and does so when this returns.
    pub fn start_replica_of(primary: &Redis) -> Self {
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
        wait_until("the replica follows", || replica.reports("master_link_status:up"));
        replica
    }

    /// A sentinel with this configuration and these options before it.
    pub fn start_sentinel(configuration: &str, options: &[(&str, String)]) -> Self {
        let (tls_port, options) = with_tls_port(options);
        let options: String = options.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, format!("{options}{configuration}")).expect("a file");
        let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
        let (port, program) = (free_port(), "redis-server".into());
        let mut redis = Self { port, tls_port, program, arguments, folder, process: None };
        redis.restart();
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port that clients use: that for TLS, where there is one.
    pub fn client_port(&self) -> u16 {
        self.tls_port.unwrap_or(self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends a signal by name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("it runs").id();
        let status = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Starts it, empty, on the same port.
    pub fn restart(&mut self) {
        self.kill();
        // A configuration file comes before all options.
        let (first, rest) =
            self.arguments.split_at(usize::from(self.arguments.last().is_some_and(|it| it == "--sentinel")));
        let process = Command::new(&self.program)
            .args(first)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(if first.is_empty() {
                &["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"][..]
            } else {
                &[]
            })
            .arg("--dir")
            .arg(self.folder.path())
            .args(rest)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{:?} is installed: `make test` does so: {error}", self.program));
        self.process = Some(process);
        wait_until(&format!("redis answers on port {}", self.port), || self.command("PING").is_some());
    }

    /// Sends one inline command on a connection of its own and returns what comes first.
    pub fn command(&self, line: &str) -> Option<String> {
        let mut stream = self.connection()?;
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut answer = [0; 65536];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Sends one command, its words apart by spaces, and returns the whole answer as text, an array's elements one a
    /// line; none when nothing answers.
    pub fn ask(&self, line: &str) -> Option<String> {
        self.session(&[line]).pop()
    }

    /// Sends commands on one connection; their answers, as far as there were any.
    pub fn session(&self, lines: &[&str]) -> Vec<String> {
        let Some(mut stream) = self.connection() else { return Vec::new() };
        let sent = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
        if stream.write_all(sent.as_bytes()).is_err() {
            return Vec::new();
        }
        let mut reader = BufReader::new(stream);
        lines.iter().map_while(|_| reply(&mut reader)).collect()
    }

    /// The same, which must be answered and not with an error.
    pub fn tell(&self, line: &str) -> String {
        let answer = self.ask(line).unwrap_or_else(|| panic!("no answer to {line}"));
        assert!(!answer.starts_with('-'), "{line}: {answer}");
        answer
    }

    /// Holds these bytes under a key, for a minute.
    pub fn set(&self, key: &str, value: &[u8]) {
        let mut stream = self.connection().expect("a connection");
        let mut command = b"*5\r\n".to_vec();
        for part in [b"SET", key.as_bytes(), value, b"EX", b"60"] {
            command.extend_from_slice(&[format!("${}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
        }
        stream.write_all(&command).expect("it is sent");
        assert_eq!(reply(&mut BufReader::new(stream)).as_deref(), Some("OK"));
    }

    /// The bytes under a key.
    pub fn value(&self, key: &str) -> Vec<u8> {
        let mut stream = BufReader::new(self.connection().expect("a connection"));
        stream.get_mut().write_all(format!("GET {key}\r\n").as_bytes()).expect("it is sent");
        let mut length = String::new();
        stream.read_line(&mut length).expect("an answer");
        let length = length.trim_start_matches('$').trim().parse().expect("the key holds a string");
        let mut value = vec![0; length];
        stream.read_exact(&mut value).expect("all of it");
        value
    }

    /// Whether its `INFO` has the line.
    pub fn reports(&self, line: &str) -> bool {
        self.ask("INFO").is_some_and(|info| info.lines().any(|it| it == line))
    }

    /// Whether it says that it is a primary.
    pub fn is_primary(&self) -> bool {
        self.ask("ROLE").is_some_and(|role| role.starts_with("master"))
    }

    /// The keys that begin with `aside:r:`, records and bodies.
    pub fn records(&self) -> Vec<String> {
        self.tell("KEYS aside:r:*").lines().map(str::to_owned).collect()
    }

    /// A connection whose answers are waited for no longer than two seconds.
    pub fn connection(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        Some(stream)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nothing listens on, below those that the system gives to connections.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// The options with a port for TLS, where they set that up.
fn with_tls_port<'o>(options: &[(&'o str, String)]) -> (Option<u16>, Vec<(&'o str, String)>) {
    let port = options.iter().any(|(name, _)| *name == "tls-cert-file").then(free_port);
    let option = port.map(|port| ("tls-port", port.to_string()));
    (port, option.into_iter().chain(options.iter().cloned()).collect())
}

/// Waits, bounded, for what a server of its own does.
pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One reply of the protocol's second version.
fn reply(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1);
    match kind {
        "$" => {
            let Ok(length) = rest.parse::<usize>() else { return Some(String::new()) };
            let mut bytes = vec![0; length + 2];
            reader.read_exact(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        }
        "*" => {
            let count = rest.parse::<usize>().unwrap_or(0);
            let elements: Option<Vec<String>> = (0..count).map(|_| reply(reader)).collect();
            Some(elements?.join("\n"))
        }
        "-" => Some(line.to_owned()),
        _ => Some(rest.to_owned()),
    }
}
