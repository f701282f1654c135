//! A measurement: what every process used while a load ran.

use std::collections::BTreeMap;
use std::time::Instant;

use super::load::Load;
use super::machine::{cpu_seconds, memory_kib, others_seconds, others_seconds_since};
use super::stage::Stage;

/// Figures by name.
pub type Figures = BTreeMap<&'static str, f64>;

/// The part of the requests that may have no latency before a measurement is doubted: of a hundredth p99 itself is made.
pub const UNSEEN_MAX: f64 = 0.005;

pub const CPU_US: &str = "cpu_us";
pub const REDIS_US: &str = "redis_us";
pub const RATE: &str = "requests_per_second";
pub const P50_MS: &str = "p50_ms";
pub const P99_MS: &str = "p99_ms";
pub const P99_OVER_P50: &str = "p99_over_p50";
pub const MEMORY_MIB: &str = "memory_mib";
pub const UPSTREAM_REQUESTS: &str = "upstream_requests";
pub const LAST_MS: &str = "last_ms";
pub const CONNECTION_KIB: &str = "connection_kib";
pub const BUSIEST_OVER_MEAN: &str = "busiest_over_mean";
pub const ERRORS: &str = "errors";
pub const UNSEEN: &str = "unseen";
pub const NOISE: &str = "noise_cpus";

/// Runs a load and sets beside it what was used meanwhile.
pub fn measured(stage: &Stage<'_>, load: impl FnOnce() -> Result<Load, String>) -> Result<Figures, String> {
    let asked = stage.asked()?;
    let (load, used) = watched(stage, load)?;
    let mut figures = Figures::from([
        (CPU_US, used.contender / load.requests * 1e6),
        (RATE, load.requests / load.seconds),
        (P50_MS, load.p50_ms),
        (P99_MS, load.p99_ms),
        (P99_OVER_P50, load.p99_ms / load.p50_ms),
        (MEMORY_MIB, memory_kib(stage.process.id()) / 1024.0),
        (UPSTREAM_REQUESTS, stage.asked()? - asked),
        (ERRORS, load.errors),
        (UNSEEN, load.unseen),
        (NOISE, used.by_others),
    ]);
    if stage.redis.is_some() {
        figures.insert(REDIS_US, used.redis / load.requests * 1e6);
    }
    Ok(figures)
}

/// Runs a load and tells what was used meanwhile.
pub fn watched<T>(stage: &Stage<'_>, load: impl FnOnce() -> Result<T, String>) -> Result<(T, Used), String> {
    let contender = || cpu_seconds(stage.process.id());
    let redis = || stage.redis.as_ref().map_or(0.0, |redis| cpu_seconds(redis.id()));
    let others = others_seconds();
    let (begun, before) = (Instant::now(), (contender(), redis()));
    let load = load()?;
    let (contender, redis) = (contender() - before.0, redis() - before.1);
    let by_others = others_seconds_since(&others) / begun.elapsed().as_secs_f64();
    Ok((load, Used { contender, redis, by_others }))
}

/// What was used meanwhile.
pub struct Used {
    /// CPU seconds.
    contender: f64,
    /// CPU seconds.
    redis: f64,
    /// How many CPUs were used by what is no part of the measurement.
    pub by_others: f64,
}
