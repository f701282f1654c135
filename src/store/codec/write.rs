//! Writes the parts of a record.

use std::time::Duration;

use super::{DURATION_SECS_MAX, MAGIC, PAYLOAD_AT, SEAL_AT, Seal, VERSION};
use crate::clock::Timestamp;

/// A record being written.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(kind: u8, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(PAYLOAD_AT + capacity);
        bytes.extend_from_slice(&[MAGIC, VERSION, kind]);
        bytes.resize(PAYLOAD_AT, 0);
        Self(bytes)
    }

    /// The record with its seal.
    pub(super) fn finish(mut self, seal: &Seal) -> Vec<u8> {
        let head = [self.0[0], self.0[1], self.0[2]];
        let seal = seal.of(head, &self.0[PAYLOAD_AT..]);
        self.0[SEAL_AT..PAYLOAD_AT].copy_from_slice(&seal);
        self.0
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    pub(super) fn timestamp(&mut self, value: Timestamp) {
        self.u64(value.as_millis());
    }

    pub(super) fn duration(&mut self, value: Duration) {
        self.u64(value.as_secs().min(DURATION_SECS_MAX));
        self.raw(&value.subsec_nanos().to_le_bytes());
    }

    /// The number of what follows.
    pub(super) fn count(&mut self, count: usize) {
        self.raw(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    /// Bytes with their length in front.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}
