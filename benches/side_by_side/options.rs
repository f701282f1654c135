//! What the benchmark is told on its command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// aside beside bare hyper and nginx: what a request costs each.
#[derive(Debug, Parser)]
pub struct Options {
    /// How often each contender is measured; the table shows medians.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// How long each measurement loads.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    /// Only these cases, by name.
    #[arg(long, value_delimiter = ',')]
    pub case: Vec<String>,
    /// The `aside` that is measured.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/profiled/aside"))]
    pub binary: PathBuf,
    /// The contender's CPU.
    #[arg(long, default_value = "0")]
    pub cpu: String,
    /// That of the load, the origin and Redis.
    #[arg(long, default_value = "1")]
    pub load_cpu: String,
    /// Where the figures of every round are written.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/side_by_side.json"))]
    pub json: PathBuf,
    /// aside without the others; a case that cannot be played is an error.
    #[arg(long)]
    pub alone: bool,
    /// Tells the cases.
    #[arg(long)]
    pub list: bool,
    /// As cargo calls every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    pub part: Option<Part>,
}

/// What the benchmark runs of itself as processes of their own.
#[derive(Clone, Debug, Subcommand)]
#[command(rename_all = "lower")]
pub enum Part {
    /// The origin.
    #[command(hide = true)]
    Origin { port: u16 },
    /// hyper with a constant answer.
    #[command(hide = true)]
    Hyper { port: u16, length: usize },
    /// A client that asks once for each key.
    #[command(hide = true)]
    Warm { port: u16, prefix: String, keys: usize },
    /// Clients that all ask at once.
    #[command(hide = true)]
    Herd { port: u16, path: String, count: usize },
    /// Clients that have asked and stay.
    #[command(hide = true)]
    Idle { port: u16, path: String, count: usize },
    /// Clients that ask at a fixed pace.
    #[command(hide = true)]
    Paced { port: u16, path: String, count: usize, rate: f64, seconds: u64 },
}
