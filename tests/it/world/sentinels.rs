//! A real primary with replicas, and three real sentinels that watch it.

use super::Certificates;
use super::redis::{Redis, wait_until};

/// The service's name.
const SERVICE: &str = "main";

/// A primary, its replicas and three sentinels that know all of them.
pub struct Sentinels {
    pub primary: Redis,
    pub replicas: Vec<Redis>,
    pub sentinels: Vec<Redis>,
}

impl Sentinels {
    /// With as many replicas.
    pub fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &[])
    }

    /// Without replicas, all by TLS too, which they speak among themselves.
    pub fn start_encrypted(certificates: &Certificates) -> Self {
        let options = certificates.redis_options();
        Self::start_with(0, &[&options[..], &[("tls-replication", "yes".to_owned())]].concat())
    }

    /// With further options of every server and sentinel.
    fn start_with(replicas: usize, options: &[(&'static str, String)]) -> Self {
        let primary = Redis::start_with_options(options);
        let replicas: Vec<Redis> = (0..replicas).map(|_| Redis::start_replica_of(&primary)).collect();
        wait_until("the primary knows its replicas", || {
            primary.reports(&format!("connected_slaves:{}", replicas.len()))
        });
        let configuration = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {} 2\nsentinel down-after-milliseconds {SERVICE} 500\n\
             sentinel failover-timeout {SERVICE} 3000\n",
            primary.client_port()
        );
        let sentinels: Vec<Redis> = (0..3).map(|_| Redis::start_sentinel(&configuration, options)).collect();
        let this = Self { primary, replicas, sentinels };
        wait_until("the sentinels know each other", || this.sentinels.iter().all(|it| this.is_complete(it)));
        this
    }

    /// What a configuration says: two of the sentinels.
    pub fn url(&self) -> String {
        let [one, two] = [0, 1].map(|nth| self.sentinels[nth].client_port());
        format!("redis-sentinel://127.0.0.1:{one}?sentinelServiceName={SERVICE}&node=127.0.0.1:{two}")
    }

    /// The replica that was promoted.
    pub fn promoted(&self) -> Option<&Redis> {
        self.replicas.iter().find(|replica| replica.is_primary())
    }

    /// Asks a sentinel for a failover.
    pub fn fail_over(&self) {
        self.sentinels[0].tell(&format!("SENTINEL FAILOVER {SERVICE}"));
    }

    fn is_complete(&self, sentinel: &Redis) -> bool {
        let facts = sentinel.ask(&format!("SENTINEL MASTER {SERVICE}")).unwrap_or_default();
        let facts: Vec<&str> = facts.lines().collect();
        let says = |name: &str, value: &str| facts.chunks(2).any(|pair| pair == [name, value]);
        says("num-slaves", &self.replicas.len().to_string()) && says("num-other-sentinels", "2")
    }
}
