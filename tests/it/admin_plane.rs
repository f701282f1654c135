//! The operator's side and what leaks from it, certificates, and clocks that are wrong.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use aside::clock::{Clock, Timestamp};
use http_body_util::{BodyExt, Empty};
use rcgen::{CertificateParams, Issuer, KeyPair};
use reqwest::Method;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::protocols::raw_exchange;
use crate::world::proxy::one_route;
use crate::world::redis::{free_port, wait_until};
use crate::world::{Origin, Proxy, RawOrigin, Redis, builder, client, field, get, got, reply};

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n\n";
const FRESH: (&str, &str) = ("cache-control", "max-age=60");

fn admin(proxy: &Proxy, path: &str) -> String {
    format!("http://{}{path}", proxy.running.admin.expect("an admin listener"))
}

#[tokio::test]
async fn the_operators_pages_are_not_on_the_proxys_port_nor_the_proxy_on_the_operators() {
    let origin = Origin::counting(&[]);
    let proxy = Proxy::start(&format!("{ADMIN}{}", one_route(&origin.url(), "")));
    let pages = ["/purge", "/healthz", "/readyz", "/metrics", "/debug", "/config", "/admin"];
    for page in pages {
        assert_eq!(get(&client(), &proxy.url(page)).await.body, format!("{page} 0"), "it is the upstream's");
        assert_eq!(client().post(proxy.url(page)).body("{\"all\":true}").send().await.unwrap().status(), 200);
    }
    assert_eq!(origin.seen().len(), 2 * pages.len());
    assert_eq!(proxy.stats().await["events"]["purged_all"], Value::Null);
    for page in ["/", "/a", "/metrics", "/debug", "/config", "/cache-stats/", "//purge"] {
        assert_eq!(get(&client(), &admin(&proxy, page)).await.status, 404, "{page}");
    }
    assert_eq!(origin.seen().len(), 2 * pages.len());
}

#[tokio::test]
async fn a_browsers_page_sees_and_does_nothing_without_the_token() {
    let origin = Origin::counting(&[]);
    let open = Proxy::start(&format!("{ADMIN}{}", one_route(&origin.url(), "")));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "geheim\n").unwrap();
    let with_token = ADMIN.replace("\n\n", &format!("\ntoken = \"file:{}\"\n\n", secret.path().display()));
    let guarded = Proxy::start(&format!("{with_token}{}", one_route(&origin.url(), "")));
    let status = async |proxy: &Proxy, page: &str, fields: &[(&str, &str)]| {
        let mut request = match page {
            "/purge" => client().post(admin(proxy, page)).header("content-type", "application/json"),
            _ => client().get(admin(proxy, page)),
        };
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(if page == "/purge" { "{\"all\":true}" } else { "" }).send().await.unwrap().status().as_u16()
    };
    for page in ["/cache-stats", "/purge"] {
        // DNS rebinding: a name of the attacker's leads here.
        for host in ["evil.test", "evil.test:9090", "localhost.evil.test", "127.0.0.1.evil.test"] {
            assert_eq!(status(&open, page, &[("host", host)]).await, 421, "{page} {host}");
        }
        for origin in ["http://evil.test", "https://evil.test:9090", "null"] {
            assert_eq!(status(&open, page, &[("origin", origin)]).await, 403, "{page} {origin}");
        }
        for token in ["", "Bearer", "Bearer ", "Bearer geheim2", "Bearer geheiM", "Basic geheim", "geheim"] {
            assert_eq!(status(&guarded, page, &[("authorization", token)]).await, 401, "{page} {token}");
        }
        assert_eq!(status(&guarded, page, &[]).await, 401);
        let proven = [("authorization", "Bearer geheim"), ("host", "admin.test"), ("origin", "http://admin.test")];
        assert_eq!(status(&guarded, page, &proven).await, 200, "{page}");
        assert_eq!(status(&open, page, &[]).await, 200, "{page}");
    }
    let purged = async |proxy: &Proxy| proxy.stats().await["events"]["purged_all"].clone();
    assert_eq!((purged(&open).await, purged(&guarded).await), (1.into(), 1.into()));
}

/// `aside` itself, which writes its logs into one text; ended when dropped.
struct Aside {
    process: Child,
    told: Arc<Mutex<String>>,
}

impl Aside {
    fn serve(file: &Path, secrets: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_aside"))
            .args(["serve", "--config"])
            .arg(file)
            .envs(secrets.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let told = Arc::<Mutex<String>>::default();
        let outs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().expect("piped")), Box::new(process.stderr.take().expect("piped"))];
        for out in outs {
            let told = Arc::clone(&told);
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    told.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        Self { process, told }
    }

    fn told(&self) -> String {
        self.told.lock().unwrap().clone()
    }

    fn until_told(&self, what: &str) {
        wait_until(&format!("it tells {what:?}"), || self.told().contains(what));
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn no_secret_is_told_by_log_figures_or_dump_and_who_purges_everything_is() {
    let secrets = [("TOKEN", "geheim-t0ken"), ("PASSWORD", "geheim-passw0rd"), ("KEY", "geheim-api-key")];
    let origin = Origin::counting(&[FRESH]);
    // The password is wrong, so that there is something to tell of Redis.
    let redis = Redis::start_with(&["--requirepass", "another"]);
    let (listen, admin, folder) = (free_port(), free_port(), tempfile::tempdir().unwrap());
    let file = folder.path().join("aside.toml");
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:{listen}\"\n\n[admin]\nlisten = \"127.0.0.1:{admin}\"\ntoken = \"env:TOKEN\"\n\n\
         [log]\nlevel = \"debug\"\n\n[redis]\nurl = \"{}\"\npassword = \"env:PASSWORD\"\n\n{}",
        redis.url(),
        one_route(&origin.url(), "request_headers = { set = { \"x-api-key\" = \"env:KEY\" } }")
    );
    std::fs::write(&file, toml).unwrap();
    let command = Aside::serve(&file, &secrets);
    command.until_told("listening");
    let url = format!("http://127.0.0.1:{listen}/a");
    let answer = client().get(&url).header("authorization", "Bearer geheim-client").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(origin.seen()[0].fields["x-api-key"], "geheim-api-key", "it is sent");
    let order = client().post(format!("http://127.0.0.1:{admin}/purge")).bearer_auth("geheim-t0ken");
    let order = order.header("content-type", "application/json").body("{\"all\":true,\"soft\":true}");
    let mut seen = got(order.send().await.unwrap()).await.body;
    let wrong = client().get(format!("http://127.0.0.1:{admin}/cache-stats")).bearer_auth("geheim-wrong");
    seen += &got(wrong.send().await.unwrap()).await.body;
    let figures = client().get(format!("http://127.0.0.1:{admin}/cache-stats")).bearer_auth("geheim-t0ken");
    let figures = got(figures.send().await.unwrap()).await.body;
    assert!(figures.contains("\"purged_all\": 1"), "{figures}");
    seen += &figures;
    command.until_told("warn purged everything way=\"admin\" by=\"127.0.0.1\" kind=\"soft\" tags=\"all\"");
    command.until_told("redis is down");
    command.until_told("bypass");
    let dump =
        Command::new(env!("CARGO_BIN_EXE_aside")).args(["check", "--resolved"]).arg(&file).envs(secrets).output();
    let dump = dump.expect("the command runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    seen += &String::from_utf8_lossy(&[dump.stdout, dump.stderr].concat());
    assert!(seen.contains("env:TOKEN"), "{seen}");
    seen += &command.told();
    assert!(!seen.contains("geheim"), "{seen}");
}

#[tokio::test]
async fn a_purge_of_everything_costs_each_key_one_fetch_and_a_soft_one_no_stale_answer_lost() {
    let origin = Origin::start(|seen| async move {
        let fields = [FRESH, ("etag", "\"v1\"")];
        if seen.fields.contains_key("if-none-match") { reply(304, &fields, "") } else { reply(200, &fields, "content") }
    });
    let proxy = Proxy::start(&format!("{ADMIN}{}", one_route(&origin.url(), "")));
    let order = async |order: &'static str| {
        let request = client().post(admin(&proxy, "/purge")).header("content-type", "application/json");
        assert_eq!(request.body(order).send().await.unwrap().status(), 200);
    };
    get(&client(), &proxy.url("/a")).await;
    for purges in 1..=50 {
        proxy.clock.advance(Duration::from_secs(1));
        order(if purges % 2 == 0 { "{\"all\":true,\"soft\":true}" } else { "{\"all\":true}" }).await;
        let client = client();
        let url = proxy.url("/a");
        let answers = futures_util::future::join_all((0..8).map(|_| get(&client, &url))).await;
        assert!(answers.iter().all(|got| got.body == "content"), "{answers:?}");
        assert_eq!(origin.count("/a"), 1 + purges);
    }
    let stats = proxy.stats().await;
    assert_eq!(stats["events"]["purged_all"], 50, "each is counted");
}

/// Head and body of the answer, without what is the same in every answer or says nothing.
async fn errors(proxy: &Proxy, request: &str, status: u16, text: &str) {
    let answer = raw_exchange(proxy.address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    assert_eq!(body, format!("{text}\n"), "{request:?}");
    let allowed = [
        "content-type",
        "cache-control",
        "cache-status",
        "content-length",
        "connection",
        "date",
        "allow",
        "retry-after",
    ];
    for line in head.lines().skip(1) {
        let name = line.split(':').next().expect("a name");
        assert!(allowed.contains(&name), "{request:?}: {line}");
    }
    for leak in ["127.0.0.1", "localhost", "refused", "redis", "Redis", "hyper", "os error", "/a"] {
        assert!(!answer.contains(leak), "{request:?}: {leak:?} in {answer}");
    }
}

#[tokio::test]
async fn errors_tell_clients_a_constant_text_and_nothing_of_what_is_behind() {
    let mut redis = Redis::start();
    let dead = format!("http://127.0.0.1:{}", free_port());
    let garbage = RawOrigin::writing(b"garbage 127.0.0.1\r\n\r\n");
    let silent = RawOrigin::start(|stream, _| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });
    let route = |name: &str, more: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\npath = \"/{name}/{{*rest}}\"\nupstream = \"{name}\"\nttl = \"1m\"\n{more}\n"
        )
    };
    let proxy = Proxy::start(&format!(
        "[server]\nhosts = [\"a.test\"]\nfallback = \"none\"\n\n[redis]\nurl = \"{}\"\n\n\
         [upstream.dead]\nurl = \"{dead}\"\n\n[upstream.garbage]\nurl = \"{}\"\n\n\
         [upstream.silent]\nurl = \"{}\"\nfirst_byte_timeout = \"100ms\"\n\n{}{}{}",
        redis.url(),
        garbage.url(),
        silent.url(),
        route("dead", "methods = [\"GET\", \"POST\"]"),
        route("garbage", "methods = [\"GET\", \"POST\"]\nrequest_body_max = \"10\"\n"),
        route("silent", "")
    ));
    redis.kill();
    let fields = "host: a.test\r\nconnection: close\r\n";
    let errors = async |line: &str, status, text| {
        errors(&proxy, &format!("{line} HTTP/1.1\r\n{fields}\r\n"), status, text).await;
    };
    errors("GET /dead/x", 502, "Bad Gateway").await;
    errors("POST /dead/x", 502, "Bad Gateway").await;
    errors("GET /garbage/x", 502, "Bad Gateway").await;
    errors("GET /silent/x", 504, "Gateway Timeout").await;
    errors("GET /elsewhere", 404, "Not Found").await;
    errors("GET /%zz", 400, "Bad Request").await;
    errors("CONNECT a.test:1", 405, "Method Not Allowed").await;
    errors(&format!("GET /{}", "x".repeat(9000)), 414, "URI Too Long").await;
    errors("GET http://127.1/x", 421, "Misdirected Request").await;
    let line = |fields: &str| format!("GET /dead/x HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{fields}\r\n\r\n");
    let of = async |request: &str, status, text| self::errors(&proxy, request, status, text).await;
    of(&line("expect: x"), 417, "Expectation Failed").await;
    of(&line(&format!("x: {}", "x".repeat(17_000))), 431, "Request Header Fields Too Large").await;
    of(&line("content-length: 20").replace("GET /dead", "POST /garbage"), 413, "Payload Too Large").await;
    of(&line("cache-control: only-if-cached").replace("/dead/", "/silent/cached/"), 504, "Gateway Timeout").await;
}

#[tokio::test]
async fn no_server_field_is_added() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&format!("{ADMIN}{}", one_route(&origin.url(), "")));
    for url in [proxy.url("/a"), proxy.url("/a"), proxy.url("/cache-stats"), admin(&proxy, "/cache-stats")] {
        let answer = client().get(&url).send().await.unwrap();
        for name in ["server", "x-powered-by", "x-cache", "x-cache-key", "via"] {
            assert_eq!(field(&answer, name), "", "{url} {name}");
        }
    }
}

/// An authority, and certificates of it in files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let (folder, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let mut own = CertificateParams::default();
        own.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), own.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(own, key) }
    }

    fn ca(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    fn root(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_pem(&std::fs::read(self.ca()).unwrap()).unwrap()
    }

    /// The value of `server.tls`, for these names and until this year.
    fn tls(&self, names: &[&str], until: i32) -> String {
        let key = KeyPair::generate().unwrap();
        let mut certificate =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        certificate.not_after = rcgen::date_time_ymd(until, 1, 1);
        let path = |end: &str| self.folder.path().join(format!("{}-{until}.{end}", names[0])).display().to_string();
        std::fs::write(path("pem"), certificate.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        format!("tls = {{ cert = \"{}\", key = \"{}\" }}", path("pem"), path("key"))
    }

    /// A proxy that is the TLS server in front of `origin`.
    fn server(&self, origin: &Origin, names: &[&str], until: i32) -> Proxy {
        Proxy::start(&format!("[server]\n{}\n\n{}", self.tls(names, until), one_route(&origin.url(), "cache = false")))
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_prove_who_it_is_is_a_502() {
    let origin = Origin::counting(&[FRESH]);
    let (authority, other) = (Authority::new(), Authority::new());
    let check = async |server: &Proxy, ca: &str, status: u16| {
        let url = format!("https://localhost:{}", server.address.port());
        let upstream = format!("[upstream.api]\nurl = \"{url}\"\nca = \"{ca}\"\n\n");
        let proxy = Proxy::start(&format!("{upstream}[[route]]\npath = \"/{{*rest}}\"\nttl = \"1m\"\n"));
        for method in [Method::GET, Method::POST] {
            let answer = client().request(method.clone(), proxy.url("/a")).send().await.unwrap();
            assert_eq!(answer.status(), status, "{method}");
        }
    };
    let good = authority.server(&origin, &["localhost"], 2100);
    check(&good, &authority.ca(), 200).await;
    let reached = origin.seen().len();
    check(&good, &other.ca(), 502).await;
    check(&authority.server(&origin, &["other.test"], 2100), &authority.ca(), 502).await;
    check(&authority.server(&origin, &["localhost"], 2020), &authority.ca(), 502).await;
    assert_eq!(origin.seen().len(), reached, "no request is sent");
}

#[tokio::test]
async fn over_tls_only_hosts_that_the_certificate_is_valid_for_are_answered() {
    let origin = Origin::counting(&[FRESH]);
    let authority = Authority::new();
    let tls = authority.tls(&["a.test", "*.b.test"], 2100);
    let proxy = Proxy::start(&format!("[server]\n{tls}\n\n{}", one_route(&origin.url(), "")));
    let trusting = format!("[server]\n{tls}\ntrusted_proxies = [\"127.0.0.1\"]\n\n{}", one_route(&origin.url(), ""));
    let trusting = Proxy::start(&trusting);
    let ask = async |proxy: &Proxy, host: &str| {
        let builder = builder().tls_certs_only([authority.root()]).resolve("a.test", proxy.address).http1_only();
        let url = format!("https://a.test:{}/a", proxy.address.port());
        builder.build().unwrap().get(url).header("host", host).send().await.unwrap().status().as_u16()
    };
    for (host, status) in [("a.test", 200), ("A.TEST.", 200), ("x.b.test", 200), ("b.test", 421), ("evil.test", 421)] {
        assert_eq!(ask(&proxy, host).await, status, "{host}");
        assert_eq!(ask(&trusting, host).await, 200, "{host}: a gateway of ours");
    }
    assert_eq!(h2_status(&proxy, &authority, "https://a.test/a").await, 200);
    assert_eq!(h2_status(&proxy, &authority, "https://x.b.test/a").await, 200, "a shared connection");
    assert_eq!(h2_status(&proxy, &authority, "https://evil.test/a").await, 421);
}

/// The status of a GET by HTTP/2 over a connection that was made for `a.test`.
#[allow(clippy::disallowed_methods, reason = "the connection ends with the test")]
async fn h2_status(proxy: &Proxy, authority: &Authority, url: &str) -> u16 {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("a.test").unwrap(), stream).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(url).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

/// A `Date` so many seconds from now.
fn date(offset: i64) -> String {
    let seconds = Clock::System.now().as_secs().saturating_add_signed(offset);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[tokio::test]
async fn an_upstream_whose_clock_is_wrong_is_used_neither_too_long_nor_dropped() {
    const DAY: i64 = 86_400;
    let origin = Origin::start(|seen| async move {
        let [date, age] = ["x-date", "x-age"].map(|name| seen.fields[name].to_str().unwrap().to_owned());
        let mut fields = vec![("cache-control", "max-age=60")];
        if !date.is_empty() {
            fields.push(("date", date.as_str()));
        }
        fields.extend(age.split('|').filter(|age| *age != "none").map(|age| ("age", age)));
        reply(200, &fields, &format!("{} {}", seen.target, seen.nth))
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "stale_if_error = \"0s\""));
    // Fresh for so long, and with which Age; none: not used again.
    let check = async |nth: usize, offset: Option<i64>, age: &str, expected: Option<(u64, u64)>| {
        let url = proxy.url(&format!("/{nth}"));
        let told = offset.map(date).unwrap_or_default();
        let ask = async || {
            let request = client().get(&url).header("x-date", &told).header("x-age", age).send();
            let answer = request.await.unwrap();
            let (age, status) = (field(&answer, "age"), field(&answer, "cache-status"));
            (age, status, answer.text().await.unwrap())
        };
        assert_eq!(ask().await.2, format!("/{nth} 0"));
        let (shown, status, body) = ask().await;
        match expected {
            Some((ttl, expected)) => {
                assert_eq!(status, format!("aside; hit; ttl={ttl}"), "{offset:?} {age}");
                assert_eq!(shown, expected.to_string(), "{offset:?} {age}");
            }
            None => assert_eq!(body, format!("/{nth} 1"), "{offset:?} {age}: {status}"),
        }
    };
    let cases = [
        (None, "none", Some((60, 0))),
        (Some(0), "none", Some((60, 0))),
        // Behind: it may be a day old. Ahead: it is as old as when it came.
        (Some(-DAY), "none", None),
        (Some(DAY), "none", Some((60, 0))),
        (Some(DAY), "20", Some((40, 20))),
        (None, "20", Some((40, 20))),
        (None, "-20", Some((60, 0))),
        (None, "1e9", Some((60, 0))),
        (None, "99999999999999999999999999", None),
        (None, "4294967296", None),
        (None, "20, 0", Some((40, 20))),
        (None, "0, 20", Some((60, 0))),
        (None, "20|0", Some((40, 20))),
        (None, "70|0", None),
    ];
    for (nth, (offset, age, expected)) in cases.into_iter().enumerate() {
        check(nth, offset, age, expected).await;
    }
}

#[tokio::test]
async fn a_clock_that_jumps_makes_nothing_fresh_for_longer() {
    let origin = Origin::counting(&[FRESH]);
    let proxy = Proxy::start(&one_route(&origin.url(), "stale_if_error = \"0s\""));
    let start = proxy.clock.now();
    let (client, url) = (client(), proxy.url("/a"));
    let body = async || get(&client, &url).await.body;
    let hour = Duration::from_secs(3600);
    proxy.clock.set(start.plus(hour));
    assert_eq!((body().await, body().await), ("/a 0".to_owned(), "/a 0".to_owned()));
    // Back by an hour: what was stored seems to come from the future.
    proxy.clock.set(start);
    assert_eq!((body().await, body().await), ("/a 1".to_owned(), "/a 1".to_owned()));
    // By a second, as clocks are set: within what processes may differ.
    proxy.clock.set(Timestamp::from_millis(start.as_millis() - 1000));
    assert_eq!(body().await, "/a 1");
    proxy.clock.set(start.plus(hour));
    assert_eq!((body().await, body().await), ("/a 2".to_owned(), "/a 2".to_owned()));
}
