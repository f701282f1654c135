//! Nobody sees what is another's: not by a path that looks static, nor by cookies, credentials, directives, ranges and
//! validators.

use std::time::Duration;

use bytes::Bytes;
use http::Response;

use crate::world::origin::Seen;
use crate::world::proxy::one_route;
use crate::world::stage::{get, told};
use crate::world::{Origin, RawOrigin, Stage, reply};

/// A field of the request, as text.
fn value<'s>(seen: &'s Seen, name: &str) -> &'s str {
    seen.fields.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// Who asks, by a field that no cache knows of.
const ALICE: &str = "x-user: alice\r\n";
const BOB: &str = "x-user: bob\r\n";

/// Answers by who asks whatever lies below `/account` for a lenient server; without a word on caching.
fn lenient(seen: &Seen) -> Response<Bytes> {
    let is_account = seen.target.starts_with("/account") || seen.target.starts_with("//account");
    let body = if is_account { format!("account of {}", value(seen, "x-user")) } else { seen.target.clone() };
    reply(200, &[("content-type", "text/css")], &body)
}

#[tokio::test]
async fn a_path_that_looks_static_is_not_stored_for_that() {
    let stage = Stage::before("stale_if_error = \"60s\"\nheuristic = 0.5", |seen| lenient(&seen));
    for path in [
        "/account/x.css",
        "/account/%0Ax.css",
        "/account%0a.js",
        "/account%3fx.css",
        "/account%3Fx.png",
        "/account%23x.css",
        "/account;x.css",
        "/account%3bx.ico",
        "/account%00.js",
        "/account/.css",
        "/account/x.css?v=1",
        "/account/robots.txt",
    ] {
        let victim = stage.attack(get(path, ALICE)).await;
        assert!(victim.body == "account of alice" && !victim.cache_status.contains("stored"), "{path}: {victim:?}");
        stage.check(get(path, ALICE), get(path, BOB)).await;
        stage.check(get(path, ALICE), get(path, "")).await;
    }
}

#[tokio::test]
async fn a_cookie_or_credential_passes_by_even_what_is_static() {
    let stage = Stage::before("ttl = \"1h\"\nttl_mode = \"override\"", |seen| reply(200, &[], &told(&seen)));
    for (nth, line) in ["cookie: id=alice", "authorization: alice", "x-api-key: alice"].iter().enumerate() {
        let path = format!("/static/{nth}.css");
        let victim = stage.attack(get(&path, &format!("{line}\r\n"))).await;
        assert!(victim.body.contains("alice"), "{}", victim.body);
        stage.check(get(&path, &format!("{line}\r\n")), get(&path, "")).await;
    }
}

#[tokio::test]
async fn a_path_has_one_form_for_route_key_and_upstream() {
    let origin = Origin::start(|seen| std::future::ready(lenient(&seen)));
    let route = "[[route]]\nname = \"static\"\npath = \"/static/{*rest}\"\nttl = \"1h\"\n";
    let stage = Stage::with(origin, |url| format!("[upstream.api]\nurl = \"{url}\"\n\n{route}"));
    // Resolved before a route is found: none caches them.
    for path in [
        "/static/%2e%2e/account",
        "/static/../account",
        "/static/.%2E/account",
        "/./account",
        "/static/x/../../account",
    ] {
        let victim = stage.attack(get(path, ALICE)).await;
        assert_eq!(
            (victim.body.as_str(), stage.origin.seen().last().unwrap().target.as_str()),
            ("account of alice", "/account")
        );
        assert_eq!(victim.cache_status, "aside; fwd=bypass; fwd-status=200; detail=no-route");
        stage.check(get(path, ALICE), get(path, BOB)).await;
        stage.check(get(path, ALICE), get("/account", BOB)).await;
    }
    let victim = stage.attack(get("//account", ALICE)).await;
    assert_eq!(victim.cache_status, "aside; fwd=bypass; fwd-status=200; detail=no-route");
    assert_eq!(stage.origin.seen().last().unwrap().target, "//account");
    stage.check(get("//account", ALICE), get("//account", BOB)).await;
    // What servers would resolve differently is refused.
    let before = stage.origin.seen().len();
    for path in [
        "/static/..%2faccount",
        "/static/..%2Faccount",
        "/static/%2e%2e%2faccount",
        "/static/..%5caccount",
        "/static\\..\\account",
        "/static/..;/account",
        "/static/..;x=1/account",
        "/static/%2e%2e;/account",
        "/static/x%2f..%2f..%2faccount",
    ] {
        assert_eq!(stage.attack(get(path, ALICE)).await.status, 400, "{path}");
    }
    assert_eq!(stage.origin.seen().len(), before);
    // What means nothing is kept: another file, and nothing of the account's.
    for path in ["/static/%252e%252e/account", "/static/...", "/static/..account", "/static/a%2Fb"] {
        stage.attack(get(path, ALICE)).await;
        assert_eq!(stage.clean(get(path, BOB)).await.body, path);
    }
}

#[tokio::test]
async fn a_cookie_that_is_set_is_for_one_client() {
    let setting = |seen: Seen| match value(&seen, "x-user") {
        "" => reply(200, &[("cache-control", "public, max-age=60")], "page"),
        user => {
            reply(200, &[("cache-control", "public, max-age=60"), ("set-cookie", user), ("set-cookie", "b=2")], "page")
        }
    };
    let stage = Stage::before("", setting);
    let victim = stage.attack(get("/", ALICE)).await;
    assert_eq!(victim.field("set-cookie"), Some("alice"));
    stage.check(get("/", ALICE), get("/", BOB)).await;
    stage.check(get("/", ALICE), get("/", "")).await;
    assert!(stage.clean(get("/", "")).await.is_hit());
    // Stripped by an explicit rule: its own client gets it, nobody else.
    let stage = Stage::before("set_cookie = \"strip\"", setting);
    assert_eq!(stage.attack(get("/", ALICE)).await.field("set-cookie"), Some("alice"));
    let clean = stage.clean(get("/", "")).await;
    assert!(clean.is_hit() && clean.field("set-cookie").is_none(), "{clean:?}");
    assert_eq!(stage.attack(get("/", BOB)).await.field("set-cookie"), None);
}

#[tokio::test]
async fn a_304_brings_no_cookie_in() {
    for rule in ["bypass", "strip"] {
        let validating = |seen: Seen| match value(&seen, "if-none-match") {
            "" => reply(200, &[("etag", "\"a\""), ("cache-control", "max-age=60")], "page"),
            _ => reply(304, &[("etag", "\"a\""), ("cache-control", "max-age=60"), ("set-cookie", "id=1")], ""),
        };
        let stage = Stage::before(&format!("set_cookie = \"{rule}\""), validating);
        stage.clean(get("/", "")).await;
        stage.cached.clock.advance(Duration::from_secs(61));
        stage.attack(get("/", ALICE)).await;
        assert_eq!(stage.clean(get("/", "")).await.field("set-cookie"), None, "{rule}");
        assert_eq!(stage.clean(get("/", "")).await.field("set-cookie"), None, "{rule}");
        // Nor does the answer to a HEAD.
        stage.cached.clock.advance(Duration::from_secs(61));
        stage.attack(get("/", ALICE).replacen("GET", "HEAD", 1)).await;
        assert_eq!(stage.clean(get("/", "")).await.field("set-cookie"), None, "{rule}");
    }
}

/// Tells whose credential it was sent, with what the target's query says on caching.
fn telling(seen: &Seen, credential: &str) -> Response<Bytes> {
    let (_, control) = seen.target.split_once('?').unwrap_or_default();
    let control = control.replace('&', ", ");
    reply(200, &[("cache-control", &control)], &format!("for {}", value(seen, credential)))
}

#[tokio::test]
async fn what_an_authorization_gets_is_for_all_only_where_that_is_said() {
    let alice = "authorization: Bearer alice\r\n";
    let bob = "authorization: Bearer bob\r\n";
    // By default it never meets the store, whatever is said.
    let stage = Stage::before("ttl = \"1m\"", |seen| telling(&seen, "authorization"));
    for (nth, control) in ["max-age=60", "public", "s-maxage=60", "must-revalidate"].iter().enumerate() {
        let path = format!("/{nth}?{control}");
        stage.check(get(&path, alice), get(&path, bob)).await;
        stage.check(get(&path, alice), get(&path, "")).await;
        assert!(stage.clean(get(&path, "")).await.is_hit());
        stage.check(get(&path, ""), get(&path, alice)).await;
    }
    // Keyed, each has its own.
    let stage =
        Stage::before("ttl = \"1m\"\nkey = { headers = [\"authorization\"] }", |seen| telling(&seen, "authorization"));
    stage.check(get("/", alice), get("/", bob)).await;
    stage.check(get("/", alice), get("/", "")).await;
    for lines in [alice, bob, ""] {
        assert!(stage.clean(get("/", lines)).await.is_hit());
    }
    // Left to RFC 9111 §3.5, what is said decides.
    let origin = Origin::start(|seen| std::future::ready(telling(&seen, "authorization")));
    let stage =
        Stage::with(origin, |url| format!("[server]\ncredential_headers = []\n\n{}", one_route(url, "ttl = \"1m\"")));
    for control in ["max-age=60", "max-age=60&proxy-revalidate", "immutable&max-age=60"] {
        let path = format!("/?{control}");
        stage.check(get(&path, alice), get(&path, bob)).await;
        stage.check(get(&path, alice), get(&path, "")).await;
    }
    for control in ["max-age=60&public", "max-age=60&must-revalidate", "s-maxage=60"] {
        let path = format!("/?{control}");
        stage.attack(get(&path, alice)).await;
        assert!(stage.attack(get(&path, bob)).await.is_hit(), "{control}");
    }
}

#[tokio::test]
async fn a_cookie_is_kept_back_or_keyed_or_passes_by() {
    let alice = "cookie: id=alice; lang=de\r\n";
    let bob = "cookie: id=bob; lang=de\r\n";
    let stage = Stage::before("ttl = \"1m\"", |seen| telling(&seen, "cookie"));
    stage.check(get("/?public", alice), get("/?public", bob)).await;
    stage.check(get("/?public", alice), get("/?public", "")).await;
    let stage = Stage::before("ttl = \"1m\"\ncookies = \"ignore\"", |seen| telling(&seen, "cookie"));
    assert_eq!(stage.attack(get("/", alice)).await.body, "for ");
    let clean = stage.clean(get("/", "")).await;
    assert!(clean.is_hit() && clean.body == "for ", "{clean:?}");
    let keyed = "ttl = \"1m\"\ncookies = \"ignore\"\nkey = { cookies = [\"lang\"] }";
    let stage = Stage::before(keyed, |seen| telling(&seen, "cookie"));
    assert_eq!(stage.attack(get("/", alice)).await.body, "for lang=de");
    let answer = stage.attack(get("/", bob)).await;
    assert!(answer.is_hit() && answer.body == "for lang=de", "{answer:?}");
    stage.check(get("/", alice), get("/", "cookie: lang=en\r\n")).await;
    stage.check(get("/", alice), get("/", "")).await;
}

#[tokio::test]
async fn connection_hides_no_cookie_and_no_credential() {
    let stage = Stage::before_mirror("ttl = \"1m\"");
    let names = ["cookie", "Cookie", "authorization", "x-api-key", "close, Cookie, Authorization, X-Api-Key"];
    for (nth, names) in names.iter().enumerate() {
        for line in ["cookie: id=alice", "authorization: alice", "x-api-key: alice"] {
            let path = format!("/{nth}/{}", line.split(':').next().unwrap());
            let victim = stage.attack(get(&path, &format!("connection: {names}\r\n{line}\r\n"))).await;
            assert!(victim.cache_status.contains("; fwd=bypass"), "{names}: {}", victim.cache_status);
            stage.check(get(&path, &format!("connection: {names}\r\n{line}\r\n")), get(&path, "")).await;
        }
    }
    // What it does take away is taken from key and upstream alike.
    for name in
        ["x-forwarded-for", "x-forwarded-host", "via", "accept", "host", "content-length", "cache-control", "age"]
    {
        let path = format!("/{name}");
        let line = if name == "accept" { "accept: evil\r\n" } else { "" };
        stage.attack(get(&path, &format!("connection: {name}\r\n{line}"))).await;
        assert!(stage.clean(get(&path, "")).await.is_hit(), "{name}");
    }
}

/// What allows no reuse; lines of the field apart by `|`, another field with its name.
const RESTRICTIVE: [&str; 36] = [
    "private",
    "no-store",
    "PRIVATE",
    "No-Store",
    "max-age=60, private",
    "max-age=60 | no-store",
    "no-store | max-age=60",
    "private, private=\"x\"",
    "no-store=\"x\"",
    "private=\"\"",
    "private=\"x y\"",
    "private=",
    "public, private",
    "public, max-age=60, no-store",
    "max-age=60;no-store",
    "max-age=60, \"quoted, no-store",
    "foo=\"bar, no-store",
    "max-age=\"60\", No-CACHE",
    "no-cache",
    "no-cache | max-age=60",
    "no-cache=\"\"",
    "max-age=0",
    "max-age=60, max-age=0",
    "max-age=60 | max-age=0",
    "max-age=abc",
    "max-age=-1",
    "max-age='60'",
    "max-age = 60",
    "max-age=60.5",
    "s-maxage=0, max-age=60",
    "s-maxage=x, max-age=60",
    "expires: 0",
    "expires: soon",
    "expires: Thu, 01 Jan 2099 00:00:00 GMT | expires: 0",
    "cdn-cache-control: no-store | max-age=60",
    "cdn-cache-control: private | public, max-age=60",
];

#[tokio::test]
async fn of_what_an_origin_says_the_most_restrictive_counts() {
    let answering = |seen: Seen| {
        let user = value(&seen, "x-user").to_owned();
        let lines = value(&seen, "x-control").to_owned();
        let mut response = reply(200, &[("x-secret", &user), ("x-other", "1")], &user);
        for line in lines.split(" | ") {
            let (name, line) = line.split_once(": ").unwrap_or(("cache-control", line));
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            response.headers_mut().append(name, http::HeaderValue::from_str(line).unwrap());
        }
        response
    };
    let stage = Stage::before("ttl = \"1m\"", answering);
    for (nth, control) in RESTRICTIVE.iter().enumerate() {
        let path = format!("/{nth}");
        let asked = |user: &str| get(&path, &format!("x-control: {control}\r\nx-user: {user}\r\n"));
        stage.check(asked("alice"), asked("bob")).await;
    }
    // Of what is named, nothing is kept; the rest may be.
    for (nth, control) in
        ["max-age=60, private=\"X-Secret\"", "max-age=60, no-cache=\"x-secret\"", "max-age=60, No-Cache=x-secret"]
            .iter()
            .enumerate()
    {
        let path = format!("/named/{nth}");
        let victim = stage.attack(get(&path, &format!("x-control: {control}\r\nx-user: alice\r\n"))).await;
        assert_eq!(victim.field("x-secret"), Some("alice"));
        let answer = stage.attack(get(&path, &format!("x-control: {control}\r\nx-user: bob\r\n"))).await;
        assert!(answer.is_hit() && answer.field("x-other") == Some("1"), "{answer:?}");
        assert_eq!(answer.field("x-secret"), None, "{control}");
    }
}

#[tokio::test]
async fn an_origins_connection_unlocks_nothing() {
    let end = "content-length: 5\r\n\r\n";
    for head in [
        "connection: cache-control\r\ncache-control: no-store\r\nexpires: Thu, 01 Jan 2099 00:00:00 GMT\r\n",
        "connection: Cache-Control\r\ncache-control: private\r\n",
        "connection: set-cookie\r\nset-cookie: id=alice\r\n",
        "connection: close, Set-Cookie, Cache-Control\r\nset-cookie: id=alice\r\ncache-control: max-age=60\r\n",
        "connection: cdn-cache-control\r\ncdn-cache-control: no-store\r\n",
        "connection: vary\r\nvary: *\r\n",
        "connection: expires\r\nexpires: 0\r\n",
    ] {
        let origin = RawOrigin::start(move |mut stream, _| async move {
            let answer = format!("HTTP/1.1 200 OK\r\n{head}{end}alice");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
        });
        let proxy = crate::world::Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
        for nth in 1..=2 {
            let answer = crate::world::stage::send(proxy.address, get("/", "").as_bytes()).await;
            assert!(answer.status == 200 && !answer.is_hit(), "{head}{answer:?}");
            assert_eq!(origin.count(), nth, "{head}");
        }
    }
}

#[tokio::test]
async fn an_origins_connection_takes_away_its_own_fields_alone() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let language = if head.contains("accept-language: de") { "de" } else { "en" };
        let fields =
            "connection: x-hop, vary\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-end: 1\r\nvary: accept-language\r\n";
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\n{language}");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
    });
    let proxy = crate::world::Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    for _ in 0..2 {
        for language in ["de", "en"] {
            let request = get("/", &format!("accept-language: {language}\r\n"));
            let answer = crate::world::stage::send(proxy.address, request.as_bytes()).await;
            assert_eq!(answer.body, language);
            assert_eq!(
                (answer.field("x-hop"), answer.field("keep-alive"), answer.field("x-end")),
                (None, None, Some("1"))
            );
            assert_eq!(answer.field("vary"), Some("accept-language"));
        }
    }
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn what_one_origin_may_read_is_not_told_to_another() {
    let allowing = |vary: bool| {
        move |seen: Seen| {
            let origin = value(&seen, "origin").to_owned();
            let mut fields = vec![("access-control-allow-credentials", "true")];
            if !origin.is_empty() {
                fields.push(("access-control-allow-origin", &origin));
            }
            if vary {
                fields.push(("vary", "origin"));
            }
            reply(200, &fields, "data")
        }
    };
    for vary in [true, false] {
        let stage = Stage::before("ttl = \"1m\"", allowing(vary));
        stage.check(get("/", "origin: https://evil\r\n"), get("/", "origin: https://good\r\n")).await;
        stage.check(get("/b", "origin: https://evil\r\n"), get("/b", "")).await;
        stage.check(get("/c", "origin: null\r\n"), get("/c", "origin: https://good\r\n")).await;
        assert!(stage.clean(get("/", "origin: https://good\r\n")).await.is_hit(), "it is stored for its own");
    }
    let stage = Stage::before("ttl = \"1m\"", |_| reply(200, &[("access-control-allow-origin", "*")], "data"));
    stage.attack(get("/", "origin: https://evil\r\n")).await;
    assert!(stage.clean(get("/", "origin: https://good\r\n")).await.is_hit());
    // Where a list keeps Origin back, nobody is named.
    let stage = Stage::before("ttl = \"1m\"\nforward_headers = []", allowing(false));
    stage.attack(get("/", "origin: https://evil\r\n")).await;
    let clean = stage.clean(get("/", "origin: https://good\r\n")).await;
    assert!(clean.is_hit() && clean.field("access-control-allow-origin").is_none(), "{clean:?}");
}

/// A page in the language asked for, each with a tag of its own, and ranges of it.
fn in_languages(seen: &Seen) -> Response<Bytes> {
    let language = if value(seen, "accept-language") == "de" { "de" } else { "en" };
    let tag = format!("\"{language}\"");
    let fields = [("etag", tag.as_str()), ("vary", "accept-language"), ("cache-control", "max-age=60")];
    if value(seen, "if-none-match") == tag {
        return reply(304, &fields, "");
    }
    let body = format!("0123456789 {language}");
    match value(seen, "range") {
        "bytes=0-3" => {
            let range = format!("bytes 0-3/{}", body.len());
            let fields = [fields[0], fields[1], fields[2], ("content-range", range.as_str())];
            reply(206, &fields, &body[..4])
        }
        _ => reply(200, &fields, &body),
    }
}

#[tokio::test]
async fn a_validator_is_compared_with_its_own_variant() {
    let stage = Stage::before("", |seen| in_languages(&seen));
    let (de, en) = ("accept-language: de\r\n", "accept-language: en\r\n");
    for lines in [de, en] {
        stage.clean(get("/", lines)).await;
    }
    for (lines, tag, expected) in [(de, "de", 304), (de, "en", 200), (en, "de", 200), (en, "en", 304)] {
        let asked = get("/", &format!("{lines}if-none-match: \"{tag}\"\r\n"));
        assert_eq!(stage.clean(&asked).await.status, expected, "{asked}");
        stage.cached.clock.advance(Duration::from_secs(61));
        // Stale, it is validated with its own tag, whatever the client's is.
        assert_eq!(stage.clean(&asked).await.status, expected, "{asked}");
        assert!(stage.clean(get("/", lines)).await.is_hit());
    }
    // A tag of one variant combines with no range of another.
    let asked = get("/", &format!("{de}range: bytes=0-3\r\nif-range: \"en\"\r\n"));
    assert_eq!(stage.attack(&asked).await.body, "0123456789 de");
}

#[tokio::test]
async fn a_part_or_a_head_is_never_taken_for_the_whole() {
    let stage = Stage::before("", |seen| in_languages(&seen));
    let part = stage.attack(get("/", "range: bytes=0-3\r\n")).await;
    assert_eq!((part.status, part.body.as_str()), (206, "0123"));
    let whole = stage.clean(get("/", "")).await;
    assert_eq!((whole.status, whole.body.as_str(), whole.is_hit()), (200, "0123456789 en", false));
    // A part of one variant, and the whole of another.
    stage.attack(get("/b", "accept-language: de\r\nrange: bytes=0-3\r\n")).await;
    assert_eq!(stage.clean(get("/b", "accept-language: en\r\n")).await.body, "0123456789 en");
    assert_eq!(stage.clean(get("/b", "accept-language: de\r\n")).await.body, "0123456789 de");
    // The head of one variant touches no other.
    stage.cached.clock.advance(Duration::from_secs(61));
    stage.attack(get("/b", "accept-language: de\r\n").replacen("GET", "HEAD", 1)).await;
    assert_eq!(stage.clean(get("/b", "accept-language: en\r\n")).await.body, "0123456789 en");
    assert_eq!(stage.clean(get("/b", "accept-language: de\r\n")).await.body, "0123456789 de");
}

#[tokio::test]
async fn a_304_for_another_clients_tag_brings_nobody_what_is_private() {
    let personal = |seen: Seen| {
        let user = value(&seen, "x-user").to_owned();
        let tag = format!("\"{user}\"");
        let control = if seen.target.starts_with("/private") { "private, max-age=60" } else { "no-cache" };
        if value(&seen, "if-none-match") == tag {
            return reply(304, &[("etag", &tag), ("cache-control", control)], "");
        }
        reply(200, &[("etag", &tag), ("cache-control", control)], &format!("for {user}"))
    };
    let stage = Stage::before("", personal);
    for path in ["/private", "/validated"] {
        assert_eq!(stage.attack(get(path, ALICE)).await.body, "for alice");
        // His own tag, hers, none, and any.
        for tag in ["if-none-match: \"bob\"\r\n", "if-none-match: \"alice\"\r\n", "", "if-none-match: \"x\"\r\n"] {
            let answer = stage.clean(get(path, &format!("{BOB}{tag}"))).await;
            assert!(!answer.body.contains("alice"), "{path} {tag}");
            stage.attack(get(path, ALICE)).await;
        }
        let range = stage.attack(get(path, &format!("{BOB}range: bytes=0-8\r\nif-range: \"alice\"\r\n"))).await;
        assert_eq!(range.body, "for bob");
    }
}
