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
        Ok(builder) => examine_through(builder, &config.prefix).await,
        Err(error) => {
            let reason = error.details().to_owned();
            Err(Unreachable { address: "the url of [redis]".to_owned(), reason })
        }
    }
}

async fn examine_through(mut builder: Builder, prefix: &str) -> Result<Found, Unreachable> {
    // What keeps the proxy trying for ever would keep the reason from us.
    builder.with_config(|config| config.fail_fast = true);
    let (server, user) = builder.get_config().map(|it| (it.server.clone(), it.username.clone())).unwrap_or_default();
    let user = user.unwrap_or_else(|| "default".to_owned());
    let client = match connect(&builder).await {
        Ok(client) => client,
        Err(error) => {
            let remedy =
                reason::refused_command(&error).map(|command| access::granting(&user, &[format!("+{command}")]));
            let remedy = remedy.map(|remedy| format!("; to be run: {remedy}")).unwrap_or_default();
            return Err(Unreachable { address: names(&server), reason: reason::plain(&error) + &remedy });
        }
    };
    let deadline = Instant::now() + ASK_WITHIN;
    let nodes = places(&client, &server, prefix).into_iter().map(|place| {
        let caller = Caller { client: client.clone(), node: place.node, deadline };
        look_at(caller, place.address, place.key, prefix, &user)
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

    use fred::types::RespVersion;
    use fred::types::config::Config;

    use super::*;

    /// A server in a folder of its own; ended by its id.
    struct Process {
        port: u16,
        process: Child,
        _folder: tempfile::TempDir,
    }

    impl Process {
        /// With settings, a line each.
        async fn start(settings: &str, arguments: &[&str]) -> Self {
            let port = free_port();
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("redis.conf");
            let place = format!("port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {}\n", folder.path().display());
            std::fs::write(&file, place + settings).expect("a file");
            let process = Command::new("redis-server")
                .arg(&file)
                .args(arguments)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed: `make test` does so");
            let node = Self { port, process, _folder: folder };
            until("an answer", || async { TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
            node
        }

        async fn cluster_node() -> Self {
            let bus = free_port();
            Self::start(&format!("cluster-enabled yes\ncluster-port {bus}\nmaxmemory-policy volatile-ttl"), &[]).await
        }

        fn url(&self, scheme: &str) -> String {
            format!("{scheme}://127.0.0.1:{}", self.port)
        }

        async fn ask(&self, words: &[&str]) -> String {
            let client = connect(&Builder::from_config(server(&self.url("redis"), None))).await.expect("a connection");
            let caller = Caller { client, node: None, deadline: Instant::now() + ASK_WITHIN };
            caller.call(words).await.expect("an answer").as_string().unwrap_or_default()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port()
    }

    fn server(url: &str, user: Option<&str>) -> Config {
        let mut server = Config::from_url(url).expect("a URL");
        server.version = RespVersion::RESP3;
        (server.username, server.password) = (user.map(str::to_owned), user.map(|_| "secret".to_owned()));
        server
    }

    async fn until<H: Future<Output = bool>>(what: &str, holds: impl Fn() -> H) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn every_primary_of_a_cluster_is_looked_at_by_a_user_of_its_own_rights() {
        let (one, two) = (Process::cluster_node().await, Process::cluster_node().await);
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
        let server = server(&one.url("redis-cluster"), Some("bob"));
        let found = examine_through(Builder::from_config(server), "aside").await.expect("a cluster");
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

    #[tokio::test]
    async fn behind_sentinels_the_primary_is_looked_at() {
        let primary = Process::start("", &[]).await;
        let monitor = format!("sentinel monitor mymaster 127.0.0.1 {} 1", primary.port);
        let sentinel = Process::start(&monitor, &["--sentinel"]).await;
        let url = sentinel.url("redis-sentinel") + "?sentinelServiceName=mymaster";
        let examined =
            |user| async move { examine_through(Builder::from_config(server(user, Some("bob"))), "aside").await };
        let rules = ["ACL", "SETUSER", "bob", "on", ">secret", "~aside:*", "&aside:*", "+@all", "-role"];
        primary.ask(&rules).await;
        let unreachable = examined(&url).await.expect_err("fred asks for the role");
        assert_eq!(unreachable.address, format!("127.0.0.1:{}", sentinel.port));
        assert!(unreachable.reason.ends_with("; to be run: ACL SETUSER bob +role"), "{}", unreachable.reason);
        primary.ask(&["ACL", "SETUSER", "bob", "+role"]).await;
        let found = examined(&url).await.expect("a primary");
        assert_eq!((found.topology, found.nodes.len()), (Topology::Sentinel, 1));
        let node = &found.nodes[0];
        assert_eq!(node.address, format!("127.0.0.1:{}", primary.port));
        assert_eq!(node.identity.as_ref().map(|it| (it.mode.as_str(), it.role.as_str())), Ok(("standalone", "master")));
        assert_eq!(node.access.denials, []);
    }

    #[tokio::test]
    async fn a_right_that_connecting_needs_is_named() {
        let primary = Process::start("", &[]).await;
        primary.ask(&["ACL", "SETUSER", "bob", "on", ">secret", "+@all", "-select"]).await;
        let server = server(&primary.url("redis"), Some("bob"));
        let server = Config { database: Some(3), ..server };
        let unreachable = examine_through(Builder::from_config(server), "aside").await.expect_err("no right to SELECT");
        let reason = "this user has no permissions to run the 'select' command; to be run: ACL SETUSER bob +select";
        assert_eq!(unreachable.reason, reason);
    }
}
