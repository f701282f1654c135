//! Follows the epoch key, which all processes that share a Redis agree on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::interfaces::KeysInterface;
use fred::types::SetOptions;

use super::RedisTier;
use super::client::Lane;
use crate::stored::Epoch;

/// Between two looks at the epoch: how long a lost one may go unseen.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks while it is unknown or Redis fails.
const RETRY: Duration = Duration::from_millis(100);
/// Between two looks while a worker's first connection is under way: `up` means that every worker is.
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// The bound on a look while it is unknown: the connection may still be under way.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes the epoch from Redis, or makes it, and looks for a change each second. A changed or vanished epoch (`FLUSHALL`,
/// an eviction, another database) makes all that was stored before invalid.
pub(super) async fn follow(tier: Arc<RedisTier>) {
    loop {
        let pause = match tier.look_for_epoch().await {
            Ok(epoch) => {
                tier.learn(epoch);
                if tier.lanes.iter().all(Lane::is_connected) {
                    tier.reports.up();
                    INTERVAL
                } else {
                    FIRST_RETRY
                }
            }
            // The lane is being attached; that says nothing of Redis.
            Err(_) if tier.lanes[tier.control()].client().is_none() => FIRST_RETRY,
            Err(error) => {
                tier.reports.down(&error.to_string());
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

impl RedisTier {
    fn learn(&self, epoch: Epoch) {
        if !self.is_synced() {
            self.ledger.adopt_epoch(epoch);
            self.synced.send_replace(true);
        } else if self.ledger.synced().1 != epoch {
            self.ledger.change_epoch(epoch);
            self.reports.tell("the epoch in redis changed: what was stored before is invalid");
        }
    }

    async fn look_for_epoch(&self) -> Result<Epoch, Error> {
        let lane = &self.lanes[self.control()];
        if !lane.breaker.is_closed() {
            return Err(Error::new(ErrorKind::Canceled, "the breaker is open"));
        }
        let first = !self.is_synced();
        let outcome = self.read_or_make_epoch(if first { FIRST_TIMEOUT } else { self.config.timeout }).await;
        match &outcome {
            Ok(_) => self.succeeded(self.control()),
            Err(error) if !first => {
                self.failed(self.control(), error);
            }
            Err(_) => {}
        }
        outcome
    }

    async fn read_or_make_epoch(&self, timeout: Duration) -> Result<Epoch, Error> {
        let client =
            self.lanes[self.control()].client().ok_or_else(|| Error::new(ErrorKind::Canceled, "not connected yet"))?;
        let options = fred::types::config::Options { timeout: Some(timeout), ..Default::default() };
        let client = fred::interfaces::ClientLike::with_options(&*client, &options);
        let key = format!("{}:epoch", self.config.prefix);
        if let Some(epoch) = parse(client.get::<Option<Bytes>, _>(&key).await?.as_deref()) {
            return Ok(epoch);
        }
        let own = Epoch(fastrand::u64(1..));
        let value = format!("{:016x}", own.0);
        let held: Option<Bytes> = client.set(&key, value.as_str(), None, Some(SetOptions::NX), true).await?;
        match (parse(held.as_deref()), held) {
            (Some(epoch), _) => Ok(epoch),
            (None, None) => Ok(own),
            // What is there is none of ours.
            (None, Some(_)) => {
                client.set::<(), _, _>(&key, value.as_str(), None, None, false).await?;
                Ok(own)
            }
        }
    }
}

/// Sixteen hexadecimal digits, not all zero.
fn parse(value: Option<&[u8]>) -> Option<Epoch> {
    let digits = value?;
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let text = std::str::from_utf8(digits).ok()?;
    u64::from_str_radix(text, 16).ok().filter(|epoch| *epoch != 0).map(Epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_sixteen_hexadecimal_digits() {
        let check = |value: &str, expected| assert_eq!(parse(Some(value.as_bytes())), expected, "{value}");
        check("00000000000000ff", Some(Epoch(255)));
        check("ffffffffffffffff", Some(Epoch(u64::MAX)));
        check("0000000000000000", None);
        check("ff", None);
        check("+0000000000000ff", None);
        assert_eq!(parse(None), None);
    }
}
