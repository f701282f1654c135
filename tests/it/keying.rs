//! What the key is made of is what the upstream is sent.

use crate::protocols::raw_exchange;
use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, client, got, reply};

/// Tells what of the fields named it was sent.
fn telling(names: &'static [&'static str], fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::start(move |seen| async move {
        let told = names.iter().map(|name| {
            let values: Vec<_> = seen.fields.get_all(*name).iter().map(|value| value.to_str().unwrap()).collect();
            format!("{name}={} ", values.join("+"))
        });
        reply(200, fields, &told.collect::<String>())
    })
}

/// What a GET of `/a` with these fields is answered.
async fn asked(proxy: &Proxy, fields: &[(&str, &str)]) -> String {
    let mut request = client().get(proxy.url("/a"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    got(request.send().await.unwrap()).await.body
}

const DEVICE: &str =
    "key = { headers = [{ name = \"x-device\", choices = [\"mobile\", \"desktop\"], default = \"desktop\" }] }";

#[tokio::test]
async fn what_the_key_reduces_the_upstream_is_sent_reduced() {
    let origin = telling(&["x-device"], &[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), DEVICE));
    assert_eq!(asked(&proxy, &[("x-device", "<script>")]).await, "x-device=desktop ");
    assert_eq!(asked(&proxy, &[]).await, "x-device=desktop ");
    assert_eq!(asked(&proxy, &[("x-device", "Mobile")]).await, "x-device=mobile ");
    assert_eq!(asked(&proxy, &[("x-device", "mobile"), ("x-device", "tv")]).await, "x-device=desktop ");
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn what_varies_by_a_reduced_field_has_one_variant_for_each_choice() {
    let origin = telling(&["x-device"], &[("cache-control", "max-age=60"), ("vary", "x-device")]);
    let proxy = Proxy::start(&one_route(&origin.url(), DEVICE));
    for device in ["tv", "car", "watch"] {
        assert_eq!(asked(&proxy, &[("x-device", device)]).await, "x-device=desktop ");
    }
    assert_eq!(origin.count("/a"), 1);
}

#[tokio::test]
async fn a_field_that_connection_names_is_neither_sent_nor_keyed() {
    let origin = telling(&["x-tenant"], &[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), "key = { headers = [\"x-tenant\"] }"));
    let request = "GET /a HTTP/1.1\r\nhost: a.test\r\nx-tenant: good\r\nconnection: close, X-Tenant\r\n\r\n";
    let hidden = raw_exchange(proxy.address, request).await;
    assert!(hidden.contains("x-tenant= "), "{hidden}");
    let request = "GET /a HTTP/1.1\r\nhost: a.test\r\nx-tenant: good\r\nconnection: close\r\n\r\n";
    let shown = raw_exchange(proxy.address, request).await;
    assert!(shown.contains("x-tenant=good "), "{shown}");
}

#[tokio::test]
async fn a_field_that_connection_names_selects_no_variant() {
    let origin = telling(&["x-tenant"], &[("cache-control", "max-age=60"), ("vary", "x-tenant")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for (connection, expected) in [("close, x-tenant", "x-tenant= "), ("close", "x-tenant=good ")] {
        let request = format!("GET /a HTTP/1.1\r\nhost: a.test\r\nx-tenant: good\r\nconnection: {connection}\r\n\r\n");
        let answer = raw_exchange(proxy.address, &request).await;
        assert!(answer.contains(expected), "{connection}: {answer}");
    }
}

#[tokio::test]
async fn routes_that_do_not_key_the_host_share_no_key() {
    let [a, b] = ["a", "b"].map(|name| {
        Origin::start(move |_| async move { reply(200, &[("cache-control", "max-age=60")], &format!("from {name}")) })
    });
    let route = |name: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\nhost = \"{name}.test\"\npath = \"/x\"\nupstream = \"{name}\"\nkey = {{ host = false }}\n"
        )
    };
    let upstreams = format!("[upstream.a]\nurl = \"{}\"\n\n[upstream.b]\nurl = \"{}\"\n\n", a.url(), b.url());
    let proxy = Proxy::start(&format!("{upstreams}{}{}", route("a"), route("b")));
    for _ in 0..2 {
        for host in ["a", "b"] {
            let request = format!("GET /x HTTP/1.1\r\nhost: {host}.test\r\nconnection: close\r\n\r\n");
            let answer = raw_exchange(proxy.address, &request).await;
            assert!(answer.ends_with(&format!("from {host}")), "{answer}");
        }
    }
    assert_eq!((a.count("/x"), b.count("/x")), (1, 1));
}
