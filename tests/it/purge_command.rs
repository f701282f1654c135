//! `aside purge`, the command itself, against a running proxy.

use std::process::Command;

use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, client, get};

/// How the command ended, and what it told.
fn run(arguments: &[&str], token: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_aside"))
        .arg("purge")
        .args(arguments)
        .env("ASIDE_ADMIN_TOKEN", token)
        .output()
        .expect("the command runs");
    let told = [output.stdout, output.stderr].concat();
    (output.status.code().expect("no signal"), String::from_utf8(told).expect("text"))
}

fn check(arguments: &[&str], token: &str, code: i32, told: &str) {
    let (found, text) = run(arguments, token);
    assert_eq!(found, code, "{arguments:?}: {text}");
    assert!(text.starts_with(told), "{arguments:?}: {text}");
    assert!(code == 2 || text.lines().count() == 1, "{arguments:?}: {text}");
}

#[tokio::test]
async fn each_kind_is_purged_and_the_exit_code_tells() {
    let origin = Origin::counting(&[("cache-control", "max-age=60"), ("surrogate-key", "k")]);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "geheim\n").unwrap();
    let toml = format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"file:{}\"\n\n{}",
        secret.path().display(),
        one_route(&origin.url(), "")
    );
    let proxy = Proxy::start(&toml);
    let (address, client) = (proxy.running.admin.unwrap(), client());
    let (admin, root) = (format!("http://{address}"), proxy.url("/"));
    let host = proxy.address.ip().to_string();
    let url = proxy.url("/a");
    for (nth, what) in
        [&["url", &url][..], &["prefix", &root], &["tag", "other", "k"], &["route", "all"], &["host", &host], &["all"]]
            .iter()
            .enumerate()
    {
        assert_eq!(get(&client, &url).await.body, format!("/a {nth}"));
        assert!(get(&client, &url).await.cache_status.starts_with("aside; hit"));
        check(&[what, &["--admin", &admin][..]].concat(), "geheim", 0, "purged: number 1");
    }
    get(&client, &url).await;
    check(&["all", "--soft", "--admin", &admin], "geheim", 0, "purged: number 1");
    assert!(get(&client, &url).await.cache_status.starts_with("aside; fwd=stale"), "it is validated");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml.replace("127.0.0.1:0", &address.to_string())).unwrap();
    check(&["tag", "k", "--config", file.path().to_str().unwrap()], "", 0, "purged: number 1");
    check(&["all", "--admin", &admin], "wrong", 1, "aside: not purged: 401: ");
    check(&["route", "none", "--admin", &admin], "geheim", 2, "aside: not purged: routes: \"none\" is not a route");
    check(&["url", "--admin", &admin], "geheim", 2, "error: ");
    check(&["everything"], "", 2, "error: ");
    check(&["all", "--admin", "127.0.0.1:1"], "", 2, "error: ");
    std::fs::write(file.path(), one_route(&origin.url(), "")).unwrap();
    check(&["all", "--config", file.path().to_str().unwrap()], "", 2, "aside: ");
    drop(proxy);
    check(&["all", "--admin", &admin], "geheim", 1, &format!("aside: {admin}: "));
}
