//! The control thread: it owns the acceptors, the admin listener, signals, reload, and the end.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::accept::{Door, Listener};
use super::drain::Drain;
use super::occupancy::Occupancy;
use super::orders;
use crate::admin::Admin;
use crate::config::Problem;
use crate::generation::Shared;
use crate::reload::{self, Origin};
use crate::store::WorkerId;
use crate::telemetry::events::Event;

/// What the control thread is asked for.
pub enum Command {
    /// Reload and tell.
    Reload(SyncSender<Result<(), Vec<Problem>>>),
    /// From now on obey signals.
    ObeySignals,
    /// Drain and stop.
    Stop,
}

/// Everything that the control thread owns.
pub struct Control {
    /// What outlives configurations.
    pub shared: Arc<Shared>,
    /// Where the configuration came from.
    pub origin: Origin,
    /// The proxy's listeners.
    pub listeners: Vec<Listener>,
    /// The admin listener.
    pub admin: Option<(TcpListener, Option<String>)>,
    /// The workers' doors.
    pub doors: Vec<Door>,
    /// Their threads.
    pub workers: Vec<JoinHandle<()>>,
    /// Ends when the last worker has.
    pub workers_ended: Receiver<()>,
    /// Who is where.
    pub occupancy: Arc<Occupancy>,
    /// The end.
    pub drain: Arc<Drain>,
}

impl Control {
    /// Runs until told to stop, then drains. Dropping the acceptors lets the workers come to their end.
    pub async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        self.shared.count_tasks();
        self.shared.store.attach(WorkerId(self.workers.len()));
        let acceptors = TaskTracker::new();
        let doors: Arc<[Door]> = std::mem::take(&mut self.doors).into();
        let accepting: Vec<_> = std::mem::take(&mut self.listeners)
            .into_iter()
            .map(|listener| listener.run(Arc::clone(&doors), Arc::clone(&self.occupancy), Arc::clone(&self.shared)))
            .map(|acceptor| acceptors.spawn(acceptor).abort_handle())
            .collect();
        drop(doors);
        self.serve_admin(&acceptors);
        if let Some(orders) = self.shared.store.take_orders() {
            acceptors.spawn(orders::obey(Arc::clone(&self.shared), orders));
        }
        let mut signals = Signals::ignored();
        self.obey(&mut commands, &mut signals, &acceptors).await;
        self.drain(&accepting, &mut signals).await;
    }

    fn serve_admin(&mut self, tasks: &TaskTracker) {
        if let Some((listener, token)) = self.admin.take() {
            let admin = Admin { shared: Arc::clone(&self.shared), drain: Arc::clone(&self.drain), token };
            tasks.spawn(Arc::new(admin).run(listener));
        }
    }

    /// Returns when the process is to end.
    async fn obey(&self, commands: &mut UnboundedReceiver<Command>, signals: &mut Signals, tasks: &TaskTracker) {
        let mut tending = self.tend(tasks);
        loop {
            let reloaded = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Reload(reply)) => {
                        let reloaded = reload::reload(&self.shared, &self.origin);
                        let is_new = reloaded.is_ok();
                        drop(reply.send(reloaded));
                        is_new
                    }
                    Some(Command::ObeySignals) => {
                        *signals = Signals::obeyed();
                        false
                    }
                    Some(Command::Stop) | None => return,
                },
                signalled = signals.next() => match signalled {
                    Signalled::Reload => reload::reload(&self.shared, &self.origin).is_ok(),
                    Signalled::Stop => return,
                },
            };
            if reloaded {
                tending.abort();
                tending = self.tend(tasks);
            }
        }
    }

    /// Looks after the upstreams of the running generation: until the next one, or the very end.
    fn tend(&self, tasks: &TaskTracker) -> AbortHandle {
        let generation = self.shared.generation.load_full();
        tasks.spawn(async move { generation.upstreams.tend().await }).abort_handle()
    }

    /// Stops accepting, waits for the workers, and no longer once a second signal comes.
    async fn drain(mut self, accepting: &[AbortHandle], signals: &mut Signals) {
        let telemetry = &self.shared.telemetry;
        telemetry.emit(&Event::Draining { connections: self.occupancy.open() });
        self.drain.begin(self.shared.generation.load().server.drain_timeout);
        accepting.iter().for_each(AbortHandle::abort);
        loop {
            tokio::select! {
                _ = self.workers_ended.recv() => break,
                signalled = signals.next() => match signalled {
                    Signalled::Reload => {}
                    Signalled::Stop => self.drain.cut_short(),
                },
            }
        }
        for worker in self.workers {
            // A worker that panicked has told so on standard error.
            let _ = worker.join();
        }
        telemetry.emit(&Event::Stopped);
        telemetry.flush();
    }
}

/// The signals that a process obeys, once it is told to: tests and the demo start proxies within their own.
struct Signals(Option<[Signal; 3]>);

enum Signalled {
    Reload,
    Stop,
}

impl Signals {
    const fn ignored() -> Self {
        Self(None)
    }

    /// Where a handler cannot be installed, the signal keeps its default effect, which is to end the process.
    fn obeyed() -> Self {
        let kinds = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()];
        let [Ok(hangup), Ok(interrupt), Ok(terminate)] = kinds.map(signal) else { return Self(None) };
        Self(Some([hangup, interrupt, terminate]))
    }

    async fn next(&mut self) -> Signalled {
        match &mut self.0 {
            None => std::future::pending().await,
            Some([hangup, interrupt, terminate]) => tokio::select! {
                _ = hangup.recv() => Signalled::Reload,
                _ = interrupt.recv() => Signalled::Stop,
                _ = terminate.recv() => Signalled::Stop,
            },
        }
    }
}
