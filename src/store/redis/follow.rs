//! Keeps the mirror of the purge ledger: one task that alone reads it, writes it, and hears what is published.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, KeysInterface, PubsubInterface};
use fred::types::config::Options;
use fred::types::{Message as Published, Value};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;

use super::RedisTier;
use super::client::Lane;
use super::script::Script;
use super::wakes::wake_channel;
use super::writes::{WRITE_TIMEOUT, not_connected};
use crate::store::ledger::{Head, Header, Message, Mirror, Position, Record, Standing, Told};
use crate::stored::Epoch;

/// Between two polls: how long a lost message, or a lost ledger, may go unseen.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two polls while Redis fails.
const RETRY: Duration = Duration::from_millis(100);
/// Between two polls while a worker's first connection is under way: `up` means that every worker is.
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// The bound on a command before the first connection: it may be under way.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the message of a purge that a poll has seen may be on its way.
const ON_THE_WAY: Duration = Duration::from_millis(50);

/// Follows for as long as the runtime lives.
pub(super) async fn follow(tier: Arc<RedisTier>) {
    let mirror = Mirror::new(Arc::clone(&tier.ledger));
    let record = InRedis { tier: Arc::clone(&tier), purge: Script::new(include_str!("purge.lua")) };
    let mut follower = Follower { record, tier, mirror, subscription: None };
    loop {
        let pause = follower.poll().await;
        follower.obey(Instant::now() + pause).await;
    }
}

struct Follower {
    tier: Arc<RedisTier>,
    record: InRedis,
    mirror: Mirror,
    subscription: Option<Subscription>,
}

/// What the control client hears.
struct Subscription {
    client: Arc<Client>,
    published: Receiver<Published>,
    reconnected: Receiver<fred::types::config::Server>,
}

/// What happened on the subscription.
enum News {
    Published(Published),
    /// Messages may have been missed.
    Interrupted,
}

impl Follower {
    /// One look at the ledger; returns how long to wait for the next.
    async fn poll(&mut self) -> Duration {
        let tier = Arc::clone(&self.tier);
        let lane = &tier.lanes[tier.control()];
        if lane.client().is_none() {
            // It is being attached; that says nothing of Redis.
            return FIRST_RETRY;
        }
        match self.look().await {
            Ok(false) => RETRY,
            Ok(true) => {
                // Not the first time; then it is known.
                let _ = tier.synced.set(());
                if tier.lanes.iter().all(Lane::is_connected) {
                    tier.reports.up();
                    INTERVAL
                } else {
                    FIRST_RETRY
                }
            }
            Err(error) => {
                tier.reports.ledger_lost();
                tier.reports.down(&error.to_string());
                RETRY
            }
        }
    }

    /// Makes the mirror complete, and tells whether that is proven.
    async fn look(&mut self) -> Result<bool, Error> {
        let lane = &self.tier.lanes[self.tier.control()];
        if self.mirror.has_joined() && !lane.breaker.is_closed() {
            return Err(Error::new(ErrorKind::Canceled, "the breaker is open"));
        }
        self.subscribe().await?;
        let sent = self.tier.clock.now();
        let header = self.record.header().await?;
        self.drain();
        let is_level = match self.mirror.compare(header.as_ref()) {
            Standing::Level => true,
            Standing::Behind => self.wait_for_messages(header.as_ref()).await?,
            Standing::Apart => self.catch_up().await?,
        };
        if !is_level || !self.mirror.flush(&self.record).await? {
            return Ok(false);
        }
        self.tier.ledger.prove(sent);
        self.tier.reports.ledger_synced();
        Ok(true)
    }

    async fn wait_for_messages(&mut self, header: Option<&Header>) -> Result<bool, Error> {
        let until = Instant::now() + ON_THE_WAY;
        while let Some(subscription) = &mut self.subscription {
            match tokio::time::timeout_at(until, subscription.next()).await {
                Ok(News::Published(published)) => drop(self.hear(&published)),
                Ok(News::Interrupted) => {
                    self.subscription = None;
                    return Ok(false);
                }
                Err(_) => break,
            }
            if self.mirror.compare(header) == Standing::Level {
                return Ok(true);
            }
        }
        self.catch_up().await
    }

    async fn catch_up(&mut self) -> Result<bool, Error> {
        let epoch = self.tier.ledger.synced().epoch;
        let was_joined = self.mirror.has_joined();
        let is_level = self.mirror.catch_up(&self.record).await?;
        if was_joined && self.tier.ledger.synced().epoch != epoch {
            self.tier
                .reports
                .tell("the purge ledger in redis was lost and made anew: what was stored before is invalid");
        }
        Ok(is_level)
    }

    /// Obeys messages and records this process' purges until it is time to look again, or something was missed.
    async fn obey(&mut self, until: Instant) {
        let tier = Arc::clone(&self.tier);
        loop {
            let due = tier.ledger.due().unwrap_or(until).min(until);
            tokio::select! {
                biased;
                news = next(self.subscription.as_mut()) => match news {
                    News::Published(published) => match self.hear(&published) {
                        Some(Told::Apart) => return,
                        Some(Told::Followed | Told::Again) | None => {}
                    },
                    News::Interrupted => {
                        self.subscription = None;
                        return;
                    }
                },
                () = tier.ledger.added.notified() => {
                    if !self.record_own().await {
                        return;
                    }
                }
                () = tokio::time::sleep_until(due) => {
                    if due >= until || !self.record_own().await {
                        return;
                    }
                }
            }
        }
    }

    /// Whether there is nothing more to be done about it now.
    async fn record_own(&mut self) -> bool {
        // Before the first look, and while Redis fails, they wait for the next one.
        if !self.mirror.has_joined() || !self.tier.lanes[self.tier.control()].breaker.is_closed() {
            return true;
        }
        matches!(self.mirror.flush(&self.record).await, Ok(true))
    }

    /// Obeys what has come already, so that a look at the arrays does not meet it afterwards.
    fn drain(&mut self) {
        while let Some(subscription) = &mut self.subscription {
            match subscription.published.try_recv() {
                Ok(published) => drop(self.hear(&published)),
                // The look that follows finds what the ledger missed.
                Err(TryRecvError::Lagged(_)) => self.tier.wakes.all_unsure(),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Closed) => self.subscription = None,
            }
        }
    }

    fn hear(&mut self, published: &Published) -> Option<Told> {
        let bytes = bytes(&published.value)?;
        if *published.channel == *self.tier.ledger_name() {
            return Message::read(&bytes).map(|message| self.mirror.told(&message));
        }
        if *published.channel == *wake_channel(&self.tier.config.prefix) {
            self.tier.wakes.woken(&bytes);
        } else if *published.channel == *self.tier.orders_channel() {
            self.tier.ordered(bytes);
        }
        None
    }

    /// Subscribes where the client is new, or has been connected anew.
    async fn subscribe(&mut self) -> Result<(), Error> {
        let client = self.tier.lanes[self.tier.control()].client().ok_or_else(not_connected)?;
        if self.subscription.as_ref().is_some_and(|subscription| Arc::ptr_eq(&subscription.client, &client)) {
            return Ok(());
        }
        let (published, reconnected) = (client.message_rx(), client.reconnect_rx());
        let wakes = wake_channel(&self.tier.config.prefix);
        let channels = vec![self.tier.ledger_name(), self.tier.orders_channel(), wakes];
        let subscribed = self.record.client(WRITE_TIMEOUT)?.subscribe(channels).await;
        self.record.note(subscribed)?;
        self.subscription = Some(Subscription { client, published, reconnected });
        self.tier.wakes.all_unsure();
        Ok(())
    }
}

impl Subscription {
    async fn next(&mut self) -> News {
        tokio::select! {
            biased;
            published = self.published.recv() => match published {
                Ok(published) => News::Published(published),
                Err(RecvError::Lagged(_) | RecvError::Closed) => News::Interrupted,
            },
            _ = self.reconnected.recv() => News::Interrupted,
        }
    }
}

async fn next(subscription: Option<&mut Subscription>) -> News {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

fn bytes(value: &Value) -> Option<Bytes> {
    match value {
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::String(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        _ => None,
    }
}

/// The ledger's string, over the control lane.
struct InRedis {
    tier: Arc<RedisTier>,
    purge: Script,
}

impl InRedis {
    /// The client for one command. The first time, it may wait for the connection.
    fn client(&self, timeout: Duration) -> Result<WithOptions<Client>, Error> {
        let lane = &self.tier.lanes[self.tier.control()];
        let client = lane.client().ok_or_else(not_connected)?;
        let is_first = !self.tier.is_synced();
        let timeout = if is_first { FIRST_TIMEOUT } else { timeout };
        let options =
            Options { timeout: Some(timeout), fail_fast: !is_first, max_attempts: Some(1), ..Options::default() };
        Ok(client.with_options(&options))
    }

    /// Counts the outcome, but for those of the first connection.
    fn note<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let control = self.tier.control();
        match &outcome {
            Ok(_) => self.tier.succeeded(control),
            Err(error) if self.tier.is_synced() => {
                self.tier.failed(control, error);
            }
            Err(_) => {}
        }
        outcome
    }

    async fn call(&self, floor: u64, positions: Bytes, replaced: Bytes) -> Result<Head, Error> {
        let ledger = self.tier.ledger_name();
        let new = Header { epoch: Epoch(fastrand::u64(1..)), number: 0, slots: self.tier.ledger.slots() };
        let (floor, new) = (floor.to_string().into(), Bytes::copy_from_slice(&new.bytes()).into());
        let arguments = vec![ledger.as_str().into(), floor, new, positions.into(), replaced.into()];
        let outcome = match self.client(WRITE_TIMEOUT) {
            Ok(client) => self.purge.run::<Bytes>(&client, &ledger, arguments).await,
            Err(error) => Err(error),
        };
        let head = self.note(outcome)?;
        Head::read(&head).ok_or_else(|| Error::new(ErrorKind::Parse, "expected a purge's numbers"))
    }

    fn of_this_size(&self, header: Header) -> Result<Header, Error> {
        let slots = self.tier.ledger.slots();
        if header.slots == slots {
            return Ok(header);
        }
        let name = self.tier.ledger_name();
        let what = format!(
            "the purge ledger {name:?} in redis has {} slots, purge.slots says {slots}: expected the same in every process; \
             a new one is made once {name:?} is deleted",
            header.slots
        );
        Err(Error::new(ErrorKind::Config, what))
    }
}

impl Record for InRedis {
    type Error = Error;

    async fn header(&self) -> Result<Option<Header>, Error> {
        let outcome = match self.client(self.tier.config.timeout) {
            Ok(client) => client.getrange::<Bytes, _>(self.tier.ledger_name(), 0, 63).await,
            Err(error) => Err(error),
        };
        match self.note(outcome) {
            Ok(bytes) => Header::read(&bytes).map(|header| self.of_this_size(header)).transpose(),
            // Not ours: the script replaces it.
            Err(error) if error.details().starts_with("WRONGTYPE") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn length(&self) -> Result<u64, Error> {
        let outcome = self.client(WRITE_TIMEOUT)?.strlen(self.tier.ledger_name()).await;
        self.note(outcome)
    }

    async fn range(&self, from: u64, to: u64) -> Result<Bytes, Error> {
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let client = self.client(WRITE_TIMEOUT)?;
        let outcome = client.getrange(self.tier.ledger_name(), place(from), place(to.saturating_sub(1))).await;
        self.note(outcome)
    }

    async fn purge(&self, floor: u64, positions: &[Position]) -> Result<Head, Error> {
        let positions = positions.iter().flat_map(|position| position.to_le_bytes()).collect();
        self.call(floor, positions, Bytes::new()).await
    }

    async fn replace(&self, epoch: Epoch) -> Result<Head, Error> {
        self.call(0, Bytes::new(), Bytes::copy_from_slice(&epoch.0.to_le_bytes())).await
    }
}
