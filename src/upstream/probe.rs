//! Whether an upstream's servers can be connected to, found out without a request.

use std::io;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Uri;

use super::UpstreamConfig;
use super::connect::Offer;
use super::server;

/// What came of connecting to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The server.
    pub url: String,
    /// How long it took, TLS included; or why there is no connection, for people.
    pub outcome: Result<Duration, String>,
}

/// Connects to every server once, at the same time, as requests would; each takes at most `within` and the upstream's
/// connect timeout.
pub async fn probe(config: &UpstreamConfig, within: Duration) -> Vec<Reached> {
    let config = UpstreamConfig { connect_timeout: config.connect_timeout.min(within), ..config.clone() };
    join_all(config.urls.iter().map(|url| reach(&config, url))).await
}

async fn reach(config: &UpstreamConfig, url: &Uri) -> Reached {
    let connector = server::connector(config, url, None, Offer::Any);
    let begun = Instant::now();
    let outcome = connector.connect().await.map(|_connection| begun.elapsed());
    Reached { url: server::named(url), outcome: outcome.map_err(|error| reason(&error)) }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}
