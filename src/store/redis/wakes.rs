//! Who waits for another process' fetch, and how they are woken.

use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::RedisTier;
use crate::key::{CacheKey, KeyMap};

/// What woke one who waited for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Redis has what was fetched.
    Stored,
    /// What was fetched cannot be shared.
    NotShared,
    /// Nothing is certain, for the holder gave up, or a message may have been lost, or it took long: look again.
    Unsure,
}

impl Wake {
    const ALL: [Self; 3] = [Self::Stored, Self::NotShared, Self::Unsure];

    const fn byte(self) -> u8 {
        match self {
            Self::Stored => b's',
            Self::NotShared => b'n',
            Self::Unsure => b'u',
        }
    }

    /// The message that wakes all who wait for a key: what happened, and the key.
    pub(super) fn message(self, key: &CacheKey) -> Vec<u8> {
        [&[self.byte()], &key.as_bytes()[..]].concat()
    }

    fn parse(payload: &[u8]) -> Option<(Self, CacheKey)> {
        let (byte, key) = payload.split_first()?;
        let wake = Self::ALL.into_iter().find(|wake| wake.byte() == *byte)?;
        Some((wake, CacheKey::from_bytes(key.try_into().ok()?)))
    }
}

/// The channel on which fetches that have ended are told.
pub(super) fn wake_channel(prefix: &str) -> String {
    format!("{prefix}:wake")
}

/// Those in this process who wait for others' fetches.
#[derive(Default)]
pub(super) struct Wakes {
    /// Guards who waits; held for one change or wake. It has a key for as long as someone waits for it.
    waiting: Mutex<KeyMap<watch::Sender<Option<Wake>>>>,
}

impl Wakes {
    /// Takes a message of [`wake_channel`].
    pub(super) fn woken(&self, payload: &[u8]) {
        if let Some((wake, key)) = Wake::parse(payload)
            && let Some(sender) = self.waiting().get(&key)
        {
            sender.send_replace(Some(wake));
        }
    }

    /// Messages may have been lost: all look again.
    pub(super) fn all_unsure(&self) {
        for sender in self.waiting().values() {
            // What is known already is better.
            sender.send_modify(|wake| *wake = wake.or(Some(Wake::Unsure)));
        }
    }

    fn subscribe(&self, key: CacheKey) -> watch::Receiver<Option<Wake>> {
        match self.waiting().entry(key) {
            Entry::Occupied(known) => known.get().subscribe(),
            Entry::Vacant(vacant) => vacant.insert(watch::Sender::new(None)).subscribe(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, KeyMap<watch::Sender<Option<Wake>>>> {
        // Nothing panics while it is held, so poison tells nothing.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait for a key that another holds.
pub struct Waiter {
    tier: Arc<RedisTier>,
    key: CacheKey,
    wakes: watch::Receiver<Option<Wake>>,
    /// Whose lock it is.
    holder: Box<[u8]>,
}

impl Waiter {
    /// Listens from now on.
    pub(super) fn new(tier: &Arc<RedisTier>, key: CacheKey) -> Self {
        let wakes = tier.wakes.subscribe(key);
        Self { tier: Arc::clone(tier), key, wakes, holder: Box::default() }
    }

    pub(super) fn behind(mut self, holder: &[u8]) -> Self {
        self.holder = holder.into();
        self
    }

    /// Tells holders apart.
    pub fn holder(&self) -> &[u8] {
        &self.holder
    }

    /// Waits until it is woken, or until then.
    pub async fn wait(&mut self, until: Instant) -> Wake {
        match tokio::time::timeout_at(until, self.wakes.changed()).await {
            Ok(Ok(())) => self.wakes.borrow_and_update().unwrap_or(Wake::Unsure),
            Ok(Err(_)) | Err(_) => Wake::Unsure,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.tier.wakes.waiting();
        if waiting.get(&self.key).is_some_and(|sender| sender.receiver_count() <= 1) {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CacheKey = CacheKey::from_bytes([7; 32]);

    #[test]
    fn a_message_tells_what_happened_to_which_key() {
        for wake in Wake::ALL {
            assert_eq!(Wake::parse(&wake.message(&KEY)), Some((wake, KEY)));
        }
        for wrong in [&b""[..], b"s", b"s1234", &[b'x'; 33], &[b's'; 34]] {
            assert_eq!(Wake::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_lost_message_leaves_what_is_known() {
        let wakes = Wakes::default();
        let (known, other) = (wakes.subscribe(KEY), wakes.subscribe(CacheKey::from_bytes([8; 32])));
        wakes.woken(&Wake::Stored.message(&KEY));
        wakes.woken(b"nonsense");
        wakes.all_unsure();
        assert_eq!((*known.borrow(), *other.borrow()), (Some(Wake::Stored), Some(Wake::Unsure)));
    }
}
