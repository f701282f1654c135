//! Configuration files, good and bad, and what is said of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use aside::config::{self, Config, parse_resolved};
use aside::key::{QueryRule, TRACKING};
use aside::route::Collapse;

/// One upstream and nothing else; four lines.
const UPSTREAM: &str = "[upstream.api]\nurl = \"http://127.0.0.1:3000\"\n\n";

fn problems(text: &str) -> Vec<String> {
    match config::parse("aside.toml", text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn accepted(text: &str) -> Config {
    match config::parse("aside.toml", text) {
        Ok((config, _)) => config,
        Err(problems) => panic!("{text}\n{problems:#?}"),
    }
}

/// `text` follows an upstream of three lines, so that its first line is line 4.
fn check(text: &str, expected: &str) {
    assert_eq!(problems(&format!("{UPSTREAM}{text}")), [format!("aside.toml:{expected}")], "{text}");
}

/// The keys of a route whose first two lines are 4 and 5, so that `keys` begin at line 6.
fn check_route(keys: &str, expected: &str) {
    check(&format!("[[route]]\nname = \"x\"\n{keys}\npath = \"/a/{{id}}\"\n"), expected);
}

#[test]
fn a_mistake_is_told_with_its_line_and_what_was_expected() {
    check(
        "[server]\ndrain_timeout = \"5 parsecs\"",
        "5: server.drain_timeout: \"5 parsecs\" is not a duration; expected for example \"30s\"",
    );
    check(
        "[server]\ndrain_timout = \"5s\"",
        "5: unknown key \"drain_timout\" in server; did you mean \"drain_timeout\"?",
    );
    check("[servr]\nthreads = 1", "4: unknown key \"servr\" in the file; did you mean \"server\"?");
    check("[server]\nproxy_protocol = true", "5: unknown key \"proxy_protocol\" in server");
    check("[server]\nthreads = 5000", "5: server.threads: 5000 is not a whole number in range; expected 0 to 1024");
    check(
        "[server]\nlisten = [\"127.0.0.1:1\", \"here\"]",
        "5: server.listen: \"here\" is not an address; expected for example \"127.0.0.1:8080\"",
    );
    check(
        "[server]\nhosts = [\"a.example:80\"]",
        "5: server.hosts: \"a.example:80\" is not a host; expected for example \"api.example.com\"",
    );
    check(
        "[server]\nfallback = \"apo\"",
        "5: server.fallback: \"apo\" is not an upstream that is defined; expected one, or \"none\"; did you mean \"api\"?",
    );
    check(
        "[server.purge]\nallow = [\"10.0.0.0/33\"]",
        "5: server.purge.allow: \"10.0.0.0/33\" is not a network; expected for example \"10.0.0.0/8\"",
    );
    check("[server]\npurge = { alow = [] }", "5: unknown key \"alow\" in server.purge; did you mean \"allow\"?");
    check("[server]\npurge = true", "5: server.purge: true is not a table");
    check(
        "[server.limits]\nheader_size = \"x\"",
        "5: server.limits.header_size: \"x\" is not a size; expected for example \"64 KiB\"",
    );
    check(
        "[server.limits]\nuri_length = \"0\"",
        "5: server.limits.uri_length: \"0\" is too small; expected at least \"1 KiB\"",
    );
    check(
        "[server.limits]\nidle_timeout = \"0s\"",
        "5: server.limits.idle_timeout: \"0s\" is too short; expected at least \"1ms\"",
    );
    check(
        "[log]\nlevel = \"wran\"",
        "5: log.level: \"wran\" is not expected here; expected \"info\" or \"error\" or \"warn\" or \"debug\"; did you mean \"warn\"?",
    );
    check("[memory]\nmax_size = -1", "5: memory.max_size: -1 is not a size; expected for example \"64 KiB\"");
    check(
        "[admin]\nlisten = \"0.0.0.0:9090\"",
        "4: admin: no token, though 0.0.0.0:9090 is not loopback; expected token = \"env:NAME\"",
    );
    check(
        "[admin]\ntoken = \"hunter2\"",
        "5: admin.token: a secret is not written into the file; expected \"env:NAME\" or \"file:PATH\"",
    );
    check(
        "[admin]\ntoken = \"env:ASIDE_IS_NOT_SET\"",
        "5: admin.token: environment variable \"ASIDE_IS_NOT_SET\" is not set",
    );
    check("[profile.p]\npath = \"/\"", "5: unknown key \"path\" in profile \"p\"");
}

#[test]
fn a_limit_that_cannot_be_is_told() {
    check(
        "[server.limits]\nconnections_per_address = 2000000",
        "5: server.limits.connections_per_address: 2000000 is not a whole number in range; expected 0 to 1000000",
    );
    check(
        "[server.limits]\nbody_rate_min = \"fast\"",
        "5: server.limits.body_rate_min: \"fast\" is not a size; expected for example \"64 KiB\"",
    );
    check(
        "[server.limits]\nhttp2_streams = 0",
        "5: server.limits.http2_streams: 0 is not a whole number in range; expected 1 to 10000",
    );
    check_route(
        "collapse_waiters = 0",
        "6: route \"x\": collapse_waiters: 0 is not a whole number in range; expected 1 to 10000000",
    );
    check_route(
        "admission = \"third\"",
        "6: route \"x\": admission: \"third\" is not expected here; expected \"first\" or \"second\"",
    );
}

#[test]
fn mistakes_about_redis_are_told_without_its_password() {
    check("[redis]\nprefix = \"x\"", "4: redis: no url; expected for example url = \"redis://127.0.0.1:6379\"");
    check(
        "[redis]\nurl = \"http://a\"",
        "5: redis.url: \"http://a\" has a scheme that is not known; expected redis, rediss, redis+unix, redis-cluster, \
         rediss-cluster, redis-sentinel or rediss-sentinel, or the same with valkey and valkeys",
    );
    check(
        "[redis]\nurl = \"redis-sentinel://a\"",
        "5: redis.url: \"redis-sentinel://a\" does not say which service the sentinels watch; expected for example \
         \"redis-sentinel://host1:26379?node=host2:26379&sentinelServiceName=mymaster\"",
    );
    check(
        "[redis]\nurl = \"redis-sentinel://a?sentinelServiceName=main&sentinelPassword=secret\"",
        "5: redis.url: a password is not written into the file; expected password = \"env:NAME\" or url = \"env:NAME\"",
    );
    check(
        "[redis]\nurl = \"redis-cluster://a\"\nsentinel_username = \"me\"",
        "5: redis.url: \"redis-cluster://a\" names no sentinels, though there are credentials for them; expected \
         redis-sentinel://",
    );
    check(
        "[redis]\nurl = \"redis-sentinel://a?sentinelServiceName=main\"\nsentinel_password = \"secret\"",
        "6: redis.sentinel_password: a secret is not written into the file; expected \"env:NAME\" or \"file:PATH\"",
    );
    check(
        "[redis]\nurl = \"redis://me:secret@a\"",
        "5: redis.url: a password is not written into the file; expected password = \"env:NAME\" or url = \"env:NAME\"",
    );
    check(
        "[redis]\nurl = \"redis://a\"\npassword = \"secret\"",
        "6: redis.password: a secret is not written into the file; expected \"env:NAME\" or \"file:PATH\"",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "redis://:pass?word@a").unwrap();
    let place = format!("file:{}", file.path().display());
    check(
        &format!("[redis]\nurl = {place:?}"),
        &format!("5: redis.url: what {place:?} names has no host; expected for example \"redis://127.0.0.1:6379\""),
    );
    std::fs::write(file.path(), "redis://me:pass@a?word@b").unwrap();
    check(
        &format!("[redis]\nurl = {place:?}"),
        &format!(
            "5: redis.url: what {place:?} names has a parameter that is not known here; expected none, or \
             redis-cluster:// or redis-sentinel://"
        ),
    );
    check(
        "[redis]\nurl = \"redis://a\"\ncompress = 1",
        "6: redis.compress: 1 is not a boolean; expected true or false",
    );
    check("[redis]\nurl = \"redis://a\"\ncluster = true", "6: unknown key \"cluster\" in redis");
}

#[test]
fn a_mac_key_is_a_secret_and_long_enough() {
    check(
        "[redis]\nurl = \"redis://a\"\nmac_key = \"0123456789abcdef\"",
        "6: redis.mac_key: a secret is not written into the file; expected \"env:NAME\" or \"file:PATH\"",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcde\n").unwrap();
    check(
        &format!("[redis]\nurl = \"redis://a\"\nmac_key = \"file:{}\"", file.path().display()),
        "6: redis.mac_key: is too short; expected a secret of at least 16 bytes, the same in every process",
    );
}

#[test]
fn mistakes_about_upstreams_are_told() {
    let two = |url: &str, expected: &str| {
        check(&format!("[upstream.b]\nurl = {url}\n[server]\nfallback = \"api\""), expected)
    };
    two("\"ftp://a\"", "5: upstream \"b\": url: \"ftp://a\" has a scheme that is not known; expected http or https");
    two(
        "\"http://me@a\"",
        "5: upstream \"b\": url: \"http://me@a\" has user information; expected none (request_headers can set Authorization)",
    );
    two("\"http://a/?x\"", "5: upstream \"b\": url: \"http://a/?x\" has a query; expected none");
    two("\"http://a/#x\"", "5: upstream \"b\": url: \"http://a/#x\" has a fragment; expected none");
    two(
        "\"a\"",
        "5: upstream \"b\": url: \"a\" is not an upstream's URL; expected for example \"http://127.0.0.1:3000\"",
    );
    two(
        "\"http://a\"\nurls = [\"http://b\"]",
        "4: upstream \"b\": both url and urls; expected either url = \"http://…\" or urls = [..]",
    );
    two("\"http://a\"\nhealth = true", "6: upstream \"b\": health: true is not a table");
    two(
        "\"http://a\"\nhealth = { path = \"up\" }",
        "6: upstream \"b\": health.path: \"up\" is not a path; expected for example \"/health\"",
    );
    two(
        "\"http://a\"\nhealth = { unhealthy = 0 }",
        "6: upstream \"b\": health.unhealthy: 0 is not a whole number in range; expected 1 to 1000",
    );
    two(
        "\"http://a\"\nresolve_interval = \"0s\"",
        "6: upstream \"b\": resolve_interval: \"0s\" is too short; expected at least \"1ms\"",
    );
    two(
        "\"https://a\"\nca = \"/nowhere.pem\"",
        "6: upstream \"b\": ca: \"/nowhere.pem\" cannot be read: No such file or directory (os error 2)",
    );
    assert_eq!(problems(""), ["aside.toml: no upstream is defined; expected [upstream.NAME] with a url"]);
}

#[test]
fn an_upstream_that_is_the_proxy_itself_is_refused() {
    let check = |listen: &str, url: &str, is_refused: bool| {
        let problems = problems(&format!("[server]\nlisten = \"{listen}\"\n[upstream.a]\nurl = \"{url}\"\n"));
        let expected =
            format!("aside.toml:3: upstream \"a\": {url}/ is where this proxy itself listens; expected another server");
        assert_eq!(problems, Vec::from_iter(is_refused.then_some(expected)), "{listen} {url}");
    };
    check("127.0.0.1:8080", "http://127.0.0.1:8080", true);
    check("127.0.0.1:8080", "http://localhost:8080", true);
    check("127.0.0.1:80", "http://127.0.0.1", true);
    check("0.0.0.0:443", "https://localhost", true);
    check("0.0.0.0:8080", "http://127.0.0.1:8080", true);
    check("[::]:8080", "http://[::1]:8080", true);
    check("[::1]:8080", "http://[::1]:8080", true);
    check("127.0.0.1:8080", "http://127.0.0.1:8081", false);
    check("127.0.0.1:8080", "http://127.0.0.2:8080", false);
    check("10.0.0.1:8080", "http://localhost:8080", false);
    check("127.0.0.1:8080", "http://backend:8080", false);
}

#[test]
fn health_checks_are_made_where_they_are_asked_for() {
    let config = accepted("[upstream.a]\nurl = \"http://127.0.0.1:1\"\nhealth = {}\n");
    let health = config.upstreams[0].health.clone().unwrap();
    let path = health.path.as_str();
    assert_eq!((path, health.interval, health.unhealthy, health.healthy), ("/health", Duration::from_secs(5), 3, 2));
    let keys = "resolve_interval = \"9s\"\n\
                health = { path = \"/up?x\", interval = \"1s\", unhealthy = 5, healthy = 4 }";
    let config = accepted(&format!("[upstream.a]\nurl = \"http://127.0.0.1:1\"\n{keys}\n"));
    let health = config.upstreams[0].health.clone().unwrap();
    let path = health.path.as_str();
    assert_eq!((path, health.interval, health.unhealthy, health.healthy), ("/up?x", Duration::from_secs(1), 5, 4));
    assert_eq!(config.upstreams[0].resolve_interval, Duration::from_secs(9));
    let config = accepted(UPSTREAM);
    assert_eq!((&config.upstreams[0].health, config.upstreams[0].resolve_interval), (&None, Duration::from_secs(30)));
}

#[test]
fn mistakes_about_routes_are_told() {
    check_route("upstream = \"apo\"", "6: route \"x\": upstream \"apo\" is not defined; did you mean \"api\"?");
    check_route("tll = \"5m\"", "6: unknown key \"tll\" in route \"x\"; did you mean \"ttl\"?");
    check_route("use = \"p\"", "6: route \"x\": profile \"p\" is not defined");
    check_route(
        "collapse = \"everywhere\"",
        "6: route \"x\": collapse: \"everywhere\" is not expected here; expected \"local\" or \"off\" or \"cluster\"",
    );
    check_route(
        "collapse = \"cluster\"",
        "6: route \"x\": collapse: \"cluster\" needs [redis]; expected it, or \"local\"",
    );
    check_route(
        "methods = [\"get\"]",
        "6: route \"x\": methods: \"get\" is not a method; expected for example \"GET\"",
    );
    check_route("ttl_jitter = 1.5", "6: route \"x\": ttl_jitter: 1.5 is not a fraction; expected 0 to 1");
    check_route(
        "status_ttl = { 404 = \"x\" }",
        "6: route \"x\": status_ttl.404: \"x\" is not a duration; expected for example \"30s\"",
    );
    check_route(
        "status_ttl = { 431 = \"1s\" }",
        "6: route \"x\": status_ttl.431: \"1s\" is for a status that tells of one request alone, and is never stored",
    );
    check_route(
        "status_ttl = { 40 = \"1s\" }",
        "6: route \"x\": status_ttl: \"1s\" is for \"40\", not a status of 200 to 599",
    );
    check_route("key.claims = []", "6: unknown key \"claims\" in route \"x\": key");
    check_route("key.query = {}", "6: route \"x\": key.query: {} must have one of allow and deny");
    check_route("bypass = [{}]", "6: route \"x\": bypass: no header; expected { header = \"…\" }");
    check_route("upgrade = [\"h2c\"]", "6: route \"x\": upgrade: \"h2c\" is not a protocol that may be upgraded to");
    check_route("strip_prefix = \"/b\"", "6: route \"x\": strip_prefix: \"/b\" is not how the path \"/a/{id}\" begins");
    check_route(
        "request_headers = { set = { host = \"x\" } }",
        "6: route \"x\": request_headers.set.host: \"x\" is for a field that the connection decides; expected another one",
    );
    for edit in ["{ remove = [\"CDN-Loop\"] }", "{ set = { cdn-loop = \"x\" } }"] {
        check_route(
            &format!("request_headers = {edit}"),
            &format!(
                "6: route \"x\": request_headers: {edit} changes CDN-Loop, by which loops are found; expected other fields"
            ),
        );
    }
    check_route(
        "response_headers = { set = { x-a = \"a\\r\\nset-cookie: b\" } }",
        "6: route \"x\": response_headers.set.x-a: \"a\\r\\nset-cookie: b\" is not a field value; expected one line of text",
    );
    check_route(
        "tags = [\"p:{no}\"]",
        "6: route \"x\": tags: \"p:{no}\" is not a tag here: the tag \"p:{no}\" has {no}, the path has [id]",
    );
    check("[[route]]\nname = \"x\"", "4: route \"x\": no path; expected for example path = \"/v1/products/{id}\"");
    check(
        "[[route]]\npath = \"/a\"\n[[route]]\npath = \"/a\"\nhost = \"b.example\"",
        "6: route \"/a\": another one, in line 4, has this name; expected name = \"…\"",
    );
}

#[test]
fn routes_for_the_same_requests_conflict() {
    let text =
        format!("{UPSTREAM}[[route]]\nname = \"a\"\npath = \"/{{x}}\"\n\n[[route]]\nname = \"b\"\npath = \"/{{y}}\"\n");
    let problems = problems(&text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("aside.toml:8: route \"b\": "), "{problems:?}");
}

#[test]
fn a_syntax_error_is_the_one_problem() {
    let problems = problems("[upstream.api]\nurl = \n[server]\nlisten = 3\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("aside.toml:2: is not TOML: "), "{problems:?}");
}

#[test]
fn five_mistakes_are_five_problems() {
    let text = "[server]\nthreads = \"many\"\ndrain = \"1s\"\n\n[upstream.api]\nurl = \"http://a\"\nretries = -1\n\n\
                [[route]]\nname = \"x\"\npath = \"/\"\nupstream = \"b\"\nttl = 5\n";
    let lines: Vec<usize> = config::parse("f", text).err().unwrap().iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 3, 7, 12, 13]);
}

#[test]
fn the_method_purge_is_off_unless_somebody_may_use_it() {
    assert!(accepted(UPSTREAM).server.purge.is_empty());
    let config = accepted(&format!("{UPSTREAM}[server]\npurge = {{ allow = [\"10.0.0.0/8\", \"::1\"] }}\n"));
    let allowed: Vec<String> = config.server.purge.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.0.0.0/8", "::1/128"]);
}

#[test]
fn a_profiles_mistake_is_told_once_however_many_routes_use_it() {
    check(
        "[profile.p]\nttl = 5\n[[route]]\npath = \"/a\"\nuse = \"p\"\n[[route]]\npath = \"/b\"\nuse = \"p\"",
        "5: profile \"p\": ttl: 5 is not a duration; expected for example \"30s\"",
    );
}

#[test]
fn a_routes_own_keys_win_over_its_profiles() {
    let config = accepted(&format!(
        "{UPSTREAM}[profile.p]\nttl = \"5m\"\nkeep = \"1s\"\nkey = {{ query = \"tracking\", host = false }}\n\
         [[route]]\npath = \"/{{*rest}}\"\nuse = \"p\"\nttl = \"1m\"\nkey = {{ host = true }}\n"
    ));
    let caching = config.routes[0].caching.clone().unwrap();
    assert_eq!(caching.rules.ttl, Some(Duration::from_secs(60)));
    assert_eq!(caching.rules.keep, Duration::from_secs(1));
    assert!(caching.key.host);
    assert_eq!(caching.key.query, QueryRule::Deny(TRACKING.iter().map(|name| (*name).into()).collect()));
}

#[test]
fn a_route_waits_in_collapse_as_long_as_its_upstream_may_take() {
    let text = format!("{UPSTREAM}connect_timeout = \"1s\"\n[[route]]\npath = \"/\"\n");
    assert_eq!(accepted(&text).routes[0].caching.clone().unwrap().collapse_wait, Duration::from_secs(31));
}

#[test]
fn processes_that_share_a_redis_can_share_fetches() {
    let text = format!("{UPSTREAM}[redis]\nurl = \"redis://a\"\n[[route]]\npath = \"/\"\ncollapse = \"cluster\"\n");
    assert_eq!(accepted(&text).routes[0].caching.clone().unwrap().collapse, Collapse::Cluster);
}

#[test]
fn the_memory_tier_can_be_off_and_bounds_bodies_only_beside_redis() {
    for off in ["\"0\"", "0"] {
        assert_eq!(accepted(&format!("{UPSTREAM}[memory]\nmax_size = {off}\n")).store.memory_max_size, 0);
    }
    assert_eq!(accepted(UPSTREAM).store.memory_max_object, u64::MAX);
    assert_eq!(accepted(&format!("{UPSTREAM}[redis]\nurl = \"redis://a\"\n")).store.memory_max_object, 1 << 20);
}

#[test]
fn bodies_are_compressed_in_redis_unless_the_file_says_otherwise() {
    let compress =
        |more: &str| accepted(&format!("{UPSTREAM}[redis]\nurl = \"redis://a\"\n{more}")).store.redis.unwrap().compress;
    assert_eq!((compress(""), compress("compress = true"), compress("compress = false")), (true, true, false));
}

#[test]
fn a_url_keeps_its_base_path_without_the_slash_at_its_end() {
    for (given, kept) in [("http://a", "http://a/"), ("http://a/", "http://a/"), ("http://a/base/", "http://a/base")] {
        let config = accepted(&format!("[upstream.a]\nurl = \"{given}\"\n"));
        assert_eq!(config.upstreams[0].urls[0].to_string(), kept);
    }
}

#[test]
fn warnings_do_not_refuse_a_file() {
    let text = "[upstream.a]\nurl = \"http://a\"\n[upstream.b]\nurl = \"http://b\"\n\
                [[route]]\npath = \"/\"\nupstream = \"a\"\nignore_origin = [\"private\"]\n";
    let (config, warnings) = config::parse("f", text).ok().unwrap();
    assert_eq!(config.server.fallback, None);
    let lines: Vec<usize> = warnings.iter().map(|warning| warning.line).collect();
    assert_eq!(lines, [1, 8]);
    assert!(warnings.iter().all(|warning| warning.warning));
}

#[test]
fn fingerprints_change_with_what_they_cover_alone() {
    let base = accepted(UPSTREAM);
    let with = |more: &str| accepted(&format!("{UPSTREAM}{more}"));
    let differing = |config: &Config| -> Vec<&str> {
        base.fixed.iter().zip(&config.fixed).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect()
    };
    assert_eq!(differing(&with("[server]\ncache_status = false\n[log]\nlevel = \"debug\"")), [""; 0]);
    assert_eq!(
        differing(&with("[server]\nthreads = 3\nlisten = \"127.0.0.1:1\"")),
        ["server.listen", "server.threads"]
    );
    assert_eq!(differing(&with("[memory]\nmax_size = \"1 MiB\"\n[admin]")), ["admin", "memory"]);
    assert_eq!(differing(&with("[server]\nthreads = 0")), [""; 0]);
    let redis =
        |more: &str| with(&format!("[redis]\nurl = \"redis://a\"\n{more}")).fixed.into_iter().collect::<Vec<_>>();
    assert_eq!(redis("compress = true"), redis(""));
    assert_ne!(redis("compress = false"), redis(""));
    assert_eq!(with("retries = 1").upstreams[0].fingerprint, base.upstreams[0].fingerprint);
    assert_ne!(with("retries = 2").upstreams[0].fingerprint, base.upstreams[0].fingerprint);
    assert_ne!(with("breaker = { open = \"9s\" }").upstreams[0].fingerprint, base.upstreams[0].fingerprint);
}

#[test]
fn every_effective_value_is_told_with_where_it_came_from() {
    let text = format!("{UPSTREAM}[profile.p]\nkeep = \"1s\"\n[[route]]\npath = \"/\"\nuse = \"p\"\nttl = \"1m\"\n");
    let (values, _) = parse_resolved("f", &text).ok().unwrap();
    for line in [
        "listen = \"127.0.0.1:8080\"  # default",
        "fallback = \"api\"  # default",
        "url = \"http://127.0.0.1:3000\"  # line 2",
        "keep = \"1s\"  # profile \"p\"",
        "ttl = \"1m\"  # line 9",
        "collapse_wait = \"32s\"  # default",
    ] {
        assert!(values.lines().any(|told| told == line), "{line}\n{values}");
    }
    assert_eq!(problems(&values), [""; 0], "what is told is a configuration again\n{values}");
}

#[test]
fn the_minimal_file_is_accepted_as_it_is() {
    let config = accepted(include_str!("../config/minimal.toml"));
    assert_eq!((config.upstreams.len(), config.routes.len(), config.store.redis.is_some()), (1, 1, true));
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let example = include_str!("../config/example.toml");
    let (values, warnings) = parse_resolved("example.toml", example).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(warnings, []);
    for line in values.lines().filter(|line| !line.is_empty() && !line.starts_with('[')) {
        let key = line.trim_start_matches("# ").split(' ').next().unwrap();
        assert!(example.contains(&format!("{key} = ")), "{key} is not in the example");
        assert!(!line.ends_with("# default"), "{line} is not in the example");
    }
    let bare = "[upstream.api]\nurl = \"http://127.0.0.1:3000\"\n[admin]\n[redis]\nurl = \"redis://127.0.0.1:6379\"\n\
                [[route]]\nname = \"products\"\npath = \"/v1/products/{id}\"\nttl = \"5m\"\n";
    let (defaults, _) = parse_resolved("bare.toml", bare).ok().unwrap();
    let told = |values: &str| -> Vec<String> {
        values.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(told(&values), told(&defaults));
}

#[test]
fn certificates_are_read_from_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let (cert, key) = (path("cert.pem", &made.cert.pem()), path("key.pem", &made.signing_key.serialize_pem()));
    let config = accepted(&format!(
        "[server]\ntls = {{ cert = {cert:?}, key = {key:?} }}\n\
         [upstream.a]\nurl = \"https://localhost\"\nca = {cert:?}\ncert = {cert:?}\nkey = {key:?}\n"
    ));
    let alpn = [b"h2".to_vec(), b"http/1.1".to_vec()];
    assert_eq!(config.server.listen[0].tls.clone().unwrap().config.alpn_protocols, alpn);
    assert_eq!(config.upstreams[0].tls.alpn_protocols, alpn);
    // A request in early data could be replayed (RFC 8470).
    assert_eq!(config.server.listen[0].tls.clone().unwrap().config.max_early_data_size, 0);
    assert!(!config.upstreams[0].tls.enable_early_data);
    check(&format!("[server.tls]\ncert = {cert:?}"), "4: server.tls: `cert` and `key` belong together; expected both");
    check(
        &format!("[server.tls]\ncert = {key:?}\nkey = {key:?}"),
        &format!("5: server.tls.cert: {key:?} holds no certificates; expected a PEM file"),
    );
}

#[test]
fn what_is_made_for_one_host_is_not_shared() {
    let text = |host: &str| {
        format!(
            "[upstream.api]\nurl = \"http://127.0.0.1:3000\"\nhost = \"{host}\"\n\n\
             [[route]]\nname = \"x\"\npath = \"/\"\nkey = {{ host = false }}\n"
        )
    };
    let expected = "aside.toml:8: route \"x\": key.host: false would share what is made for one host; \
                    expected an upstream whose host is not \"preserve\"";
    assert_eq!(problems(&text("preserve")), [expected]);
    assert_eq!(problems(&text("api.test")), Vec::<String>::new());
}
