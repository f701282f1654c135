//! `aside check --live`, the command itself, against real servers in good and bad order.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{Origin, Redis};

/// What no check may take, whatever the servers do.
const BOUND: Duration = Duration::from_secs(15);
/// The settings of a Redis in good order.
const BOUNDED: [&str; 4] = ["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"];

/// How the command ended, and what it told after its first line, without times.
struct Told {
    code: i32,
    lines: Vec<String>,
}

/// Checks a file with one route and these tables.
fn check(tables: &str) -> Told {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("aside.toml");
    std::fs::write(&file, format!("{tables}\n\n[[route]]\npath = \"/{{*rest}}\"\nttl = \"1m\"\n")).expect("a file");
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_aside"))
        .args(["check", "--live"])
        .arg(&file)
        .env("SECRET", "secret")
        .output()
        .expect("the command runs");
    assert!(begun.elapsed() < BOUND, "it took {:?}", begun.elapsed());
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines().map(without_times).collect::<Vec<_>>();
    if !lines.is_empty() {
        assert_eq!(lines.remove(0), format!("{}: ok, 1 upstream, 1 route", file.display()));
    }
    Told { code: output.status.code().expect("no signal"), lines }
}

fn without_times(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_time = |at: usize| words.get(at + 1).is_some_and(|unit| matches!(*unit, "ms" | "ms,"));
    let replaced = words.iter().enumerate().map(|(at, word)| if is_time(at) { "#" } else { *word });
    replaced.collect::<Vec<_>>().join(" ")
}

/// `[redis]` with these keys, and an upstream in good order.
fn check_redis(keys: &str) -> Told {
    let origin = Origin::counting(&[]);
    let told = check(&format!("[redis]\ntimeout = \"10s\"\n{keys}\n\n[upstream.api]\nurl = \"{}\"", origin.url()));
    assert_eq!(origin.seen().len(), 0, "no request is sent");
    let connected = format!("upstream   api {} connected in # ms", origin.url());
    assert!(told.lines.contains(&connected), "{:?}", told.lines);
    Told { lines: told.lines.into_iter().filter(|line| *line != connected).collect(), ..told }
}

fn url(redis: &Redis) -> String {
    format!("url = \"{}\"", redis.url())
}

/// The lines that tell of something amiss, and the remedy.
fn amiss(told: &Told) -> Vec<&str> {
    let is_amiss =
        |line: &&str| line.starts_with("warning ") || line.starts_with("problem ") || line.contains("to be run:");
    told.lines.iter().map(String::as_str).filter(is_amiss).collect()
}

/// The one problem, that Redis cannot be used.
#[track_caller]
fn check_unusable(keys: &str, place: &str, reason: &str) {
    let told = check_redis(keys);
    assert_eq!(told.lines, [format!("problem    redis: {place} cannot be used: {reason}")]);
    assert_eq!(told.code, 1);
}

#[test]
fn a_redis_in_good_order_is_told_of_in_a_line_for_each_fact() {
    let redis = Redis::start_with(&BOUNDED);
    let told = check_redis(&url(&redis));
    let version = redis.command("INFO server").unwrap();
    let version = version.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
    let at = format!("127.0.0.1:{}", redis.port);
    assert_eq!(
        told.lines,
        [
            format!("redis      {at} Redis {version}, primary, standalone"),
            format!("memory     {at} maxmemory 100 MiB, volatile-lru"),
            format!("latency    {at} PING median # ms, worst # ms of 50"),
            format!("latency    {at} GET median # ms, worst # ms of 50"),
            format!("acl        {at} user default may do all that is needed (seen by ACL DRYRUN)"),
        ]
    );
    assert_eq!(told.code, 0);
}

#[test]
fn memory_that_is_not_bounded_or_evicts_the_wrong_keys_or_none_is_a_warning() {
    let redis = Redis::start();
    let at = format!("127.0.0.1:{}", redis.port);
    for (limit, policy, expected) in [
        ("0", "noeviction", "has no maxmemory: it grows for as long as the machine lets it"),
        (
            "100mb",
            "noeviction",
            "stores nothing more when it is full (noeviction); expected volatile-lru or another volatile-*",
        ),
        (
            "100mb",
            "allkeys-lru",
            "may evict the purge ledger, which empties the cache (allkeys-lru); expected volatile-*",
        ),
    ] {
        redis.command(&format!("CONFIG SET maxmemory {limit} maxmemory-policy {policy}"));
        let told = check_redis(&url(&redis));
        assert_eq!(amiss(&told), [format!("warning    memory: {at} {expected}")]);
        assert_eq!(told.code, 0);
    }
}

#[test]
fn a_replica_is_a_problem() {
    let primary = Redis::start();
    let of = primary.port.to_string();
    let redis = Redis::start_with(&[&["--replicaof", "127.0.0.1", &of], &BOUNDED[..]].concat());
    let told = check_redis(&url(&redis));
    let at = format!("127.0.0.1:{}", redis.port);
    assert!(told.lines[0].ends_with(", replica, standalone"), "{:?}", told.lines);
    let expected = format!("problem    redis: {at} is a replica, which takes no writes; expected a primary");
    assert_eq!(amiss(&told), [expected]);
    assert_eq!(told.code, 1);
}

#[test]
fn a_node_of_a_cluster_is_a_problem_where_one_server_is_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().display().to_string();
    let redis = Redis::start_with(&[&["--cluster-enabled", "yes", "--dir", &folder], &BOUNDED[..]].concat());
    redis.command("CLUSTER ADDSLOTSRANGE 0 16383");
    let told = check_redis(&url(&redis));
    assert_eq!(told.code, 1);
    let problem = "is a node of a cluster, most of whose keys are elsewhere; expected a redis-cluster:// url";
    assert_eq!(amiss(&told)[0], format!("problem    redis: 127.0.0.1:{} {problem}", redis.port));
}

#[test]
fn credentials_that_are_wrong_or_missing_are_told_apart() {
    let redis = Redis::start_with(&[&["--requirepass", "other"], &BOUNDED[..]].concat());
    let at = format!("127.0.0.1:{}", redis.port);
    check_unusable(&format!("{}\npassword = \"env:SECRET\"", url(&redis)), &at, "wrong user name or password");
    check_unusable(&url(&redis), &at, "it wants a password");
}

#[test]
fn what_is_not_there_or_is_not_redis_is_told_apart_within_the_bound() {
    let mut gone = Redis::start();
    gone.kill();
    check_unusable(&url(&gone), &format!("127.0.0.1:{}", gone.port), "connection refused");

    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = silent.local_addr().expect("an address").to_string();
    check_unusable(&format!("url = \"redis://{at}\""), &at, "no answer in time");

    let web = Origin::counting(&[]);
    let at = web.address.to_string();
    let told = check_redis(&format!("url = \"redis://{at}\""));
    let begins = format!("problem    redis: {at} cannot be used: it ");
    assert!(told.lines.len() == 1 && told.lines[0].starts_with(&begins), "{:?}", told.lines);
    assert_eq!(told.code, 1);

    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("redis.sock").display().to_string();
    check_unusable(&format!("url = \"redis+unix://{socket}\""), &socket, "there is no such socket");
}

#[test]
fn a_certificate_is_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key, other) = (path("cert.pem"), path("key.pem"), path("other.pem"));
    let signed = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let pair = signed();
    std::fs::write(&cert, pair.cert.pem()).expect("a file");
    std::fs::write(&key, pair.signing_key.serialize_pem()).expect("a file");
    std::fs::write(&other, signed().cert.pem()).expect("a file");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let tls_port = port.to_string();
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let arguments = [&["--tls-port", &tls_port, "--tls-auth-clients", "no"], &files[..], &BOUNDED[..]].concat();
    let redis = Redis::start_with(&arguments);
    let url = format!("url = \"rediss://localhost:{port}\"");
    let told = check_redis(&format!("{url}\nca = \"{cert}\""));
    assert_eq!((told.code, amiss(&told)), (0, vec![]), "{:?}", told.lines);
    let told = check_redis(&format!("{url}\nca = \"{other}\""));
    let begins = format!("problem    redis: localhost:{port} cannot be used: its TLS certificate is not trusted");
    assert!(told.lines.len() == 1 && told.lines[0].starts_with(&begins), "{:?}", told.lines);
    assert_eq!(told.code, 1);
    let plain = format!("url = \"rediss://localhost:{}\"\nca = \"{cert}\"", redis.port);
    assert_eq!(check_redis(&plain).code, 1);

    // Any server that speaks TLS will do for an upstream, as it is sent no request.
    let upstream = format!("https://localhost:{port}");
    let told = check(&format!("[upstream.api]\nurl = \"{upstream}\"\nca = \"{cert}\""));
    assert_eq!((told.code, &told.lines[1]), (0, &format!("upstream   api {upstream} connected in # ms")));
    let told = check(&format!("[upstream.api]\nurl = \"{upstream}\"\nca = \"{other}\""));
    let begins = format!("warning    upstream: api {upstream} cannot be connected to: invalid peer certificate: ");
    assert!(told.code == 1 && told.lines[1].starts_with(&begins), "{:?}", told.lines);
}

#[test]
fn a_server_that_falls_silent_is_given_up_within_the_bound() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = listener.local_addr().expect("an address").to_string();
    // It answers what is asked while connecting, and keeps its connections open without a word after that.
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for mut stream in listener.incoming().flatten() {
            for answer in ["%1\r\n+proto\r\n:3\r\n", ":1\r\n", "-ERR no\r\n"] {
                if matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
            silent.push(stream);
        }
    });
    check_unusable(&format!("url = \"redis://{at}\""), &at, "no answer in time");
}

/// All that the user needs, and no more.
const LEAST: &str = concat!(
    "+ping +client|id +set +get +getrange +mget +setrange +time +strlen +pexpire +eval +evalsha +unlink +publish +subscribe ",
    "~aside:* &aside:*"
);

#[test]
fn what_a_user_lacks_is_named_with_the_line_that_gives_it() {
    let redis = Redis::start_with(&BOUNDED);
    let at = format!("127.0.0.1:{}", redis.port);
    let keys = format!("{}\nusername = \"bob\"\npassword = \"env:SECRET\"", url(&redis));
    for dry_run in ["", " +acl|whoami +acl|dryrun"] {
        for (without, denials, remedy) in [
            ("-evalsha", &["the command EVALSHA"][..], "+evalsha"),
            ("-subscribe -ping", &["the command PING", "the command SUBSCRIBE"], "+ping +subscribe"),
            ("-time", &["the command TIME"], "+time"),
            (
                "resetkeys %R~aside:* %W~other:*",
                &["SET", "SETRANGE", "PEXPIRE", "EVAL", "EVALSHA", "UNLINK"].map(|name| {
                    // Redis counts the keys of a script as read and written.
                    [name, " on keys of the prefix"].concat().leak() as &str
                }),
                "~aside:*",
            ),
            (
                "resetchannels &other:*",
                &["PUBLISH on channels of the prefix", "SUBSCRIBE on channels of the prefix"],
                "&aside:*",
            ),
        ] {
            redis.command("ACL DELUSER bob");
            redis.command(&format!("ACL SETUSER bob on >secret {LEAST}{dry_run} {without}"));
            let told = check_redis(&keys);
            let mut expected: Vec<String> =
                denials.iter().map(|what| format!("problem    acl: {at} user bob lacks {what}")).collect();
            expected.push(format!("acl        {at} to be run: ACL SETUSER bob {remedy}"));
            assert_eq!(amiss(&told), expected);
            assert_eq!(told.code, 1);
            assert_eq!(redis.command(&format!("ACL SETUSER bob {remedy}")).unwrap(), "+OK\r\n");
            let told = check_redis(&keys);
            assert_eq!((told.code, amiss(&told)), (0, vec![]), "{without} {:?}", told.lines);
            assert_eq!(redis.command("DBSIZE").unwrap(), ":0\r\n", "nothing is left behind");
        }
    }
}

#[test]
fn what_is_not_needed_to_run_may_be_refused() {
    let redis = Redis::start_with(&BOUNDED);
    let at = format!("127.0.0.1:{}", redis.port);
    redis.command(&format!("ACL SETUSER bob on >secret {LEAST} -client|id"));
    let told = check_redis(&format!("{}\nusername = \"bob\"\npassword = \"env:SECRET\"", url(&redis)));
    assert_eq!(told.code, 0);
    assert_eq!(
        told.lines[1..],
        [
            format!("memory     {at} not seen: this user has no permissions to run the 'info' command"),
            format!("latency    {at} PING median # ms, worst # ms of 50"),
            format!("latency    {at} GET median # ms, worst # ms of 50"),
            format!("acl        {at} user bob (seen by trial: ACL DRYRUN is refused)"),
            format!("warning    acl: {at} user bob lacks the command CLIENT ID: tried at each connection, not needed"),
            format!("acl        {at} to be run: ACL SETUSER bob +client|id"),
        ]
    );
}

#[test]
fn without_redis_it_says_embedded() {
    let origin = Origin::counting(&[]);
    let told = check(&format!("[upstream.api]\nurl = \"{}\"", origin.url()));
    let connected = format!("upstream   api {} connected in # ms", origin.url());
    assert_eq!(told.lines, ["redis      none: embedded, in memory alone".to_owned(), connected]);
    assert_eq!(told.code, 0);
}

#[test]
fn a_server_that_refuses_is_a_warning_and_an_upstream_without_any_a_problem() {
    let origin = Origin::counting(&[]);
    let mut gone = Redis::start();
    gone.kill();
    let dead = format!("http://127.0.0.1:{}", gone.port);
    let told = check(&format!("[upstream.api]\nurls = [\"{dead}\", \"{}\"]", origin.url()));
    let refused = format!("warning    upstream: api {dead} cannot be connected to: connection refused");
    assert_eq!((told.code, amiss(&told)), (0, vec![refused.as_str()]));
    let told = check(&format!("[upstream.api]\nurl = \"{dead}\""));
    let none = "problem    upstream: api has no server that can be connected to";
    assert_eq!((told.code, amiss(&told)), (1, vec![refused.as_str(), none]));
}

#[test]
fn a_server_that_does_not_finish_tls_is_given_up_within_the_bound() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", silent.local_addr().expect("an address"));
    let told = check(&format!("[upstream.api]\nurl = \"{url}\"\nconnect_timeout = \"1h\""));
    let refused = format!("warning    upstream: api {url} cannot be connected to: no connection within 3s");
    assert_eq!((told.code, amiss(&told)[0]), (1, refused.as_str()));
}

#[test]
fn a_file_with_a_problem_is_refused_before_anything_is_connected_to() {
    let told = check("[upstream.api]\nurl = \"http://127.0.0.1:1\"\nnonsense = 1");
    assert_eq!((told.code, told.lines.len()), (2, 0));
}
