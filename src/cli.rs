//! The command line.

mod purge;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::clock::Clock;
use crate::config::{self, Config, Problem, units};
use crate::{check, demo, server};

/// What `serve` and `check` exit with when the configuration has problems.
const PROBLEMS: u8 = 2;
/// How long a health check waits, for the connection and for each read.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// A cache-aside caching reverse proxy.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the proxy; SIGHUP reloads the file, SIGTERM and SIGINT drain and stop
    Serve {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Checks a configuration and tells every problem; exits with 2 if there is one
    Check {
        /// The configuration
        file: PathBuf,
        /// Print every effective value and where it came from
        #[arg(long)]
        resolved: bool,
        /// Connect to Redis and the upstreams and tell what is found; exits with 1 if they cannot be used
        #[arg(long, conflicts_with = "resolved")]
        live: bool,
    },
    /// Runs the proxy in front of a slow sample API, with nothing to configure
    Demo,
    /// Runs the sample API alone
    SampleApi {
        /// Where it listens
        #[arg(long, default_value = "127.0.0.1:3000")]
        listen: SocketAddr,
        /// How long it takes over each answer
        #[arg(long, default_value = "300ms", value_parser = delay)]
        delay: Duration,
    },
    /// Has a running proxy forget what it stores, and with Redis every process; exits with 0 once that is acknowledged
    Purge(purge::Arguments),
    /// Asks a running proxy on this machine whether it is ready; exits with 0 if so, else with 1
    Healthcheck {
        /// The configuration that it runs with; none: the default addresses
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

fn delay(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| units::DURATION.to_owned())
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config } => serve(config),
        Command::Check { file, resolved: true, .. } => check_resolved(&file),
        Command::Check { file, live, .. } => check(&file, live),
        Command::Demo => ended(demo::run()),
        Command::SampleApi { listen, delay } => ended(demo::run_api(listen, delay)),
        Command::Purge(arguments) => purge::run(&arguments),
        Command::Healthcheck { config } => healthcheck(config.as_deref()),
    }
}

fn ended(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aside: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: PathBuf) -> ExitCode {
    let config = match config::load(&path) {
        Ok((config, warnings)) => {
            tell(&warnings);
            config
        }
        Err(problems) => return refuse(&problems),
    };
    ended(server::start(config, Some(path), Clock::System).map(server::Running::run_until_signal))
}

fn check(path: &Path, live: bool) -> ExitCode {
    match config::load(path) {
        Ok((config, warnings)) => {
            tell(&warnings);
            let printed = print(&summary(path, &config));
            if live { check_live(&config) } else { printed }
        }
        Err(problems) => refuse(&problems),
    }
}

fn check_live(config: &Config) -> ExitCode {
    match check::live(config) {
        Ok(report) => {
            let printed = print(&report.to_string());
            if report.is_well() { printed } else { ExitCode::FAILURE }
        }
        Err(error) => ended(Err(error)),
    }
}

fn check_resolved(path: &Path) -> ExitCode {
    match config::load_resolved(path) {
        Ok((values, warnings)) => {
            tell(&warnings);
            print(&values)
        }
        Err(problems) => refuse(&problems),
    }
}

fn summary(path: &Path, config: &Config) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (upstreams, routes) = (count(config.upstreams.len(), "upstream"), count(config.routes.len(), "route"));
    format!("{}: ok, {upstreams}, {routes}\n", path.display())
}

/// Prints; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ended(Err(error)),
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

fn tell(problems: &[Problem]) {
    for problem in problems {
        eprintln!("{problem}");
    }
}

fn refuse(problems: &[Problem]) -> ExitCode {
    tell(problems);
    ExitCode::from(PROBLEMS)
}

fn healthcheck(path: Option<&Path>) -> ExitCode {
    let (listen, admin) = match path.map(config::load) {
        None => (SocketAddr::from(([127, 0, 0, 1], 8080)), None),
        Some(Ok((config, _warnings))) => (config.server.listen[0].address, config.admin.map(|admin| admin.listen)),
        Some(Err(problems)) => {
            tell(&problems);
            return ExitCode::FAILURE;
        }
    };
    ended(match admin {
        Some(admin) => ask_ready(local(admin)),
        None => TcpStream::connect_timeout(&local(listen), HEALTH_TIMEOUT).map(drop),
    })
}

/// Where a listener is reached from this machine: one on every address, by loopback.
fn local(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

fn ask_ready(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if status.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(std::io::Error::other(format!("not ready: {}", String::from_utf8_lossy(&status))))
}
