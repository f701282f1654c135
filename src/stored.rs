//! A stored response: what was received, how long it may be used, and its body.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::clock::Timestamp;
use crate::fields::range::ContentRange;
use crate::fields::vary::SelectingFields;

/// A number of the purge ledger: microseconds since the Unix epoch, strictly rising.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PurgeNumber(pub u64);

/// The life of one ledger: responses of another epoch are invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

/// How long a response may be used; decided when it is stored or freshened, and written with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Freshness lifetime (RFC 9111 §4.2.1).
    pub lifetime: Duration,
    /// The corrected initial age at `response_time` (RFC 9111 §4.2.3).
    pub initial_age: Duration,
    /// What may happen once it is stale, or at once for `no-cache`.
    pub stale_use: StaleUse,
    /// How long past all use it is kept to be validated.
    pub keep: Duration,
}

/// What a stale response is still good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleUse {
    /// Always validated first, even while fresh (`no-cache`).
    AlwaysValidate,
    /// Never used stale (`must-revalidate`, `proxy-revalidate`, `s-maxage`).
    Never,
    /// Usable within these windows, counted from the end of freshness (RFC 5861).
    Within {
        /// `stale-while-revalidate`.
        while_revalidate: Duration,
        /// `stale-if-error`.
        if_error: Duration,
        /// Whether a client's `max-stale` may extend it.
        max_stale: bool,
    },
}

/// Where a response stands against the purge ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The last purge known before the upstream was contacted.
    pub synced_to: PurgeNumber,
    /// The ledger's epoch then.
    pub epoch: Epoch,
    /// The origin's tags.
    pub tags: Box<[Box<str>]>,
}

/// A response as the stores hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its fields without those of the connection. `Age` is as received, for who reads along while it is stored;
    /// answers from the store replace it by [`StoredResponse::age`].
    pub fields: HeaderMap,
    /// When the request that caused it was sent.
    pub request_time: Timestamp,
    /// When its head was received.
    pub response_time: Timestamp,
    /// How long it may be used.
    pub freshness: Freshness,
    /// The request fields that selected it.
    pub selecting: SelectingFields,
    /// The part of the representation that `body` is; none when it is the whole.
    pub part: Option<ContentRange>,
    /// Where it stands against the purge ledger.
    pub provenance: Provenance,
    /// Its content, owned: never a slice of a larger buffer.
    pub body: Bytes,
}

impl StoredResponse {
    /// The current age (RFC 9111 §4.2.3).
    pub fn age(&self, now: Timestamp) -> Duration {
        self.freshness.initial_age.saturating_add(now.since(self.response_time))
    }

    /// How much freshness is left; zero when stale.
    pub fn fresh_for(&self, now: Timestamp) -> Duration {
        self.freshness.lifetime.saturating_sub(self.age(now))
    }

    /// How long it has been stale; zero while fresh.
    pub fn stale_for(&self, now: Timestamp) -> Duration {
        self.age(now).saturating_sub(self.freshness.lifetime)
    }

    /// Whether it is fresh: its lifetime is greater than its age (RFC 9111 §4.2).
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.freshness.lifetime > self.age(now)
    }

    /// When the stores may forget it: after freshness, stale windows and `keep`. What was old already when it came is
    /// useless the earlier.
    pub fn useless_after(&self) -> Timestamp {
        let windows = match self.freshness.stale_use {
            StaleUse::AlwaysValidate | StaleUse::Never => Duration::ZERO,
            StaleUse::Within { while_revalidate, if_error, .. } => while_revalidate.max(if_error),
        };
        let usable_until_age = self.freshness.lifetime.saturating_add(windows);
        let usable_for = usable_until_age.saturating_sub(self.freshness.initial_age);
        self.response_time.plus(usable_for).plus(self.freshness.keep)
    }

    /// The memory it takes, in bytes, where its field values and body have storage of their own
    /// ([`StoredResponse::compacted`]): itself, the tables of its fields, names, values, tags and body.
    pub fn size_bytes(&self) -> usize {
        // What `http` keeps for each name (hash, name, first value, link to more), and for each further value.
        const NAME: usize = size_of::<(u16, HeaderName, HeaderValue, Option<[usize; 2]>)>();
        const FURTHER: usize = size_of::<(HeaderValue, [usize; 4])>();
        const SLOT: usize = size_of::<[u16; 2]>();
        let capacity = self.fields.capacity();
        let tables = capacity * NAME + capacity / 3 * 4 * SLOT + (self.fields.len() - self.fields.keys_len()) * FURTHER;
        let names: usize = self.fields.keys().map(|name| name.as_str().len()).sum();
        let selecting: usize = match &self.selecting {
            SelectingFields::Any => 0,
            SelectingFields::Names(names) => {
                names.iter().map(|name| size_of::<HeaderName>() + name.as_str().len()).sum()
            }
        };
        let tags: usize = self.provenance.tags.iter().map(|tag| size_of::<Box<str>>() + tag.len()).sum();
        size_of::<Self>() + tables + names + values_len(&self.fields) + selecting + tags + self.body.len()
    }

    /// A copy whose field values share one buffer of their own, and whose body has one: a slice of a read buffer
    /// would keep the whole buffer. A body that has its storage for itself is not copied.
    #[must_use]
    pub fn compacted(self) -> Self {
        Self { fields: compact_fields(&self.fields), body: compact_body(self.body), ..self }
    }
}

fn values_len(fields: &HeaderMap) -> usize {
    fields.values().map(HeaderValue::len).sum()
}

fn compact_fields(fields: &HeaderMap) -> HeaderMap {
    let mut buffer = Vec::with_capacity(values_len(fields));
    fields.values().for_each(|value| buffer.extend_from_slice(value.as_bytes()));
    let buffer = Bytes::from(buffer);
    let mut compact = HeaderMap::with_capacity(fields.keys_len());
    let mut start = 0;
    for (name, value) in fields {
        let end = start + value.len();
        // A value that was valid is valid again.
        let mut copy = HeaderValue::from_maybe_shared(buffer.slice(start..end)).unwrap_or_else(|_| value.clone());
        copy.set_sensitive(value.is_sensitive());
        compact.append(name.clone(), copy);
        start = end;
    }
    compact
}

fn compact_body(body: Bytes) -> Bytes {
    // Takes the storage over where nobody else has it, else copies. Its capacity tells what it would keep.
    let mut owned = Vec::from(body);
    owned.shrink_to_fit();
    Bytes::from(owned)
}
