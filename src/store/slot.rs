//! What is held under one key: a stored response, or the marker of a key whose responses vary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::buffer::{buffer, buffer_bytes, shared_bytes, size_class};
use crate::clock::Timestamp;
use crate::key::{Address, CacheKey};
use crate::stored::{Place, StoredFields, StoredResponse};

/// The bound on a marker's selecting fields. Above it the newest response's own fields replace the union.
const NAMES_MAX: usize = 16;
/// What a held value costs beside its content: the map's slot and key, the policy's lists, and the `Arc`.
const SLOT_BYTES: u64 = 128;
/// One field: name and value.
const FIELD_BYTES: usize = size_of::<(HeaderName, HeaderValue)>();
/// The most frequent fields of responses among the names that the `http` crate knows, which allocate nothing.
const KNOWN: [HeaderName; 16] = [
    header::DATE,
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::ETAG,
    header::LAST_MODIFIED,
    header::VARY,
    header::CONTENT_LENGTH,
    header::SERVER,
    header::EXPIRES,
    header::LINK,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::ACCEPT_RANGES,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::STRICT_TRANSPORT_SECURITY,
    header::X_CONTENT_TYPE_OPTIONS,
];
/// A body up to this is copied into the buffer of the field values, which saves a buffer of its own.
const COPIED_MAX: usize = 4 << 10;

/// What is held under a key. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Slot {
    /// A stored response in its place (see [`placed`]).
    Response(Arc<StoredResponse>),
    /// The key's responses vary: they are held under their variants' keys.
    Marker(Arc<Marker>),
}

/// Which request fields select among a key's responses, and which variants are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The base key's material, owned.
    pub material: Bytes,
    /// The selecting fields: lower case, sorted, each once.
    pub names: Arc<[HeaderName]>,
    /// The variants known and when each is useless, for the bound on their number.
    pub variants: BTreeMap<CacheKey, Timestamp>,
}

impl Slot {
    /// The bytes it takes, all in.
    pub fn weight(&self) -> u64 {
        match self {
            Self::Response(response) => response.place.weight,
            Self::Marker(marker) => marker.weight(),
        }
    }

    /// The key material it was stored under.
    pub fn material(&self) -> &[u8] {
        match self {
            Self::Response(response) => &response.place.material,
            Self::Marker(marker) => &marker.material,
        }
    }

    /// When it may be forgotten.
    pub fn useless_after(&self) -> Timestamp {
        match self {
            Self::Response(response) => response.place.useless_after,
            Self::Marker(marker) => marker.useless_after(),
        }
    }

    /// Whether both are one and the same, not merely equal.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Response(one), Self::Response(other)) => Arc::ptr_eq(one, other),
            (Self::Marker(one), Self::Marker(other)) => Arc::ptr_eq(one, other),
            (Self::Response(_), Self::Marker(_)) | (Self::Marker(_), Self::Response(_)) => false,
        }
    }
}

impl Marker {
    /// The marker of a key without one.
    pub fn new(base: &Address, names: Arc<[HeaderName]>) -> Self {
        Self { material: Bytes::copy_from_slice(&base.material), names, variants: BTreeMap::new() }
    }

    /// This marker's selecting fields together with those of a further response, without the ignored ones.
    ///
    /// The union, for it settles: an origin that answers now with `Vary: A` and then with `Vary: A, B` would otherwise
    /// lose each variant to the next. A response that was selected by more fields than its own is still the right one,
    /// only found less often.
    pub fn names_with(&self, further: &[HeaderName], ignored: &[HeaderName]) -> Arc<[HeaderName]> {
        let counts = |name: &&HeaderName| !ignored.contains(name);
        let mut names: Vec<HeaderName> = self.names.iter().chain(further).filter(counts).cloned().collect();
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        if names.len() > NAMES_MAX { further.to_vec().into() } else { names.into() }
    }

    /// When its last variant is useless.
    pub fn useless_after(&self) -> Timestamp {
        self.variants.values().copied().max().unwrap_or_default()
    }

    fn weight(&self) -> u64 {
        let names: u64 = self.names.iter().map(|name| name_bytes(name) + size_of::<HeaderName>() as u64).sum();
        let variants = self.variants.len() as u64 * (size_of::<(CacheKey, Timestamp)>() as u64 * 2);
        SLOT_BYTES + size_of::<Self>() as u64 + size_class(self.material.len()) + names + variants
    }
}

/// A response to be held under an address. The response must own its bytes (see [`compacted`]).
pub fn placed(address: &Address, response: StoredResponse) -> StoredResponse {
    let material = SmallVec::from_slice(&address.material);
    let spilled = if material.spilled() { size_class(material.len()) } else { 0 };
    let weight = SLOT_BYTES + spilled + response_bytes(&response);
    let place = Place { useless_after: response.useless_after(), checked: AtomicU64::new(0), weight, material };
    StoredResponse { place, ..response }
}

/// A copy that pins no buffer: its field values share one of their own, for a slice of a read buffer would pin the whole
/// buffer, and so does its `content` where it is short. A longer one `is_body_shared`, and is copied too, or owns its storage.
pub fn compacted(response: &StoredResponse, content: Bytes, is_body_shared: bool) -> StoredResponse {
    let copies_body = content.len() <= COPIED_MAX;
    let body: &[u8] = if copies_body { &content } else { &[] };
    let mut texts = Vec::with_capacity(values_bytes(&response.fields) + body.len());
    response.fields.iter().for_each(|(_, value)| texts.extend_from_slice(value.as_bytes()));
    texts.extend_from_slice(body);
    let mut rest = buffer(texts);
    let owned = response.fields.iter().map(|(name, value)| {
        let own = rest.split_to(value.len());
        // What was valid is valid again.
        let mut own = HeaderValue::from_maybe_shared(own).unwrap_or_else(|_| value.clone());
        own.set_sensitive(value.is_sensitive());
        // A name owns its bytes.
        (name.clone(), own)
    });
    StoredResponse {
        place: Place::default(),
        status: response.status,
        fields: owned.collect(),
        request_time: response.request_time,
        response_time: response.response_time,
        freshness: response.freshness.clone(),
        selecting: response.selecting.clone(),
        part: response.part,
        provenance: response.provenance.clone(),
        body: match copies_body {
            true => rest,
            false if is_body_shared => Bytes::copy_from_slice(&content),
            false => content,
        },
    }
}

fn values_bytes(fields: &StoredFields) -> usize {
    fields.iter().map(|(_, value)| value.len()).sum()
}

fn response_bytes(response: &StoredResponse) -> u64 {
    let names: u64 = response.fields.iter().map(|(name, _)| name_bytes(name)).sum();
    let values = values_bytes(&response.fields);
    let fields = size_class(response.fields.len() * FIELD_BYTES);
    let tags: u64 = response.provenance.tags.iter().map(|tag| size_class(tag.len()) + 16).sum();
    let selecting: u64 = match &response.selecting {
        crate::fields::vary::SelectingFields::Any => 0,
        crate::fields::vary::SelectingFields::Names(names) => names.iter().map(|name| name_bytes(name) + 32).sum(),
    };
    let body = response.body.len();
    let buffers =
        if body <= COPIED_MAX { buffer_bytes(values + body) } else { buffer_bytes(values) + shared_bytes(body) };
    size_of::<StoredResponse>() as u64 + names + fields + tags + selecting + buffers
}

/// What a name allocates: its bytes, and from its first clone on a count of references. Upper bound, for names that the `http`
/// crate knows allocate nothing.
fn name_bytes(name: &HeaderName) -> u64 {
    if KNOWN.contains(name) { 0 } else { shared_bytes(name.as_str().len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_weighs_its_bytes_and_their_count_unless_it_is_known() {
        assert_eq!(name_bytes(&HeaderName::from_static("x0")), 16 + 32);
        assert_eq!(name_bytes(&HeaderName::from_static("x-a-name-of-24-letters-x")), 32 + 32);
        assert_eq!(name_bytes(&HeaderName::from_static("content-type")), 0);
    }
}
