//! Several servers, bounds, and what is sent to whom.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::world::{Origin, Proxy, client, field, get, reply};

/// One upstream with `keys` and one route that stores nothing.
fn toml(keys: &str) -> String {
    format!("[upstream.api]\n{keys}\n\n[[route]]\nname = \"all\"\npath = \"/{{*rest}}\"\ncache = false\n")
}

/// A URL where nobody listens.
fn dead() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

#[tokio::test]
async fn a_dead_server_among_others_is_not_noticed_by_clients_and_ejected() {
    let origin = Origin::counting(&[]);
    let servers = format!("urls = [\"{}\", \"{}\"]\nbalance = \"round_robin\"", dead(), origin.url());
    let proxy = Proxy::start(&toml(&format!("{servers}\nbreaker = {{ failures = 2, open = \"1h\" }}")));
    let client = client();
    for nth in 0..8 {
        let got = get(&client, &proxy.url("/a")).await;
        assert_eq!((got.status, got.body), (200, format!("/a {nth}")));
    }
    let stats = proxy.stats().await;
    let servers = &stats["upstreams"]["api"]["servers"];
    assert_eq!((&servers[0]["state"], &servers[0]["failures"]), (&"ejected".into(), &2.into()), "{stats:#}");
    assert_eq!((&servers[1]["state"], &servers[1]["requests"]), (&"up".into(), &8.into()), "{stats:#}");
}

#[tokio::test]
async fn content_survives_the_change_to_another_server() {
    let origin = Origin::counting(&[]);
    let servers = format!("urls = [\"{}\", \"{}\"]\nbalance = \"round_robin\"", dead(), origin.url());
    let proxy = Proxy::start(&toml(&servers));
    let answer = client().post(proxy.url("/a")).body("hello").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(origin.seen().pop().expect("a request").body, "hello");
}

#[tokio::test]
async fn load_is_shared_in_turn() {
    let origins = [Origin::counting(&[]), Origin::counting(&[])];
    let urls = format!("urls = [\"{}\", \"{}\"]\nbalance = \"round_robin\"", origins[0].url(), origins[1].url());
    let proxy = Proxy::start(&toml(&urls));
    let client = client();
    for _ in 0..10 {
        assert_eq!(get(&client, &proxy.url("/a")).await.status, 200);
    }
    assert_eq!(origins.map(|origin| origin.count("/a")), [5, 5]);
}

#[tokio::test]
async fn what_exceeds_the_bounds_is_told_to_come_back() {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (hold, announce) = (Arc::clone(&gate), Arc::clone(&begun));
    let origin = Origin::start(move |_seen| {
        let (hold, announce) = (Arc::clone(&hold), Arc::clone(&announce));
        async move {
            announce.add_permits(1);
            let _held = hold.acquire().await;
            reply(200, &[], "done")
        }
    });
    let bounds = format!("url = \"{}\"\nmax_concurrent = 1\nmax_pending = 0", origin.url());
    let proxy = Proxy::start(&toml(&bounds));
    let client = client();
    let (first_url, second_url) = (proxy.url("/first"), proxy.url("/second"));
    let first = get(&client, &first_url);
    let second = async {
        let _begun = begun.acquire().await.expect("open");
        let response = client.get(&second_url).send().await.expect("an answer");
        gate.add_permits(1);
        response
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status, first.body.as_str()), (200, "done"));
    assert_eq!(second.status(), 503);
    assert!(!field(&second, "retry-after").is_empty());
    assert_eq!((origin.count("/first"), origin.count("/second")), (1, 0));
}

#[tokio::test]
async fn the_host_rule_and_the_base_path_shape_what_the_upstream_sees() {
    let origin = Origin::counting(&[]);
    let own = origin.address.to_string();
    for (rule, expected) in [("upstream", own.as_str()), ("preserve", "shop.test"), ("api.test", "api.test")] {
        let proxy = Proxy::start(&toml(&format!("url = \"{}/base\"\nhost = \"{rule}\"", origin.url())));
        let request = client().get(proxy.url("/a?b=c")).header("host", "shop.test");
        assert_eq!(request.send().await.expect("an answer").status(), 200);
        let seen = origin.seen().pop().expect("a request");
        assert_eq!((seen.target.as_str(), seen.fields["host"].to_str().expect("text")), ("/base/a?b=c", expected));
    }
}
