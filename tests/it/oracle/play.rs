//! What happens in one sequence: clients that ask, and a director who purges, breaks things and moves the clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aside::clock::Clock;
use fastrand::Rng;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::model::{Ask, Body, Model, Page, RESIDENCE, Scope, Section, Seen};
use super::origin::{FIRST_BYTE_TIMEOUT, Mood, Upstream};
use crate::world::load::until_up;
use crate::world::relay::Relay;
use crate::world::{Proxy, Redis, builder, field};

/// Longer than this no answer takes, whatever goes wrong.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Longer than this Redis is not out of use once nothing is wrong with it.
const RECOVERED_WITHIN: Duration = Duration::from_secs(20);
const LANGUAGES: [&str; 3] = ["de", "en", "fr"];
const CLIENTS: usize = 6;
const STEPS: usize = 30;

/// The parts of one sequence.
pub struct Play {
    model: Arc<Model>,
    mood: Arc<Mood>,
    upstream: Upstream,
    redis_url: Option<String>,
    /// Between Redis and the last of several processes.
    relay: Option<Relay>,
    folder: TempDir,
    proxies: Vec<Proxy>,
    clients: [reqwest::Client; 2],
    over: AtomicBool,
}

/// What a sequence came to.
pub struct Outcome {
    pub wrong: Vec<String>,
    pub answers: usize,
    pub exchanges: usize,
}

/// Plays a sequence with as many processes.
pub async fn play(seed: u64, processes: usize, with_redis: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let redis = with_redis.then(Redis::start);
    let play = Play::start(seed, processes, redis.as_ref()).await;
    let seeds: Vec<u64> = (0..CLIENTS).map(|_| rng.u64(..)).collect();
    let redis = tokio::join!(
        async {
            join_all(seeds.iter().map(|seed| play.client(Rng::with_seed(*seed)))).await;
            play.over.store(true, Ordering::SeqCst);
        },
        play.director(rng.fork(), redis),
    )
    .1;
    play.finale(&mut rng, redis.as_ref()).await;
    let (wrong, answers, exchanges) = play.model.verdict();
    Outcome { wrong, answers, exchanges }
}

impl Play {
    async fn start(seed: u64, processes: usize, redis: Option<&Redis>) -> Self {
        let clock = Clock::manual(Clock::System.now());
        let (model, mood) = (Arc::new(Model::new(clock.clone())), Arc::new(Mood::default()));
        let upstream = Upstream::start(seed, Arc::clone(&model), Arc::clone(&mood));
        let folder = tempfile::tempdir().expect("a folder");
        let client = |build: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
            build(builder()).build().expect("a client can be built")
        };
        let clients = [client(|it| it.http1_only()), client(|it| it.http2_prior_knowledge())];
        let (proxies, over) = (Vec::new(), AtomicBool::new(false));
        let redis_url = redis.map(Redis::url);
        let relay = redis.filter(|_| processes > 1).map(|redis| Relay::to(redis.port));
        let mut play = Self { model, mood, upstream, redis_url, relay, folder, proxies, clients, over };
        for process in 0..processes {
            play.write(process, processes, "10s");
            play.proxies.push(Proxy::start_file_at(play.file(process), clock.clone()));
        }
        if play.redis_url.is_some() {
            for proxy in &play.proxies {
                until_up(proxy).await;
            }
        }
        play
    }

    fn file(&self, process: usize) -> PathBuf {
        self.folder.path().join(format!("{process}.toml"))
    }

    /// The configuration of a process.
    fn write(&self, process: usize, processes: usize, ttl: &str) {
        let redis = self.redis_table(process + 1 == processes);
        let route = |section: Section, more: &str| {
            let name = section.name();
            format!("[[route]]\nname = \"{name}\"\npath = \"/{name}/{{id}}\"\nuse = \"any\"\n{more}\n")
        };
        let routes = [
            route(Section::Plain, ""),
            route(Section::Ttl, &format!("ttl = \"{ttl}\"\nstale_while_revalidate = \"5s\"\ncookies = \"ignore\"")),
            route(Section::User, "key = { headers = [\"authorization\"], cookies = [\"session\"] }"),
            route(Section::Shared, if redis.is_empty() { "" } else { "collapse = \"cluster\"" }),
        ];
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n[memory]\nmax_object = \"64 KiB\"\nunsynced_residence = \"{}s\"\n{redis}\
             [upstream.api]\nurl = \"{}\"\nfirst_byte_timeout = \"{}ms\"\nbreaker = {{ failures = 1000000 }}\n\
             [profile.any]\nttl_jitter = 0.0\ntags = [\"id:{{id}}\"]\nkey = {{ host = false }}\n{}",
            RESIDENCE.as_secs(),
            self.upstream.url,
            FIRST_BYTE_TIMEOUT.as_millis(),
            routes.join("")
        );
        std::fs::write(self.file(process), text).expect("a file");
    }

    fn redis_table(&self, is_last: bool) -> String {
        let relayed = self.relay.as_ref().filter(|_| is_last).map(|relay| format!("redis://127.0.0.1:{}", relay.port));
        let table = |url: String| format!("[redis]\nurl = \"{url}\"\ntimeout = \"100ms\"\n");
        relayed.or_else(|| self.redis_url.clone()).map(table).unwrap_or_default()
    }

    async fn client(&self, mut rng: Rng) {
        for _ in 0..STEPS {
            match rng.u32(0..40) {
                0 => self.purge(&mut rng).await,
                1..3 => self.herd(&mut rng).await,
                _ => self.ask(&mut rng).await,
            }
        }
    }

    /// As many at one time for one page.
    async fn herd(&self, rng: &mut Rng) {
        let (process, page) = (rng.usize(0..self.proxies.len()), page(rng));
        let asks = (0..6).map(|_| {
            let mut rng = rng.fork();
            let ask = self.clean(&mut rng, process, page);
            async move { self.send(ask, &mut rng).await }
        });
        join_all(asks).await;
    }

    async fn ask(&self, rng: &mut Rng) {
        let (process, page) = (rng.usize(0..self.proxies.len()), page(rng));
        let mut ask = self.clean(rng, process, page);
        match rng.u32(0..12) {
            0 => ask.method = "HEAD",
            1 => ask.method = "PUT",
            2 => ask.known = self.model.some_version(&ask),
            4 => ask.no_store = true,
            3 => {
                let first = rng.usize(0..1_000);
                ask.range = Some((first, first + rng.usize(0..1_000)));
            }
            _ => {}
        }
        match rng.u32(0..8) {
            0 => ask.authorization = format!("Bearer {}", rng.u32(0..3)),
            1 => ask.session = rng.u32(0..3).to_string(),
            _ => {}
        }
        self.send(ask, rng).await;
    }

    fn clean(&self, rng: &mut Rng, process: usize, page: Page) -> Ask {
        Ask {
            number: 0,
            process,
            method: "GET",
            page,
            language: LANGUAGES[rng.usize(0..LANGUAGES.len())],
            authorization: String::new(),
            session: String::new(),
            known: None,
            no_store: false,
            range: None,
            sent: 0,
            sent_at: 0,
            sent_real: Instant::now(),
            calm: false,
        }
    }

    /// Sends it and has the answer judged; now and then the client leaves before the end.
    async fn send(&self, mut ask: Ask, rng: &mut Rng) {
        self.model.asks(&mut ask);
        let client = &self.clients[rng.usize(0..2)];
        let method = reqwest::Method::from_bytes(ask.method.as_bytes()).expect("a method");
        let mut request = client.request(method, self.proxies[ask.process].url(&ask.page.path()));
        request = request
            .header("x-ask", ask.number.to_string())
            .header("x-process", ask.process.to_string())
            .header("accept-language", ask.language);
        if !ask.authorization.is_empty() {
            request = request.header("authorization", &ask.authorization);
        }
        if !ask.session.is_empty() {
            request = request.header("cookie", format!("session={}", ask.session));
        }
        if ask.no_store {
            request = request.header("cache-control", "no-store");
        }
        if let Some(known) = ask.known {
            request = request.header("if-none-match", format!("\"v{known}\""));
        }
        if let Some((first, last)) = ask.range {
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        if ask.method == "PUT" {
            request = request.body(vec![b'x'; rng.usize(0..20_000)]);
        }
        let leaves_after = (rng.u32(0..12) == 0).then(|| Duration::from_millis(rng.u64(0..15)));
        let patience = leaves_after.unwrap_or(ANSWERED_WITHIN);
        match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => self.read(&ask, response, rng).await,
            Ok(Err(error)) => self.model.unanswered(&ask, &format!("{error:?}")),
            Err(_) if leaves_after.is_some() => {}
            Err(_) => self.model.wrong(format!("no answer within {ANSWERED_WITHIN:?}\n  {ask:?}")),
        }
    }

    async fn read(&self, ask: &Ask, mut response: reqwest::Response, rng: &mut Rng) {
        if ask.method == "PUT" {
            if response.status().is_success() {
                self.model.changed(ask);
            }
            return;
        }
        let number = |name: &str, prefix: &str| {
            field(&response, name).strip_prefix(prefix).and_then(|it| it.trim_end_matches('"').parse().ok())
        };
        let mut seen = Seen {
            status: response.status().as_u16(),
            version: number("etag", "\"v"),
            content_range: Some(field(&response, "content-range")).filter(|it| !it.is_empty()),
            set_cookie: number("set-cookie", "canary="),
            cache_status: field(&response, "cache-status"),
            body: Body::BrokenOff,
        };
        let leaves = rng.u32(0..12) == 0;
        let reading = async {
            let mut bytes = Vec::new();
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                    Ok(None) => return Body::Whole(bytes.into()),
                    Err(_) => return Body::BrokenOff,
                }
                if leaves {
                    return Body::Left(bytes.into());
                }
            }
        };
        match tokio::time::timeout(ANSWERED_WITHIN, reading).await {
            Ok(body) => seen.body = body,
            Err(_) => return self.model.wrong(format!("no end within {ANSWERED_WITHIN:?}\n  {ask:?}")),
        }
        self.model.answered(ask, &seen);
    }

    async fn purge(&self, rng: &mut Rng) {
        let page = page(rng);
        let (scope, mut order) = match rng.u32(0..12) {
            0 => (Scope::All, json!({ "all": true })),
            1 => (Scope::Section(page.section), json!({ "routes": [page.section.name()] })),
            2 => {
                let prefix = format!("http://any.example/{}/", page.section.name());
                (Scope::Section(page.section), json!({ "prefixes": [prefix] }))
            }
            3..5 => (Scope::Id(page.id), json!({ "tags": [format!("id:{}", page.id)] })),
            5..7 => (Scope::Group(page.group()), json!({ "tags": [format!("group:{}", page.group())] })),
            _ => (Scope::Url(page), json!({ "urls": [format!("http://any.example{}", page.path())] })),
        };
        let soft = rng.u32(0..3) == 0;
        order["soft"] = json!(soft);
        let _ = self.order(scope, soft, rng.usize(0..self.proxies.len()), &order).await;
    }

    /// Orders a purge; its number, where Redis has it.
    async fn order(&self, scope: Scope, soft: bool, process: usize, order: &Value) -> Option<u64> {
        let purge = self.model.purges(scope, soft, process);
        let admin = self.proxies[process].running.admin.expect("an admin listener");
        let request = self.clients[0].post(format!("http://{admin}/purge")).header("content-type", "application/json");
        let answered = async {
            let answer = request.body(order.to_string()).send().await.ok()?;
            let (status, text) = (answer.status().as_u16(), answer.text().await.ok()?);
            Some((status, serde_json::from_str::<Value>(&text).ok()?["purge"].as_u64()))
        };
        match tokio::time::timeout(ANSWERED_WITHIN, answered).await {
            Ok(Some((status @ (200 | 503), number))) => {
                self.model.purged(purge, status == 200);
                number.filter(|_| status == 200)
            }
            answer => {
                self.model.wrong(format!("a purge was not answered as one: {answer:?}"));
                None
            }
        }
    }

    /// Moves the clock, turns the upstream's mood, reloads and harms Redis, until the clients are done.
    async fn director(&self, mut rng: Rng, mut redis: Option<Redis>) -> Option<Redis> {
        let mut is_stopped = false;
        while !self.over.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(rng.u64(1..25))).await;
            match rng.u32(0..20) {
                0..5 => self.model.advance(Duration::from_millis(rng.u64(1..12_000))),
                5..8 => self.mood.fails.store(rng.choice([0, 10, 50, 100]).expect("one"), Ordering::Relaxed),
                8..12 => self.mood.slow.store(rng.choice([0, 1, 5, 30]).expect("one"), Ordering::Relaxed),
                12 => self.reload(rng.choice(["10s", "20s"]).expect("one")),
                13..16 => self.purge(&mut rng).await,
                _ => {
                    let Some(redis) = &mut redis else { continue };
                    self.model.troubled();
                    match &self.relay {
                        Some(relay) if !is_stopped && rng.u32(0..4) == 0 => self.cut_off(relay, &mut rng).await,
                        Some(_) | None => is_stopped = self.harm(redis, is_stopped, &mut rng),
                    }
                }
            }
        }
        if let Some(redis) = redis.as_ref().filter(|_| is_stopped) {
            redis.signal("CONT");
        }
        redis
    }

    /// Has the last process hold a page, cuts it off, and purges the page elsewhere: once the residence is over it must
    /// not use what it holds.
    async fn cut_off(&self, relay: &Relay, rng: &mut Rng) {
        let page = Page { section: Section::User, id: rng.u32(0..Page::IDS) };
        let ask = self.clean(rng, self.proxies.len() - 1, page);
        self.send(ask.clone(), rng).await;
        relay.swallow();
        let order = json!({ "urls": [format!("http://any.example{}", page.path())] });
        let _ = self.order(Scope::Url(page), false, 0, &order).await;
        self.model.advance(Duration::from_millis(rng.u64(7_100..8_000)));
        self.send(ask, rng).await;
    }

    /// Does something to Redis; whether it stands still then.
    fn harm(&self, redis: &mut Redis, is_stopped: bool, rng: &mut Rng) -> bool {
        if is_stopped {
            redis.signal("CONT");
            return false;
        }
        match rng.u32(0..9) {
            8.. => self.relay.iter().for_each(Relay::swallow),
            0..4 => {
                redis.signal("STOP");
                return true;
            }
            4..6 => drop(redis.command("FLUSHALL")),
            6 => drop(redis.command("CLIENT KILL TYPE normal SKIPME yes")),
            7 => redis.restart(),
        }
        false
    }

    fn reload(&self, ttl: &str) {
        self.model.disturbed();
        for (process, proxy) in self.proxies.iter().enumerate() {
            self.write(process, self.proxies.len(), ttl);
            if let Err(problems) = proxy.running.reload() {
                self.model.wrong(format!("a reload failed: {problems:?}"));
            }
        }
        self.model.disturbed();
    }

    /// All trouble ends; what was purged is then obeyed everywhere, and what is stored is a hit.
    async fn finale(&self, rng: &mut Rng, redis: Option<&Redis>) {
        self.mood.fails.store(0, Ordering::Relaxed);
        self.mood.slow.store(1, Ordering::Relaxed);
        if redis.is_some() {
            self.all_know().await;
        }
        self.model.barrier();
        for _ in 0..2 {
            for section in Section::ALL {
                for id in 0..Page::IDS {
                    let page = Page { section, id };
                    join_all((0..self.proxies.len()).map(|process| {
                        let mut rng = rng.fork();
                        async move { self.send(self.clean(&mut rng, process, page), &mut rng).await }
                    }))
                    .await;
                }
            }
        }
    }

    /// Waits until Redis has every purge, and every process has heard of every one.
    async fn all_know(&self) {
        let begun = Instant::now();
        let mut last = 0;
        for process in 0..self.proxies.len() {
            let of_nothing = json!({ "tags": ["nothing"] });
            loop {
                if let Some(number) = self.order(Scope::Id(u32::MAX), false, process, &of_nothing).await {
                    last = last.max(number);
                    break;
                }
                if begun.elapsed() > RECOVERED_WITHIN {
                    return self.model.wrong(format!("process {process} cannot purge again"));
                }
            }
        }
        for proxy in &self.proxies {
            loop {
                let stats = proxy.stats().await;
                let purge = &stats["purge"];
                let is_recorded = purge["unrecorded"] == 0 && purge["last"].as_u64() >= Some(last);
                if is_recorded && stats["redis"]["ledger"] == "synced" {
                    break;
                }
                if begun.elapsed() > RECOVERED_WITHIN {
                    return self.model.wrong(format!("the ledger is not followed again: {last} {stats:#}"));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn page(rng: &mut Rng) -> Page {
    Page { section: Section::ALL[rng.usize(0..Section::ALL.len())], id: rng.u32(0..Page::IDS) }
}
