//! What happens outside requests: one enum, logged and counted in one place.

use crate::upstream::UpstreamError;

/// Something an operator may want to know.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Event {
    Started { listen: Vec<String>, workers: usize },
    Reloaded { generation: u64 },
    ReloadRefused { problems: Vec<String> },
    ReloadNeedsRestart { sections: Vec<&'static str> },
    Draining { connections: usize },
    DrainTimedOut { connections: usize },
    Stopped,
    AcceptFailed { error: String },
    ConnectionFailed { error: String },
    RedisUp,
    RedisDown { reason: String },
    RedisError { reason: String },
    RedisWriteRefused { reason: String },
    RedisCorrupt { reason: &'static str },
    BreakerOpened,
    BreakerClosed,
    UpstreamFailed { upstream: String, server: String, error: UpstreamError, cause: String },
    ServerEjected { upstream: String, server: String },
    ServerRestored { upstream: String, server: String },
    Purged { tags: usize, number: u64, cause: &'static str },
    RevalidationFailed { route: String, error: UpstreamError },
    BodyTruncated { upstream: String, cause: String },
}
