//! Fields that end at a hop, hosts, targets, and who says whom a request comes from: what an attacker makes of them.

use tokio::io::AsyncWriteExt;

use crate::protocols::raw_exchange;
use crate::world::proxy::one_route;
use crate::world::{Got, Origin, Proxy, RawOrigin, client, field, get, h2c_client, reply};

/// An upstream that tells what it was asked with, for one minute.
fn telling(names: &'static [&'static str]) -> Origin {
    Origin::start(move |seen| async move {
        let of = |name: &&str| seen.fields.get(*name).map(|value| value.to_str().unwrap().to_owned());
        let told: Vec<String> = names.iter().map(|name| of(name).unwrap_or_else(|| "-".to_owned())).collect();
        reply(200, &[("cache-control", "max-age=60")], &format!("{} {}", told.join(" "), seen.body.len()))
    })
}

/// Sends a head and content as they are, on a connection that is closed after the answer; status, Cache-Status, body.
async fn raw(proxy: &Proxy, line: &str, fields: &str, content: &str) -> Got {
    let answer = raw_exchange(proxy.address, &format!("{line} HTTP/1.1\r\n{fields}\r\n{content}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let cache_status = head.lines().find_map(|line| line.strip_prefix("cache-status: ")).unwrap_or_default().to_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    // Every body here is short enough to be one chunk, if it is chunked at all.
    Got { status, cache_status, body: body.to_owned() }
}

#[tokio::test]
async fn connection_takes_away_nothing_that_a_judgment_rests_on() {
    let origin = telling(&["cookie", "authorization"]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for (nth, (named, field, told)) in [
        ("Cookie", "Cookie: id=alice\r\n", "id=alice - 0"),
        ("Authorization", "Authorization: Basic YQ==\r\n", "- Basic YQ== 0"),
        ("cookie , AUTHORIZATION", "Cookie: id=bob\r\nAuthorization: x\r\n", "id=bob x 0"),
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!("GET /{nth}");
        let attack = raw(&proxy, &line, &format!("Host: a.test\r\nConnection: close, {named}\r\n{field}"), "").await;
        assert_eq!((attack.status, attack.body.as_str()), (200, told), "{named}");
        assert!(attack.cache_status.contains("fwd=bypass"), "{named}: {attack:?}");
        let clean = raw(&proxy, &line, "Host: a.test\r\nConnection: close\r\n", "").await;
        assert_eq!((clean.body.as_str(), clean.cache_status.contains("hit")), ("- - 0", false), "{named}: {clean:?}");
    }
}

#[tokio::test]
async fn connection_takes_away_neither_host_nor_framing_nor_the_clients_own_directives() {
    let origin = telling(&["x-forwarded-host", "content-length"]);
    let proxy = Proxy::start(&one_route(&origin.url(), "client_cache_control = \"respect\""));
    let host = raw(&proxy, "GET /a", "Host: a.test\r\nConnection: close, Host\r\n", "").await;
    assert_eq!(host.body, "a.test - 0");
    let fields = "Host: a.test\r\nContent-Length: 5\r\nConnection: close, Content-Length\r\n";
    assert_eq!(raw(&proxy, "POST /b", fields, "GET /").await.body, "a.test 5 5", "the content stays content");
    let fields = "Host: a.test\r\nCache-Control: no-store\r\nConnection: close, Cache-Control\r\n";
    let unstored = raw(&proxy, "GET /c", fields, "").await;
    assert!(!unstored.cache_status.contains("stored"), "{unstored:?}");
}

#[tokio::test]
async fn a_field_that_connection_names_is_neither_sent_nor_selects() {
    let origin = Origin::start(|seen| async move {
        let of = |name| seen.fields.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        reply(200, &fields, &format!("{} {}", of("accept-language"), of("x-tenant")))
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "key = { headers = [\"x-tenant\"] }"));
    let of = "Host: a.test\r\nAccept-Language: de\r\nX-Tenant: one\r\n";
    for (path, named, told) in [
        ("/a", "Accept-Language", "- one"),
        ("/b", "X-Tenant", "de -"),
        ("/c", "x-tenant, accept-language, Age", "- -"),
    ] {
        let fields = format!("{of}Age: 9\r\nConnection: close, {named}\r\n");
        let attack = raw(&proxy, &format!("GET {path}"), &fields, "").await;
        assert_eq!(attack.body, told, "{named}");
        let clean = raw(&proxy, &format!("GET {path}"), &format!("{of}Connection: close\r\n"), "").await;
        assert_eq!((clean.body.as_str(), clean.cache_status.contains("hit")), ("de one", false), "{named}: {clean:?}");
    }
    assert!(origin.seen().iter().all(|seen| !seen.fields.contains_key("connection")), "it ends here");
}

#[tokio::test]
async fn connection_does_not_hide_who_asks() {
    let origin = telling(&["x-forwarded-for", "x-forwarded-proto"]);
    let toml = format!("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n\n{}", one_route(&origin.url(), "cache = false"));
    let proxy = Proxy::start(&toml);
    let fields = "Host: a.test\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
                  Connection: close, X-Forwarded-For, X-Forwarded-Proto\r\n";
    assert_eq!(raw(&proxy, "GET /a", fields, "").await.body, "203.0.113.9, 127.0.0.1 https 0");
    let untrusting = Proxy::start(&one_route(&origin.url(), "cache = false"));
    assert_eq!(raw(&untrusting, "GET /a", fields, "").await.body, "127.0.0.1 http 0");
}

#[tokio::test]
async fn the_fields_of_one_hop_reach_neither_upstream_nor_store_nor_client() {
    const OWN: [&str; 9] = [
        "keep-alive",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
    ];
    let origin = RawOrigin::start(|mut stream, head| async move {
        let head = head.to_lowercase();
        let leaked: Vec<&str> = OWN.into_iter().filter(|name| head.contains(&format!("\r\n{name}:"))).collect();
        let told = format!("leaked {leaked:?}");
        let own: String = OWN.iter().map(|name| format!("{name}: x\r\n")).collect();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nconnection: close, x-private\r\nx-private: secret\r\n\
             {own}content-length: {}\r\n\r\n{told}",
            told.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let sent: String = OWN.iter().map(|name| format!("{name}: x\r\n")).collect();
    for (line, hit) in [("GET /a", false), ("GET /a", true), ("POST /b", false)] {
        let fields = format!("host: a.test\r\nconnection: close\r\n{sent}");
        let answer = raw_exchange(proxy.address, &format!("{line} HTTP/1.1\r\n{fields}\r\n")).await;
        assert!(answer.ends_with("leaked []"), "{line}: {answer}");
        assert_eq!(answer.contains("aside; hit"), hit, "{line}: {answer}");
        for name in OWN.iter().chain(&["x-private"]) {
            assert!(!answer.contains(&format!("\r\n{name}:")), "{line}: {name} in {answer}");
        }
    }
}

#[tokio::test]
async fn what_has_no_clear_host_is_refused_and_closed_and_reaches_nobody() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for fields in [
        "",
        "Host: a.test\r\nHost: b.test\r\n",
        "Host: a.test\r\nHost: a.test\r\n",
        "Host:\r\n",
        "Host: a@b\r\n",
        "Host: a/b\r\n",
        "Host: a/b?c\r\n",
        "Host: a b\r\n",
        "Host: a.test, b.test\r\n",
        "Host: a.test:x\r\n",
        "Host: a.test:99999\r\n",
        "Host: [::1\r\n",
        "Host: a%00b\r\n",
        "Host: a\\b\r\n",
        "Host: http://a.test\r\n",
        "Host: \u{e4}.test\r\n",
    ] {
        // Without `Connection: close`: that the answer ends shows that the proxy closes. What follows is no request.
        let follow = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
        for version in ["1.1", "1.0"] {
            let request = format!("GET /a HTTP/{version}\r\n{fields}\r\n{follow}");
            let answer = raw_exchange(proxy.address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/{version} 400 ")), "{request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{request:?}: {answer}");
        }
    }
    assert_eq!(origin.seen().len(), 0);
    assert_eq!(get(&client(), &proxy.url("/a")).await.body, "/a 0");
}

#[tokio::test]
async fn a_host_that_is_not_listed_is_misdirected_and_reaches_nobody() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let toml = format!("[server]\nhosts = [\"a.test\"]\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let close = "Connection: close\r\n";
    for (line, host) in [
        ("GET /a", "b.test"),
        ("GET /a", "a.test.evil"),
        ("GET /a", "127.0.0.1"),
        ("GET http://b.test/a", "a.test"),
        ("GET http://b.test", "a.test"),
        ("GET https://b.test/a", "a.test"),
    ] {
        let refused = raw(&proxy, line, &format!("Host: {host}\r\n{close}"), "").await;
        assert_eq!(refused.status, 421, "{line} {host}: {refused:?}");
    }
    assert_eq!(h2c_client().get(proxy.url("/a")).send().await.unwrap().status(), 421, "and by HTTP/2");
    assert_eq!(origin.seen().len(), 0);
    for host in ["a.test", "A.TEST", "a.test.", "a.test:80"] {
        let clean = raw(&proxy, "GET /a", &format!("Host: {host}\r\n{close}"), "").await;
        assert_eq!(clean.body, "/a 0", "{host}");
    }
}

#[tokio::test]
async fn the_authority_of_an_absolute_target_takes_the_place_of_host() {
    let origin = telling(&["x-forwarded-host", "host"]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let close = "Connection: close\r\n";
    let own = origin.address;
    let ask = async |line: &str, host: &str| raw(&proxy, line, &format!("Host: {host}\r\n{close}"), "").await;
    // The attacker's answer is the other host's alone.
    for (line, clean) in [("GET http://evil.test/a", "GET /a"), ("GET http://evil.test", "GET /")] {
        assert_eq!(ask(line, "a.test").await.body, format!("evil.test {own} 0"));
        let clean = ask(clean, "a.test").await;
        assert_eq!((clean.body, clean.cache_status.contains("hit")), (format!("a.test {own} 0"), false));
    }
    assert_eq!(ask("GET http://evil.test?x", "a.test").await.body, format!("evil.test {own} 0"));
    // The scheme is the listener's, whatever the target says: one key.
    assert!(ask("GET https://a.test/a", "b.test").await.cache_status.contains("hit"));
    assert_eq!(
        origin.seen().iter().map(|seen| seen.target.as_str()).collect::<Vec<_>>(),
        ["/a", "/a", "/", "/", "/?x"]
    );
}

#[tokio::test]
async fn targets_in_a_form_that_their_method_does_not_have_are_refused() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    for (line, status) in [
        ("GET evil.test:80", 400),
        ("GET a.test", 400),
        ("GET *", 400),
        ("POST *", 400),
        ("GET gopher://a.test/", 400),
        ("GET ftp://a.test/a", 400),
        ("GET javascript:alert(1)", 400),
        ("GET http:///a", 400),
        ("GET http://u@a.test/", 400),
        ("GET http://u:p@a.test/", 400),
        ("GET http://a.test:x/", 400),
        ("CONNECT a.test:443", 405),
        ("CONNECT 169.254.169.254:80", 405),
        ("OPTIONS *", 204),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
        let answer = raw_exchange(proxy.address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
    }
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn nobody_passes_for_somebody_else_by_forwarding_fields() {
    let origin = telling(&["x-forwarded-for", "forwarded"]);
    let spoofs = ["forwarded: for=127.0.0.1;host=evil", "x-forwarded-for: 127.0.0.1", "x-real-ip: 127.0.0.1"];
    // A client behind a proxy that is not trusted is the proxy's peer for the figures, and says itself that it is not.
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    for spoof in spoofs {
        let fields = format!("host: a.test\r\nconnection: close\r\n{spoof}\r\n");
        let answer = raw(&proxy, "GET /cache-stats", &fields, "").await;
        assert_eq!(answer.body, "127.0.0.1 - 0", "{spoof}: no figures, and no spoof at the upstream");
        let hidden = format!("host: a.test\r\nconnection: close, forwarded, x-forwarded-for, x-real-ip\r\n{spoof}\r\n");
        assert_eq!(raw(&proxy, "GET /cache-stats", &hidden, "").await.body, "127.0.0.1 - 0", "{spoof}, hidden");
    }
    // Behind a trusted proxy the rightmost address that is no trusted one counts, on whatever line.
    let toml = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\nstats = {{ allow = [\"198.51.100.0/24\"] }}\n\
         [log]\nformat = \"json\"\n\n{}",
        one_route(&origin.url(), "cache = false")
    );
    let proxy = Proxy::start(&toml);
    let fields = "host: a.test\r\nconnection: close\r\nx-forwarded-for: 198.51.100.7\r\n\
                  x-forwarded-for: 203.0.113.9, 10.0.0.3\r\n";
    let answer = raw(&proxy, "GET /cache-stats", fields, "").await;
    assert_eq!(answer.body, "198.51.100.7, 203.0.113.9, 10.0.0.3, 127.0.0.1 - 0");
    let lines = proxy.stopped_lines();
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["client"], "203.0.113.9", "{line}");
}

#[tokio::test]
async fn an_http2_request_has_one_host() {
    let origin = Origin::counting(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let refused = h2c_client().get(proxy.url("/a")).header("host", "evil.test").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), field(&refused, "connection")), (400, String::new()));
    assert_eq!(origin.seen().len(), 0);
    assert_eq!(h2c_client().get(proxy.url("/a")).send().await.unwrap().text().await.unwrap(), "/a 0");
}
