//! Listens for fetches of other processes that have ended.

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use tokio::sync::broadcast::error::RecvError;

use super::RedisTier;
use super::wakes::wake_channel;

/// Between the silent end of a connection's task and the next, and between tries to subscribe.
const PAUSE: Duration = Duration::from_millis(100);

/// Subscribes on a client of its own for as long as the runtime lives, and again with each new connection. What may have
/// been missed makes all who wait look again.
pub(super) async fn listen(tier: Arc<RedisTier>, builder: Builder) {
    let Ok(client) = builder.build() else { return };
    let (mut messages, mut connections) = (client.message_rx(), client.reconnect_rx());
    let mut connection = client.connect();
    let channel = wake_channel(&tier.config.prefix);
    let mut is_new = false;
    loop {
        tokio::select! {
            _ended = &mut connection => {
                tokio::time::sleep(PAUSE).await;
                connection = client.connect();
            }
            message = messages.recv() => match message {
                Ok(message) => tier.wakes.woken(message.value.as_bytes().unwrap_or_default()),
                Err(RecvError::Lagged(_)) => tier.wakes.all_unsure(),
                Err(RecvError::Closed) => messages = client.message_rx(),
            },
            connected = connections.recv() => match connected {
                Ok(_) | Err(RecvError::Lagged(_)) => is_new = true,
                Err(RecvError::Closed) => connections = client.reconnect_rx(),
            },
            () = tokio::time::sleep(PAUSE), if is_new => {}
        }
        if is_new && client.subscribe(channel.as_str()).await.is_ok() {
            is_new = false;
            tier.wakes.all_unsure();
        }
    }
}
