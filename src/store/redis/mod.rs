//! The Redis tier, through fred: the only module that knows of either.

use std::time::Duration;

/// How Redis is reached and used.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://`, `rediss://`, `redis+unix://`, `valkey://`, `valkeys://`, with optional database.
    pub url: String,
    /// ACL user; empty: the default one.
    pub username: String,
    /// Password.
    pub password: Option<String>,
    /// Private CA and client certificate for TLS.
    pub tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    /// What every key begins with.
    pub prefix: String,
    /// A lookup that takes longer is a miss.
    pub timeout: Duration,
    /// The largest stored body in bytes.
    pub max_object: u64,
}
