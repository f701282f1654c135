//! What is measured: one row for each case.

use std::collections::BTreeSet;

use super::load::{Idle, h2load, herd, paced, warm, wrk};
use super::machine::{memory_kib, watched_files};
use super::measure::{
    BUSIEST_OVER_MEAN, CONNECTION_KIB, CPU_US, Figures, LAST_MS, MEMORY_MIB, NOISE, P99_OVER_P50, RATE, UNSEEN,
    UNSEEN_MAX, UPSTREAM_REQUESTS, measured, watched,
};
use super::stage::{Contender, PLAIN, Setting, Stage};

const KIB: usize = 1024;
/// Loads of a second before the measurement: connections, files and allocators settle.
const WARM_UP_SECONDS: u64 = 1;
const MANY_KEYS: usize = 100_000;
const HERD: usize = 200;
const IDLE: usize = 10_000;
const SPREAD: usize = 64;
const WORKERS: usize = 2;
/// CPUs' worth of time that others may use before a latency is doubted: of a hundredth p99 itself is made.
const LATENCY_NOISE_MAX: f64 = 0.01;
/// How often a latency is taken, until others leave contender and clients alone.
const LATENCY_TRIES: usize = 5;

/// A case.
pub struct Case {
    /// As `--case` names it.
    pub name: &'static str,
    /// For the table.
    pub title: &'static str,
    /// The figure whose ratios are told.
    pub figure: &'static str,
    /// Whether the upstream is to be asked nothing.
    pub hits: bool,
    /// The length of the body.
    pub length: usize,
    /// CPUs' worth of time that others may use before a measurement is doubted.
    pub noise_max: f64,
    /// In the order of a round.
    pub contenders: &'static [Contender],
    /// Measures one contender.
    pub run: fn(&Stage<'_>) -> Result<Figures, String>,
}

const ASIDE: Contender = Contender::Aside(PLAIN);
const ASIDE_BOTH: Contender = Contender::Aside(Setting { redis: true, ..PLAIN });
const ASIDE_REDIS: Contender = Contender::Aside(Setting { redis: true, memory: false, ..PLAIN });
const ASIDE_ROUTES: Contender = Contender::Aside(Setting { further_routes: 10_000, ..PLAIN });
const ASIDE_WORKERS: Contender = Contender::Aside(Setting { workers: WORKERS, ..PLAIN });
const ALL: &[Contender] = &[Contender::Hyper, ASIDE, Contender::Nginx];

/// A case on the CPU time of 1 KiB answers by all contenders; the rows change what differs.
const USUAL: Case = Case {
    name: "hit-1k",
    title: "hot hit, 1 KiB",
    figure: CPU_US,
    hits: true,
    length: KIB,
    noise_max: 0.1,
    contenders: ALL,
    run: |stage| hot(stage, KIB, 64),
};

/// All of them.
pub const CASES: &[Case] = &[
    USUAL,
    Case {
        name: "hit-16k",
        title: "hot hit, 16 KiB",
        length: 16 * KIB,
        run: |stage| hot(stage, 16 * KIB, 64),
        ..USUAL
    },
    Case {
        name: "hit-256k",
        title: "hot hit, 256 KiB",
        length: 256 * KIB,
        run: |stage| hot(stage, 256 * KIB, 16),
        ..USUAL
    },
    Case { name: "keys", title: "hits over 100,000 keys", run: many_keys, ..USUAL },
    Case {
        name: "redis",
        title: "every hit from Redis (nginx: local)",
        contenders: &[Contender::Hyper, ASIDE_REDIS, Contender::Nginx],
        ..USUAL
    },
    Case {
        name: "miss",
        title: "miss, stored",
        hits: false,
        contenders: &[ASIDE_BOTH, Contender::Nginx],
        run: misses,
        ..USUAL
    },
    Case {
        name: "herd",
        title: "200 at once for a cold key, upstream 200 ms",
        figure: LAST_MS,
        hits: false,
        contenders: &[ASIDE, Contender::Nginx],
        run: cold_herd,
        ..USUAL
    },
    Case { name: "http2", title: "HTTP/2 hot hit, 1 KiB", run: http2, ..USUAL },
    Case { name: "idle", title: "10,000 idle connections", figure: CONNECTION_KIB, run: idle, ..USUAL },
    Case { name: "routes", title: "hot hit, 10,000 routes against one", contenders: &[ASIDE, ASIDE_ROUTES], ..USUAL },
    Case {
        name: "half",
        title: "hot hit at half the load",
        figure: P99_OVER_P50,
        noise_max: LATENCY_NOISE_MAX,
        run: half_load,
        ..USUAL
    },
    Case {
        name: "workers",
        title: "64 connections over 2 workers",
        figure: BUSIEST_OVER_MEAN,
        contenders: &[ASIDE_WORKERS],
        run: spread,
        ..USUAL
    },
];

/// What the origin answers after a time, in milliseconds; a name is to be put behind it.
fn prefix(wait: u64, length: usize) -> String {
    format!("/v1/{wait}/{length}/")
}

fn hot(stage: &Stage<'_>, length: usize, connections: usize) -> Result<Figures, String> {
    let prefix = prefix(0, length);
    stage.warm(&format!("{prefix}0"))?;
    wrk(stage, &prefix, 1, connections, WARM_UP_SECONDS)?;
    measured(stage, || wrk(stage, &prefix, 1, connections, stage.options.seconds))
}

fn many_keys(stage: &Stage<'_>) -> Result<Figures, String> {
    let prefix = prefix(0, KIB);
    warm(stage, &prefix, MANY_KEYS)?;
    wrk(stage, &prefix, MANY_KEYS, 64, WARM_UP_SECONDS)?;
    measured(stage, || wrk(stage, &prefix, MANY_KEYS, 64, stage.options.seconds))
}

fn misses(stage: &Stage<'_>) -> Result<Figures, String> {
    let prefix = prefix(0, KIB);
    wrk(stage, &format!("{prefix}warm"), 0, 64, WARM_UP_SECONDS)?;
    measured(stage, || wrk(stage, &prefix, 0, 64, stage.options.seconds))
}

fn cold_herd(stage: &Stage<'_>) -> Result<Figures, String> {
    stage.warm(&format!("{}0", prefix(0, KIB)))?;
    let before = stage.asked()?;
    let (last_ms, used) = watched(stage, || herd(stage, &format!("{}cold", prefix(200, KIB)), HERD))?;
    Ok(Figures::from([(LAST_MS, last_ms), (UPSTREAM_REQUESTS, stage.asked()? - before), (NOISE, used.by_others)]))
}

fn http2(stage: &Stage<'_>) -> Result<Figures, String> {
    let path = format!("{}0", prefix(0, KIB));
    stage.warm(&path)?;
    h2load(stage, &path, WARM_UP_SECONDS)?;
    measured(stage, || h2load(stage, &path, stage.options.seconds))
}

fn idle(stage: &Stage<'_>) -> Result<Figures, String> {
    let path = format!("{}0", prefix(0, KIB));
    stage.warm(&path)?;
    let before = memory_kib(stage.process.id());
    let connections = Idle::open(stage, &path, IDLE)?;
    let memory = memory_kib(stage.process.id());
    drop(connections);
    Ok(Figures::from([(CONNECTION_KIB, (memory - before) / IDLE as f64), (MEMORY_MIB, memory / 1024.0)]))
}

fn half_load(stage: &Stage<'_>) -> Result<Figures, String> {
    let prefix = prefix(0, KIB);
    let path = format!("{prefix}0");
    stage.warm(&path)?;
    wrk(stage, &prefix, 1, 64, WARM_UP_SECONDS)?;
    let most = measured(stage, || wrk(stage, &prefix, 1, 64, WARM_UP_SECONDS))?;
    let at_half = || measured(stage, || paced(stage, &path, most[RATE] / 2.0, stage.options.seconds));
    let mut figures = at_half()?;
    for _ in 1..LATENCY_TRIES {
        if figures[NOISE] <= LATENCY_NOISE_MAX && figures[UNSEEN] <= UNSEEN_MAX {
            break;
        }
        figures = at_half()?;
    }
    Ok(figures)
}

fn spread(stage: &Stage<'_>) -> Result<Figures, String> {
    let path = format!("{}0", prefix(0, KIB));
    stage.warm(&path)?;
    let before: BTreeSet<u64> = watched_files(stage.process.id()).into_iter().flatten().collect();
    let connections = Idle::open(stage, &path, SPREAD)?;
    let after = watched_files(stage.process.id());
    drop(connections);
    let busiest = after.iter().map(|files| files.difference(&before).count()).max().unwrap_or(0);
    Ok(Figures::from([(BUSIEST_OVER_MEAN, busiest as f64 * WORKERS as f64 / SPREAD as f64)]))
}
