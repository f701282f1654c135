//! The proxy itself, started in this process as `aside serve` starts it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

use aside::clock::Clock;
use aside::server::{Running, start};
use aside::telemetry::AccessLog;

/// A running proxy; it drains and stops when dropped.
pub struct Proxy {
    pub running: Running,
    pub clock: Clock,
    pub address: SocketAddr,
    /// Asks for its figures.
    client: reqwest::Client,
    /// Takes the access log, which would else go to the tests' output.
    lines: Mutex<Receiver<String>>,
}

impl Proxy {
    /// Starts with a TOML text whose `[server]` table need not be there, on a free port and a clock that stands still.
    pub fn start(toml: &str) -> Self {
        Self::start_with_clock(toml, Clock::manual(Clock::System.now()))
    }

    /// The same on another clock.
    pub fn start_with_clock(toml: &str, clock: Clock) -> Self {
        Self::start_at(toml, None, clock)
    }

    /// The same from a file, so that it can be reloaded.
    pub fn start_file(path: PathBuf) -> Self {
        let toml = std::fs::read_to_string(&path).expect("the file is there");
        Self::start_at(&toml, Some(path), Clock::manual(Clock::System.now()))
    }

    fn start_at(toml: &str, path: Option<PathBuf>, clock: Clock) -> Self {
        let (mut config, _warnings) = match aside::config::parse("test.toml", toml) {
            Ok(checked) => checked,
            Err(problems) => panic!("{}", problems.iter().map(|it| format!("{it}\n")).collect::<String>()),
        };
        for listen in &mut config.server.listen {
            listen.address.set_port(0);
        }
        config.server.threads = 2;
        let (sender, lines) = sync_channel(100_000);
        config.log.access = AccessLog::Lines(sender);
        let running = start(config, path, clock.clone()).expect("the proxy starts");
        let address = running.listen[0];
        Self { running, clock, address, client: super::client(), lines: Mutex::new(lines) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its `/cache-stats`.
    pub async fn stats(&self) -> serde_json::Value {
        let text = super::get(&self.client, &self.url("/cache-stats")).await.body;
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits, bounded, until it has Redis.
    pub async fn until_redis_is_up(&self) {
        let begun = std::time::Instant::now();
        while self.stats().await["redis"]["state"] != "up" {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "redis was not reached");
        }
    }

    /// Stops it; its access log lines.
    pub fn stopped_lines(self) -> Vec<String> {
        self.running.shutdown();
        self.lines.into_inner().unwrap().iter().collect()
    }
}

/// A configuration with one upstream and one route over everything, whose keys are `route`.
pub fn one_route(upstream: &str, route: &str) -> String {
    format!("[upstream.api]\nurl = \"{upstream}\"\n\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\n{route}\n")
}

/// The same with Redis, under a prefix of its own.
pub fn one_route_with_redis(upstream: &str, redis: &str, route: &str) -> String {
    format!("[redis]\nurl = \"{redis}\"\ntimeout = \"1s\"\n\n{}", one_route(upstream, route))
}
