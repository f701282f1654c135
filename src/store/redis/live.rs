//! What can be seen of a Redis before `aside` runs with it: facts, read within a few seconds.

mod access;
mod reason;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::{Options, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use futures_util::future::join_all;

use super::{RedisConfig, client};
pub use access::{Access, Denial, Denied, Means};

/// The bound on connecting: all of a cluster, or to a primary by its sentinels.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The bound on all that is asked then.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// The bound on one command.
const COMMAND_WITHIN: Duration = Duration::from_secs(1);
/// How many round trips are measured, and for how long at most.
const ROUND_TRIPS: usize = 50;
const MEASURE_WITHIN: Duration = Duration::from_millis(500);
/// How many names are tried to find a key that lies on one node of a cluster; a node with a hundredth of the slots is
/// all but sure to be met.
const KEYS_TRIED_MAX: usize = 10_000;

/// A Redis that can be connected to.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// How its URL says it is reached.
    pub topology: Topology,
    /// The server, or each primary of a cluster.
    pub nodes: Vec<Node>,
}

/// A Redis that cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Where it was looked for, without credentials.
    pub address: String,
    /// Why, for people.
    pub reason: String,
}

/// How servers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Standalone,
    /// A cluster's primaries.
    Cluster,
    /// The primary that sentinels name.
    Sentinel,
}

/// One server. What could not be read has the reason instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Host and port, or the socket's path.
    pub address: String,
    /// What it says it is.
    pub identity: Result<Identity, String>,
    /// The bound on its memory.
    pub memory: Result<Memory, String>,
    /// The round trips of a PING; none where the user may not.
    pub ping: Result<Option<Latency>, String>,
    /// The same of a GET.
    pub get: Result<Option<Latency>, String>,
    /// What the user may do.
    pub access: Access,
}

/// What a server says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `redis`, `valkey`, ...
    pub server: String,
    /// Its version.
    pub version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// `master`, `replica`, ...
    pub role: String,
}

/// The bound on a server's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `maxmemory` in bytes; 0: none.
    pub limit: u64,
    /// `maxmemory-policy`, where it is told.
    pub policy: Option<String>,
}

/// Round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The one in the middle.
    pub median: Duration,
    /// The longest.
    pub worst: Duration,
    /// How many were measured.
    pub count: usize,
}

/// Connects as the running proxy would and looks around. It takes a few seconds at most, whatever the servers do.
pub async fn examine(config: &RedisConfig) -> Result<Found, Unreachable> {
    match client::builder(config) {
        Ok(builder) => examine_through(builder, config).await,
        Err(error) => {
            let reason = error.details().to_owned();
            Err(Unreachable { address: "the url of [redis]".to_owned(), reason })
        }
    }
}

async fn examine_through(mut builder: Builder, config: &RedisConfig) -> Result<Found, Unreachable> {
    // What keeps the proxy trying for ever would keep the reason from us.
    builder.with_config(|config| config.fail_fast = true);
    let server = builder.get_config().map(|config| config.server.clone()).unwrap_or_default();
    let client = match connect(&builder).await {
        Ok(client) => client,
        Err(error) => return Err(Unreachable { address: names(&server), reason: reason::plain(&error) }),
    };
    let deadline = Instant::now() + ASK_WITHIN;
    let login = if config.username.is_empty() { "default" } else { &config.username };
    let nodes = places(&client, &server, &config.prefix).into_iter().map(|place| {
        let caller = Caller { client: client.clone(), node: place.node, deadline };
        look_at(caller, place.address, place.key, &config.prefix, login)
    });
    let nodes = join_all(nodes).await;
    let topology = match server {
        ServerConfig::Clustered { .. } => Topology::Cluster,
        ServerConfig::Sentinel { .. } => Topology::Sentinel,
        ServerConfig::Centralized { .. } | ServerConfig::Unix { .. } => Topology::Standalone,
    };
    Ok(Found { topology, nodes })
}

/// The connection's task ends with the runtime.
async fn connect(builder: &Builder) -> Result<Client, Error> {
    let client = builder.build()?;
    match tokio::time::timeout(CONNECT_WITHIN, client.init()).await {
        Ok(outcome) => outcome.map(|_task| client),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "not connected in time")),
    }
}

/// One server to be looked at.
struct Place {
    address: String,
    /// What commands name it by, in a cluster.
    node: Option<Server>,
    /// A key that belongs to it and that nobody uses.
    key: String,
}

fn places(client: &Client, server: &ServerConfig, prefix: &str) -> Vec<Place> {
    if let (ServerConfig::Clustered { .. }, Some(routing)) = (server, client.cached_cluster_state()) {
        let nodes = routing.unique_primary_nodes().into_iter();
        return nodes
            .map(|node| Place { address: name(&node), key: scratch_key_on(&routing, &node, prefix), node: Some(node) })
            .collect();
    }
    // Behind sentinels only the connection knows where it leads.
    let connected = client.active_connections();
    let address = match server {
        ServerConfig::Sentinel { .. } => connected.first().map_or_else(|| names(server), name),
        ServerConfig::Centralized { .. } | ServerConfig::Unix { .. } | ServerConfig::Clustered { .. } => names(server),
    };
    vec![Place { address, node: None, key: scratch_key(prefix) }]
}

fn scratch_key(prefix: &str) -> String {
    format!("{prefix}:check:{:016x}", fastrand::u64(..))
}

fn scratch_key_on(routing: &ClusterRouting, node: &Server, prefix: &str) -> String {
    let is_there = |key: &String| routing.get_server(ClusterRouting::hash_key(key.as_bytes())) == Some(node);
    let mut keys = (0..KEYS_TRIED_MAX).map(|_| scratch_key(prefix));
    keys.find(is_there).unwrap_or_else(|| scratch_key(prefix))
}

fn names(server: &ServerConfig) -> String {
    server.hosts().iter().map(name).collect::<Vec<_>>().join(", ")
}

/// A socket's path stands for its host, with the port 0.
fn name(server: &Server) -> String {
    if server.port == 0 { server.host.to_string() } else { format!("{}:{}", server.host, server.port) }
}

async fn look_at(caller: Caller, address: String, key: String, prefix: &str, login: &str) -> Node {
    let identity = caller.identity().await;
    let memory = caller.memory().await;
    let ping = caller.measure(&["PING"]).await;
    let get = caller.measure(&["GET", &key]).await;
    let access = access::probe(&caller, &key, prefix, login).await;
    Node { address, identity, memory, ping, get, access }
}

/// Sends commands to one server until the deadline.
struct Caller {
    client: Client,
    node: Option<Server>,
    deadline: Instant,
}

impl Caller {
    /// Each command has fred's own timeout: one that is given up is not written later.
    async fn call(&self, words: &[&str]) -> Result<Value, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now()).min(COMMAND_WITHIN);
        let Some((command, arguments)) = words.split_first().filter(|_| !left.is_zero()) else {
            return Err(Error::new(ErrorKind::Timeout, "no time left"));
        };
        let options = Options {
            timeout: Some(left),
            max_attempts: Some(1),
            fail_fast: true,
            cluster_node: self.node.clone(),
            ..Options::default()
        };
        let command = CustomCommand::new(*command, ClusterHash::FirstKey, false);
        let arguments: Vec<Value> = arguments.iter().map(|word| Value::from(*word)).collect();
        self.client.with_options(&options).custom(command, arguments).await
    }

    /// HELLO is open to every user.
    async fn identity(&self) -> Result<Identity, String> {
        let told: HashMap<String, Value> =
            self.call(&["HELLO"]).await.and_then(Value::convert).map_err(|error| reason::plain(&error))?;
        let text = |name: &str| told.get(name).and_then(Value::as_string);
        let (Some(server), Some(version)) = (text("server"), text("version")) else {
            return Err("it does not tell its version".to_owned());
        };
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        Ok(Identity { server, version, mode: or_unknown(text("mode")), role: or_unknown(text("role")) })
    }

    /// INFO tells all; where it is refused, CONFIG GET may not be.
    async fn memory(&self) -> Result<Memory, String> {
        let told = self.call(&["INFO", "memory"]).await;
        if let Some(memory) = told.as_ref().ok().and_then(Value::as_string).and_then(|text| memory_of(&text)) {
            return Ok(memory);
        }
        let settings: Result<HashMap<String, String>, Error> =
            self.call(&["CONFIG", "GET", "maxmemory*"]).await.and_then(Value::convert);
        let settings = settings.map_err(|error| reason::plain(&told.err().unwrap_or(error)))?;
        let limit = settings.get("maxmemory").and_then(|limit| limit.parse().ok()).ok_or("maxmemory is not told")?;
        Ok(Memory { limit, policy: settings.get("maxmemory-policy").cloned() })
    }

    /// The command's round trips, one after the other.
    async fn measure(&self, words: &[&str]) -> Result<Option<Latency>, String> {
        let begun = Instant::now();
        let mut trips = Vec::with_capacity(ROUND_TRIPS);
        while trips.len() < ROUND_TRIPS && (trips.is_empty() || begun.elapsed() < MEASURE_WITHIN) {
            let sent = Instant::now();
            match self.call(words).await {
                Ok(_) => trips.push(sent.elapsed()),
                Err(error) if reason::is_refusal(&error) => return Ok(None),
                Err(error) => return Err(reason::plain(&error)),
            }
        }
        trips.sort_unstable();
        let (median, worst, count) = (trips[trips.len() / 2], trips[trips.len() - 1], trips.len());
        Ok(Some(Latency { median, worst, count }))
    }
}

/// Reads the memory section of INFO.
fn memory_of(info: &str) -> Option<Memory> {
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
    let limit = field("maxmemory")?.parse().ok()?;
    Some(Memory { limit, policy: field("maxmemory_policy").map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A node of a cluster in a folder of its own; ended by its id.
    struct ClusterNode {
        port: u16,
        process: Child,
        _folder: tempfile::TempDir,
    }

    impl ClusterNode {
        async fn start() -> Self {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
            let bus = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
            let folder = tempfile::tempdir().expect("a folder");
            let process = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--cluster-port", &bus.to_string(), "--bind", "127.0.0.1"])
                .args(["--cluster-enabled", "yes", "--save", "", "--maxmemory-policy", "volatile-ttl"])
                .arg("--dir")
                .arg(folder.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed: `make test` does so");
            let node = Self { port, process, _folder: folder };
            until("an answer", || async { TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
            node
        }

        fn url(&self, scheme: &str) -> String {
            format!("{scheme}://127.0.0.1:{}", self.port)
        }

        async fn ask(&self, words: &[&str]) -> String {
            let config = fred::types::config::Config::from_url(&self.url("redis")).expect("a URL");
            let client = connect(&Builder::from_config(config)).await.expect("a connection");
            let caller = Caller { client, node: None, deadline: Instant::now() + ASK_WITHIN };
            caller.call(words).await.expect("an answer").as_string().unwrap_or_default()
        }
    }

    impl Drop for ClusterNode {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    async fn until<H: Future<Output = bool>>(what: &str, holds: impl Fn() -> H) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come");
            tokio::task::yield_now().await;
        }
    }

    fn config() -> RedisConfig {
        RedisConfig {
            url: "redis://unused".to_owned(),
            username: "bob".to_owned(),
            password: Some("secret".to_owned()),
            tls: None,
            prefix: "aside".to_owned(),
            timeout: Duration::from_millis(50),
            max_object: 1,
        }
    }

    #[tokio::test]
    async fn every_primary_of_a_cluster_is_looked_at_by_a_user_of_its_own_rights() {
        let (one, two) = (ClusterNode::start().await, ClusterNode::start().await);
        one.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "9999"]).await;
        two.ask(&["CLUSTER", "ADDSLOTSRANGE", "10000", "16383"]).await;
        let bus = two.ask(&["CLUSTER", "NODES"]).await;
        let bus = bus.split(['@', ' ', ',']).nth(2).expect("the bus's port").to_owned();
        one.ask(&["CLUSTER", "MEET", "127.0.0.1", &two.port.to_string(), &bus]).await;
        for node in [&one, &two] {
            let is_ok = || async { node.ask(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok") };
            until("the cluster", is_ok).await;
            let lacks_get: Vec<&str> = if node.port == one.port { vec!["-get"] } else { vec![] };
            let rules = ["ACL", "SETUSER", "bob", "on", ">secret", "~aside:*", "&aside:*", "+@all", "-acl"];
            node.ask(&[&rules[..], &lacks_get].concat()).await;
        }
        let mut server = fred::types::config::Config::from_url(&one.url("redis-cluster")).expect("a URL");
        (server.username, server.password) = (Some("bob".to_owned()), Some("secret".to_owned()));
        server.version = fred::types::RespVersion::RESP3;
        let found = examine_through(Builder::from_config(server), &config()).await.expect("a cluster");
        assert_eq!((found.topology, found.nodes.len()), (Topology::Cluster, 2));
        for node in found.nodes {
            let is_one = node.address == format!("127.0.0.1:{}", one.port);
            assert!(is_one || node.address == format!("127.0.0.1:{}", two.port), "{}", node.address);
            assert_eq!(
                node.identity.as_ref().map(|it| (it.mode.as_str(), it.role.as_str())),
                Ok(("cluster", "master"))
            );
            assert_eq!(node.memory, Ok(Memory { limit: 0, policy: Some("volatile-ttl".to_owned()) }));
            assert_eq!(node.access.failures, []);
            assert_eq!(node.access.means, Means::Trial);
            let missing: Vec<&str> = node.access.denials.iter().map(|denial| denial.command).collect();
            assert_eq!(missing, if is_one { vec!["GET"] } else { vec![] });
            assert_eq!(node.get.as_ref().map(Option::is_some), Ok(!is_one));
        }
    }
}
