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

#[tokio::test]
async fn content_that_cannot_be_read_is_refused_and_no_part_of_it_sent_on() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let route = "methods = [\"POST\"]\nrequest_body_max = \"1 KiB\"\nkey = { body = \"raw\" }";
    let limits = "[server.limits]\nbody_idle_timeout = \"100ms\"\n\n";
    let proxy = Proxy::start(&format!("{limits}{}", one_route(&origin.url(), route)));
    let check = async |content: &str, expected: &str| {
        let head = "POST /a HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let answer = raw_exchange(proxy.address, &format!("{head}{content}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{content:?}: {answer}");
    };
    let large = "A".repeat(2000);
    check(&format!("7d0\r\n{large}\r\n9\r\ntail-only\r\n0\r\n\r\n"), "413").await;
    check("5\r\nbegin\r\n", "408").await;
    check("5\r\nbegin\r\nno size\r\n9\r\ntail-only\r\n0\r\n\r\n", "400").await;
    assert_eq!(origin.seen().len(), 0);
    check("5\r\nwhole\r\n0\r\n\r\n", "200").await;
    assert_eq!(origin.seen()[0].body, "whole");
}
