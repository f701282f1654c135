//! The ways to a Redis: with a password, by a unix socket, over TLS.

use std::time::{Duration, Instant};

use crate::world::proxy::one_route;
use crate::world::{Certificates, Cluster, Origin, Proxy, Redis, Sentinels, client, get};

/// `redis`: the `[redis]` table's keys. What one process stores, another finds.
async fn check(redis: &str) {
    let origin = Origin::counting(&[]);
    let route = one_route(&origin.url(), "ttl = \"1m\"");
    let toml = format!("[memory]\nmax_size = \"0\"\n\n[redis]\ntimeout = \"1s\"\n{redis}\n\n{route}");
    let (one, two) = (Proxy::start(&toml), Proxy::start(&toml));
    let client = client();
    for proxy in [&one, &two] {
        until(proxy, "state", |stats| stats["redis"]["state"] == "up").await;
    }
    assert_eq!(get(&client, &one.url("/a")).await.body, "/a 0");
    until(&two, "the first hit", |stats| stats["totals"]["hits_redis"] != 0).await;
    assert!(origin.count("/a") >= 1);
}

/// Asks for `/a` until the figures are so.
async fn until(proxy: &Proxy, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    let begun = Instant::now();
    loop {
        let stats = proxy.stats().await;
        if holds(&stats) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{what} did not come: {stats:#}");
        if what != "state" {
            get(&client(), &proxy.url("/a")).await;
        }
    }
}

#[tokio::test]
async fn with_a_password() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "secret").expect("a file");
    check(&format!("url = \"{}\"\npassword = \"file:{}\"", redis.url(), password.display())).await;
}

#[tokio::test]
async fn to_valkey() {
    let valkey = Redis::start_valkey();
    assert!(valkey.reports("server_name:valkey"));
    check(&format!("url = \"{}\"", valkey.url().replace("redis", "valkey"))).await;
}

#[tokio::test]
async fn by_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("redis.sock").display().to_string();
    let _redis = Redis::start_with(&["--unixsocket", &socket]);
    check(&format!("url = \"redis+unix://{socket}\"")).await;
}

#[tokio::test]
async fn over_tls_with_a_private_ca() {
    let folder = tempfile::tempdir().expect("a folder");
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).expect("a file");
    std::fs::write(&key, pair.signing_key.serialize_pem()).expect("a file");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let tls_port = port.to_string();
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let _redis = Redis::start_with(&[&["--tls-port", &tls_port, "--tls-auth-clients", "no"], &files[..]].concat());
    check(&format!("url = \"rediss://localhost:{port}\"\nca = \"{cert}\"")).await;
}

#[tokio::test]
async fn over_tls_to_a_cluster_whose_nodes_prove_the_urls_host() {
    // The nodes know each other by address, which the certificate does not name.
    let certificates = Certificates::of_server(&["localhost"]);
    let cluster = Cluster::start_encrypted(&certificates);
    let url = format!("rediss-cluster://localhost:{}", cluster.primaries[0].client_port());
    check(&format!("url = \"{url}\"\n{}", certificates.client_keys())).await;
}

#[tokio::test]
async fn over_tls_to_sentinels_and_the_server_they_know() {
    let certificates = Certificates::of_server(&["127.0.0.1"]);
    let redis = Sentinels::start_encrypted(&certificates);
    let url = redis.url().replace("redis-sentinel", "rediss-sentinel");
    check(&format!("url = \"{url}\"\n{}", certificates.client_keys())).await;
}
