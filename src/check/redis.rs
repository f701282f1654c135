//! What the facts of a Redis mean to an operator who is about to deploy.

use super::{Report, millis};
use crate::store::redis::RedisConfig;
use crate::store::redis::live::{
    Access, Denial, Denied, Found, Identity, Latency, Means, Memory, Node, Topology, Unreachable,
};

/// The oldest major version that has all that is used.
const MAJOR_MIN: u32 = 7;

/// Judges what was found.
pub(super) fn report(examined: &Result<Found, Unreachable>, config: &RedisConfig) -> Report {
    let mut report = Report::default();
    match examined {
        Ok(found) => {
            for node in &found.nodes {
                report.node(node, found, config);
            }
        }
        Err(Unreachable { address, reason }) => report.problem("redis", format!("{address} cannot be used: {reason}")),
    }
    report
}

impl Report {
    fn node(&mut self, node: &Node, found: &Found, config: &RedisConfig) {
        let address = &node.address;
        match &node.identity {
            Ok(identity) => self.identity(address, identity, found),
            // Nothing else is answered by what does not even say who it is.
            Err(reason) => return self.problem("redis", format!("{address} cannot be used: {reason}")),
        }
        match &node.memory {
            Ok(memory) => self.memory(address, memory),
            Err(reason) => self.fact("memory", format!("{address} not seen: {reason}")),
        }
        self.latency(address, "PING", &node.ping, config);
        self.latency(address, "GET", &node.get, config);
        self.access(address, &node.access);
    }

    fn identity(&mut self, address: &str, identity: &Identity, found: &Found) {
        let Identity { server, version, mode, role } = identity;
        let name = match server.as_str() {
            "redis" => "Redis",
            "valkey" => "Valkey",
            other => other,
        };
        let role = if role == "master" { "primary" } else { role };
        let topology = match found.topology {
            Topology::Standalone => mode.clone(),
            Topology::Cluster if found.nodes.len() == 1 => "cluster of 1 primary".to_owned(),
            Topology::Cluster => format!("cluster of {} primaries", found.nodes.len()),
            Topology::Sentinel => "behind sentinels".to_owned(),
        };
        self.fact("redis", format!("{address} {name} {version}, {role}, {topology}"));
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < MAJOR_MIN) {
            self.problem("redis", format!("{address} has version {version}; expected {MAJOR_MIN}.0 or newer"));
        }
        match (found.topology, mode.as_str()) {
            (Topology::Standalone, "cluster") => {
                let what = "is a node of a cluster, most of whose keys are elsewhere; expected a redis-cluster:// url";
                self.problem("redis", format!("{address} {what}"));
            }
            (Topology::Standalone | Topology::Cluster, "sentinel") => {
                let what = "is a sentinel, which stores nothing; expected a redis-sentinel:// url";
                self.problem("redis", format!("{address} {what}"));
            }
            (Topology::Standalone | Topology::Cluster | Topology::Sentinel, _) if role != "primary" => {
                self.problem("redis", format!("{address} is a {role}, which takes no writes; expected a primary"));
            }
            (Topology::Standalone | Topology::Cluster | Topology::Sentinel, _) => {}
        }
    }

    fn memory(&mut self, address: &str, memory: &Memory) {
        let limit =
            if memory.limit == 0 { "no maxmemory".to_owned() } else { format!("maxmemory {}", size(memory.limit)) };
        let policy = memory.policy.as_deref().unwrap_or("policy unknown");
        self.fact("memory", format!("{address} {limit}, {policy}"));
        if memory.limit == 0 {
            self.warn("memory", format!("{address} has no maxmemory: it grows for as long as the machine lets it"));
        }
        if memory.limit != 0 && policy == "noeviction" {
            let what = "stores nothing more when it is full (noeviction); expected volatile-lru or another volatile-*";
            self.warn("memory", format!("{address} {what}"));
        }
        if policy.starts_with("allkeys-") {
            let what = format!("may evict the purge ledger, which empties the cache ({policy}); expected volatile-*");
            self.warn("memory", format!("{address} {what}"));
        }
    }

    /// Without the right to a command there is none; that is told with the rights.
    fn latency(
        &mut self,
        address: &str,
        command: &str,
        measured: &Result<Option<Latency>, String>,
        config: &RedisConfig,
    ) {
        match measured {
            Ok(None) => {}
            Ok(Some(Latency { median, worst, count })) => {
                let (median, longest) = (millis(*median), millis(*worst));
                self.fact("latency", format!("{address} {command} median {median}, worst {longest} of {count}"));
                if *worst > config.timeout / 2 {
                    let what = format!("took up to {longest}, more than half of redis.timeout ({:?})", config.timeout);
                    self.warn("latency", format!("{address} {command} {what}: lookups may be misses"));
                }
            }
            Err(reason) => self.problem("latency", format!("{address} {command} fails: {reason}")),
        }
    }

    fn access(&mut self, address: &str, access: &Access) {
        let Access { user, means, denials, failures, remedy } = access;
        let means = match means {
            Means::DryRun => "by ACL DRYRUN",
            Means::Trial => "by trial: ACL DRYRUN is refused",
        };
        if denials.is_empty() && failures.is_empty() {
            self.fact("acl", format!("{address} user {user} may do all that is needed (seen {means})"));
        } else {
            self.fact("acl", format!("{address} user {user} (seen {means})"));
        }
        for Denial { command, what, is_needed } in denials {
            let what = match what {
                Denied::Command => format!("the command {command}"),
                Denied::Key => format!("{command} on keys of the prefix"),
                Denied::Channel => format!("{command} on channels of the prefix"),
            };
            if *is_needed {
                self.problem("acl", format!("{address} user {user} lacks {what}"));
            } else {
                self.warn("acl", format!("{address} user {user} lacks {what}: tried at each connection, not needed"));
            }
        }
        for (command, reason) in failures {
            self.problem("acl", format!("{address} {command} fails: {reason}"));
        }
        if let Some(remedy) = remedy {
            self.fact("acl", format!("{address} to be run: {remedy}"));
        }
    }
}

/// Bytes in the largest unit that they are more than one of.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::redis::Seal;

    fn config() -> RedisConfig {
        RedisConfig {
            url: "redis://there:1".to_owned(),
            username: String::new(),
            sentinel_username: String::new(),
            sentinel_password: None,
            password: None,
            tls: None,
            prefix: "aside".to_owned(),
            timeout: Duration::from_millis(50),
            max_object: 1,
            compress: true,
            seal: Seal::plain(),
        }
    }

    /// A server in good order.
    fn node() -> Node {
        let text = str::to_owned;
        let (server, version) = (text("redis"), text("7.0.15"));
        let latency = Latency { median: Duration::from_micros(80), worst: Duration::from_millis(25), count: 50 };
        Node {
            address: text("there:1"),
            identity: Ok(Identity { server, version, mode: text("standalone"), role: text("master") }),
            memory: Ok(Memory { limit: 100 << 20, policy: Some(text("volatile-lru")) }),
            ping: Ok(Some(latency)),
            get: Ok(Some(latency)),
            access: Access {
                user: text("default"),
                means: Means::DryRun,
                denials: Vec::new(),
                failures: Vec::new(),
                remedy: None,
            },
        }
    }

    /// What is amiss with a server that this change makes of one in good order.
    fn amiss(topology: Topology, change: impl FnOnce(&mut Node)) -> String {
        let mut node = node();
        change(&mut node);
        let report = report(&Ok(Found { topology, nodes: vec![node] }), &config()).to_string();
        let is_amiss = |line: &&str| line.starts_with("warning") || line.starts_with("problem");
        report.lines().filter(is_amiss).collect::<Vec<_>>().join("\n")
    }

    fn identity(node: &mut Node) -> &mut Identity {
        node.identity.as_mut().expect("it says who it is")
    }

    #[test]
    fn versions_before_7_are_a_problem() {
        let check = |server: &str, version: &str, expected: &str| {
            let told = amiss(Topology::Standalone, |node| {
                identity(node).server = server.to_owned();
                identity(node).version = version.to_owned();
            });
            assert_eq!(told, expected, "{version}");
        };
        check("redis", "7.0.0", "");
        check("valkey", "9.1.2", "");
        check("redis", "10.0.0", "");
        check("redis", "6.2.14", "problem    redis: there:1 has version 6.2.14; expected 7.0 or newer");
        check("redis", "unstable", "problem    redis: there:1 has version unstable; expected 7.0 or newer");
    }

    #[test]
    fn a_server_of_another_kind_than_the_url_says_is_a_problem() {
        let check = |topology, mode: &str, role: &str, expected: &str| {
            let told = amiss(topology, |node| {
                identity(node).mode = mode.to_owned();
                identity(node).role = role.to_owned();
            });
            let problem =
                if expected.is_empty() { String::new() } else { format!("problem    redis: there:1 {expected}") };
            assert_eq!(told, problem, "{topology:?} {mode} {role}");
        };
        let replica = "is a replica, which takes no writes; expected a primary";
        check(Topology::Cluster, "cluster", "master", "");
        check(Topology::Sentinel, "standalone", "master", "");
        check(Topology::Sentinel, "standalone", "replica", replica);
        check(Topology::Cluster, "cluster", "replica", replica);
        let sentinel = "is a sentinel, which stores nothing; expected a redis-sentinel:// url";
        check(Topology::Standalone, "sentinel", "sentinel", sentinel);
    }

    #[test]
    fn round_trips_over_half_of_the_timeout_are_a_warning() {
        let check = |worst, expected: &str| {
            let told = amiss(Topology::Standalone, |node| {
                node.get = Ok(Some(Latency { median: Duration::from_millis(1), worst, count: 50 }));
            });
            assert_eq!(told, expected);
        };
        check(Duration::from_millis(25), "");
        check(
            Duration::from_micros(25_010),
            "warning    latency: there:1 GET took up to 25.01 ms, more than half of redis.timeout (50ms): lookups may \
             be misses",
        );
    }

    #[test]
    fn a_command_that_fails_for_another_reason_than_rights_is_a_problem() {
        let told = amiss(Topology::Standalone, |node| {
            node.access.failures.push(("SET", "OOM command not allowed".to_owned()));
            node.ping = Err("no answer in time".to_owned());
        });
        let ping = "problem    latency: there:1 PING fails: no answer in time";
        assert_eq!(told, format!("{ping}\nproblem    acl: there:1 SET fails: OOM command not allowed"));
    }

    #[test]
    fn sizes_are_told_in_the_largest_unit() {
        let check = |bytes, expected: &str| assert_eq!(size(bytes), expected);
        check(1000, "1000 B");
        check(2048, "2 KiB");
        check((3 << 30) / 2, "1.5 GiB");
        check(100 << 20, "100 MiB");
    }
}
