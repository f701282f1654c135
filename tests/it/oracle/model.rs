//! The reference: what was asked, what the upstream said, what was purged, and which answers these allow.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aside::clock::Clock;
use bytes::Bytes;

/// `memory.unsynced_residence` of the proxies.
pub const RESIDENCE: Duration = Duration::from_secs(5);
/// After this much of the proxies' time a process that does not hear of a purge obeys it too.
const OBEYED_UNHEARD: Duration = Duration::from_secs(7);
/// After this much real time a process that can hear of a purge obeys it; the machine may be busy with other tests.
const OBEYED_HEARD: Duration = Duration::from_millis(700);
/// How long what the upstream does may take to reach who waits.
const TOLD_WITHIN: Duration = Duration::from_millis(300);
/// The stale-if-error window of the routes.
const ROUTE_STALE_IF_ERROR: Duration = Duration::from_secs(60);
/// The greatest of what the bodies' lengths may be for the memory tier to hold them.
pub const MEMORY_OBJECT_MAX: usize = 64 * 1024;

/// A place in the one order of all events.
pub type Place = u64;

/// The routes, by their first path segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The origin decides; credentials and cookies pass the cache by.
    Plain,
    /// The route's ttl; cookies are not forwarded.
    Ttl,
    /// Credentials and cookies are in the key.
    User,
    /// As plain, with one fetch for all processes.
    Shared,
}

impl Section {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Ttl, Self::User, Self::Shared];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Ttl => "ttl",
            Self::User => "user",
            Self::Shared => "shared",
        }
    }
}

/// A path of the small world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub section: Section,
    pub id: u32,
}

impl Page {
    /// How many there are of each section.
    pub const IDS: u32 = 4;

    pub fn path(self) -> String {
        format!("/{}/{}", self.section.name(), self.id)
    }

    pub fn parse(path: &str) -> Self {
        let (section, id) = path[1..].split_once('/').expect("two segments");
        let section = Section::ALL.into_iter().find(|it| it.name() == section).expect("a section");
        Self { section, id: id.parse().expect("a number") }
    }

    /// Whether its content depends on the language.
    pub const fn varies(self) -> bool {
        self.id % 2 == 1
    }

    /// The tag that the origin gives it.
    pub const fn group(self) -> u32 {
        self.id % 3
    }
}

/// What the upstream is to see of who asks; nobody where it sees nothing.
pub fn identity(section: Section, authorization: &str, session: &str) -> String {
    let session = if section == Section::Ttl && authorization.is_empty() { "" } else { session };
    format!("{authorization}/{session}")
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub number: u64,
    pub process: usize,
    pub method: &'static str,
    pub page: Page,
    pub language: &'static str,
    pub authorization: String,
    pub session: String,
    pub known: Option<u64>,
    /// Whether nothing of the answer may be stored.
    pub no_store: bool,
    pub range: Option<(usize, usize)>,
    pub sent: Place,
    pub sent_at: u64,
    pub sent_real: Instant,
    /// Whether Redis was without trouble since the last barrier.
    pub calm: bool,
}

impl Ask {
    /// Whether nothing of its answer is stored.
    pub fn bypasses(&self) -> bool {
        self.no_store || self.is_personal()
    }

    fn is_personal(&self) -> bool {
        match self.page.section {
            Section::Plain | Section::Shared => !self.authorization.is_empty() || !self.session.is_empty(),
            Section::Ttl => !self.authorization.is_empty(),
            Section::User => false,
        }
    }

    /// Whether it asks for the whole, on no conditions.
    pub fn is_clean(&self) -> bool {
        self.method == "GET" && self.range.is_none() && !self.bypasses()
    }

    pub fn variant(&self) -> &'static str {
        if self.page.varies() { self.language } else { "" }
    }

    pub fn identity(&self) -> String {
        identity(self.page.section, &self.authorization, &self.session)
    }
}

/// Whether what an exchange brought may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// For nobody else's request.
    Never,
    /// Fresh for at least `sure` and less than `longest`; stale while it is revalidated, and in place of an error.
    For { sure: Duration, longest: Duration, while_revalidating: Duration, if_error: Duration },
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    At(Place, Instant),
}

/// A request at the upstream, and its response.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub ask: u64,
    pub process: usize,
    pub page: Page,
    pub variant: String,
    pub identity: String,
    pub method: String,
    pub status: u16,
    pub reuse: Reuse,
    /// The version that it brought or said to be valid still.
    pub confirms: u64,
    /// Whether it is going to be broken off, or answered with an error.
    pub fails: bool,
    pub arrived: Place,
    pub arrived_at: u64,
    pub end: End,
    /// Whether its freshness counts from its reception: what a route grants does.
    pub counts_from_reception: bool,
}

/// What an exchange confirms that brings nothing and confirms nothing.
pub const NO_VERSION: u64 = u64::MAX;

/// A version of a page: what one exchange brought first.
#[derive(Clone, Debug)]
pub struct Version {
    pub page: Page,
    pub variant: String,
    pub identity: String,
    pub status: u16,
    pub body: Bytes,
}

/// What a purge is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Url(Page),
    Id(u32),
    Group(u32),
    Section(Section),
    All,
}

impl Scope {
    fn covers(self, page: Page) -> bool {
        match self {
            Self::Url(own) => own == page,
            Self::Id(id) => id == page.id,
            Self::Group(group) => group == page.group(),
            Self::Section(section) => section == page.section,
            Self::All => true,
        }
    }
}

/// A purge, or an unsafe request that is as good as one.
#[derive(Clone, Debug)]
pub struct Purge {
    pub scope: Scope,
    pub soft: bool,
    pub process: usize,
    /// What arrived at the upstream before is purged.
    pub from: Place,
    pub answered: Option<Answered>,
}

/// When a purge was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub place: Place,
    pub at: u64,
    pub real: Instant,
    /// Whether the answer says that Redis has it.
    pub recorded: bool,
}

/// What a client saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: u16,
    pub version: Option<u64>,
    pub content_range: Option<String>,
    pub set_cookie: Option<u64>,
    pub cache_status: String,
    pub body: Body,
}

/// A body as far as it was read.
#[derive(Clone, Debug)]
pub enum Body {
    Whole(Bytes),
    BrokenOff,
    /// The client left after as much.
    Left(Bytes),
}

#[derive(Default)]
struct State {
    asks: HashMap<u64, Ask>,
    exchanges: Vec<Exchange>,
    versions: Vec<Version>,
    purges: Vec<Purge>,
    /// Clock moves, reloads and trouble in Redis: a fetch that seems one too many may come of them.
    disturbances: Vec<Place>,
    /// When the clock came to say what.
    moves: Vec<(Instant, u64)>,
    /// What was purged before, all processes know of.
    barrier: Place,
    calm: bool,
    wrong: Vec<String>,
    checked: usize,
}

/// Everything that happened so far.
pub struct Model {
    places: AtomicU64,
    pub clock: Clock,
    state: Mutex<State>,
}

impl Model {
    pub fn new(clock: Clock) -> Self {
        Self { places: AtomicU64::new(1), clock, state: Mutex::new(State { calm: true, ..State::default() }) }
    }

    pub fn place(&self) -> Place {
        self.places.fetch_add(1, Ordering::SeqCst)
    }

    pub fn now(&self) -> u64 {
        self.clock.now().as_millis()
    }

    /// Notes that a request was not answered, which only a failure of the upstream excuses.
    pub fn unanswered(&self, ask: &Ask, error: &str) {
        let mut state = self.state.lock().unwrap();
        if !state.has_failed(ask) {
            state.wrong.push(format!("no answer: {error}\n  {ask:?}"));
        }
    }

    /// Notes a request that is about to be sent.
    pub fn asks(&self, ask: &mut Ask) {
        let mut state = self.state.lock().unwrap();
        (ask.sent, ask.sent_at, ask.sent_real, ask.calm) = (self.place(), self.now(), Instant::now(), state.calm);
        ask.number = ask.sent;
        state.asks.insert(ask.number, ask.clone());
    }

    /// Notes an exchange, which may bring a version of its own; its number.
    pub fn arrives(&self, make: impl FnOnce(&Known<'_>) -> (Exchange, Option<Bytes>)) -> (usize, u64, Bytes) {
        let mut state = self.state.lock().unwrap();
        let (arrived, arrived_at) = (self.place(), self.now());
        let (mut exchange, body) = make(&Known { state: &state });
        (exchange.arrived, exchange.arrived_at) = (arrived, arrived_at);
        if let Some(body) = body {
            exchange.confirms = state.versions.len() as u64;
            state.versions.push(Version {
                page: exchange.page,
                variant: exchange.variant.clone(),
                identity: exchange.identity.clone(),
                status: exchange.status,
                body,
            });
        }
        let version = exchange.confirms;
        let body = state.versions.get(version as usize).map(|it| it.body.clone()).unwrap_or_default();
        state.exchanges.push(exchange);
        (state.exchanges.len() - 1, version, body)
    }

    /// Notes that the upstream is done with it.
    pub fn ends(&self, exchange: usize) {
        let mut state = self.state.lock().unwrap();
        state.exchanges[exchange].end = End::At(self.place(), Instant::now());
    }

    /// Notes a purge that is about to be ordered; its number.
    pub fn purges(&self, scope: Scope, soft: bool, process: usize) -> usize {
        let mut state = self.state.lock().unwrap();
        let from = self.place();
        state.purges.push(Purge { scope, soft, process, from, answered: None });
        state.purges.len() - 1
    }

    /// Notes that it was answered.
    pub fn purged(&self, purge: usize, recorded: bool) {
        let mut state = self.state.lock().unwrap();
        let answered = Answered { place: self.place(), at: self.now(), real: Instant::now(), recorded };
        state.purges[purge].answered = Some(answered);
    }

    /// Notes an unsafe request that the upstream answered with success: what arrived there before it is purged.
    pub fn changed(&self, ask: &Ask) {
        let mut state = self.state.lock().unwrap();
        let Some(from) = state.exchanges.iter().find(|it| it.ask == ask.number).map(|it| it.arrived) else {
            return state.wrong.push(format!("the upstream was not asked: {ask:?}"));
        };
        let answered = Answered { place: self.place(), at: self.now(), real: Instant::now(), recorded: false };
        let scope = Scope::Url(ask.page);
        state.purges.push(Purge { scope, soft: false, process: ask.process, from, answered: Some(answered) });
    }

    /// Moves the clock.
    pub fn advance(&self, by: Duration) {
        self.disturbed();
        self.clock.advance(by);
        self.state.lock().unwrap().moves.push((Instant::now(), self.now()));
        self.disturbed();
    }

    pub fn disturbed(&self) {
        let mut state = self.state.lock().unwrap();
        let place = self.place();
        state.disturbances.push(place);
    }

    /// Redis is in trouble, until the next barrier.
    pub fn troubled(&self) {
        self.disturbed();
        self.state.lock().unwrap().calm = false;
    }

    /// All processes know of every purge so far.
    pub fn barrier(&self) {
        self.disturbed();
        let mut state = self.state.lock().unwrap();
        state.barrier = self.place();
        state.calm = true;
    }

    pub fn wrong(&self, what: String) {
        self.state.lock().unwrap().wrong.push(what);
    }

    /// Judges an answer.
    pub fn answered(&self, ask: &Ask, seen: &Seen) {
        let mut state = self.state.lock().unwrap();
        state.checked += 1;
        if let Err(what) = state.judge(ask, seen) {
            state.wrong.push(format!("{what}\n  {ask:?}\n  {seen:?}", seen = shortened(seen)));
        }
    }

    /// The last version that a client of this kind may have seen of a page.
    pub fn some_version(&self, ask: &Ask) -> Option<u64> {
        Known { state: &self.state.lock().unwrap() }.latest(ask.page, ask.variant(), &ask.identity())
    }

    /// What was wrong in all, and how many answers were judged and exchanges made.
    pub fn verdict(&self) -> (Vec<String>, usize, usize) {
        let mut state = self.state.lock().unwrap();
        let surplus = state.surplus();
        let mut wrong = std::mem::take(&mut state.wrong);
        wrong.extend(surplus);
        (wrong, state.checked, state.exchanges.len())
    }
}

/// What the upstream knows when it is asked.
pub struct Known<'s> {
    state: &'s State,
}

impl Known<'_> {
    /// The version that is current, where nothing has changed it since.
    pub fn latest(&self, page: Page, variant: &str, identity: &str) -> Option<u64> {
        let is_of = |it: &&Exchange| {
            it.page == page && (it.variant == variant && it.identity == identity || it.method == "PUT")
        };
        let last = self.state.exchanges.iter().rev().filter(is_of).find(|it| {
            it.method == "PUT" || it.confirms != NO_VERSION && self.state.versions[it.confirms as usize].status == 200
        })?;
        (last.confirms != NO_VERSION).then_some(last.confirms)
    }

    pub fn length(&self, version: u64) -> usize {
        self.state.versions[version as usize].body.len()
    }
}

impl State {
    fn judge(&self, ask: &Ask, seen: &Seen) -> Result<(), String> {
        let has_failed = self.has_failed(ask);
        if seen.status >= 500 {
            return if has_failed { Ok(()) } else { Err("an error that the upstream did not cause".into()) };
        }
        if matches!(seen.body, Body::BrokenOff) && !has_failed {
            return Err("a body broke off that the upstream did not break off".into());
        }
        if seen.status == 416 && ask.range.is_some() {
            return Ok(());
        }
        let version = seen.version.ok_or("an answer of no version")?;
        let known = self.versions.get(version as usize).ok_or("a version that was never made")?;
        if (known.page, &*known.variant, &known.identity) != (ask.page, ask.variant(), &ask.identity()) {
            return Err(format!("another's: {:?} {:?} {:?}", known.page, known.variant, known.identity));
        }
        self.judge_content(ask, seen, known, version)?;
        if seen.set_cookie.is_some_and(|to| to != ask.number) {
            return Err("another's Set-Cookie".into());
        }
        self.judge_age(ask, seen, version, has_failed)
    }

    fn judge_content(&self, ask: &Ask, seen: &Seen, known: &Version, version: u64) -> Result<(), String> {
        let (whole, is_left) = match &seen.body {
            Body::Whole(bytes) => (bytes, false),
            Body::Left(bytes) => (bytes, true),
            Body::BrokenOff => return Ok(()),
        };
        let expected = match seen.status {
            304 if ask.known == Some(version) => Bytes::new(),
            304 => return Err("304 for a version that the client did not name".into()),
            206 => {
                let (first, last) = ask.range.ok_or("206 without a range")?;
                let last = last.min(known.body.len().saturating_sub(1));
                let expected = format!("bytes {first}-{last}/{}", known.body.len());
                if seen.content_range.as_deref() != Some(&*expected) {
                    return Err(format!("another range than {expected}"));
                }
                known.body.slice(first..=last)
            }
            status if status == known.status => known.body.clone(),
            _ => return Err(format!("another status than {}", known.status)),
        };
        let expected = if ask.method == "HEAD" { Bytes::new() } else { expected };
        let is_right = if is_left { expected.starts_with(whole) } else { expected == *whole };
        if is_right { Ok(()) } else { Err(format!("{} bytes, not the {} of it", whole.len(), expected.len())) }
    }

    /// Some exchange that said the version to be valid must be late enough, and of use to this request.
    fn judge_age(&self, ask: &Ask, seen: &Seen, version: u64, has_failed: bool) -> Result<(), String> {
        let confirmed = || self.exchanges.iter().filter(|it| it.confirms == version);
        // What broke off is nothing whole, unless it came from elsewhere too.
        let is_of_whole = |it: &Exchange| !it.fails || it.ask == ask.number || !matches!(seen.body, Body::Whole(_));
        if confirmed().any(|it| is_of_whole(it) && self.is_allowed(ask, it, has_failed)) {
            return Ok(());
        }
        let told: Vec<_> = confirmed().map(|it| (it.arrived, it.arrived_at, it.method.clone(), it.reuse)).collect();
        let (sure, _) = self.floors(ask);
        let by = self.purges.iter().find(|it| it.from == sure);
        Err(format!("purged, too old, or not for reuse: confirmed {told:?}, purged by {by:?}"))
    }

    fn is_allowed(&self, ask: &Ask, exchange: &Exchange, has_failed: bool) -> bool {
        if exchange.ask == ask.number {
            return true;
        }
        let Reuse::For { longest, while_revalidating, if_error, .. } = exchange.reuse else { return false };
        // A client's no-store is obeyed for what it gets fetched, and forces no fetch.
        if ask.is_personal() {
            return false;
        }
        let (floor, floor_on_error) = self.floors(ask);
        let since = if exchange.counts_from_reception { self.received_at(exchange) } else { exchange.arrived_at };
        let age = Duration::from_millis(ask.sent_at.saturating_sub(since));
        let is_late = exchange.arrived > ask.sent && exchange.arrived >= floor;
        let is_fresh = age < longest + while_revalidating && exchange.arrived >= floor;
        let is_excused = has_failed && age < longest + if_error.max(while_revalidating);
        is_late || is_fresh || is_excused && exchange.arrived >= floor_on_error
    }

    /// The latest that the proxies' clock can have said when they received it.
    fn received_at(&self, exchange: &Exchange) -> u64 {
        let End::At(_, ended) = exchange.end else { return u64::MAX };
        let moves = self.moves.iter().take_while(|(moved, _)| *moved < ended + TOLD_WITHIN);
        moves.last().map_or(exchange.arrived_at, |(_, now)| (*now).max(exchange.arrived_at))
    }

    /// From where on an exchange is not purged for the request; and from where on in place of an error, for which a
    /// response is good that a purge has only put in doubt.
    fn floors(&self, ask: &Ask) -> (Place, Place) {
        let (mut floor, mut floor_on_error) = (0, 0);
        for purge in self.purges.iter().filter(|it| it.scope.covers(ask.page)) {
            let Some(answered) = purge.answered.filter(|it| it.place < ask.sent) else { continue };
            let is_own = purge.process == ask.process;
            let is_behind = purge.from < self.barrier && self.barrier < ask.sent;
            let heard = ask.calm && ask.sent_real.duration_since(answered.real) > OBEYED_HEARD && answered.recorded;
            let is_known = is_own || is_behind || heard && purge.from > self.barrier;
            let since = Duration::from_millis(ask.sent_at.saturating_sub(answered.at));
            let is_doubted = answered.recorded && since > OBEYED_UNHEARD;
            if is_known || is_doubted {
                floor = floor.max(purge.from);
            }
            if is_known && !purge.soft {
                floor_on_error = floor_on_error.max(purge.from);
            }
        }
        (floor, floor_on_error)
    }

    /// Whether the upstream failed for the page while the request was under way, or so shortly before that those who
    /// waited for it were still to be told.
    fn has_failed(&self, ask: &Ask) -> bool {
        let is_near = |end: End| match end {
            End::Open => true,
            End::At(_, real) => real + TOLD_WITHIN > ask.sent_real,
        };
        self.exchanges.iter().any(|it| it.page == ask.page && it.fails && is_near(it.end))
    }

    /// Fetches that a stored response should have made needless.
    fn surplus(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut fetches: HashMap<u64, usize> = HashMap::new();
        for later in &self.exchanges {
            let count = fetches.entry(later.ask).or_default();
            *count += 1;
            // Its own, its retry without conditions, and a validation behind an answer that was stale.
            if *count > 3 {
                found.push(format!("{count} fetches for one request: {later:?}"));
            }
            let Some(ask) = self.asks.get(&later.ask).filter(|ask| ask.is_clean() && ask.calm) else { continue };
            if let Some(earlier) = self.exchanges.iter().find(|it| self.suffices(it, ask, later)) {
                let near: Vec<_> = self
                    .exchanges
                    .iter()
                    .filter(|it| {
                        it.page == ask.page && it.arrived + 100 > earlier.arrived && it.arrived <= later.arrived
                    })
                    .map(|it| format!("{it:?}\n   by {:?}\n", self.asks.get(&it.ask)))
                    .collect();
                found
                    .push(format!("a needless fetch\n  {ask:?}\n  {earlier:?}\n  {later:?}\n near {}", near.join(" ")));
            }
        }
        found
    }

    fn suffices(&self, earlier: &Exchange, ask: &Ask, later: &Exchange) -> bool {
        let Reuse::For { sure, .. } = earlier.reuse else { return false };
        let of = |it: &Exchange| (it.process, it.page, it.variant.clone(), it.identity.clone());
        let is_plain = |it: &Exchange| {
            let lasts = matches!(it.reuse, Reuse::For { sure, .. } if !sure.is_zero());
            !it.fails && lasts && it.method == "GET" && matches!(it.status, 200 | 304)
        };
        // Where the ledger stands for it was read before it arrived.
        let begun = self.asks[&earlier.ask].sent;
        let between = |place: Place| place >= begun && place <= later.arrived;
        let is_held = || self.versions[earlier.confirms as usize].body.len() <= MEMORY_OBJECT_MAX;
        let is_before = match earlier.end {
            End::Open => false,
            End::At(_, ended) => ended + TOLD_WITHIN < ask.sent_real,
        };
        // That a key cannot be stored is remembered for ten seconds, in which nobody waits for another's fetch.
        let is_recent = |it: &Exchange| {
            let is_open = match it.end {
                End::Open => true,
                End::At(place, _) => place >= begun,
            };
            it.arrived <= later.arrived && (is_open || !is_before && it.arrived_at + 10_000 >= ask.sent_at)
        };
        let is_harmless = |it: &Exchange| is_plain(it) && self.asks[&it.ask].is_clean() || std::ptr::eq(it, later);
        let is_quiet = || {
            let is_purged = |it: &Purge| {
                it.scope.covers(ask.page)
                    && it.from <= later.arrived
                    && it.answered.is_none_or(|answered| answered.place >= begun)
            };
            self.exchanges.iter().filter(|it| it.page == ask.page && is_recent(it)).all(is_harmless)
                && !self.purges.iter().any(is_purged)
                && !self.disturbances.iter().any(|place| between(*place))
        };
        // Which variants there are must be known for a fetch of one to be shared.
        (earlier.arrived < ask.sent && !ask.page.varies() || is_before)
            && self.asks[&earlier.ask].calm
            && is_plain(earlier)
            && of(earlier) == of(later)
            && is_held()
            && later.arrived_at - earlier.arrived_at < u64::try_from(sure.as_millis()).expect("short")
            && is_quiet()
    }
}

fn shortened(seen: &Seen) -> String {
    let Seen { status, version, content_range, set_cookie, cache_status, body } = seen;
    let body = match body {
        Body::Whole(bytes) => format!("whole, {} bytes", bytes.len()),
        Body::BrokenOff => "broken off".to_owned(),
        Body::Left(bytes) => format!("left after {} bytes", bytes.len()),
    };
    format!("{status} version {version:?} {content_range:?} {set_cookie:?} {cache_status:?} {body}")
}

/// The longest of the windows in which what is stored may stand for an error.
pub const fn if_error(origin: Option<Duration>) -> Duration {
    match origin {
        Some(window) => window,
        None => ROUTE_STALE_IF_ERROR,
    }
}
