//! Looks at the servers that a configuration names, and tells what it finds, one fact a line.

mod redis;

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::future::join_all;

use crate::config::Config;
use crate::store::redis::{RedisConfig, live};
use crate::upstream::{Reached, UpstreamConfig, probe};

/// The bound on connecting to an upstream's server, where its own timeout is longer.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    weight: Weight,
    /// `redis`, `memory`, `latency`, `acl`, `upstream`.
    subject: &'static str,
    text: String,
}

/// What a line says of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Fact,
    /// It works; not as well as it could.
    Warning,
    /// It does not.
    Problem,
}

/// Connects to Redis and to every upstream's servers. It ends within a few seconds, whatever they do.
pub fn live(config: &Config) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (redis, upstreams) = runtime.block_on(async {
        let servers = join_all(config.upstreams.iter().map(|upstream| probe(upstream, CONNECT_WITHIN)));
        tokio::join!(examined(config.store.redis.as_ref()), servers)
    });
    // A name that is still being looked up is not worth waiting for.
    runtime.shutdown_background();
    let mut report = redis;
    config.upstreams.iter().zip(&upstreams).for_each(|(upstream, reached)| report.upstream(upstream, reached));
    Ok(report)
}

async fn examined(config: Option<&RedisConfig>) -> Report {
    match config {
        Some(config) => redis::report(&live::examine(config).await, config),
        None => {
            let mut report = Report::default();
            report.fact("redis", "none: embedded, in memory alone");
            report
        }
    }
}

impl Report {
    /// Whether there is no problem.
    pub fn is_well(&self) -> bool {
        self.lines.iter().all(|line| line.weight != Weight::Problem)
    }

    fn upstream(&mut self, upstream: &UpstreamConfig, servers: &[Reached]) {
        let name = &upstream.name;
        for Reached { url, outcome } in servers {
            match outcome {
                Ok(took) => self.fact("upstream", format!("{name} {url} connected in {}", millis(*took))),
                Err(reason) => self.warn("upstream", format!("{name} {url} cannot be connected to: {reason}")),
            }
        }
        if servers.iter().all(|server| server.outcome.is_err()) {
            self.problem("upstream", format!("{name} has no server that can be connected to"));
        }
    }

    fn fact(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Weight::Fact, subject, text.into());
    }

    fn warn(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Weight::Warning, subject, text.into());
    }

    fn problem(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(Weight::Problem, subject, text.into());
    }

    fn add(&mut self, weight: Weight, subject: &'static str, text: String) {
        self.lines.push(Line { weight, subject, text });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|Line { weight, subject, text }| match weight {
            Weight::Fact => writeln!(f, "{subject:<10} {text}"),
            Weight::Warning => writeln!(f, "warning    {subject}: {text}"),
            Weight::Problem => writeln!(f, "problem    {subject}: {text}"),
        })
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}
