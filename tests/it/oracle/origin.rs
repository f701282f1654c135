//! The upstream of the small world: every answer says what it is of, and some go wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::model::{End, Exchange, MEMORY_OBJECT_MAX, Model, NO_VERSION, Page, Reuse, Section, if_error};
use crate::world::origin::serve;

/// The route's first-byte timeout, which a stall outlasts; nothing else does, however busy the machine.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(1500);
const MAX_AGES: [u64; 3] = [2, 5, 30];

/// What it does wrong, in parts of a hundred, and how slow it is, in milliseconds; the director turns these.
#[derive(Default)]
pub struct Mood {
    pub fails: AtomicU32,
    pub slow: AtomicU32,
}

/// A running upstream; it stops when dropped.
pub struct Upstream {
    pub url: String,
    _stop: tokio::sync::oneshot::Sender<()>,
}

struct Asked {
    method: String,
    page: Page,
    fields: Vec<(String, String)>,
}

/// How a response goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Error,
    Close,
    Stall,
    BreakOff,
    Reset,
}

/// How the body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    Close,
}

/// What is going to be written.
struct Plan {
    head: String,
    body: Bytes,
    framing: Framing,
    /// Whether nothing follows the head, whatever that says.
    bodiless: bool,
    fault: Option<Fault>,
    pauses: [u64; 3],
}

impl Upstream {
    pub fn start(seed: u64, model: Arc<Model>, mood: Arc<Mood>) -> Self {
        let rng = Arc::new(Mutex::new(Rng::with_seed(seed)));
        let (address, stop) = serve(move |stream| {
            let (rng, model, mood) = (Arc::clone(&rng), Arc::clone(&model), Arc::clone(&mood));
            async move {
                let mut stream = BufReader::new(stream);
                // A proxy that leaves is no concern of the upstream's.
                while let Some(asked) = read(&mut stream).await {
                    let (exchange, plan) = plan(&asked, &rng, &model, &mood);
                    let goes_on = write(stream.get_mut(), plan).await;
                    model.ends(exchange);
                    if goes_on.is_none() {
                        return;
                    }
                }
            }
        });
        Self { url: format!("http://{address}"), _stop: stop }
    }
}

impl Asked {
    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(it, _)| it == name).map_or("", |(_, value)| value)
    }

    fn version(&self, name: &str) -> Option<u64> {
        self.field(name).strip_prefix("\"v")?.strip_suffix('"')?.parse().ok()
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split(' ');
    let (method, page) = (words.next()?.to_owned(), Page::parse(words.next()?));
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let asked = Asked { method, page, fields };
    assert_eq!(asked.field("transfer-encoding"), "", "contents come with their length");
    let mut content = vec![0; asked.field("content-length").parse().unwrap_or_default()];
    stream.read_exact(&mut content).await.ok()?;
    Some(asked)
}

fn plan(asked: &Asked, rng: &Mutex<Rng>, model: &Model, mood: &Mood) -> (usize, Plan) {
    let mut rng = rng.lock().unwrap();
    let fault = (rng.u32(0..100) < mood.fails.load(Ordering::Relaxed)).then(|| match rng.u32(0..80) {
        0 => Fault::Stall,
        1..24 => Fault::Error,
        24..36 => Fault::Close,
        36..60 => Fault::BreakOff,
        _ => Fault::Reset,
    });
    let slow = u64::from(mood.slow.load(Ordering::Relaxed));
    let pauses = [rng.u64(0..=slow), rng.u64(0..=slow), rng.u64(0..=slow)];
    let mut draft = Draft::new(asked, fault, &mut rng);
    let (exchange, version, body) = model.arrives(|known| {
        let latest = known.latest(asked.page, &draft.exchange.variant, &draft.exchange.identity);
        draft.answer(asked, latest.map(|latest| (latest, known.length(latest))), &mut rng);
        // Without content nothing is left open at its end.
        if draft.set_cookie || draft.framing == Framing::Close && asked.method != "HEAD" {
            draft.exchange.reuse = Reuse::Never;
        }
        (draft.exchange.clone(), draft.body.clone())
    });
    let (head, body) = (draft.head(version, &body), draft.content(&body));
    let bodiless = asked.method == "HEAD" || matches!(draft.exchange.status, 204 | 304);
    (exchange, Plan { head, body, framing: draft.framing, bodiless, fault: draft.fault, pauses })
}

/// A response in the making.
struct Draft {
    exchange: Exchange,
    fault: Option<Fault>,
    framing: Framing,
    control: String,
    set_cookie: bool,
    body: Option<Bytes>,
    range: Option<(usize, usize)>,
}

impl Draft {
    fn new(asked: &Asked, fault: Option<Fault>, rng: &mut Rng) -> Self {
        let page = asked.page;
        let (control, reuse) = control(page.section, rng);
        let is_personal = page.section != Section::User
            && !(asked.field("authorization").is_empty() && asked.field("cookie").is_empty());
        let set_cookie = rng.u32(0..20) == 0;
        let framing = match rng.u32(0..20) {
            0 => Framing::Close,
            1..8 => Framing::Chunked,
            _ => Framing::Length,
        };
        // Of a body that the connection ends, only a reset tells that it is not whole.
        let fault = fault.map(|it| if framing == Framing::Close && it == Fault::BreakOff { Fault::Reset } else { it });
        let exchange = Exchange {
            ask: asked.field("x-ask").parse().expect("the request's number"),
            process: asked.field("x-process").parse().expect("the process' number"),
            page,
            variant: if page.varies() { asked.field("accept-language").to_owned() } else { String::new() },
            identity: format!(
                "{}/{}",
                asked.field("authorization"),
                asked.field("cookie").trim_start_matches("session=")
            ),
            method: asked.method.clone(),
            status: 200,
            reuse: if is_personal || asked.field("cache-control") == "no-store" { Reuse::Never } else { reuse },
            confirms: NO_VERSION,
            fails: fault.is_some(),
            arrived: 0,
            arrived_at: 0,
            end: End::Open,
            counts_from_reception: page.section == Section::Ttl,
        };
        Self { exchange, fault, framing, control, set_cookie, body: None, range: None }
    }

    /// Decides between a new version, the current one, and a part of that.
    fn answer(&mut self, asked: &Asked, latest: Option<(u64, usize)>, rng: &mut Rng) {
        let exchange = &mut self.exchange;
        if exchange.method == "PUT" {
            exchange.status = if self.fault.is_some() { 503 } else { 204 };
            return self.keep();
        }
        if matches!(self.fault, Some(Fault::Error | Fault::Close | Fault::Stall)) {
            exchange.status = 503;
            return;
        }
        let keeps = rng.u32(0..3) > 0;
        let Some((latest, length)) = latest.filter(|_| keeps) else { return self.make(asked, rng) };
        let range = asked.field("range").strip_prefix("bytes=").and_then(|it| it.split_once('-'));
        let range = range.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().unwrap_or(usize::MAX))));
        let fits = asked.field("if-range").is_empty() || asked.version("if-range") == Some(latest);
        if asked.version("if-none-match") == Some(latest) {
            (exchange.status, exchange.confirms) = (304, latest);
            self.keep();
        } else if exchange.method == "HEAD" {
            exchange.confirms = latest;
        } else if let Some((first, last)) = range.filter(|(first, _)| fits && *first < length) {
            (exchange.status, exchange.confirms) = (206, latest);
            self.range = Some((first, last.min(length - 1)));
        } else {
            self.make(asked, rng);
        }
    }

    /// A 304 takes nothing back: it is as good as the response that it confirms.
    fn keep(&mut self) {
        self.set_cookie = false;
        self.framing = Framing::Length;
    }

    fn make(&mut self, asked: &Asked, rng: &mut Rng) {
        let length = match rng.usize(0..20) {
            0 => 0,
            1..5 => rng.usize(2_000..MEMORY_OBJECT_MAX),
            5 => rng.usize(MEMORY_OBJECT_MAX..300_000),
            _ => rng.usize(64..2_000),
        };
        let mut filler = Rng::with_seed(self.exchange.ask);
        let stamp = format!("{} {} {}\n", asked.page.path(), self.exchange.variant, self.exchange.identity);
        let is_dull = rng.bool();
        let rest = std::iter::repeat_with(|| if is_dull { b'.' } else { filler.u8(..) });
        self.body = Some(stamp.into_bytes().into_iter().chain(rest).take(length).collect());
        if asked.page.section == Section::Plain && rng.u32(0..15) == 0 {
            self.exchange.status = 404;
        }
    }

    fn content(&self, body: &Bytes) -> Bytes {
        match (self.range, self.exchange.status) {
            (Some((first, last)), _) => body.slice(first..=last),
            (None, 200 | 404) if self.exchange.method == "GET" => body.clone(),
            (None, _) => Bytes::new(),
        }
    }

    fn head(&self, version: u64, body: &Bytes) -> String {
        let Exchange { status, page, .. } = &self.exchange;
        let mut head = format!("HTTP/1.1 {status} as told\r\n");
        let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        if version != NO_VERSION {
            add("etag", &format!("\"v{version}\""));
            add("surrogate-key", &format!("group:{}", page.group()));
        }
        if !self.control.is_empty() && *status < 500 {
            add("cache-control", &self.control);
        }
        if page.varies() {
            add("vary", "Accept-Language");
        }
        if self.set_cookie && *status < 500 {
            add("set-cookie", &format!("canary={}", self.exchange.ask));
        }
        if let Some((first, last)) = self.range {
            add("content-range", &format!("bytes {first}-{last}/{}", body.len()));
        }
        let length = if self.exchange.method == "HEAD" { body.len() } else { self.content(body).len() };
        match self.framing {
            _ if matches!(status, 204 | 304) => {}
            Framing::Length => add("content-length", &length.to_string()),
            Framing::Chunked => add("transfer-encoding", "chunked"),
            Framing::Close => add("connection", "close"),
        }
        head.push_str("\r\n");
        head
    }
}

/// A Cache-Control, and what it allows.
fn control(section: Section, rng: &mut Rng) -> (String, Reuse) {
    let secs = Duration::from_secs;
    let fresh = |secs_fresh: u64, swr: u64, sie: Option<u64>| Reuse::For {
        sure: secs(secs_fresh),
        longest: secs(secs_fresh),
        while_revalidating: secs(swr),
        if_error: if_error(sie.map(secs)),
    };
    if section == Section::Ttl {
        let windows = if_error(None);
        let reuse = Reuse::For { sure: secs(10), longest: secs(20), while_revalidating: secs(5), if_error: windows };
        return (String::new(), reuse);
    }
    if section == Section::User {
        return ("public, max-age=20".to_owned(), fresh(20, 0, None));
    }
    let age = MAX_AGES[rng.usize(0..MAX_AGES.len())];
    match rng.u32(0..20) {
        0 => ("no-store".to_owned(), Reuse::Never),
        1 => ("private, max-age=60".to_owned(), Reuse::Never),
        2 => ("no-cache".to_owned(), fresh(0, 0, Some(0))),
        3 => ("max-age=0".to_owned(), fresh(0, 0, None)),
        4 | 5 => (format!("max-age={age}, must-revalidate"), fresh(age, 0, Some(0))),
        6 | 7 => (format!("max-age={age}, stale-while-revalidate=10"), fresh(age, 10, None)),
        8 | 9 => (format!("max-age={age}, stale-if-error=20"), fresh(age, 0, Some(20))),
        _ => (format!("max-age={age}"), fresh(age, 0, None)),
    }
}

/// None: the connection ends with it.
async fn write(stream: &mut TcpStream, plan: Plan) -> Option<()> {
    let Plan { head, body, framing, bodiless, fault, pauses } = plan;
    pause(pauses[0]).await;
    match fault {
        Some(Fault::Close) => return None,
        Some(Fault::Stall) => {
            tokio::time::sleep(FIRST_BYTE_TIMEOUT * 2).await;
            return None;
        }
        Some(Fault::Error | Fault::BreakOff | Fault::Reset) | None => {}
    }
    // What has no content cannot break off within it.
    let breaks = matches!(fault, Some(Fault::BreakOff | Fault::Reset));
    let head = if breaks && body.is_empty() { &head.as_bytes()[..head.len() / 2] } else { head.as_bytes() };
    stream.write_all(head).await.ok()?;
    pause(pauses[1]).await;
    let (first, second) = body.split_at(body.len() / 2);
    for (nth, part) in [first, second].into_iter().filter(|part| !part.is_empty()).enumerate() {
        if breaks && (nth == 1 || body.len() < 2) {
            break;
        }
        let is_chunked = framing == Framing::Chunked;
        if is_chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await.ok()?;
        }
        stream.write_all(part).await.ok()?;
        if is_chunked {
            stream.write_all(b"\r\n").await.ok()?;
        }
        pause(pauses[2]).await;
    }
    if fault == Some(Fault::Reset) {
        socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).ok()?;
    }
    if breaks {
        return None;
    }
    if framing == Framing::Chunked && !bodiless {
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
    (framing != Framing::Close).then_some(())
}

async fn pause(millis: u64) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}
