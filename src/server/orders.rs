//! The purge orders that the backend publishes in Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio_util::task::TaskTracker;

use crate::generation::Shared;
use crate::purge::{self, ACKNOWLEDGED_WITHIN, Order, Way};
use crate::telemetry::events::Event;

/// Orders that wait for Redis to record them at one time; more wait in their channel.
const WAITING_MAX: usize = 256;
/// How often it is told that an order is not one.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Obeys the orders until there are no more. Each is obeyed here before the next is read.
pub(super) async fn obey(shared: Arc<Shared>, mut orders: Receiver<Bytes>) {
    let (places, waiting) = (Arc::new(Semaphore::new(WAITING_MAX)), TaskTracker::new());
    let mut told: Option<Instant> = None;
    while let Some(order) = orders.recv().await {
        match Order::parse(&order, &shared.generation.load().routes) {
            Ok(order) => {
                let (shared, place) = (Arc::clone(&shared), Arc::clone(&places).acquire_owned().await);
                waiting.spawn(async move {
                    let _place = place;
                    purge::purge(&shared, Way::Backend, &order, ACKNOWLEDGED_WITHIN).await;
                });
            }
            Err(refusal) if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) => {
                told = Some(Instant::now());
                shared.telemetry.emit(&Event::PurgeRefused { reason: refusal.to_string() });
            }
            Err(_) => {}
        }
    }
}
