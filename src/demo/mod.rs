//! `aside demo`: the proxy in front of a slow sample API, with nothing to configure.

pub mod sample_api;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::server;
use crate::telemetry::AccessLog;

/// How long the sample API takes over each answer.
pub const DELAY: Duration = Duration::from_millis(300);
/// Access log lines that may wait to be shown.
const LINES_MAX: usize = 1024;

/// Runs until SIGINT or SIGTERM; errors are those of binding a loopback port.
pub fn run() -> std::io::Result<()> {
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let api_address = api.local_addr()?;
    let stop = spawn_api(api)?;
    let (lines, shown) = mpsc::sync_channel(LINES_MAX);
    let (mut config, _warnings) = crate::config::parse("demo", &configuration(api_address))
        .map_err(|problems| std::io::Error::other(problems.iter().map(ToString::to_string).collect::<String>()))?;
    config.log.access = AccessLog::Lines(lines);
    let running = server::start(config, None, Clock::System)?;
    print!("{}", greeting(running.listen[0], api_address));
    std::io::stdout().flush()?;
    loop {
        match shown.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => println!("{}", line.trim_end()),
            Err(RecvTimeoutError::Timeout) if stop.is_finished() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    running.shutdown();
    Ok(())
}

/// Serves the sample API alone, until SIGINT or SIGTERM.
pub fn run_api(listen: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("sample api on http://{}", listener.local_addr()?);
    serve_until_signal(listener, delay)
}

fn spawn_api(listener: TcpListener) -> std::io::Result<std::thread::JoinHandle<std::io::Result<()>>> {
    std::thread::Builder::new().name("sample-api".into()).spawn(move || serve_until_signal(listener, DELAY))
}

fn serve_until_signal(listener: TcpListener, delay: Duration) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::select! {
            () = sample_api::serve(listener, delay) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn configuration(api: SocketAddr) -> String {
    // 8080 is easy to type; any free port does.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).map_or(0, |_| 8080);
    format!(
        r#"
[server]
listen = "127.0.0.1:{port}"

[upstream.catalogue]
url = "http://{api}"

[[route]]
name = "products"
path = "/v1/products/{{*rest}}"
ttl = "1m"

[[route]]
name = "product list"
path = "/v1/products"
ttl = "1m"

[[route]]
name = "categories"
path = "/v1/categories"
ttl = "5m"
"#
    )
}

fn greeting(proxy: SocketAddr, api: SocketAddr) -> String {
    let delay = DELAY.as_millis();
    format!(
        "aside is on http://{proxy}, in front of a sample API on http://{api} that takes {delay} ms for each answer.\n\
         \n\
         Try, in another terminal, the first one twice:\n\
         \n\
         \x20 curl -si http://{proxy}/v1/products/42          a miss of about {delay} ms, then hits: see Cache-Status\n\
         \x20 curl -si http://{proxy}/v1/products/42 -X PUT -H 'content-type: application/json' -d '{{\"price\": 5}}'\n\
         \x20                                                        changes it: the next GET is a miss with the new price\n\
         \x20 curl -s  http://{proxy}/cache-stats             what the cache did, by route\n\
         \n\
         Each request is shown here as it ends; Ctrl-C stops.\n\n"
    )
}
