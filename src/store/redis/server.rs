//! What a Redis URL names, as fred takes it: one server, a cluster, or a server that sentinels know.

use std::net::IpAddr;
use std::sync::Arc;

use fred::error::{Error, ErrorKind};
use fred::types::RespVersion;
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, HostMapping, ServerConfig, TlsConfig, TlsConnector, TlsHostMapping,
};
use tokio_rustls::TlsConnector as RustlsConnector;

use super::RedisConfig;

const EXAMPLE: &str = "is not a URL; expected for example \"redis://127.0.0.1:6379\"";
const SENTINEL_EXAMPLE: &str =
    "expected for example \"redis-sentinel://host1:26379?node=host2:26379&sentinelServiceName=mymaster\"";
const CLUSTER_EXAMPLE: &str = "expected for example \"redis-cluster://host1:6379?node=host2:6379\"";

/// How Redis is laid out behind a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    /// One server, by TCP.
    Server,
    /// One server, by a Unix socket.
    Unix,
    /// A cluster, of which the URL names some nodes.
    Cluster,
    /// One server, which the sentinels that the URL names know.
    Sentinel,
}

const TOPOLOGIES: [(&str, Topology); 4] = [
    ("", Topology::Server),
    ("+unix", Topology::Unix),
    ("-cluster", Topology::Cluster),
    ("-sentinel", Topology::Sentinel),
];

/// A URL's scheme, and what comes after it.
struct Scheme<'u> {
    topology: Topology,
    encrypted: bool,
    rest: &'u str,
}

impl<'u> Scheme<'u> {
    fn of(url: &'u str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(EXAMPLE))?;
        let unknown = || {
            wrong(
                "has a scheme that is not known; expected redis, rediss, redis+unix, redis-cluster, rediss-cluster, \
                 redis-sentinel or rediss-sentinel, or the same with valkey and valkeys",
            )
        };
        let (family, suffix) = scheme.split_at(scheme.find(['+', '-']).unwrap_or(scheme.len()));
        let encrypted = match family {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(unknown()),
        };
        let known = TOPOLOGIES.iter().find(|(known, _)| *known == suffix);
        match known {
            Some((_, Topology::Unix)) if encrypted => Err(unknown()),
            Some((_, topology)) => Ok(Self { topology: *topology, encrypted, rest }),
            None => Err(unknown()),
        }
    }

    /// What fred calls it. Without TLS: fred's own set-up of it depends on a process-wide choice of cryptography.
    fn plain_url(&self) -> String {
        let suffix =
            TOPOLOGIES.iter().find(|(_, topology)| *topology == self.topology).map_or("", |(suffix, _)| suffix);
        format!("redis{suffix}://{}", self.rest)
    }

    /// Refuses what fred would not look at.
    fn check(&self) -> Result<(), Error> {
        let (place, query) = self.rest.split_once('?').unwrap_or((self.rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        if self.topology == Topology::Unix {
            return if path.is_empty() {
                Err(wrong("has no path; expected for example \"redis+unix:///run/redis.sock\""))
            } else {
                self.check_query(query, &[], "expected none")
            };
        }
        if authority.rsplit('@').next().is_none_or(|host| host.is_empty() || host.starts_with(':')) {
            return Err(wrong("has no host; expected for example \"redis://127.0.0.1:6379\""));
        }
        if self.topology == Topology::Cluster && !path.is_empty() {
            return Err(wrong("has a database, which a cluster does not; expected no path"));
        }
        if !path.is_empty() && path.parse::<u8>().is_err() {
            return Err(wrong("has a path that is not a database; expected a number of 0 to 255"));
        }
        match self.topology {
            Topology::Cluster => self.check_query(query, &["node"], CLUSTER_EXAMPLE),
            Topology::Sentinel => {
                let known = ["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"];
                self.check_query(query, &known, SENTINEL_EXAMPLE)?;
                let named = |pair: &str| pair.strip_prefix("sentinelServiceName=").is_some_and(|name| !name.is_empty());
                if query.split('&').any(named) {
                    Ok(())
                } else {
                    Err(wrong(format!("does not say which service the sentinels watch; {SENTINEL_EXAMPLE}")))
                }
            }
            Topology::Server | Topology::Unix => {
                self.check_query(query, &[], "expected none, or redis-cluster:// or redis-sentinel://")
            }
        }
    }

    /// Every parameter known; every `node` with its port. Nothing of the URL is told: what looks like a parameter may be
    /// the rest of a password.
    fn check_query(&self, query: &str, known: &[&str], expected: &str) -> Result<(), Error> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                return Err(wrong(format!("has a parameter that is not known here; {expected}")));
            }
            let has_port = || {
                value
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok())
            };
            if name == "node" && !has_port() {
                return Err(wrong(format!("has a node that is not a host with its port; {expected}")));
            }
        }
        Ok(())
    }
}

/// Whether a URL asks for TLS.
pub(super) fn is_encrypted(url: &str) -> bool {
    Scheme::of(url).is_ok_and(|scheme| scheme.encrypted)
}

/// Whether a URL names a cluster.
pub(super) fn is_cluster(url: &str) -> bool {
    Scheme::of(url).is_ok_and(|scheme| scheme.topology == Topology::Cluster)
}

/// The servers, credentials and TLS of a configuration. An error's text tells what the URL is or has, and what was
/// expected.
pub(super) fn server(config: &RedisConfig) -> Result<Config, Error> {
    let scheme = Scheme::of(&config.url)?;
    scheme.check()?;
    let mut server = Config::from_url(&scheme.plain_url()).map_err(|error| {
        wrong(format!(
            "has a host or port that cannot be read ({}); expected for example \"redis://127.0.0.1:6379\"",
            error.details()
        ))
    })?;
    // With RESP2, which takes 1 % less of a miss, fred pings whatever it has connected to, and Redis refuses that while its
    // snapshots fail.
    server.version = RespVersion::RESP3;
    server.fail_fast = false;
    if !config.username.is_empty() {
        server.username = Some(config.username.clone());
    }
    if let Some(password) = &config.password {
        server.password = Some(password.clone());
    }
    let names_sentinel_credentials = !config.sentinel_username.is_empty() || config.sentinel_password.is_some();
    match &mut server.server {
        // The nodes known last are asked too: those of the URL may be the ones that are gone.
        ServerConfig::Clustered { policy, .. } => *policy = ClusterDiscoveryPolicy::UseCache,
        ServerConfig::Sentinel { username, password, .. } => {
            if !config.sentinel_username.is_empty() {
                *username = Some(config.sentinel_username.clone());
            }
            if let Some(given) = &config.sentinel_password {
                *password = Some(given.clone());
            }
        }
        ServerConfig::Centralized { .. } | ServerConfig::Unix { .. } => {}
    }
    if names_sentinel_credentials && scheme.topology != Topology::Sentinel {
        return Err(wrong("names no sentinels, though there are credentials for them; expected redis-sentinel://"));
    }
    if scheme.encrypted {
        let tls = config.tls.clone().map_or_else(native_tls, Ok)?;
        let connector = TlsConnector::Rustls(RustlsConnector::from(tls));
        server.tls = Some(TlsConfig { connector, hostnames: hostnames(&server.server) });
    }
    Ok(server)
}

/// The name that a node must prove where its cluster tells an IP address of it alone: that of the URL, where this has
/// a name. A cluster that tells hostnames, and a URL with an IP address, mean each node's own.
fn hostnames(server: &ServerConfig) -> TlsHostMapping {
    let ServerConfig::Clustered { hosts, .. } = server else { return TlsHostMapping::None };
    // fred puts the URL's own host behind its nodes.
    match hosts.last() {
        Some(own) if own.host.parse::<IpAddr>().is_err() => {
            TlsHostMapping::Custom(Arc::new(UrlHost(own.host.to_string())))
        }
        _ => TlsHostMapping::None,
    }
}

/// Maps every address to one name.
#[derive(Debug)]
struct UrlHost(String);

impl HostMapping for UrlHost {
    fn map(&self, _ip: &IpAddr, _default_host: &str) -> Option<String> {
        Some(self.0.clone())
    }
}

/// TLS that trusts the system's certificate authorities.
fn native_tls() -> Result<Arc<rustls::ClientConfig>, Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Tls, error.to_string()))?;
    Ok(Arc::new(versions.with_root_certificates(roots).with_no_client_auth()))
}

fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Url, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_told_by_its_url() {
        let check = |url, expected| assert_eq!(is_cluster(url), expected, "{url}");
        check("redis-cluster://one:6379?node=two:6379", true);
        check("valkeys-cluster://one:6379", true);
        check("redis://one:6379", false);
        check("redis-sentinel://one:26379?sentinelServiceName=a", false);
        check("redis+unix:///run/redis.sock", false);
    }
}
