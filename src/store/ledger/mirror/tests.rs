//! A fleet of mirrors on a simulated Redis that loses messages, fails over, is flushed, and whose clock jumps.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::store::ledger::tests::{fetched_now, tag, verdict};
use crate::store::ledger::{PurgeKind, Verdict};
use crate::stored::Provenance;

const SLOTS: u32 = 1 << 10;
const RESIDENCE: Duration = Duration::from_secs(5);

/// What a Redis holds.
#[derive(Clone, Default)]
struct Held {
    header: Option<Header>,
    slots: HashMap<Position, u64>,
}

/// A Redis that does what `purge.lua` does, and the messages under way to each process.
struct Redis {
    held: Mutex<Held>,
    time: Mutex<u64>,
    epochs: Mutex<u64>,
    under_way: Vec<Mutex<VecDeque<Message>>>,
}

impl Redis {
    fn new(processes: usize) -> Self {
        Self {
            held: Mutex::default(),
            time: Mutex::new(1_000_000),
            epochs: Mutex::new(0),
            under_way: (0..processes).map(|_| Mutex::default()).collect(),
        }
    }

    fn record(&self, floor: u64, positions: &[Position]) -> Head {
        let (mut held, mut time) = (self.held.lock().unwrap(), self.time.lock().unwrap());
        *time += 1;
        let is_new = held.header.is_none();
        if is_new {
            *self.epochs.lock().unwrap() += 1;
            let epoch = Epoch(*self.epochs.lock().unwrap());
            *held = Held { header: Some(Header { epoch, number: 0, slots: u64::from(SLOTS) }), slots: HashMap::new() };
        }
        let mut header = held.header.unwrap();
        let (epoch, before) = (header.epoch, header.number);
        if positions.is_empty() && !is_new {
            return Head { epoch, before, number: before };
        }
        header.number = (*time).max(before + 1).max(floor + 1);
        held.header = Some(header);
        held.slots.extend(positions.iter().map(|position| (*position, header.number)));
        let head = Head { epoch, before, number: header.number };
        let message = Message { head, positions: positions.to_vec() };
        self.under_way.iter().for_each(|queue| queue.lock().unwrap().push_back(message.clone()));
        head
    }
}

impl Record for &Redis {
    type Error = Infallible;

    async fn header(&self) -> Result<Option<Header>, Infallible> {
        Ok(self.held.lock().unwrap().header)
    }

    async fn length(&self) -> Result<u64, Infallible> {
        let last = self.held.lock().unwrap().slots.keys().max().copied();
        Ok(last.map_or(SLOTS_AT, |last| SLOTS_AT + 8 * (u64::from(last) + 1)))
    }

    async fn range(&self, from: u64, to: u64) -> Result<Bytes, Infallible> {
        let held = self.held.lock().unwrap();
        let slots = (position(from)..position(to)).map(|at| held.slots.get(&at).copied().unwrap_or(0).to_le_bytes());
        Ok(slots.flatten().collect())
    }

    async fn purge(&self, floor: u64, positions: &[Position]) -> Result<Head, Infallible> {
        Ok(self.record(floor, positions))
    }

    async fn replace(&self, epoch: Epoch) -> Result<Head, Infallible> {
        self.held.lock().unwrap().header.take_if(|header| header.epoch == epoch);
        Ok(self.record(0, &[]))
    }
}

struct Process {
    ledger: Arc<Ledger>,
    mirror: Mirror,
    /// Whether it reaches Redis.
    connected: bool,
}

impl Process {
    fn new() -> Self {
        let ledger = Arc::new(Ledger::new(SLOTS, Some(RESIDENCE)));
        Self { mirror: Mirror::new(Arc::clone(&ledger)), ledger, connected: true }
    }

    /// What the task does in each round: true when the mirror is proven complete.
    fn look(&mut self, redis: &Redis) -> bool {
        let standing = self.mirror.compare(redis.held.lock().unwrap().header.as_ref());
        if standing != Standing::Level {
            self.mirror.catch_up(&redis).now_or_never().expect("it does not wait").unwrap();
        }
        let flushed = self.mirror.flush(&redis).now_or_never().expect("it does not wait").unwrap();
        flushed && self.mirror.compare(redis.held.lock().unwrap().header.as_ref()) == Standing::Level
    }
}

/// A stored response, and which purges must have killed it.
struct Response {
    provenance: Provenance,
    tags: Vec<u64>,
    by: usize,
    /// By which process each purge was asked for since the fetch began.
    purged_by: HashSet<usize>,
    /// Whether a ledger of its life is gone.
    flushed: bool,
}

struct World {
    redis: Redis,
    processes: Vec<Process>,
    responses: Vec<Response>,
    /// What a failover or a restart goes back to.
    snapshot: Held,
    /// Whether that has happened and not every process knows it.
    has_fallen_back: bool,
    /// Whether Redis neither falls back nor is flushed, and its clock does not jump.
    is_calm: bool,
    random: fastrand::Rng,
}

impl World {
    fn new(seed: u64) -> Self {
        let processes: Vec<Process> = (0..3).map(|_| Process::new()).collect();
        let mut world = Self {
            redis: Redis::new(processes.len()),
            processes,
            responses: Vec::new(),
            snapshot: Held::default(),
            has_fallen_back: false,
            is_calm: seed.is_multiple_of(3),
            random: fastrand::Rng::with_seed(seed),
        };
        world.look_around();
        world.redis.under_way.iter().for_each(|queue| queue.lock().unwrap().clear());
        world.snapshot = world.redis.held.lock().unwrap().clone();
        world
    }

    fn record(&mut self, by: usize, seed: u64) {
        self.processes[by].ledger.purge_here(&[tag(seed)], PurgeKind::Hard, None);
        self.processes[by].mirror.flush(&&self.redis).now_or_never().expect("it does not wait").unwrap();
    }

    fn step(&mut self) {
        let process = self.random.usize(0..self.processes.len());
        match self.random.u8(0..100) {
            0..25 => self.fetch(process),
            25..40 => self.purge(process),
            40..65 => self.deliver(process),
            65..70 => self.lose(process),
            70..85 if self.processes[process].connected => {
                self.processes[process].look(&self.redis);
            }
            85..88 => self.processes[process].connected ^= true,
            88..90 => self.snapshot = self.redis.held.lock().unwrap().clone(),
            // In every third world Redis forgets nothing, so that messages alone must do.
            90..96 if self.is_calm => self.judge(),
            90 => self.fall_back(),
            91 => self.flush_all(),
            92..96 => self.jump(),
            _ => self.judge(),
        }
    }

    /// Every process looks once; whether all are proven complete.
    fn look_around(&mut self) -> bool {
        self.processes.iter_mut().map(|process| process.look(&self.redis)).fold(true, |all, one| all & one)
    }

    /// The same, and no message comes through.
    fn look(&mut self) {
        self.look_around();
        self.redis.under_way.iter().for_each(|queue| queue.lock().unwrap().clear());
    }

    fn fetch(&mut self, by: usize) {
        let provenance = fetched_now(&self.processes[by].ledger);
        let tags = (0..3).map(|_| self.random.u64(0..12)).collect();
        self.responses.push(Response { provenance, tags, by, purged_by: HashSet::new(), flushed: false });
        if self.responses.len() > 300 {
            self.responses.remove(0);
        }
    }

    fn purge(&mut self, by: usize) {
        let seed = self.random.u64(0..12);
        self.processes[by].ledger.purge_here(&[tag(seed)], PurgeKind::Hard, None);
        for response in self.responses.iter_mut().filter(|response| response.tags.contains(&seed)) {
            response.purged_by.insert(by);
        }
        if self.processes[by].connected && self.random.bool() {
            self.processes[by].mirror.flush(&&self.redis).now_or_never().expect("it does not wait").unwrap();
        }
    }

    fn deliver(&mut self, to: usize) {
        if let Some(message) = self.redis.under_way[to].lock().unwrap().pop_front()
            && self.processes[to].connected
        {
            self.processes[to].mirror.told(&message);
        }
    }

    fn lose(&self, to: usize) {
        self.redis.under_way[to].lock().unwrap().pop_front();
    }

    /// A failover to a replica that lacks the last writes, or a restart from an old snapshot. What was flushed comes back
    /// with it, if nobody has seen that it was gone.
    fn fall_back(&mut self) {
        let back = self.snapshot.header.map(|header| header.epoch);
        if back.is_some_and(|back| self.processes.iter().all(|process| !process.mirror.left.contains(&back))) {
            let of_it = |response: &&mut Response| Some(response.provenance.epoch) == back;
            self.responses.iter_mut().filter(of_it).for_each(|response| response.flushed = false);
        }
        *self.redis.held.lock().unwrap() = self.snapshot.clone();
        self.has_fallen_back = true;
    }

    fn flush_all(&mut self) {
        *self.redis.held.lock().unwrap() = Held::default();
        self.responses.iter_mut().for_each(|response| response.flushed = true);
    }

    fn jump(&mut self) {
        let mut time = self.redis.time.lock().unwrap();
        *time = if self.random.bool() { time.saturating_sub(100_000) } else { *time + 50_000 };
    }

    /// Whoever asked for a purge obeys it from then on, whatever happens to Redis. What others stored in a life of the
    /// ledger that Redis has lost may carry higher numbers than are given out now; that ends when they have seen it.
    fn judge(&self) {
        for response in &self.responses {
            for by in response.purged_by.iter().filter(|by| **by == response.by || !self.has_fallen_back) {
                let ledger = &self.processes[*by].ledger;
                // What another process stored comes with no count of this one's.
                let own = if response.by == *by { response.provenance.own } else { 0 };
                let provenance = Provenance { own, ..response.provenance.clone() };
                assert_eq!(verdict(ledger, &provenance, &response.tags), Verdict::Dead);
            }
        }
    }

    /// Every process reaches Redis again: some rounds later nobody takes what anybody purged for valid.
    fn settle(&mut self) {
        for process in &mut self.processes {
            process.connected = true;
        }
        let mut rounds = 0;
        while !self.look_around() {
            rounds += 1;
            assert!(rounds < 10, "the fleet does not come to rest");
        }
        for to in 0..3 {
            while !self.redis.under_way[to].lock().unwrap().is_empty() {
                self.deliver(to);
            }
        }
        self.look_around();
        assert!(self.look_around(), "the fleet does not stay at rest");
        self.has_fallen_back = false;
        for response in &self.responses {
            for (at, process) in self.processes.iter().enumerate() {
                let own = if response.by == at { response.provenance.own } else { 0 };
                let provenance = Provenance { own, ..response.provenance.clone() };
                let verdict = verdict(&process.ledger, &provenance, &response.tags);
                assert!(verdict == Verdict::Dead || (response.purged_by.is_empty() && !response.flushed), "{at}");
            }
        }
    }
}

#[test]
fn no_purge_is_ever_missed() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..5 {
            (0..300).for_each(|_| world.step());
            world.settle();
        }
    }
}

#[test]
fn a_fleet_that_is_followed_by_messages_alone_reads_no_array() {
    let mut world = World::new(7);
    let [one, other] = [0, 1].map(|process| Arc::clone(&world.processes[process].ledger));
    for seed in 0..500 {
        let before = fetched_now(&other);
        world.record(0, seed);
        (0..3).for_each(|process| world.deliver(process));
        assert_eq!(verdict(&other, &before, &[seed]), Verdict::Dead);
        assert_eq!(verdict(&other, &fetched_now(&other), &[seed]), Verdict::Valid);
        let header = world.redis.held.lock().unwrap().header;
        (0..3)
            .for_each(|process| assert_eq!(world.processes[process].mirror.compare(header.as_ref()), Standing::Level));
    }
    assert_eq!((one.waiting(), one.recorded.borrow().upto), (0, 500));
    assert_eq!(fetched_now(&one), Provenance { own: 500, ..fetched_now(&other) });
}

#[test]
fn what_redis_has_lost_is_recorded_again_by_who_knows_it() {
    let mut world = World::new(0);
    let before = fetched_now(&world.processes[2].ledger);
    world.record(0, 1);
    world.lose(2);
    world.fall_back();
    (0..3).for_each(|_| world.look());
    assert_eq!(verdict(&world.processes[2].ledger, &before, &[1]), Verdict::Dead);
}

#[test]
fn a_purge_numbered_below_what_a_lost_ledger_gave_out_is_recorded_again() {
    let mut world = World::new(0);
    (2..100).for_each(|seed| world.record(0, seed));
    let high = fetched_now(&world.processes[0].ledger);
    world.fall_back();
    *world.redis.time.lock().unwrap() = 0;
    world.record(1, 1);
    // The message does not reach the process that gave out higher numbers.
    world.lose(0);
    let header = world.redis.held.lock().unwrap().header.unwrap();
    assert!(header.number < high.synced_to.0);
    (0..3).for_each(|_| world.look());
    for process in &world.processes {
        assert_eq!(verdict(&process.ledger, &Provenance { own: 0, ..high.clone() }, &[1]), Verdict::Dead);
    }
}

#[test]
fn a_purge_whose_message_is_lost_is_found_behind_the_next_message_and_by_a_look() {
    let mut world = World::new(0);
    let before = fetched_now(&world.processes[1].ledger);
    world.record(0, 1);
    world.lose(1);
    world.record(0, 2);
    let message = world.redis.under_way[1].lock().unwrap().pop_front().unwrap();
    assert_eq!(world.processes[1].mirror.told(&message), Told::Apart);
    assert_eq!(verdict(&world.processes[1].ledger, &before, &[2]), Verdict::Dead, "obeyed at once");
    assert!(world.processes[1].look(&world.redis));
    assert_eq!(verdict(&world.processes[1].ledger, &before, &[1]), Verdict::Dead);
    assert!(world.processes[2].look(&world.redis));
    assert_eq!(verdict(&world.processes[2].ledger, &before, &[1]), Verdict::Dead);
}

#[test]
fn headers_and_messages_come_back_as_they_were_and_others_are_refused() {
    let header = Header { epoch: Epoch(7), number: 9, slots: 1 << 20 };
    assert_eq!(Header::read(&header.bytes()), Some(header));
    assert_eq!(Header::read(&header.bytes()[..31]), None);
    assert_eq!(Header::read(&[0; 64]), None);
    assert_eq!(Header::read(&Header { epoch: Epoch(0), ..header }.bytes()), None);
    let head = Head { epoch: Epoch(1), before: 2, number: 3 };
    let mut bytes: Vec<u8> = [1_u64, 2, 3].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(Message::read(&bytes), Some(Message { head, positions: vec![] }));
    bytes.extend(5_u32.to_le_bytes());
    assert_eq!(Message::read(&bytes), Some(Message { head, positions: vec![5] }));
    assert_eq!((Message::read(&bytes[..27]), Message::read(&bytes[..23])), (None, None));
}
