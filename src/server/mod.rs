//! The running process: listeners, workers, control thread, drain.

mod accept;
mod activity;
mod connection;
mod control;
pub mod drain;
pub mod front;
mod interim;
mod occupancy;
mod orders;
mod purging;
mod request;
mod service;
mod socket;
mod vouched;
mod watch;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::clock::Clock;
use crate::config::{Config, Problem};
use crate::generation::Shared;
use crate::reload::Origin;
use crate::store::WorkerId;
use crate::telemetry::Telemetry;
use crate::telemetry::events::Event;
use accept::{Door, Listener};
use control::{Command, Control};
use drain::Drain;
use occupancy::Occupancy;
use worker::Worker;

/// How many tasks run, at most, until sockets are looked at again. What a look brings goes on together: under 64 connections a
/// miss takes 2 % less CPU time than with tokio's 61, for fewer sends wake up Redis and the upstream.
const POLLS_PER_LOOK: u32 = 256;

/// A started proxy.
pub struct Running {
    /// Where it listens, in the order of the configuration; ports that were 0 are filled in.
    pub listen: Vec<SocketAddr>,
    /// Where the admin listener is.
    pub admin: Option<SocketAddr>,
    commands: UnboundedSender<Command>,
    control: Option<JoinHandle<()>>,
}

/// Binds, starts the threads and returns; `path` is what a reload reads.
pub fn start(config: Config, path: Option<PathBuf>, clock: Clock) -> io::Result<Running> {
    let listeners = config.server.listen.iter().map(Listener::bind).collect::<io::Result<Vec<_>>>()?;
    let listen = listeners.iter().map(Listener::address).collect::<io::Result<Vec<_>>>()?;
    let admin = config.admin.clone().map(|admin| Ok((accept::bind(admin.listen)?, admin.token)));
    let admin =
        admin.transpose().map_err(|error: io::Error| io::Error::new(error.kind(), format!("admin: {error}")))?;
    let admin_address = admin.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;

    let telemetry = Arc::new(Telemetry::new(config.log.clone(), clock.clone())?);
    let origin = Origin { path, fixed: config.fixed.clone() };
    let workers = config.server.threads.max(1);
    let shared = Shared::new(config, clock, Arc::clone(&telemetry)).map_err(|conflicts| {
        io::Error::other(conflicts.into_iter().map(|conflict| conflict.reason).collect::<Vec<_>>().join("; "))
    })?;
    let team = Team::new(Arc::new(shared), workers);
    let (doors, threads, workers_ended) = team.start(workers)?;
    let Team { shared, drain, occupancy } = team;
    let control =
        Control { shared, origin, listeners, admin, doors, workers: threads, workers_ended, occupancy, drain };
    let (commands, asked) = mpsc::unbounded_channel();
    let runtime = runtime()?;
    let control = thread("aside-control".to_owned(), move || {
        runtime.block_on(control.run(asked));
        // A name that is still being looked up is not worth waiting for.
        runtime.shutdown_background();
    })?;
    telemetry.emit(&Event::Started { listen: listen.iter().map(ToString::to_string).collect(), workers });
    Ok(Running { listen, admin: admin_address, commands, control: Some(control) })
}

/// What all workers share.
struct Team {
    shared: Arc<Shared>,
    drain: Arc<Drain>,
    occupancy: Arc<Occupancy>,
}

/// The doors of the workers, their threads, and a channel that closes when all have ended.
type Started = (Vec<Door>, Vec<JoinHandle<()>>, mpsc::Receiver<()>);

impl Team {
    fn new(shared: Arc<Shared>, workers: usize) -> Self {
        Self { shared, drain: Arc::default(), occupancy: Arc::new(Occupancy::new(workers)) }
    }

    /// Should one not start, the doors of those before it close, and they end.
    fn start(&self, workers: usize) -> io::Result<Started> {
        let (alive, ended) = mpsc::channel(1);
        let (mut doors, mut threads) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
        for id in 0..workers {
            let (drain, occupancy) = (Arc::clone(&self.drain), Arc::clone(&self.occupancy));
            let worker = Worker::new(Arc::clone(&self.shared), WorkerId(id), drain, occupancy);
            let (door, comers) = mpsc::unbounded_channel();
            let (runtime, alive) = (runtime()?, alive.clone());
            threads.push(thread(format!("aside-{id}"), move || {
                runtime.block_on(worker.run(comers));
                // A name that is still being looked up is not worth waiting for.
                runtime.shutdown_background();
                drop(alive);
            })?);
            doors.push(door);
        }
        Ok((doors, threads, ended))
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().event_interval(POLLS_PER_LOOK).build()
}

fn thread(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(run)
}

impl Running {
    /// What SIGHUP does: reads the file again and swaps, or changes nothing and returns every problem.
    pub fn reload(&self) -> Result<(), Vec<Problem>> {
        let (reply, result) = std::sync::mpsc::sync_channel(1);
        let asked = self.commands.send(Command::Reload(reply));
        match asked.ok().and_then(|()| result.recv().ok()) {
            Some(result) => result,
            None => {
                let message = "the proxy has stopped: there is nothing to reload".to_owned();
                Err(vec![Problem { file: "-".into(), line: 0, message, warning: false }])
            }
        }
    }

    /// Drains and stops; waits at most `server.drain_timeout`. Dropping does the same.
    pub fn shutdown(self) {
        drop(self);
    }

    /// Waits for SIGTERM or SIGINT (SIGHUP reloads), then drains and stops; a second one stops at once.
    pub fn run_until_signal(mut self) {
        let _ = self.commands.send(Command::ObeySignals);
        self.join();
    }

    fn join(&mut self) {
        if let Some(control) = self.control.take() {
            // Should it have panicked, the panic has been told of, and there is nothing left to wait for.
            let _ = control.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.join();
    }
}
