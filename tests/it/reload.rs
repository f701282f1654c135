//! What SIGHUP does.

use std::time::Duration;

use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, client, get};

#[tokio::test]
async fn a_new_ttl_rules_what_is_stored_next_and_memory_keeps_what_it_held() {
    let origin = Origin::counting(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    let write = |ttl: &str| {
        std::fs::write(&path, one_route(&origin.url(), &format!("ttl = \"{ttl}\"\nttl_jitter = 0.0"))).unwrap()
    };
    write("1m");
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    get(&client, &proxy.url("/old")).await;
    write("10m");
    proxy.running.reload().expect("the file is right");
    assert_eq!(get(&client, &proxy.url("/old")).await.cache_status, "aside; hit; ttl=60");
    get(&client, &proxy.url("/new")).await;
    assert_eq!(get(&client, &proxy.url("/new")).await.cache_status, "aside; hit; ttl=600");
    assert_eq!(proxy.stats().await["config"]["generation"], 2);
}

#[tokio::test]
async fn a_file_with_a_problem_changes_nothing() {
    let origin = Origin::counting(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    std::fs::write(&path, one_route(&origin.url(), "ttl = \"1m\"\nttl_jitter = 0.0")).unwrap();
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    std::fs::write(&path, one_route(&origin.url(), "tll = \"10m\"")).unwrap();
    let problems = proxy.running.reload().expect_err("the file is wrong");
    assert_eq!(problems.len(), 1, "{problems:?}");
    get(&client, &proxy.url("/a")).await;
    assert_eq!(get(&client, &proxy.url("/a")).await.cache_status, "aside; hit; ttl=60");
    let stats = proxy.stats().await;
    assert_eq!(stats["config"]["generation"], 1);
    assert!(stats["config"]["last_error"].as_str().unwrap().contains("tll"), "{stats:#}");
}

#[tokio::test]
async fn no_request_fails_while_configurations_change() {
    let origin = Origin::counting(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aside.toml");
    std::fs::write(&path, one_route(&origin.url(), "ttl = \"1m\"")).unwrap();
    let proxy = Proxy::start_file(path.clone());
    let client = client();
    let load = async {
        for nth in 0..400 {
            assert_eq!(get(&client, &proxy.url(&format!("/{}", nth % 40))).await.status, 200);
        }
    };
    let reloads = async {
        for minutes in 1..20 {
            std::fs::write(&path, one_route(&origin.url(), &format!("ttl = \"{minutes}m\""))).unwrap();
            proxy.running.reload().expect("the file is right");
            tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await.unwrap_err();
        }
    };
    tokio::join!(load, reloads);
}
