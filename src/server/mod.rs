//! The running process: listeners, workers, control thread, drain.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::clock::Clock;
use crate::config::{Config, Problem};

/// A started proxy.
pub struct Running {
    /// Where it listens, in the order of the configuration; ports that were 0 are filled in.
    pub listen: Vec<SocketAddr>,
    /// Where the admin listener is.
    pub admin: Option<SocketAddr>,
}

/// Binds, starts the threads and returns; `path` is what a reload reads.
pub fn start(config: Config, path: Option<PathBuf>, clock: Clock) -> std::io::Result<Running> {
    todo!("{} {path:?} {clock:?}", config.routes.len())
}

impl Running {
    /// What SIGHUP does: reads the file again and swaps, or changes nothing and returns every problem.
    pub fn reload(&self) -> Result<(), Vec<Problem>> {
        todo!()
    }

    /// Drains and stops; waits at most `server.drain_timeout`. Dropping does the same.
    pub fn shutdown(self) {
        todo!()
    }

    /// Waits for SIGTERM or SIGINT (SIGHUP reloads), then drains and stops.
    pub fn run_until_signal(self) {
        todo!()
    }
}
