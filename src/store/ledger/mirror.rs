//! Following the ledger in Redis: numbered messages, gaps found, and nothing forgotten that Redis has lost.
//!
//! ```text
//! the string   magic (8)  epoch (8)  number (8)  slots (8)  zeros to 64  then the arrays, 8 bytes a slot
//! a message    epoch (8)  number before (8)  number (8)  then the positions, 4 bytes each
//! ```
//!
//! Integers are little-endian. One task owns the mirror; readers see the [`Ledger`]'s slots.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Ledger, Position};
use crate::stored::Epoch;

/// What the string begins with.
const MAGIC: &[u8; 8] = b"aside\0L1";
/// The header's part that is read.
const HEADER_BYTES: usize = 32;
/// Where the arrays begin.
pub const SLOTS_AT: u64 = 64;
/// The bytes of the arrays that are read together: Redis is busy for some 0.1 ms.
const RANGE_BYTES: u64 = 256 << 10;
/// The slots that are written together: Redis is busy for some 1 ms.
const WRITTEN_MAX: usize = 500;
/// How often reading is begun anew when the ledger changes meanwhile.
const ATTEMPTS: usize = 4;
/// The bound on the numbers remembered of purges whose own message is still to come.
const TOLD_MAX: usize = 4096;

/// Where the ledger is kept.
pub trait Record {
    /// Why it cannot be asked.
    type Error;
    /// The string's header; none where there is no string.
    fn header(&self) -> impl Future<Output = Result<Option<Header>, Self::Error>> + Send;
    /// The string's length in bytes.
    fn length(&self) -> impl Future<Output = Result<u64, Self::Error>> + Send;
    /// The bytes from `from` to before `to`, as far as there are.
    fn range(&self, from: u64, to: u64) -> impl Future<Output = Result<Bytes, Self::Error>> + Send;
    /// Records a purge with a number above `floor`, and tells everybody. Makes the string where there is none, and does
    /// nothing more where there is no position.
    fn purge(&self, floor: u64, positions: &[Position]) -> impl Future<Output = Result<Head, Self::Error>> + Send;
    /// Makes the string anew where it has this epoch.
    fn replace(&self, epoch: Epoch) -> impl Future<Output = Result<Head, Self::Error>> + Send;
}

/// The string's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its life.
    pub epoch: Epoch,
    /// The last purge.
    pub number: u64,
    /// The slots of one array.
    pub slots: u64,
}

impl Header {
    /// Reads it; none for what is no ledger.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let words = bytes.get(..HEADER_BYTES)?.strip_prefix(MAGIC)?;
        let header = Self { epoch: Epoch(word(words, 0)?), number: word(words, 1)?, slots: word(words, 2)? };
        (header.epoch.0 != 0).then_some(header)
    }

    /// As the string begins.
    pub fn bytes(&self) -> [u8; SLOTS_AT as usize] {
        let mut bytes = [0; SLOTS_AT as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.slots.to_le_bytes());
        bytes
    }
}

/// What a recorded purge is: the number given to it and the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The ledger's life.
    pub epoch: Epoch,
    /// The purge before it.
    pub before: u64,
    /// Its own number.
    pub number: u64,
}

impl Head {
    /// Reads it from the beginning of `bytes`.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { epoch: Epoch(word(bytes, 0)?), before: word(bytes, 1)?, number: word(bytes, 2)? })
    }
}

/// A purge as everybody is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its numbers.
    pub head: Head,
    /// The slots it wrote.
    pub positions: Vec<Position>,
}

impl Message {
    /// Reads it; none for what is no message.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = (Head::read(bytes)?, bytes.get(24..)?);
        let (positions, []) = rest.as_chunks::<4>() else { return None };
        Some(Self { head, positions: positions.iter().map(|bytes| Position::from_le_bytes(*bytes)).collect() })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.as_chunks::<8>().0.get(at).map(|bytes| u64::from_le_bytes(*bytes))
}

/// How the mirror stands to a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has everything.
    Level,
    /// It lacks purges; their messages may be on the way.
    Behind,
    /// It must read the arrays: another epoch, or Redis has lost purges.
    Apart,
}

/// What a message did.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// It is in the mirror, with all before it.
    Followed,
    /// Something before it is missing, or it is of another epoch: the arrays must be read.
    Apart,
    /// Its number is below what responses have been stored with: it is to be recorded again, which waits to be done.
    Again,
}

/// The mirror's owner.
pub struct Mirror {
    ledger: Arc<Ledger>,
    /// The epoch followed; none before the first.
    epoch: Option<Epoch>,
    /// Whether the arrays have been read once.
    joined: bool,
    /// The last number in Redis up to which every purge has been followed.
    at: u64,
    /// Numbers of purges that this process recorded, whose messages are still to come.
    to_be_told: VecDeque<u64>,
    /// The last that this process recorded.
    written: Option<Head>,
    /// Epochs that were followed once, the last of them. Should Redis come back with one, from a snapshot, it has lost
    /// every purge since, and nobody can tell which: a new one is made.
    left: VecDeque<Epoch>,
}

/// How many epochs are remembered; each was a flushed or emptied Redis.
const LEFT_MAX: usize = 64;

impl Mirror {
    /// Nothing followed yet.
    pub const fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            epoch: None,
            joined: false,
            at: 0,
            to_be_told: VecDeque::new(),
            written: None,
            left: VecDeque::new(),
        }
    }

    /// Whether it has read the ledger in Redis once.
    pub const fn has_joined(&self) -> bool {
        self.joined
    }

    /// Holds it against a header.
    pub fn compare(&self, header: Option<&Header>) -> Standing {
        match header {
            Some(header) if Some(header.epoch) != self.epoch || header.number < self.at => Standing::Apart,
            Some(header) if header.number == self.at => Standing::Level,
            Some(_) => Standing::Behind,
            None => Standing::Apart,
        }
    }

    /// Obeys a message at once, whatever is missing before it.
    pub fn told(&mut self, message: &Message) -> Told {
        let Head { epoch, before, number } = message.head;
        if Some(epoch) != self.epoch {
            return Told::Apart;
        }
        if let Some(known) = self.to_be_told.iter().position(|told| *told == number) {
            self.to_be_told.drain(..=known);
            return Told::Followed;
        }
        self.ledger.raise(message.positions.iter().copied(), number);
        let complete = self.ledger.synced().to.0;
        if before == self.at && number > self.at {
            self.at = number;
            self.ledger.complete_to(number);
        } else if number > self.at {
            return Told::Apart;
        }
        if number > complete || message.positions.is_empty() {
            return Told::Followed;
        }
        self.ledger.purge_again(message.positions.clone());
        Told::Again
    }

    /// Reads what the mirror lacks, and purges again what Redis has lost. False: it kept changing meanwhile.
    pub async fn catch_up<R: Record + Sync>(&mut self, record: &R) -> Result<bool, R::Error> {
        for _ in 0..ATTEMPTS {
            let Some(header) = record.header().await? else {
                record.purge(self.ledger.highest(), &[]).await?;
                continue;
            };
            if self.left.contains(&header.epoch) {
                record.replace(header.epoch).await?;
                continue;
            }
            if self.compare(Some(&header)) == Standing::Level {
                return Ok(true);
            }
            if self.epoch != Some(header.epoch) {
                self.begin(header.epoch);
            }
            let lost = self.merge(record).await?;
            self.to_be_told.clear();
            self.at = header.number;
            self.ledger.complete_to(header.number);
            if !std::mem::replace(&mut self.joined, true) {
                self.ledger.adopt_epoch(header.epoch);
            }
            if lost.is_empty() {
                return Ok(true);
            }
            self.ledger.purge_again(lost);
            self.flush(record).await?;
        }
        Ok(false)
    }

    fn begin(&mut self, epoch: Epoch) {
        if self.joined {
            self.ledger.change_epoch(epoch);
        }
        if let Some(left) = self.epoch.replace(epoch) {
            self.left.push_back(left);
            self.left.drain(..self.left.len().saturating_sub(LEFT_MAX));
        }
        self.at = 0;
    }

    /// Records what this process purged. False: the ledger is not the one followed, and must be read first.
    pub async fn flush<R: Record + Sync>(&mut self, record: &R) -> Result<bool, R::Error> {
        while let Some(batch) = self.ledger.take(Instant::now()) {
            match self.write(record, &batch.positions).await {
                Ok(true) => self.ledger.settle(self.written),
                outcome => {
                    self.ledger.give_back(batch);
                    return outcome;
                }
            }
        }
        Ok(true)
    }

    /// Merges the arrays by maximum; returns the slots to be purged again. Those that are higher here Redis had, and has
    /// lost. Those that are new here though all up to their number were known were written after such a loss, below
    /// what responses have been stored with.
    async fn merge<R: Record + Sync>(&self, record: &R) -> Result<Vec<Position>, R::Error> {
        let length = record.length().await?;
        let complete = self.ledger.synced().to.0;
        let (mut from, mut lost) = (SLOTS_AT, Vec::new());
        while from < length {
            let to = length.min(from + RANGE_BYTES);
            let bytes = record.range(from, to).await?;
            let (slots, _) = bytes.as_chunks::<8>();
            if slots.is_empty() {
                break;
            }
            for (position, slot) in (position(from)..).zip(slots) {
                let (theirs, ours) = (u64::from_le_bytes(*slot), self.ledger.mirror.get(position));
                if theirs > ours {
                    self.ledger.raise_quietly(position, theirs);
                }
                if theirs < ours || (theirs > ours && theirs <= complete) {
                    lost.push(position);
                }
            }
            from += slots.len() as u64 * 8;
        }
        lost.extend(self.ledger.mirror.above(0, position(from)));
        self.ledger.moved();
        Ok(lost)
    }

    /// Writes slots with new numbers, a few at a time. False: Redis has another ledger than the one followed.
    async fn write<R: Record + Sync>(&mut self, record: &R, positions: &[Position]) -> Result<bool, R::Error> {
        for positions in positions.chunks(WRITTEN_MAX) {
            let head = record.purge(self.ledger.highest(), positions).await?;
            if Some(head.epoch) != self.epoch {
                return Ok(false);
            }
            self.written = Some(head);
            self.ledger.raise(positions.iter().copied(), head.number);
            if head.before == self.at {
                self.at = head.number;
                self.ledger.complete_to(head.number);
                self.to_be_told.push_back(head.number);
                if self.to_be_told.len() > TOLD_MAX {
                    self.to_be_told.pop_front();
                }
            }
        }
        Ok(true)
    }
}

/// The position whose slot is at this byte of the string.
#[allow(clippy::cast_possible_truncation, reason = "the arrays have at most 2^26 slots")]
const fn position(at: u64) -> Position {
    ((at - SLOTS_AT) / 8) as Position
}

#[cfg(test)]
mod tests;
