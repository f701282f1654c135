//! A lane: one fred client, its connection supervised, its commands bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use fred::clients::{Client, WithOptions};
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, ConnectHandle};
use socket2::TcpKeepalive;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, SetOnce};

use super::breaker::Breaker;
use super::errors::{force_reconnection, knows_no_sentinel};
use super::server::server;
use super::together::{Gathered, Lengths};
use super::writes::{Queue, bulk_timeout};
use super::{RedisConfig, RedisTier};

/// The bound on a lane's commands in flight: fred's own bound wedges the client once it is reached.
pub(super) const IN_FLIGHT_MAX: usize = 512;
/// How often an open breaker is probed.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How often the first connection is looked for.
const CONNECTED_INTERVAL: Duration = Duration::from_millis(10);
/// How long a breaker stays open until a fresh client is tried: the old one may be stuck in a write, or with a primary that was
/// replaced because it no longer answers. With 10 s, of 32 of these replacements side by side on two processors 3 took more than 5 s.
const REBUILD_AFTER: Duration = Duration::from_secs(2);
/// Between the silent end of a connection's task and the next.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// The bound on connecting, and on what fred asks by itself.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// After this a socket that takes no more bytes is given up.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(2);

/// One client and what guards it.
pub(super) struct Lane {
    client: ArcSwapOption<Client>,
    attached: AtomicBool,
    /// Whether its client has been connected once. Before, commands would only fail and open the breaker.
    connected: SetOnce<()>,
    pub(super) permits: Semaphore,
    pub(super) breaker: Breaker,
    pub(super) queue: Queue,
    pub(super) gathered: Gathered,
    pub(super) lengths: Lengths,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            client: ArcSwapOption::empty(),
            attached: AtomicBool::new(false),
            connected: SetOnce::new(),
            permits: Semaphore::new(IN_FLIGHT_MAX),
            breaker: Breaker::new(),
            queue: Queue::new(),
            gathered: Gathered::default(),
            lengths: Lengths::default(),
        }
    }

    /// Whether the caller is the first to attach it.
    pub(super) fn attach_once(&self) -> bool {
        !self.attached.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Whether commands may be tried.
    pub(super) fn is_usable(&self) -> bool {
        self.breaker.is_closed() && self.is_connected()
    }

    /// Whether it has been connected once.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.initialized()
    }

    /// Waits for the first connection.
    pub(super) async fn connected(&self) {
        self.connected.wait().await;
    }

    pub(super) fn client(&self) -> Option<Arc<Client>> {
        self.client.load_full()
    }

    /// The client for one read within `timeout`; none before the lane is attached.
    pub(super) fn reading(&self, timeout: Duration) -> Option<WithOptions<Client>> {
        let options = Options { timeout: Some(timeout), fail_fast: true, ..Options::default() };
        self.client.load().as_ref().map(|client| client.with_options(&options))
    }

    /// The client for one write within `timeout`. Tried once: a repeated write could undo a later one.
    pub(super) fn writing(&self, timeout: Duration) -> Option<WithOptions<Client>> {
        let options = Options { timeout: Some(timeout), fail_fast: true, max_attempts: Some(1), ..Options::default() };
        self.client.load().as_ref().map(|client| client.with_options(&options))
    }
}

/// A client and the task that drives its connection.
struct Connection {
    client: Client,
    task: ConnectHandle,
}

impl Connection {
    fn open(builder: &Builder) -> Result<Self, Error> {
        let client = builder.build()?;
        let task = client.connect();
        Ok(Self { client, task })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a lane connected for as long as the runtime lives: revives the connection's task when it ends, probes an
/// open breaker, and replaces a client that stays stuck, or that knows no sentinel that lives, while a fresh one is
/// answered.
pub(super) async fn supervise(tier: Arc<RedisTier>, index: usize, builder: Builder) {
    let lane = &tier.lanes[index];
    let mut connection = match Connection::open(&builder) {
        Ok(connection) => connection,
        Err(error) => return tier.reports.down(error.details()),
    };
    lane.client.store(Some(Arc::new(connection.client.clone())));
    let mut errors = connection.client.error_rx();
    let mut open_since = None;
    let (mut is_new, mut is_lost) = (true, false);
    loop {
        tokio::select! {
            _ended = &mut connection.task => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                connection.task = connection.client.connect();
            }
            error = errors.recv() => match error {
                Ok((error, _)) => {
                    is_lost |= knows_no_sentinel(&error);
                    // The control lane speaks for all of them.
                    if index == tier.control() {
                        tier.reports.error(&error);
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => errors = connection.client.error_rx(),
            },
            () = tokio::time::sleep(if is_new { CONNECTED_INTERVAL } else { PROBE_INTERVAL }) => {}
        }
        if is_new && connection.client.is_connected() {
            is_new = false;
            // It is set once: this task is the lane's only one.
            let _ = lane.connected.set(());
        }
        if lane.breaker.is_closed() {
            open_since = None;
            continue;
        }
        let since = *open_since.get_or_insert_with(|| {
            tier.tasks.spawn(force_reconnection(Arc::new(connection.client.clone())));
            Instant::now()
        });
        if probe(&tier, index).await {
            continue;
        }
        if is_lost || since.elapsed() >= REBUILD_AFTER {
            is_lost = false;
            open_since = Some(Instant::now());
            if let Some(fresh) = answering(&builder, tier.config.timeout).await {
                lane.client.store(Some(Arc::new(fresh.client.clone())));
                errors = fresh.client.error_rx();
                connection = fresh;
            }
        }
    }
}

/// One PING while the breaker is open; whether it was answered in time.
async fn probe(tier: &RedisTier, index: usize) -> bool {
    let lane = &tier.lanes[index];
    if !lane.breaker.begin_probe() {
        return false;
    }
    let answered = match lane.reading(tier.config.timeout) {
        Some(client) => client.ping::<()>(None).await.is_ok(),
        None => false,
    };
    lane.breaker.end_probe(answered);
    if answered {
        tier.breaker_closed();
    }
    answered
}

/// A fresh connection, if it is answered.
async fn answering(builder: &Builder, timeout: Duration) -> Option<Connection> {
    let connection = Connection::open(builder).ok()?;
    let options = Options { timeout: Some(CONNECT_TIMEOUT.max(timeout)), ..Options::default() };
    connection.client.with_options(&options).ping::<()>(None).await.ok()?;
    Some(connection)
}

/// Builds clients with every setting that fred needs to behave: without a reconnection policy and a command timeout
/// commands hang for ever, and its own bound on the queue wedges the client.
pub(super) fn builder(config: &RedisConfig) -> Result<Builder, Error> {
    let mut builder = Builder::from_config(server(config)?);
    builder.set_policy(ReconnectPolicy::new_exponential(0, 20, 500, 2));
    builder.set_performance_config(PerformanceConfig {
        default_command_timeout: config.timeout,
        broadcast_channel_capacity: 4096,
        ..PerformanceConfig::default()
    });
    builder.set_connection_config(ConnectionConfig {
        connection_timeout: CONNECT_TIMEOUT,
        internal_command_timeout: CONNECT_TIMEOUT,
        max_command_attempts: 3,
        // None is followed. fred answers ASK by sending the command to the old node again, takes the answer of another
        // command for that to ASKING, and ends its router when the command may be tried once. After MOVED it reads the
        // cluster's slots anew all the same, so that the next command goes where it should.
        max_redirections: 0,
        max_command_buffer_len: 0,
        unresponsive: UnresponsiveConfig { max_timeout: Some(CONNECT_TIMEOUT), interval: PROBE_INTERVAL },
        reconnect_on_auth_error: true,
        tcp: tcp(),
        ..ConnectionConfig::default()
    });
    Ok(builder)
}

/// Builds clients for bodies that are strings of their own: an answer that is still coming is no silence.
pub(super) fn of_large(builder: &Builder, config: &RedisConfig) -> Builder {
    let mut builder = builder.clone();
    let longest = bulk_timeout(config.max_object);
    builder.with_connection_config(|connection| connection.unresponsive.max_timeout = Some(longest));
    builder
}

fn tcp() -> TcpConfig {
    TcpConfig {
        nodelay: Some(true),
        keepalive: Some(TcpKeepalive::new().with_time(Duration::from_secs(10))),
        #[cfg(target_os = "linux")]
        user_timeout: Some(SOCKET_TIMEOUT),
        ..TcpConfig::default()
    }
}
