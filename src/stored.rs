//! A stored response: what was received, how long it may be used, and its body.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::fields::range::ContentRange;
use crate::fields::vary::SelectingFields;

/// How far the clock of another process that stores responses may be ahead of ours.
const AHEAD_MAX: Duration = Duration::from_secs(5);
/// The age of a response of which it is not known: above every lifetime, so that it is validated before any use.
const AGE_UNKNOWN: Duration = Duration::MAX;
/// Room for `Age`, `Content-Length` and `Cache-Status` in the map of an answer, which would else grow in each.
const SPARE: usize = 3;
/// The most room that is made in a map beforehand.
const ROOM_MAX: usize = 1024;
/// The key material that is held in place.
const MATERIAL_INLINE: usize = 64;

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
    /// The last purge asked for in this process then, by its own count. Not written: it means nothing elsewhere.
    pub own: u64,
    /// The origin's tags.
    pub tags: Box<[Box<str>]>,
}

/// What the memory tier knows of a response that it holds. In the response's own allocation: a lookup reads both, and among
/// 100,000 responses each further allocation is a cache miss and a TLB miss, together some 0.4 µs. Empty in a response that
/// is not held, and in a clone.
#[derive(Debug, Default)]
pub struct Place {
    /// When it may be forgotten: [`StoredResponse::useless_after`], worked out once.
    pub useless_after: Timestamp,
    /// The ledger's number at which this copy was last found valid.
    pub checked: AtomicU64,
    /// The bytes it takes, all in.
    pub weight: u64,
    /// The key material it was stored under; of a typical length in place.
    pub material: SmallVec<[u8; MATERIAL_INLINE]>,
}

/// The fields of a stored response, in order: what a map takes for each beside (32 bytes, and what it is found by) is for the
/// answers that are made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredFields(Box<[(HeaderName, HeaderValue)]>);

impl StoredFields {
    /// A map of them, with room for those that an answer gets.
    pub fn to_map(&self) -> HeaderMap {
        // A map is bound by its names, and more lines than it may have names can be of one.
        let mut map = HeaderMap::with_capacity((self.len() + SPARE).min(ROOM_MAX));
        map.extend(self.0.iter().cloned());
        map
    }

    /// Each name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> + Clone {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// The values of a name, in order.
    pub fn get_all(&self, wanted: &HeaderName) -> impl Iterator<Item = &HeaderValue> + Clone {
        self.0.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| value)
    }

    /// The first value of a name.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.get_all(name).next()
    }

    /// How many lines they are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for StoredFields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl From<HeaderMap> for StoredFields {
    fn from(map: HeaderMap) -> Self {
        let mut fields: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(map.len());
        for (name, value) in map {
            // A further value of the name before comes without it.
            if let Some(name) = name.or_else(|| fields.last().map(|(before, _)| before.clone())) {
                fields.push((name, value));
            }
        }
        Self(fields.into_boxed_slice())
    }
}

/// A response as the stores hold it. Laid out as it is written here: what a lookup reads comes first, beside the count of the
/// `Arc`, then what decides, then what is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StoredResponse {
    /// What the memory tier knows of it, where that holds it.
    pub place: Place,
    /// When the request that caused it was sent.
    pub request_time: Timestamp,
    /// When its head was received.
    pub response_time: Timestamp,
    /// Where it stands against the purge ledger.
    pub provenance: Provenance,
    /// How long it may be used.
    pub freshness: Freshness,
    /// The request fields that selected it.
    pub selecting: SelectingFields,
    /// The part of the representation that `body` is; none when it is the whole.
    pub part: Option<ContentRange>,
    /// Its status.
    pub status: StatusCode,
    /// Its fields without those of the connection. `Age` is as received, for who reads along while it is stored;
    /// answers from the store replace it by [`StoredResponse::age`].
    pub fields: StoredFields,
    /// Its content. In a store it is owned: no slice of a buffer that holds more than this response.
    pub body: Bytes,
}

impl Clone for Place {
    /// It is the original that is held.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Place {
    /// Two responses are equal whether they are held or not.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl StoredResponse {
    /// The current age (RFC 9111 §4.2.3). What was received later than now was received before a clock was set back:
    /// how long ago that is, nobody knows.
    pub fn age(&self, now: Timestamp) -> Duration {
        if self.response_time.since(now) > AHEAD_MAX {
            return AGE_UNKNOWN;
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIVED: Timestamp = Timestamp::from_secs(1000);

    fn stored(lifetime: u64, initial_age: u64, stale_use: StaleUse) -> StoredResponse {
        StoredResponse {
            place: Place::default(),
            status: StatusCode::OK,
            fields: StoredFields::default(),
            request_time: RECEIVED,
            response_time: RECEIVED,
            freshness: Freshness {
                lifetime: Duration::from_secs(lifetime),
                initial_age: Duration::from_secs(initial_age),
                stale_use,
                keep: Duration::from_secs(60),
            },
            selecting: SelectingFields::Names(Box::default()),
            part: None,
            provenance: Provenance::default(),
            body: Bytes::new(),
        }
    }

    fn within(while_revalidate: u64, if_error: u64) -> StaleUse {
        StaleUse::Within {
            while_revalidate: Duration::from_secs(while_revalidate),
            if_error: Duration::from_secs(if_error),
            max_stale: true,
        }
    }

    #[test]
    fn fields_come_back_as_a_map_with_all_values_of_a_name_in_order() {
        let lines = [("etag", "\"a\""), ("vary", "a"), ("x-a", "1"), ("vary", "b"), ("x-a", "2"), ("x-a", "3")];
        let map: HeaderMap = lines
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let fields = StoredFields::from(map.clone());
        assert_eq!((fields.to_map(), fields.len()), (map, 6));
        let name = HeaderName::from_static("x-a");
        assert_eq!(fields.get_all(&name).map(HeaderValue::as_bytes).collect::<Vec<_>>(), [b"1", b"2", b"3"]);
        assert_eq!(fields.get(&http::header::VARY).unwrap(), "a");
        assert!(fields.get(&http::header::AGE).is_none() && StoredFields::default().to_map().is_empty());
        // More lines than a map may have names.
        let many = std::iter::repeat_n((HeaderName::from_static("x-a"), HeaderValue::from_static("1")), 40_000);
        assert_eq!(many.collect::<StoredFields>().to_map().len(), 40_000);
    }

    #[test]
    fn it_is_fresh_while_its_lifetime_is_greater_than_its_age() {
        let check = |lifetime, initial_age, after, expected| {
            let stored = stored(lifetime, initial_age, StaleUse::Never);
            let now = RECEIVED.plus(Duration::from_secs(after));
            let seen = (stored.is_fresh(now), stored.fresh_for(now).as_secs(), stored.stale_for(now).as_secs());
            assert_eq!(seen, expected, "{lifetime} {initial_age} {after}");
        };
        check(10, 0, 0, (true, 10, 0));
        check(10, 0, 9, (true, 1, 0));
        check(10, 0, 10, (false, 0, 0));
        check(10, 4, 6, (false, 0, 0));
        check(10, 4, 8, (false, 0, 2));
        check(10, 30, 0, (false, 0, 20));
        check(0, 0, 0, (false, 0, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_it_stale() {
        let check = |ahead_millis, expected| {
            let mut stored = stored(60, 0, within(0, 600));
            stored.response_time = RECEIVED.plus(Duration::from_millis(ahead_millis));
            let seen = (stored.is_fresh(RECEIVED), stored.fresh_for(RECEIVED).as_secs());
            assert_eq!(seen, expected, "{ahead_millis}");
            assert_eq!(stored.stale_for(RECEIVED) > Duration::from_secs(600), !expected.0, "{ahead_millis}");
        };
        check(0, (true, 60));
        check(5_000, (true, 60));
        check(5_001, (false, 0));
        check(86_400_000, (false, 0));
    }

    #[test]
    fn its_age_never_overflows() {
        let mut stored = stored(1, 0, StaleUse::Never);
        stored.freshness.initial_age = Duration::MAX;
        assert_eq!(stored.age(RECEIVED.plus(Duration::from_secs(1))), Duration::MAX);
    }

    #[test]
    fn the_stores_keep_it_until_nothing_can_use_it() {
        let check = |lifetime, initial_age, stale_use, expected_secs| {
            let useless_after = stored(lifetime, initial_age, stale_use).useless_after();
            assert_eq!(
                useless_after.since(RECEIVED).as_secs(),
                expected_secs,
                "{lifetime} {initial_age} {stale_use:?}"
            );
        };
        check(10, 0, StaleUse::Never, 70);
        check(10, 0, StaleUse::AlwaysValidate, 70);
        check(10, 4, StaleUse::Never, 66);
        check(10, 0, within(5, 30), 100);
        check(10, 0, within(30, 5), 100);
        check(10, 4, within(0, 30), 96);
        // Old when it came: part of the window has passed.
        check(10, 25, within(0, 30), 75);
        check(10, 400, within(0, 30), 60);
    }
}
