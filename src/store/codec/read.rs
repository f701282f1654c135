//! Reads the parts of a record, trusting no length.

use std::time::Duration;

use bytes::Bytes;

use super::{DURATION_SECS_MAX, Unreadable};
use crate::clock::Timestamp;

/// What is left of a record.
pub(super) struct Reader<'a> {
    record: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from a part of the record.
    pub(super) const fn new(record: &'a Bytes, rest: &'a [u8]) -> Self {
        Self { record, rest }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What is left, as a slice of the record.
    pub(super) fn shared_rest(&self) -> Bytes {
        self.record.slice_ref(self.rest)
    }

    /// Bytes with their length in front, as a slice of the record.
    pub(super) fn shared_bytes(&mut self) -> Result<Bytes, Unreadable> {
        Ok(self.record.slice_ref(self.bytes()?))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Unreadable> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Unreadable> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn timestamp(&mut self) -> Result<Timestamp, Unreadable> {
        Ok(Timestamp::from_millis(self.u64()?))
    }

    pub(super) fn duration(&mut self) -> Result<Duration, Unreadable> {
        let secs = self.u64()?;
        let nanos = u32::from_le_bytes(self.array()?);
        if secs > DURATION_SECS_MAX || nanos >= 1_000_000_000 {
            return Err(Unreadable::Malformed);
        }
        Ok(Duration::new(secs, nanos))
    }

    /// The number of what follows: at most one for each byte left.
    pub(super) fn count(&mut self) -> Result<usize, Unreadable> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count <= self.rest.len() { Ok(count) } else { Err(Unreadable::Malformed) }
    }

    /// Bytes with their length in front.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = self.count()?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Unreadable> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Unreadable::Malformed)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable::Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Unreadable::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}
