//! A real Redis Cluster: three primaries, each with as many replicas as a test needs.

use super::Certificates;
use super::redis::{Redis, free_port, wait_until};

const SLOTS: usize = 16_384;

/// Nodes that know each other, all slots served.
pub struct Cluster {
    pub primaries: Vec<Redis>,
    /// The first follows the first primary, and so on.
    pub replicas: Vec<Redis>,
}

impl Cluster {
    /// Three primaries and, with `replicated`, a replica for each.
    pub fn start(replicated: bool) -> Self {
        Self::start_with(if replicated { 3 } else { 0 }, &[])
    }

    /// Three primaries, by TLS too, which they speak among themselves.
    pub fn start_encrypted(certificates: &Certificates) -> Self {
        let options = certificates.redis_options();
        Self::start_with(0, &[&options[..], &[("tls-cluster", "yes".to_owned())]].concat())
    }

    /// With further options of every node.
    fn start_with(replicas: usize, options: &[(&'static str, String)]) -> Self {
        let primaries: Vec<Redis> = (0..3).map(|_| node(options)).collect();
        let replicas: Vec<Redis> = (0..replicas).map(|_| node(options)).collect();
        for (nth, primary) in primaries.iter().enumerate() {
            let (first, last) = (nth * SLOTS / 3, (nth + 1) * SLOTS / 3 - 1);
            primary.tell(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"));
            primary.tell(&format!("CLUSTER SET-CONFIG-EPOCH {}", nth + 1));
        }
        let cluster = Self { primaries, replicas };
        for other in cluster.nodes().skip(1) {
            cluster.primaries[0].tell(&format!("CLUSTER MEET 127.0.0.1 {} {}", other.client_port(), bus_port(other)));
        }
        let known = format!("cluster_known_nodes:{}", cluster.nodes().count());
        cluster.wait_until_all_say(&known);
        for (primary, replica) in cluster.primaries.iter().zip(&cluster.replicas) {
            replica.tell(&format!("CLUSTER REPLICATE {}", id(primary)));
            wait_until("the replica follows", || replica.reports("master_link_status:up"));
        }
        cluster.wait_until_all_say("cluster_state:ok");
        cluster
    }

    /// What a configuration says: the first of the nodes, which a client learns the others of.
    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.primaries[0].port)
    }

    /// How many records each primary has.
    pub fn records(&self) -> Vec<usize> {
        self.primaries.iter().map(|primary| primary.records().len()).collect()
    }

    /// Moves a slot as `redis-cli --cluster` does; `midway` runs while it has left the one and not reached the other.
    pub async fn migrate(&self, slot: usize, from: usize, to: usize, midway: impl AsyncFnOnce()) {
        let (source, target) = (&self.primaries[from], &self.primaries[to]);
        target.tell(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(source)));
        source.tell(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(target)));
        let keys = source.tell(&format!("CLUSTER GETKEYSINSLOT {slot} 1000"));
        for key in keys.lines() {
            source.tell(&format!("MIGRATE 127.0.0.1 {} {key} 0 1000", target.port));
        }
        midway().await;
        for node in [target, source] {
            node.tell(&format!("CLUSTER SETSLOT {slot} NODE {}", id(target)));
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Redis> {
        self.primaries.iter().chain(&self.replicas)
    }

    fn wait_until_all_say(&self, line: &str) {
        let says = |node: &Redis| node.tell("CLUSTER INFO").lines().any(|it| it == line);
        wait_until(&format!("all nodes say {line}"), || self.nodes().all(says));
    }
}

/// The slot of a key.
pub fn slot(node: &Redis, key: &str) -> usize {
    node.tell(&format!("CLUSTER KEYSLOT {key}")).parse().expect("a slot")
}

fn node(options: &[(&'static str, String)]) -> Redis {
    let own = [
        ("cluster-enabled", "yes".to_owned()),
        ("cluster-port", free_port().to_string()),
        ("cluster-node-timeout", "1000".to_owned()),
        ("cluster-replica-validity-factor", "0".to_owned()),
    ];
    Redis::start_with_options(&[&own[..], options].concat())
}

fn bus_port(node: &Redis) -> String {
    node.tell("CONFIG GET cluster-port").lines().last().expect("a value").to_owned()
}

fn id(node: &Redis) -> String {
    node.tell("CLUSTER MYID")
}
