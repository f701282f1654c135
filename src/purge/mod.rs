//! A purge: what is ordered, whoever orders it, is obeyed, answered and told of in one way.

mod order;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

pub use self::order::{ORDER_BYTES_MAX, Order, Refusal};
use crate::generation::Shared;
use crate::key::Tag;
use crate::store::Purged;
use crate::store::ledger::{PurgeKind, Synced};
use crate::telemetry::events::Event;

/// How long an order waits for Redis to record it.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);
/// The bound on the tags that are told of one purge, in bytes.
const TOLD_BYTES_MAX: usize = 512;

/// Who ordered a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The operator at this address, on the admin listener.
    Admin(IpAddr),
    /// A client that may, by the method PURGE.
    PurgeMethod(IpAddr),
    /// A client that changed something at the upstream (RFC 9111 §4.4).
    UnsafeRequest,
    /// The backend, through Redis. Every process hears it.
    Backend,
}

impl Way {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Admin(_) => "admin",
            Self::PurgeMethod(_) => "purge method",
            Self::UnsafeRequest => "unsafe request",
            Self::Backend => "backend",
        }
    }

    const fn by(self) -> Option<IpAddr> {
        match self {
            Self::Admin(by) | Self::PurgeMethod(by) => Some(by),
            Self::UnsafeRequest | Self::Backend => None,
        }
    }
}

/// What became of a purge, for whoever ordered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    purged: Purged,
    took: Duration,
}

/// Purges by tags, waits `within` for Redis to record it, and tells of it.
pub async fn purge(shared: &Shared, way: Way, order: &Order, within: Duration) -> Outcome {
    let (begun, now, Order { tags, kind }) = (Instant::now(), shared.clock.now(), order);
    let purged = match way {
        Way::Backend => shared.store.purge_with_others(tags, *kind, now, within).await,
        Way::Admin(_) | Way::PurgeMethod(_) | Way::UnsafeRequest => shared.store.purge(tags, *kind, now, within).await,
    };
    tell(shared, way, order, purged, begun.elapsed())
}

/// Purges for an unsafe request whose own response may be stored; returns where the ledger stands for that response
/// (see [`Store::purge_after`](crate::store::Store::purge_after)).
pub async fn purge_after(shared: &Shared, valid_at: Synced, order: &Order, within: Duration) -> Option<Synced> {
    let (begun, now, Order { tags, kind }) = (Instant::now(), shared.clock.now(), order);
    let (purged, stands) = shared.store.purge_after(valid_at, tags, *kind, now, within).await;
    tell(shared, Way::UnsafeRequest, order, purged, begun.elapsed());
    stands
}

fn tell(shared: &Shared, way: Way, Order { tags, kind }: &Order, purged: Purged, took: Duration) -> Outcome {
    shared.telemetry.emit(&Event::Purged {
        way: way.as_str(),
        by: way.by(),
        everything: tags.contains(&Tag::All),
        kind: match kind {
            PurgeKind::Hard => "hard",
            PurgeKind::Soft => "soft",
        },
        tags: told(tags),
        number: purged.number.0,
        unacknowledged: purged.acknowledged.clone().err(),
        took,
    });
    Outcome { purged, took }
}

impl Outcome {
    /// 200 where every process will obey it, 503 where perhaps only this one does.
    pub const fn status(&self) -> StatusCode {
        match self.purged.acknowledged {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// As JSON: the purge's number (null while it has none), whether it was acknowledged, else why not, and how long
    /// it took.
    pub fn json(&self) -> Bytes {
        let number = self.purged.number.0;
        let mut members = json!({
            "purge": if number == 0 { Value::Null } else { number.into() },
            "acknowledged": self.purged.acknowledged.is_ok(),
        });
        if let Err(why) = &self.purged.acknowledged {
            members["error"] = why.as_str().into();
        }
        members["took_ms"] = ((self.took.as_secs_f64() * 1e6).round() / 1e3).into();
        line(&members)
    }
}

/// An order that is not obeyed, as JSON: `{"error": "…"}`.
pub fn refused(why: &str) -> Bytes {
    line(&json!({ "error": why }))
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// The tags for people, as many as the bound lets.
fn told(tags: &[Tag]) -> String {
    let mut text = String::new();
    for (place, tag) in tags.iter().enumerate() {
        let (separator, tag) = (if place == 0 { "" } else { ", " }, tag.to_string());
        if text.len() + separator.len() + tag.len() > TOLD_BYTES_MAX {
            text.push_str(&format!("{separator}and {} more", tags.len() - place));
            break;
        }
        text.push_str(separator);
        text.push_str(&tag);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::PurgeNumber;

    #[test]
    fn an_outcome_tells_the_number_or_why_there_is_none() {
        let check = |number, acknowledged, status: u16, expected: &str| {
            let purged = Purged { number: PurgeNumber(number), acknowledged };
            let outcome = Outcome { purged, took: Duration::from_micros(412) };
            assert_eq!(outcome.status(), status);
            assert_eq!(outcome.json(), format!("{expected}\n"));
        };
        check(17, Ok(()), 200, r#"{"purge":17,"acknowledged":true,"took_ms":0.412}"#);
        let why = "redis is \"away\"".to_owned();
        let expected = r#"{"purge":null,"acknowledged":false,"error":"redis is \"away\"","took_ms":0.412}"#;
        check(0, Err(why), 503, expected);
    }

    #[test]
    fn what_is_told_of_tags_is_bounded() {
        assert_eq!(told(&[Tag::All, Tag::Host("".into()), Tag::Url("a/b".into())]), "all, any host, url a/b");
        let long = Tag::Surrogate("x".repeat(TOLD_BYTES_MAX).into());
        assert_eq!(told(&[Tag::All, long.clone(), Tag::All]), "all, and 2 more");
        assert_eq!(told(&[long]), "and 1 more");
    }
}
