//! What one client sends changes nothing of what the next one gets: an attack, then a clean request, whose answer is the
//! one that a client without a cache gets.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::origin::Seen;
use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::stage::{get, get_from, send, told};
use crate::world::{Origin, Proxy, Redis, Stage, client, field, reply};

const TTL: &str = "ttl = \"1m\"\n";

/// A field of the request, as text.
fn value<'s>(seen: &'s Seen, name: &str) -> &'s str {
    seen.fields.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// Fields by which a client could pass for a proxy.
const CLAIMS: [&str; 26] = [
    "X-Forwarded-Host: evil",
    "X-Host: evil",
    "X-Forwarded-Server: evil",
    "Forwarded: host=evil;proto=evil",
    "X-HTTP-Host-Override: evil",
    "X-Original-Host: evil",
    "X-Forwarded: evil",
    "X-Forwarded-For: evil",
    "X-Real-IP: evil",
    "True-Client-IP: evil",
    "X-Forwarded-Scheme: evil",
    "X-Forwarded-Proto: evil",
    "X-Forwarded-Port: evil",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Ssl: evil",
    "Front-End-Https: evil",
    "X-Url-Scheme: evil",
    "X-Original-URL: /evil",
    "X-Original-URI: /evil",
    "X-Rewrite-URL: /evil",
    "X-HTTP-Method-Override: EVIL",
    "X-HTTP-Method: EVIL",
    "X-Method-Override: EVIL",
    "X_Forwarded_Host: evil",
    "X.Forwarded.Host: evil",
    "X_HTTP_Method_Override: EVIL",
];

#[tokio::test]
async fn what_only_a_proxy_may_say_reaches_no_upstream() {
    let stage = Stage::before_mirror(TTL);
    for (nth, claim) in CLAIMS.iter().enumerate() {
        let path = format!("/{nth}");
        let attacked = stage.attack(get(&path, &format!("{claim}\r\n"))).await;
        assert!(!attacked.body.to_lowercase().contains("evil"), "{claim}: {}", attacked.body);
        stage.clean(get(&path, "")).await;
    }
    // Nor past the cache.
    for claim in CLAIMS {
        let attacked = stage.attack(get("/", &format!("cookie: a=b\r\n{claim}\r\n"))).await;
        assert!(!attacked.body.to_lowercase().contains("evil"), "{claim}: {}", attacked.body);
    }
}

/// Sends to https whoever did not come by it.
fn redirecting(seen: &Seen) -> Response<Bytes> {
    let says = |name: &str| value(seen, name);
    let is_secure = says("x-forwarded-proto") == "https" || says("forwarded").contains("proto=https");
    let location = format!("https://{}{}", says("x-forwarded-host"), seen.target);
    if is_secure { reply(200, &[], &told(seen)) } else { reply(301, &[("location", &location)], "") }
}

const TRUSTING: &str = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\n";

#[tokio::test]
async fn no_redirect_loop_is_stored_for_what_a_trusted_proxy_says_otherwise_of() {
    let origin = Origin::start(|seen| std::future::ready(redirecting(&seen)));
    let stage = Stage::with(origin, |url| format!("{TRUSTING}{}", one_route(url, TTL)));
    let plain = ["", "x-forwarded-proto: http\r\n", "forwarded: for=1;proto=http\r\n"];
    let secure = ["x-forwarded-proto: https\r\n", "forwarded: for=1;proto=https\r\n"];
    for lines in plain {
        assert_eq!(stage.attack(get("/", lines)).await.status, 301);
    }
    for lines in secure {
        let answer = stage.clean(get("/", lines)).await;
        assert_eq!((answer.status, answer.is_hit()), (200, false), "{lines}");
    }
    for lines in plain.into_iter().chain(secure) {
        assert!(stage.clean(get("/", lines)).await.is_hit(), "{lines}");
    }
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_a_request_is_keyed_and_whose_it_is_is_not() {
    let origin = Origin::start(|mut seen| async move {
        ["x-forwarded-for", "x-real-ip", "true-client-ip"].iter().for_each(|name| drop(seen.fields.remove(*name)));
        reply(200, &[], &told(&seen))
    });
    let stage = Stage::with(origin, |url| format!("{TRUSTING}{}", one_route(url, TTL)));
    let is_address =
        |claim: &str| ["X-Forwarded-For", "X-Real-IP", "True-Client-IP"].iter().any(|it| claim.starts_with(it));
    // Other spellings reach no upstream on a cached route.
    let claims = CLAIMS.iter().filter(|claim| !claim.split(':').next().unwrap().contains(['_', '.']));
    for (nth, claim) in claims.enumerate() {
        let path = format!("/{nth}");
        stage.attack(get(&path, &format!("{claim}\r\n"))).await;
        assert_eq!(stage.clean(get(&path, "")).await.is_hit(), is_address(claim), "{claim}");
    }
}

#[tokio::test]
async fn a_get_with_content_meets_no_store() {
    let stage = Stage::before_mirror(TTL);
    let with = |path: &str, framing: &str, content: &str| get(path, &format!("{framing}\r\n")) + content;
    stage.check(with("/1?q=1", "content-length: 3", "q=2"), get("/1?q=1", "")).await;
    stage.check(with("/2?q=1", "transfer-encoding: chunked", "3\r\nq=2\r\n0\r\n\r\n"), get("/2?q=1", "")).await;
    stage.check(with("/3?q=1", "transfer-encoding: chunked", "0\r\n\r\n"), get("/3?q=1", "")).await;
    let override_too =
        "content-length: 8\r\nx-http-method-override: POST\r\ncontent-type: application/x-www-form-urlencoded";
    stage.check(with("/4", override_too, "_method=1"), get("/4", "")).await;
    let head = with("/5?q=1", "content-length: 3", "q=2").replace("GET ", "HEAD ");
    stage.check(head, get("/5?q=1", "")).await;
    // Nor is it answered from the store.
    assert!(stage.clean(get("/1?q=1", "")).await.is_hit());
    let attacked = stage.attack(with("/1?q=1", "content-length: 3", "q=2")).await;
    assert_eq!(attacked.cache_status, "aside; fwd=bypass; fwd-status=200; detail=request-body");
}

#[tokio::test]
async fn what_describes_content_is_not_sent_without_any() {
    let stage = Stage::before_mirror(TTL);
    for (nth, lines) in
        ["content-type: evil\r\n", "content-encoding: evil\r\n", "content-language: evil\r\n"].iter().enumerate()
    {
        let path = format!("/{nth}");
        stage.attack(get(&path, lines)).await;
        assert!(stage.clean(get(&path, "")).await.is_hit(), "the attacker was sent on as anybody");
    }
}

#[tokio::test]
async fn parameters_are_keyed_as_they_are_sent() {
    let stage = Stage::before_mirror(TTL);
    let pairs = [
        ("?utm_x=1;q=evil", "?utm_x=1"),
        ("?q=1;q=evil", "?q=1"),
        ("?q=1&utm=a%26q=2", "?q=1&utm=a"),
        ("?q=1&q=2", "?q=1"),
        ("?q=2&q=1", "?q=1&q=2"),
        ("?q=1%26a=2", "?a=2&q=1"),
        ("?Q=1", "?q=1"),
        ("?q[]=1", "?q=1"),
        ("?_method=POST", ""),
        ("?", ""),
        ("?q=%31", "?q=1"),
        ("?q=1%00", "?q=1"),
        ("?q", "?q="),
    ];
    for (nth, (attack, clean)) in pairs.iter().enumerate() {
        stage.check(get(&format!("/{nth}{attack}"), ""), get(&format!("/{nth}{clean}"), "")).await;
    }
}

#[tokio::test]
async fn a_parameter_that_is_not_keyed_is_not_sent_with_all_that_hangs_on_it() {
    for rule in ["\"tracking\"", "{ deny = [\"utm_*\", \"utm\"] }", "{ allow = [\"q\"] }"] {
        let stage = Stage::before_mirror(&format!("{TTL}key = {{ query = {rule} }}"));
        let attacks = [
            "?utm_x=1;q=evil&q=1",
            "?q=1&utm_x=a%26q=evil",
            "?utm%5Fx=evil&q=1",
            "?q=1&utm_x=1&utm_x=evil",
            "?&&q=1&utm_x",
        ];
        for (nth, query) in attacks.iter().enumerate() {
            stage.attack(get(&format!("/{nth}{query}"), "")).await;
            assert!(stage.clean(get(&format!("/{nth}?q=1"), "")).await.is_hit(), "{query}");
        }
        // What only looks like one is keyed.
        stage.check(get("/x?q=1;utm_x=evil", ""), get("/x?q=1", "")).await;
        assert_eq!(stage.origin.seen().last().unwrap().target, "/x?q=1");
    }
}

/// One route, whose upstream is sent this host.
fn with_host(url: &str, host: &str) -> String {
    one_route(url, TTL).replacen("\n\n", &format!("\nhost = \"{host}\"\n\n"), 1)
}

#[tokio::test]
async fn a_host_and_its_port_are_keyed() {
    let attacks = ["a.test:1337", "b.test", "a.test.evil", "xn--a.test", "[::1]", "127.0.0.1"];
    for host in ["upstream", "preserve"] {
        let origin = Origin::start(|seen| async move { reply(200, &[], &told(&seen)) });
        let stage = Stage::with(origin, |url| with_host(url, host));
        for (nth, attack) in attacks.iter().enumerate() {
            let path = format!("/{nth}");
            stage.check(get_from(attack, &path), get(&path, "")).await;
        }
    }
}

#[tokio::test]
async fn one_host_has_one_name_for_key_and_upstream() {
    let origin = Origin::start(|seen| async move { reply(200, &[], &told(&seen)) });
    let stage = Stage::with(origin, |url| with_host(url, "preserve"));
    for (nth, host) in ["A.TEST", "a.test.", "a.test:80", "a.test:", "A.Test.:80"].iter().enumerate() {
        let path = format!("/{nth}");
        let attacked = stage.attack(get_from(host, &path)).await;
        assert!(attacked.body.contains("\nhost: a.test\n"), "{host}: {}", attacked.body);
        let answer = stage.clean(get(&path, "")).await;
        assert!(answer.is_hit(), "{host}: {attacked:?} {answer:?}");
    }
    for host in ["a.test..", ".a.test", "a.test:80:80", "a.test:x", "a%2etest", "a.test/b", "a.test?b", "u@a.test"] {
        assert_eq!(stage.attack(get_from(host, "/")).await.status, 400, "{host}");
    }
}

#[tokio::test]
async fn hosts_that_share_a_key_are_not_told_to_the_upstream() {
    let stage = Stage::before_mirror(&format!("{TTL}key = {{ host = false }}"));
    let attacked = stage.attack(get_from("evil.test:1337", "/")).await;
    assert!(!attacked.body.contains("evil"), "{}", attacked.body);
    let clean = stage.attack(get("/", "")).await;
    assert!(clean.is_hit() && clean.body == attacked.body, "{clean:?}");
}

/// Sends one GET of `/` at `a.test` over HTTP/2, with what a client says the scheme is, and reads to the stream's end.
async fn get_over_http2(proxy: &Proxy, scheme: u8) {
    const END_STREAM: u8 = 1;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // GET, the scheme from the static table, path and authority as text.
    let block = [b"\x82", &[scheme][..], b"\x84\x01\x06a.test"].concat();
    request.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    request.extend(block);
    stream.write_all(&request).await.unwrap();
    let read = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] <= 1 && head[8] == 1 && head[4] & END_STREAM != 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer");
}

#[tokio::test]
async fn the_scheme_is_the_listeners_whatever_the_message_says() {
    const SCHEME_HTTPS: u8 = 0x87;
    let stage = Stage::before_mirror(TTL);
    get_over_http2(&stage.cached, SCHEME_HTTPS).await;
    assert_eq!(value(&stage.origin.seen()[0], "x-forwarded-proto"), "http");
    assert!(stage.clean(get("/", "")).await.is_hit());
    let attacked = stage.attack(get("https://a.test/b", "")).await;
    assert!(attacked.body.contains("\nx-forwarded-proto: http\n"), "{}", attacked.body);
    assert!(stage.clean(get("/b", "")).await.is_hit());
}

#[tokio::test]
async fn listeners_of_different_schemes_share_nothing_but_redis() {
    let redis = Redis::start();
    let origin = Origin::start(|seen| async move { reply(200, &[], value(&seen, "x-forwarded-proto")) });
    let plain = one_route_with_redis(&origin.url(), &redis.url(), TTL);
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let tls = format!("[server]\ntls = {{ cert = {cert:?}, key = {key:?} }}\n\n{plain}");
    let (plain, secure) = (Proxy::start(&plain), Proxy::start(&tls));
    plain.until_redis_is_up().await;
    let root = reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap();
    let trusting = crate::world::builder().tls_certs_only([root]).resolve("a.test", secure.address).http1_only();
    let trusting = trusting.build().unwrap();
    assert_eq!(send(plain.address, get("/", "").as_bytes()).await.body, "http");
    crate::world::redis::wait_until("a record", || redis.records().len() == 1);
    let url = format!("https://a.test:{}/", secure.address.port());
    let answer = trusting.get(&url).header("host", "a.test").send().await.unwrap();
    assert!(!field(&answer, "cache-status").contains("; hit"));
    assert_eq!(answer.text().await.unwrap(), "https");
}

#[tokio::test]
async fn no_part_of_a_request_passes_for_another_in_the_key() {
    let redis = Redis::start();
    let origin = Origin::start(|seen| async move { reply(200, &[], &told(&seen)) });
    let route = format!("{TTL}key = {{ headers = [\"x-a\", \"x-b\"] }}");
    let stage = Stage::with(origin, |url| one_route_with_redis(url, &redis.url(), &route));
    stage.cached.until_redis_is_up().await;
    let pairs = [
        (get("/1$$q=1", ""), get("/1?q=1", "")),
        (get("/2%3Fq=1", ""), get("/2?q=1", "")),
        (get("/3", "x-a: 1|x-b=2\r\n"), get("/3", "x-a: 1\r\nx-b: 2\r\n")),
        (get("/4", "x-a: 1\tx-b: 2\r\n"), get("/4", "x-a: 1\r\nx-b: 2\r\n")),
        (get("/5", "x-a: 1, 2\r\n"), get("/5", "x-a: 1\r\nx-a: 2\r\n")),
        (get("/6", "x-a: 1\r\n"), get("/6", "x-b: 1\r\n")),
        (get("/7", "x-a:\r\n"), get("/7", "")),
        (get("/8%0D%0Ax-a:%201", ""), get("/8", "x-a: 1\r\n")),
        (get("/9%00", ""), get("/9", "")),
        (get("/10?a=%7C", ""), get("/10?a=|", "")),
        (get("/11?{a}", ""), get("/11?%7Ba%7D", "")),
        (get("/12/{a}b", ""), get("/12/{a}", "")),
        (get_from("a.test", "/b.test"), get_from("a.testb.test", "/")),
    ];
    for (attack, clean) in pairs {
        stage.check(&attack, &clean).await;
    }
    let is_ours = |key: &String| {
        let rest = key.trim_start_matches("aside:r:");
        rest.bytes().all(|byte| byte.is_ascii_hexdigit() || b":{}b".contains(&byte))
    };
    crate::world::redis::wait_until("the records", || redis.records().len() >= 20);
    let records = redis.records();
    assert!(!records.is_empty() && records.iter().all(is_ours), "{records:?}");
}

#[tokio::test]
async fn a_path_is_keyed_in_the_form_that_is_sent() {
    let stage = Stage::before_mirror(TTL);
    for (attack, sent) in [
        ("/%61", "/a"),
        ("/b%2f", "/b%2F"),
        ("/%7Euser", "/~user"),
        ("/c/./d/../e", "/c/e"),
        ("/f%c3%a9", "/f%C3%A9"),
        ("/g%2e%2e", "/g.."),
        ("/%2525", "/%2525"),
    ] {
        stage.attack(get(attack, "")).await;
        assert_eq!(stage.origin.seen().last().unwrap().target, sent, "{attack}");
        assert!(stage.clean(get(sent, "")).await.is_hit(), "{attack}");
    }
    for (attack, clean) in [
        ("/A", "/a"),
        ("/k%2Fl", "/k/l"),
        ("/m%00", "/m"),
        ("/n%25", "/n"),
        ("/%2561", "/a"),
        ("/o%20", "/o"),
        ("/p//", "/p/"),
        ("/q/", "/q"),
        ("/r;x", "/r"),
        ("/s%3Bx", "/s;x"),
        ("/t%3Fu", "/t?u"),
        ("/v%23", "/v"),
    ] {
        // `/a` is stored since the first one.
        let is_known = stage.attack(get(clean, "")).await.is_hit();
        stage.attack(get(attack, "")).await;
        let answer = stage.clean(get(clean, "")).await;
        assert!(answer.body.starts_with(&format!("GET {clean}\n")), "{attack} {is_known}: {}", answer.body);
    }
    for bad in ["/%zz", "/%", "/%4", "/a\\b", "/%2e%2e%2fx", "/x/..%5cy", "/x/..;/y"] {
        assert_eq!(stage.attack(get(bad, "")).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn only_a_get_makes_what_a_get_gets() {
    let stage = Stage::before_mirror(TTL);
    for method in ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "QUERY", "EVIL"] {
        let attack = get(&format!("/{method}"), "content-length: 0\r\n").replacen("GET", method, 1);
        stage.check(attack, get(&format!("/{method}"), "")).await;
    }
    stage.clean(get("/a", "")).await;
    let head = stage.attack(get("/a", "").replacen("GET", "HEAD", 1)).await;
    assert!(head.is_hit() && head.body.is_empty(), "{head:?}");
    assert!(stage.clean(get("/a", "")).await.is_hit());
}

#[tokio::test]
async fn a_head_beyond_the_limits_reaches_no_upstream() {
    let stage = Stage::before_mirror(TTL);
    let fields = |count: usize| (0..count).map(|nth| format!("x-{nth}: 1\r\n")).collect::<String>();
    let large = |bytes: usize| format!("x-large: {}\r\n", "a".repeat(bytes));
    let attacks = [
        large(16 << 10),
        large(64 << 10),
        fields(101),
        fields(400),
        large(16 << 10).replace("x-large: ", "cookie: a="),
    ];
    for attack in &attacks {
        assert_eq!(stage.attack(get("/", attack)).await.status, 431);
    }
    assert_eq!(stage.attack(get(&format!("/?{}", "a".repeat(9 << 10)), "")).await.status, 414);
    assert_eq!(stage.origin.seen().len(), 0);
    assert!(!stage.clean(get("/", "")).await.is_hit());
}

#[tokio::test]
async fn what_an_origin_says_of_one_request_is_not_stored_though_it_be_fresh() {
    let refusing = |seen: Seen| match value(&seen, "x-refuse").parse() {
        Ok(status) => reply(status, &[("cache-control", "public, max-age=60"), ("etag", "\"a\"")], "refused"),
        Err(_) if seen.fields.values().any(|value| value.len() > 4 << 10) => {
            reply(400, &[("cache-control", "max-age=60")], "too large")
        }
        Err(_) => reply(200, &[("cache-control", "max-age=60")], "good"),
    };
    let stage = Stage::before("ttl = \"1m\"\nttl_mode = \"override\"", refusing);
    for status in [400, 407, 408, 412, 413, 414, 416, 417, 425, 428, 429, 431, 511] {
        let path = format!("/{status}");
        stage.check(get(&path, &format!("x-refuse: {status}\r\n")), get(&path, "")).await;
    }
    let oversized = format!("x-large: {}\r\n", "a".repeat(8 << 10));
    assert_eq!(stage.attack(get("/large", &oversized)).await.status, 400);
    assert!(!stage.clean(get("/large", "")).await.is_hit());
}

#[tokio::test]
async fn a_value_with_meta_characters_is_refused_and_one_beyond_ascii_is_its_senders_affair() {
    let failing = |seen: Seen| match seen.fields.get("x-meta") {
        Some(_) => reply(404, &[("cache-control", "max-age=60")], "what is this"),
        None => reply(200, &[], "good"),
    };
    let stage = Stage::before(TTL, failing);
    for bad in [&b"\x07"[..], b"a\nb", b"a\rb", b"\0", b"\x7f"] {
        let request = [get("/", "").trim_end_matches("\r\n").as_bytes(), b"\r\nx-meta: ", bad, b"\r\n\r\n"].concat();
        let attacked = stage.attack(&request).await;
        assert_eq!(attacked.status, 400, "{}", request.escape_ascii());
    }
    assert_eq!(stage.origin.seen().len(), 0);
    for bytes in [&b"\x80"[..], b"\xff", "\u{e9}".as_bytes()] {
        let request = [get("/", "").trim_end_matches("\r\n").as_bytes(), b"\r\nx-meta: ", bytes, b"\r\n\r\n"].concat();
        let attacked = stage.attack(&request).await;
        assert_eq!(attacked.cache_status, "aside; fwd=bypass; fwd-status=404; detail=non-ascii");
    }
    assert!(!stage.clean(get("/", "")).await.is_hit());
}

#[tokio::test]
async fn an_error_is_stored_only_where_the_route_names_it() {
    const ERRORS: [u16; 16] = [400, 401, 402, 403, 404, 405, 406, 409, 410, 414, 422, 431, 500, 501, 503, 599];
    let failing = |seen: Seen| match value(&seen, "x-fail").parse() {
        Ok(status) => reply(status, &[], "failed"),
        Err(_) if seen.target == "/gone" => reply(404, &[], "gone"),
        Err(_) => reply(200, &[], "good"),
    };
    let stage = Stage::before("ttl = \"1h\"\nttl_mode = \"override\"\nheuristic = 0.5", failing);
    for status in ERRORS {
        let path = format!("/{status}");
        stage.check(get(&path, &format!("x-fail: {status}\r\n")), get(&path, "")).await;
    }
    let named = Stage::before("ttl = \"1h\"\nstatus_ttl = { 404 = \"10s\" }\nttl_jitter = 0.0", failing);
    named.attack(get("/gone", "")).await;
    assert!(named.clean(get("/gone", "")).await.is_hit());
    named.cached.clock.advance(Duration::from_secs(11));
    assert!(!named.clean(get("/gone", "")).await.is_hit());
    named.check(get("/403", "x-fail: 403\r\n"), get("/403", "")).await;
}

/// Fields that an origin may reflect.
const REFLECTED: [&str; 10] = [
    "Accept: evil",
    "User-Agent: evil",
    "Accept-Language: evil",
    "Origin: https://evil",
    "Referer: https://evil",
    "X-Evil: evil",
    "Via: 1.1 evil",
    "Accept_Language: evil",
    "Content-Type: evil",
    "DNT: evil",
];

#[tokio::test]
async fn with_a_list_of_fields_no_other_reaches_the_upstream() {
    for list in ["[]", "[\"accept-charset\"]"] {
        let stage = Stage::before_mirror(&format!("{TTL}forward_headers = {list}"));
        for (nth, line) in REFLECTED.iter().enumerate() {
            let path = format!("/{nth}");
            let attacked = stage.attack(get(&path, &format!("{line}\r\n"))).await;
            assert!(!attacked.body.contains("evil"), "{line}: {}", attacked.body);
            assert!(stage.clean(get(&path, "")).await.is_hit(), "{line}");
        }
    }
    // What is not sent selects nothing.
    let varying = |seen: Seen| reply(200, &[("vary", "user-agent, x-evil")], &told(&seen));
    let stage = Stage::before(&format!("{TTL}forward_headers = []"), varying);
    stage.attack(get("/", "user-agent: evil\r\nx-evil: 1\r\n")).await;
    assert!(stage.clean(get("/", "user-agent: good\r\n")).await.is_hit());
}

#[tokio::test]
async fn what_a_route_takes_out_of_vary_stays_out_when_it_is_validated() {
    let validating = |seen: Seen| {
        let fields = [("vary", "user-agent"), ("etag", "\"a\""), ("cache-control", "max-age=60")];
        let status = if value(&seen, "if-none-match").is_empty() { 200 } else { 304 };
        reply(status, &fields, if status == 200 { "page" } else { "" })
    };
    let stage = Stage::before("vary = { ignore = [\"user-agent\"] }", validating);
    stage.attack(get("/", "user-agent: evil\r\n")).await;
    assert!(stage.clean(get("/", "user-agent: good\r\n")).await.is_hit());
    stage.cached.clock.advance(Duration::from_secs(61));
    stage.attack(get("/", "user-agent: evil\r\n")).await;
    assert!(stage.clean(get("/", "user-agent: good\r\n")).await.is_hit());
    assert_eq!(stage.cached.stats().await["memory"]["objects"], 1);
}

#[tokio::test]
async fn what_varies_by_a_field_is_not_shared() {
    let varying = |seen: Seen| {
        let vary = "accept, user-agent, accept-language, origin, referer, x-evil, dnt";
        reply(200, &[("vary", vary)], &told(&seen))
    };
    let stage = Stage::before(TTL, varying);
    for (nth, line) in REFLECTED.iter().enumerate().filter(|(_, line)| !line.starts_with("Via")) {
        let path = format!("/{nth}");
        stage.attack(get(&path, &format!("{line}\r\n"))).await;
        let is_withheld = line.contains('_') || line.starts_with("Content-");
        assert_eq!(stage.clean(get(&path, "")).await.is_hit(), is_withheld, "{line}");
    }
}

#[tokio::test]
async fn what_varies_by_whose_request_it_is_is_not_stored() {
    let stage = Stage::before(TTL, |seen| reply(200, &[("vary", "x-forwarded-for")], &told(&seen)));
    stage.check(get("/", ""), get("/", "")).await;
}

/// Answers in the first coding that is named, with or without a weight.
fn coding(seen: &Seen) -> Response<Bytes> {
    let accepted = value(seen, "accept-encoding");
    let coding = ["br", "gzip", "zstd"].into_iter().find(|coding| accepted.contains(coding));
    reply(200, &[("vary", "accept-encoding"), ("content-encoding", coding.unwrap_or("identity"))], accepted)
}

#[tokio::test]
async fn an_invalid_accept_encoding_is_read_alike_by_key_and_upstream() {
    let stage = Stage::before(TTL, |seen| coding(&seen));
    for attack in ["@@@,br;q=9", "br;q=x", "br;q=-1, \"gzip", "br, br;q=0", "evil-br-gzip", ",;,", "br;;q=2", "gzip/br"]
    {
        let attacked = stage.attack(get("/", &format!("accept-encoding: {attack}\r\n"))).await;
        let answer = stage.attack(get("/", "accept-encoding: identity\r\n")).await;
        assert_eq!(answer.field("content-encoding"), Some("identity"), "{attack} was {}", attacked.cache_status);
    }
    let asked = stage.origin.count("/");
    assert!(asked <= 2, "an invalid field makes no variant of its own: {asked}");
    for nth in 0..50 {
        stage.attack(get("/", &format!("accept-encoding: @{nth}, x{nth}, gzip\r\n"))).await;
    }
    assert_eq!(stage.origin.count("/"), asked + 1);
    stage.clean(get("/", "")).await;
    stage.clean(get("/", "accept-encoding: br\r\n")).await;
}

#[tokio::test]
async fn a_key_has_no_more_variants_than_allowed() {
    let varying = |seen: Seen| reply(200, &[("vary", "user-agent")], value(&seen, "user-agent"));
    let stage = Stage::before(&format!("{TTL}vary = {{ max_variants = 8 }}"), varying);
    for nth in 0..200 {
        stage.attack(get("/", &format!("user-agent: evil-{nth}\r\n"))).await;
    }
    let clean = stage.clean(get("/", "user-agent: good\r\n")).await;
    assert!(clean.cache_status.ends_with("; detail=too-many-variants"), "{}", clean.cache_status);
    let stats = stage.cached.stats().await;
    assert_eq!(stats["memory"]["objects"], 8, "{stats:#}");
    assert_eq!(stats["routes"]["all"]["not_stored_reasons"]["too-many-variants"], 193, "{stats:#}");
    stage.check(get("/other", "user-agent: evil\r\n"), get("/other", "user-agent: good\r\n")).await;
}

#[tokio::test]
async fn what_varies_by_anything_is_never_reused() {
    for vary in ["*", "accept, *", "*, *", "a b"] {
        let stage = Stage::before(TTL, move |seen| reply(200, &[("vary", vary), ("etag", "\"a\"")], &told(&seen)));
        stage.check(get("/", "x-evil: 1\r\n"), get("/", "")).await;
        stage.check(get("/", "x-evil: 1\r\n"), get("/", "")).await;
    }
}

#[tokio::test]
async fn what_varies_by_cookie_or_credentials_is_its_senders() {
    let varying = |seen: Seen| {
        reply(200, &[("vary", "cookie, authorization"), ("cache-control", "public, max-age=60")], &told(&seen))
    };
    let stage = Stage::before("", varying);
    for (nth, line) in ["cookie: id=evil", "authorization: Basic evil"].iter().enumerate() {
        let path = format!("/{nth}");
        let attacked = stage.attack(get(&path, &format!("{line}\r\n"))).await;
        assert!(attacked.cache_status.contains("; fwd=bypass"), "{}", attacked.cache_status);
        assert!(!stage.clean(get(&path, "")).await.is_hit());
        // Nor does what is stored for nobody answer somebody.
        stage.check(get(&path, ""), get(&path, &format!("{}\r\n", line.replace("evil", "good")))).await;
    }
    // A cookie that is not sent selects nothing; one that is keyed does.
    let stage = Stage::before("cookies = \"ignore\"\nkey = { cookies = [\"lang\"] }", varying);
    stage.attack(get("/", "cookie: id=evil\r\n")).await;
    assert!(stage.clean(get("/", "")).await.is_hit());
    stage.check(get("/", "cookie: id=evil\r\n"), get("/", "cookie: lang=de\r\n")).await;
    assert!(stage.clean(get("/", "cookie: lang=de\r\n")).await.is_hit());
}

#[tokio::test]
async fn an_authorization_that_is_no_credential_here_selects_where_it_varies() {
    let varying =
        |seen: Seen| reply(200, &[("vary", "authorization"), ("cache-control", "public, max-age=60")], &told(&seen));
    let origin = Origin::start(move |seen| std::future::ready(varying(seen)));
    let stage = Stage::with(origin, |url| format!("[server]\ncredential_headers = []\n\n{}", one_route(url, "")));
    stage.check(get("/", "authorization: evil\r\n"), get("/", "authorization: good\r\n")).await;
    stage.check(get("/", "authorization: evil\r\n"), get("/", "")).await;
}

/// By which a client says that it wants nothing stored.
const FORCING: [(&str, &str); 4] = [
    ("cache-control", "no-cache"),
    ("cache-control", "max-age=0"),
    ("pragma", "no-cache"),
    ("cache-control", "no-store"),
];

#[tokio::test]
async fn a_client_forces_no_fetch_where_its_directives_are_not_respected() {
    let stage = Stage::before_mirror(TTL);
    stage.attack(get("/", "")).await;
    for (name, value) in FORCING {
        for _ in 0..20 {
            assert!(stage.attack(get("/", &format!("{name}: {value}\r\n"))).await.is_hit(), "{name}: {value}");
        }
    }
    assert_eq!(stage.origin.count("/"), 1);
}

#[tokio::test]
async fn where_they_are_respected_a_flood_is_one_fetch() {
    let origin = Origin::start(|seen| async move {
        // This is the upstream's slowness itself, in which the whole flood comes.
        tokio::time::sleep(Duration::from_millis(300)).await;
        match seen.fields.contains_key("if-none-match") {
            true => reply(304, &[("etag", "\"a\"")], ""),
            false => reply(200, &[("etag", "\"a\""), ("cache-control", "max-age=60")], "good"),
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "client_cache_control = \"respect\""));
    let client = client();
    for (name, value) in [("cache-control", "no-cache"), ("cache-control", "max-age=0"), ("pragma", "no-cache")] {
        let url = proxy.url(&format!("/{name}/{value}"));
        let target = format!("/{name}/{value}");
        // On a cold key, and on what is stored.
        for round in 1..=2 {
            let flood = (0..100).map(|_| {
                let request = client.get(&url).header(name, value);
                async move { request.send().await.unwrap().text().await.unwrap() }
            });
            let bodies = join_all(flood).await;
            assert!(bodies.iter().all(|body| body == "good"), "{bodies:?}");
            assert_eq!(origin.count(&target), round, "{name}: {value}");
        }
    }
}
