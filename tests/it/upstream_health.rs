//! Servers that are checked, and names with several addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::world::{Origin, Proxy, client, get, reply};

/// An upstream whose `/health` says what the test wants; everything else works always.
struct Patient {
    origin: Origin,
    is_well: Arc<AtomicBool>,
}

impl Patient {
    fn start(name: &'static str) -> Self {
        let is_well = Arc::new(AtomicBool::new(true));
        let says = Arc::clone(&is_well);
        let origin = Origin::start(move |seen| {
            let status = if seen.target == "/health" && !says.load(Ordering::SeqCst) { 503 } else { 200 };
            async move { reply(status, &[], name) }
        });
        Self { origin, is_well }
    }

    fn be(&self, is_well: bool) {
        self.is_well.store(is_well, Ordering::SeqCst);
    }

    fn checks(&self) -> usize {
        self.origin.count("/health")
    }

    /// Waits for that many more checks.
    async fn checked(&self, more: usize) {
        let enough = self.checks() + more;
        until("the checks", async || self.checks() >= enough).await;
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let reached = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

async fn states(proxy: &Proxy) -> Vec<String> {
    let stats = proxy.stats().await;
    let servers = stats["upstreams"]["api"]["servers"].as_array().unwrap();
    servers.iter().map(|server| server["state"].as_str().unwrap().to_owned()).collect()
}

fn toml(patients: &[&Patient], upstream: &str) -> String {
    let urls: Vec<String> = patients.iter().map(|patient| patient.origin.url()).collect();
    format!(
        "[upstream.api]\nurls = {urls:?}\nbalance = \"round_robin\"\n{upstream}\n\n\
         [[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\ncache = false\n"
    )
}

const HEALTH: &str = "health = { path = \"/health\", interval = \"10ms\", unhealthy = 3, healthy = 2 }";

#[tokio::test]
async fn who_fails_its_checks_is_asked_no_more_until_it_passes_them() {
    let (first, second) = (Patient::start("first"), Patient::start("second"));
    let proxy = Proxy::start(&toml(&[&first, &second], HEALTH));
    let client = client();
    first.be(false);
    until("the first is out", async || states(&proxy).await == ["unhealthy", "up"]).await;
    for _ in 0..10 {
        assert_eq!(get(&client, &proxy.url("/a")).await.body, "second");
    }
    first.be(true);
    until("the first is back", async || states(&proxy).await == ["up", "up"]).await;
    let mut bodies = Vec::new();
    for _ in 0..4 {
        bodies.push(get(&client, &proxy.url("/a")).await.body);
    }
    bodies.sort();
    assert_eq!(bodies, ["first", "first", "second", "second"]);
    let events = proxy.stats().await["events"].clone();
    assert_eq!((&events["server_unhealthy"], &events["server_healthy"]), (&1.into(), &1.into()), "{events}");
}

#[tokio::test]
async fn where_nobody_passes_everybody_is_asked() {
    let (first, second) = (Patient::start("first"), Patient::start("second"));
    let proxy = Proxy::start(&toml(&[&first, &second], HEALTH));
    first.be(false);
    second.be(false);
    until("both are out", async || states(&proxy).await == ["unhealthy", "unhealthy"]).await;
    let (client, mut bodies) = (client(), Vec::new());
    for _ in 0..4 {
        let got = get(&client, &proxy.url("/a")).await;
        assert_eq!(got.status, 200);
        bodies.push(got.body);
    }
    bodies.sort();
    assert_eq!(bodies, ["first", "first", "second", "second"]);
}

#[tokio::test]
async fn who_flaps_stays_what_it_was() {
    let flapping = Arc::new(AtomicBool::new(false));
    let flaps = Arc::clone(&flapping);
    let origin = Origin::start(move |seen| {
        // Two of three checks fail, never three in a row.
        let fails = flaps.load(Ordering::SeqCst) && seen.target == "/health" && seen.nth % 3 != 0;
        async move { reply(if fails { 503 } else { 200 }, &[], "flapping") }
    });
    let patient = Patient { origin, is_well: Arc::default() };
    let other = Patient::start("other");
    let proxy = Proxy::start(&toml(&[&patient, &other], HEALTH));
    flapping.store(true, Ordering::SeqCst);
    patient.checked(12).await;
    assert_eq!(states(&proxy).await, ["up", "up"]);
    assert_eq!(proxy.stats().await["events"]["server_unhealthy"], serde_json::Value::Null);
}

#[tokio::test]
async fn who_answers_no_check_in_time_is_not_well() {
    let slow = Origin::start(|seen| async move {
        if seen.target == "/health" {
            std::future::pending::<()>().await;
        }
        reply(200, &[], "slow")
    });
    let slow = Patient { origin: slow, is_well: Arc::default() };
    let other = Patient::start("other");
    let proxy = Proxy::start(&toml(&[&slow, &other], HEALTH));
    until("the slow one is out", async || states(&proxy).await == ["unhealthy", "up"]).await;
    assert_eq!(get(&client(), &proxy.url("/a")).await.body, "other");
    other.checked(3).await;
}

#[tokio::test]
async fn what_is_stale_bridges_servers_that_are_all_gone() {
    let origin = Origin::counting(&[("cache-control", "max-age=10, stale-if-error=600")]);
    let toml = |url: &str| {
        let health = "health = { interval = \"10ms\" }\nbreaker = { failures = 1, open = \"1h\" }";
        format!("[upstream.api]\nurl = \"{url}\"\n{health}\n\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\n")
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    std::fs::write(&path, toml(&origin.url())).unwrap();
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "/a 0");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(&path, toml(&format!("http://{gone}"))).unwrap();
    proxy.running.reload().unwrap();
    until("it is out", async || states(&proxy).await == ["unhealthy"]).await;
    proxy.clock.advance(Duration::from_secs(30));
    for _ in 0..3 {
        let stale = get(&client, &proxy.url("/a")).await;
        assert_eq!((stale.status, stale.body.as_str()), (200, "/a 0"));
        assert!(stale.cache_status.ends_with("detail=stale-if-error"), "{stale:?}");
    }
    assert_eq!(states(&proxy).await, ["ejected"], "it was tried, too");
}

#[tokio::test]
async fn checks_are_made_where_they_are_configured_and_as_long() {
    let patient = Patient::start("it");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    std::fs::write(&path, toml(&[&patient], "")).unwrap();
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "it");
    assert_eq!(patient.origin.seen().len(), 1, "nothing that no client caused");
    std::fs::write(&path, toml(&[&patient], "health = { path = \"/health\", interval = \"5ms\" }")).unwrap();
    proxy.running.reload().unwrap();
    patient.checked(3).await;
    let check = patient.origin.seen().pop().unwrap();
    assert_eq!((check.method.as_str(), check.body.len()), ("GET", 0));
    assert_eq!(check.fields["host"], patient.origin.address.to_string());
    assert_eq!(check.fields["user-agent"], "aside-health-check");
    std::fs::write(&path, toml(&[&patient], "")).unwrap();
    proxy.running.reload().unwrap();
    // One may have been under way.
    let before = patient.checks() + 1;
    for _ in 0..50 {
        get(&client, &proxy.url("/a")).await;
    }
    assert!(patient.checks() <= before, "{} checks, {before} before", patient.checks());
}

#[tokio::test]
async fn every_address_of_localhost_is_a_server() {
    let origin = Origin::counting(&[]);
    let toml = format!(
        "[upstream.api]\nurl = \"http://localhost:{}\"\nresolve_interval = \"5ms\"\n\n\
         [[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\ncache = false\n",
        origin.address.port()
    );
    let proxy = Proxy::start(&toml);
    let client = client();
    for nth in 0..10 {
        assert_eq!(get(&client, &proxy.url("/a")).await.body, format!("/a {nth}"));
    }
    let stats = proxy.stats().await;
    let servers = stats["upstreams"]["api"]["servers"].as_array().unwrap();
    let addresses: Vec<&str> = servers.iter().map(|server| server["address"].as_str().unwrap()).collect();
    assert!(addresses.contains(&&*origin.address.to_string()), "{stats:#}");
    assert_eq!(stats["events"]["addresses_found"], 1, "told when they change, not each time");
}
