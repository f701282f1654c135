//! The binary record that Redis holds for a stored response or a marker.
//!
//! ```text
//! 0xC0  version  kind  seal (16)  facts  S  epoch  tags  material  fields  coding  body
//! ```
//!
//! Integers are little-endian, sequences length-framed. The first byte is none that UTF-8 begins with, so that the
//! client library does not scan the value as text. The seal (since version 4 XXH3 of 128 bits; with a key, keyed blake3
//! cut to 16 bytes) covers all but itself. The body is last; one that is stored in over 1 MiB is a string of its own, named
//! here by length and blake3 digest. Its coding (since version 2) is 0 for a body as it was received, or 1 for a zstd frame
//! and 2 for an LZ4 block (since version 5), each with the length (8) of what was received. Seal, length and digest are those
//! of what is stored.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::slot::Marker;
use crate::fields::range::ContentRange;
use crate::fields::vary::SelectingFields;
use crate::key::CacheKey;
use crate::stored::{Epoch, Freshness, Place, Provenance, PurgeNumber, StaleUse, StoredFields, StoredResponse};
use compression::{Coding, StoredBody};
use read::Reader;
pub use seal::Seal;
use write::Writer;

pub mod compression;
mod read;
mod seal;
mod write;

/// A byte that no UTF-8 text contains.
const MAGIC: u8 = 0xC0;
/// The version of this layout; records of any other are refused.
const VERSION: u8 = 5;
/// The longest duration written or read, in seconds: sums of a few of them cannot overflow.
const DURATION_SECS_MAX: u64 = 1 << 40;
const SEAL_AT: usize = seal::HEAD;
const PAYLOAD_AT: usize = SEAL_AT + seal::LENGTH;

/// What a record holds.
#[derive(Debug, PartialEq)]
pub enum Record {
    /// A response and the key material it was stored under. `response.body` is what is stored of it: coded, or
    /// empty where it is detached.
    Response {
        /// The response.
        response: Arc<StoredResponse>,
        /// The key material.
        material: Bytes,
        /// Where the body is, when it is not in the record.
        detached: Option<Detached>,
        /// How the body is coded, wherever it is.
        coding: Coding,
    },
    /// The marker of a key whose responses vary.
    Marker(Marker),
}

impl Record {
    /// The key material it was stored under.
    pub const fn material(&self) -> &Bytes {
        match self {
            Self::Response { material, .. } => material,
            Self::Marker(marker) => &marker.material,
        }
    }
}

/// A body in a string of its own, as it is stored there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Its length in bytes.
    pub length: u64,
    /// Its blake3 digest, which also names it.
    pub digest: [u8; 32],
}

/// Why a value is not a record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It does not begin as a record.
    Foreign,
    /// Of another version of the layout.
    Version,
    /// The seal, or a body's digest, does not fit: truncated, changed, or sealed with another key.
    Checksum,
    /// The seal fits, the content makes no sense.
    Malformed,
    /// Stored for another key.
    OtherKey,
    /// The body, as stored or as received, is longer than the reader takes.
    TooLarge,
}

impl Unreadable {
    /// As an event tells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "not a record",
            Self::Version => "of another version",
            Self::Checksum => "the checksum does not fit",
            Self::Malformed => "malformed",
            Self::OtherKey => "stored for another key",
            Self::TooLarge => "too large",
        }
    }
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Response = 1,
    ResponseDetached = 2,
    Marker = 3,
}

impl Detached {
    /// The description of a body.
    pub fn of(body: &[u8]) -> Self {
        Self { length: body.len() as u64, digest: *blake3::hash(body).as_bytes() }
    }

    /// Whether this is the body described.
    pub fn describes(&self, body: &[u8]) -> bool {
        self.length == body.len() as u64 && self.digest == *blake3::hash(body).as_bytes()
    }
}

/// The record of a response in its place with its body as given, under the epoch that other processes know it by. With
/// `detached`, the body is left out.
pub fn encode_response(
    response: &StoredResponse,
    epoch: Epoch,
    body: &StoredBody,
    detached: Option<&Detached>,
    seal: &Seal,
) -> Vec<u8> {
    let kind = if detached.is_some() { Kind::ResponseDetached } else { Kind::Response };
    let body_length = if detached.is_some() { 0 } else { body.bytes.len() };
    let mut out =
        Writer::new(kind as u8, 512 + response.place.material.len() + response.fields.len() * 64 + body_length);
    out.u16(response.status.as_u16());
    out.timestamp(response.request_time);
    out.timestamp(response.response_time);
    write_freshness(&mut out, &response.freshness);
    write_part(&mut out, response.part);
    out.u64(response.provenance.synced_to.0);
    out.u64(epoch.0);
    out.count(response.provenance.tags.len());
    response.provenance.tags.iter().for_each(|tag| out.bytes(tag.as_bytes()));
    write_selecting(&mut out, &response.selecting);
    out.bytes(&response.place.material);
    write_fields(&mut out, &response.fields);
    body.coding.write(&mut out);
    match detached {
        Some(detached) => {
            out.u64(detached.length);
            out.raw(&detached.digest);
        }
        None => out.raw(&body.bytes),
    }
    out.finish(seal)
}

/// The record of a marker.
pub fn encode_marker(marker: &Marker, seal: &Seal) -> Vec<u8> {
    let mut out = Writer::new(Kind::Marker as u8, 64 + marker.material.len() + marker.variants.len() * 40);
    out.bytes(&marker.material);
    out.count(marker.names.len());
    marker.names.iter().for_each(|name| out.bytes(name.as_str().as_bytes()));
    out.count(marker.variants.len());
    for (key, useless_after) in &marker.variants {
        out.raw(key.as_bytes());
        out.timestamp(*useless_after);
    }
    out.finish(seal)
}

/// Reads a record that this seal was put on, and whose body is at most `body_max` long. A response's material, field values
/// and body are slices of `record`, which saves an allocation for each; all else is owned.
pub fn decode(record: &Bytes, body_max: u64, seal: &Seal) -> Result<Record, Unreadable> {
    if record.first() != Some(&MAGIC) {
        return Err(Unreadable::Foreign);
    }
    if record.get(1).is_some_and(|version| *version != VERSION) {
        return Err(Unreadable::Version);
    }
    let (Some(head), Some(found), Some(payload)) =
        (record.first_chunk(), record.get(SEAL_AT..PAYLOAD_AT), record.get(PAYLOAD_AT..))
    else {
        return Err(Unreadable::Checksum);
    };
    if !seal.is_on(found, *head, payload) {
        return Err(Unreadable::Checksum);
    }
    let mut input = Reader::new(record, payload);
    let decoded = match head[2] {
        kind if kind == Kind::Response as u8 => {
            let (mut response, material) = read_response(&mut input)?;
            let coding = Coding::read(&mut input)?;
            response.body = input.shared_rest();
            check_lengths(response.body.len() as u64, coding, body_max)?;
            return Ok(Record::Response { response: Arc::new(response), material, detached: None, coding });
        }
        kind if kind == Kind::ResponseDetached as u8 => {
            let (response, material) = read_response(&mut input)?;
            let coding = Coding::read(&mut input)?;
            let detached = Detached { length: input.u64()?, digest: input.array()? };
            check_lengths(detached.length, coding, body_max)?;
            if detached.length == 0 {
                return Err(Unreadable::Malformed);
            }
            Record::Response { response: Arc::new(response), material, detached: Some(detached), coding }
        }
        kind if kind == Kind::Marker as u8 => Record::Marker(read_marker(&mut input)?),
        _ => return Err(Unreadable::Malformed),
    };
    if input.rest().is_empty() { Ok(decoded) } else { Err(Unreadable::Malformed) }
}

/// Refuses a body that is too long as it is stored or as it was received. No frame is stored that is not the shorter.
fn check_lengths(stored: u64, coding: Coding, body_max: u64) -> Result<(), Unreadable> {
    let received = match coding {
        Coding::Identity => stored,
        Coding::Lz4 { length } | Coding::Zstd { length } if stored < length => length,
        Coding::Lz4 { .. } | Coding::Zstd { .. } => return Err(Unreadable::Malformed),
    };
    if received <= body_max { Ok(()) } else { Err(Unreadable::TooLarge) }
}

fn write_freshness(out: &mut Writer, freshness: &Freshness) {
    out.duration(freshness.lifetime);
    out.duration(freshness.initial_age);
    out.duration(freshness.keep);
    match freshness.stale_use {
        StaleUse::AlwaysValidate => out.u8(0),
        StaleUse::Never => out.u8(1),
        StaleUse::Within { while_revalidate, if_error, max_stale } => {
            out.u8(if max_stale { 3 } else { 2 });
            out.duration(while_revalidate);
            out.duration(if_error);
        }
    }
}

fn read_freshness(input: &mut Reader<'_>) -> Result<Freshness, Unreadable> {
    let (lifetime, initial_age, keep) = (input.duration()?, input.duration()?, input.duration()?);
    let stale_use = match input.u8()? {
        0 => StaleUse::AlwaysValidate,
        1 => StaleUse::Never,
        kind @ (2 | 3) => {
            StaleUse::Within { while_revalidate: input.duration()?, if_error: input.duration()?, max_stale: kind == 3 }
        }
        _ => return Err(Unreadable::Malformed),
    };
    Ok(Freshness { lifetime, initial_age, stale_use, keep })
}

fn write_part(out: &mut Writer, part: Option<ContentRange>) {
    let Some(part) = part else { return out.u8(0) };
    out.u8(if part.complete.is_some() { 2 } else { 1 });
    out.u64(part.first);
    out.u64(part.last);
    if let Some(complete) = part.complete {
        out.u64(complete);
    }
}

fn read_part(input: &mut Reader<'_>) -> Result<Option<ContentRange>, Unreadable> {
    let kind = input.u8()?;
    if kind == 0 {
        return Ok(None);
    }
    let (first, last) = (input.u64()?, input.u64()?);
    let complete = match kind {
        1 => None,
        2 => Some(input.u64()?),
        _ => return Err(Unreadable::Malformed),
    };
    if first > last || complete.is_some_and(|complete| last >= complete) {
        return Err(Unreadable::Malformed);
    }
    Ok(Some(ContentRange { first, last, complete }))
}

fn write_selecting(out: &mut Writer, selecting: &SelectingFields) {
    match selecting {
        SelectingFields::Any => out.u8(0),
        SelectingFields::Names(names) => {
            out.u8(1);
            out.count(names.len());
            names.iter().for_each(|name| out.bytes(name.as_str().as_bytes()));
        }
    }
}

fn read_selecting(input: &mut Reader<'_>) -> Result<SelectingFields, Unreadable> {
    match input.u8()? {
        0 => Ok(SelectingFields::Any),
        1 => Ok(SelectingFields::Names(read_names(input)?)),
        _ => Err(Unreadable::Malformed),
    }
}

fn read_names(input: &mut Reader<'_>) -> Result<Box<[HeaderName]>, Unreadable> {
    (0..input.count()?).map(|_| field_name(input.bytes()?)).collect()
}

/// Framing fields are neither written nor read: only the body itself says how long it is.
fn write_fields(out: &mut Writer, fields: &StoredFields) {
    let kept = || fields.iter().filter(|(name, _)| !is_framing(name));
    out.count(kept().count());
    for (name, value) in kept() {
        out.bytes(name.as_str().as_bytes());
        out.bytes(value.as_bytes());
    }
}

fn read_fields(input: &mut Reader<'_>) -> Result<StoredFields, Unreadable> {
    // A map of more could not be made: it takes 32,768 lines of different names.
    let mut fields = HeaderMap::new();
    for _ in 0..input.count()? {
        let name = field_name(input.bytes()?)?;
        let value = HeaderValue::from_maybe_shared(input.shared_bytes()?).map_err(|_| Unreadable::Malformed)?;
        if !is_framing(&name) {
            fields.try_append(name, value).map_err(|_| Unreadable::Malformed)?;
        }
    }
    Ok(fields.into())
}

fn field_name(bytes: &[u8]) -> Result<HeaderName, Unreadable> {
    HeaderName::from_bytes(bytes).map_err(|_| Unreadable::Malformed)
}

fn is_framing(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING
}

/// All of a response but its body.
fn read_response(input: &mut Reader<'_>) -> Result<(StoredResponse, Bytes), Unreadable> {
    let status = StatusCode::from_u16(input.u16()?).map_err(|_| Unreadable::Malformed)?;
    let (request_time, response_time) = (input.timestamp()?, input.timestamp()?);
    let freshness = read_freshness(input)?;
    let part = read_part(input)?;
    let provenance = Provenance {
        own: 0,
        synced_to: PurgeNumber(input.u64()?),
        epoch: Epoch(input.u64()?),
        tags: (0..input.count()?).map(|_| input.text().map(Box::from)).collect::<Result<_, _>>()?,
    };
    let selecting = read_selecting(input)?;
    let material = input.shared_bytes()?;
    let fields = read_fields(input)?;
    let response = StoredResponse {
        place: Place::default(),
        status,
        fields,
        request_time,
        response_time,
        freshness,
        selecting,
        part,
        provenance,
        body: Bytes::new(),
    };
    Ok((response, material))
}

fn read_marker(input: &mut Reader<'_>) -> Result<Marker, Unreadable> {
    let material = Bytes::copy_from_slice(input.bytes()?);
    let names = read_names(input)?.into();
    let variants = (0..input.count()?)
        .map(|_| Ok((CacheKey::from_bytes(input.array()?), input.timestamp()?)))
        .collect::<Result<_, _>>()?;
    Ok(Marker { material, names, variants })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;
    use crate::key::Address;
    use crate::store::slot::placed;

    fn with(response: StoredResponse, further: [(HeaderName, &'static str); 2]) -> StoredResponse {
        let mut fields = response.fields.to_map();
        fields.extend(further.map(|(name, value)| (name, HeaderValue::from_static(value))));
        StoredResponse { fields: fields.into(), ..response }
    }

    fn response() -> StoredResponse {
        let mut fields = HeaderMap::new();
        fields.append("content-type", HeaderValue::from_static("text/plain"));
        fields.append("x-odd", HeaderValue::from_bytes(b"\xff latin").unwrap());
        fields.append("set-cookie", HeaderValue::from_static("a=1"));
        fields.append("set-cookie", HeaderValue::from_static(""));
        StoredResponse {
            place: Place::default(),
            status: StatusCode::from_u16(299).unwrap(),
            fields: fields.into(),
            request_time: Timestamp::from_millis(1_000),
            response_time: Timestamp::from_millis(1_050),
            freshness: Freshness {
                lifetime: Duration::from_nanos(5_000_000_001),
                initial_age: Duration::from_secs(1),
                stale_use: StaleUse::Within {
                    while_revalidate: Duration::from_secs(2),
                    if_error: Duration::from_secs(super::DURATION_SECS_MAX),
                    max_stale: true,
                },
                keep: Duration::from_secs(60),
            },
            selecting: SelectingFields::Names(Box::new([HeaderName::from_static("accept-language")])),
            part: None,
            provenance: Provenance {
                own: 0,
                synced_to: PurgeNumber(42),
                epoch: Epoch(7),
                tags: Box::new(["product:1".into(), "group:ünï".into()]),
            },
            body: Bytes::from_static(b"\x00body\xff"),
        }
    }

    fn held(response: StoredResponse) -> StoredResponse {
        let material = b"material\0"[..].into();
        placed(&Address { key: CacheKey::from_bytes([3; 32]), material }, response)
    }

    /// The record of a response with its body as it is.
    fn encode(held: &StoredResponse, epoch: Epoch, detached: Option<&Detached>) -> Vec<u8> {
        encode_response(held, epoch, &StoredBody::identity(held.body.clone()), detached, &Seal::plain())
    }

    fn decode(record: &Bytes) -> Result<Record, Unreadable> {
        super::decode(record, u64::MAX, &Seal::plain())
    }

    fn check_round_trip(response: StoredResponse) {
        let held = held(response);
        let record = Bytes::from(encode(&held, held.provenance.epoch, None));
        let Record::Response { response, material, detached, coding } = decode(&record).unwrap() else {
            panic!("expected a response")
        };
        assert_eq!((&*response, &*material), (&held, &*held.place.material));
        assert_eq!((detached, coding), (None, Coding::Identity));
    }

    #[test]
    fn a_response_comes_back_as_it_was() {
        check_round_trip(response());
        check_round_trip(StoredResponse { body: Bytes::new(), selecting: SelectingFields::Any, ..response() });
        for stale_use in [StaleUse::AlwaysValidate, StaleUse::Never] {
            let freshness = Freshness { stale_use, ..response().freshness };
            check_round_trip(StoredResponse { freshness, ..response() });
        }
        for complete in [None, Some(900)] {
            let part = Some(ContentRange { first: 3, last: 8, complete });
            check_round_trip(StoredResponse { part, ..response() });
        }
    }

    #[test]
    fn a_marker_comes_back_as_it_was() {
        let variants = [1, 2].map(|n| (CacheKey::from_bytes([n; 32]), Timestamp::from_secs(u64::from(n)))).into();
        let names = ["accept", "x-mine"].map(HeaderName::from_static).into();
        let marker = Marker { material: Bytes::from_static(b"m"), names, variants };
        assert_eq!(decode(&encode_marker(&marker, &Seal::plain()).into()), Ok(Record::Marker(marker)));
    }

    #[test]
    fn a_detached_body_is_described_and_left_out() {
        let held = held(response());
        let detached = Detached::of(&held.body);
        let record = encode(&held, Epoch(9), Some(&detached)).into();
        let Record::Response { response, detached: read, .. } = decode(&record).unwrap() else {
            panic!("expected a response")
        };
        assert_eq!((read, response.body.len(), response.provenance.epoch), (Some(detached), 0, Epoch(9)));
        assert!(detached.describes(&held.body));
        assert!(!detached.describes(b"\x00body\xfe"));
    }

    #[test]
    fn a_compressed_body_is_stored_instead_of_the_body_and_restores_it() {
        let body = Bytes::from(b"0123456789".repeat(500));
        let held = held(StoredResponse { body: body.clone(), ..response() });
        let stored = StoredBody::compressed(body.clone());
        let record = encode_response(&held, Epoch(7), &stored, None, &Seal::plain());
        assert!(record.len() < 1000, "{}", record.len());
        let Record::Response { response, detached, coding, .. } = decode(&record.into()).unwrap() else {
            panic!("expected a response")
        };
        assert_eq!((&response.body, detached, coding), (&stored.bytes, None, Coding::Zstd { length: 5000 }));
        assert_eq!(StoredBody { bytes: response.body.clone(), coding }.restored(), Ok(body));
    }

    #[test]
    fn a_length_above_the_bound_or_that_makes_no_sense_is_refused() {
        let check = |stored: u64, coding: Coding, expected: Result<(), Unreadable>| {
            let held = held(StoredResponse { body: Bytes::new(), ..response() });
            let body = StoredBody { bytes: Bytes::from(vec![0; usize::try_from(stored).unwrap()]), coding };
            let detached = Detached { length: stored, digest: [0; 32] };
            for detached in [None, Some(&detached)] {
                let record = encode_response(&held, Epoch(7), &body, detached, &Seal::plain()).into();
                assert_eq!(
                    super::decode(&record, 5000, &Seal::plain()).map(|_| ()),
                    expected,
                    "{stored} {coding:?} {detached:?}"
                );
            }
        };
        check(5000, Coding::Identity, Ok(()));
        check(5001, Coding::Identity, Err(Unreadable::TooLarge));
        check(4999, Coding::Zstd { length: 5000 }, Ok(()));
        check(20, Coding::Zstd { length: 5001 }, Err(Unreadable::TooLarge));
        check(20, Coding::Zstd { length: u64::MAX }, Err(Unreadable::TooLarge));
        check(5000, Coding::Zstd { length: 5000 }, Err(Unreadable::Malformed));
        check(20, Coding::Zstd { length: 0 }, Err(Unreadable::Malformed));
        check(20, Coding::Lz4 { length: 5000 }, Ok(()));
        check(20, Coding::Lz4 { length: 5001 }, Err(Unreadable::TooLarge));
        check(20, Coding::Lz4 { length: 20 }, Err(Unreadable::Malformed));
    }

    #[test]
    fn framing_fields_are_not_kept() {
        let framing = [(CONTENT_LENGTH, "9999"), (TRANSFER_ENCODING, "chunked")];
        let held = held(with(response(), framing));
        let Record::Response { response, .. } = decode(&encode(&held, Epoch(7), None).into()).unwrap() else {
            panic!("expected a response")
        };
        assert_eq!(response.fields, super::tests::response().fields);
    }

    #[test]
    fn every_changed_byte_and_every_truncation_is_refused() {
        let held = held(response());
        let record = encode(&held, Epoch(7), None);
        for at in 0..record.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = record.clone();
                changed[at] ^= flip;
                assert!(decode(&changed.into()).is_err(), "byte {at} ^ {flip}");
            }
            assert!(decode(&Bytes::copy_from_slice(&record[..at])).is_err(), "cut at {at}");
        }
        let mut longer = record;
        longer.push(0);
        assert_eq!(decode(&longer.into()), Err(Unreadable::Checksum));
    }

    #[test]
    fn what_is_no_record_says_why() {
        let check = |bytes: &[u8], expected| assert_eq!(decode(&Bytes::copy_from_slice(bytes)), Err(expected));
        check(b"", Unreadable::Foreign);
        check(b"{\"json\":1}", Unreadable::Foreign);
        check(&[MAGIC, 1, 1, 0], Unreadable::Version);
        check(&[MAGIC, 2, 1, 0], Unreadable::Version);
        check(&[MAGIC, 3, 1, 0], Unreadable::Version);
        check(&[MAGIC, VERSION - 1, 1, 0], Unreadable::Version);
        check(&[MAGIC, VERSION + 1, 1, 0], Unreadable::Version);
        check(&[MAGIC], Unreadable::Checksum);
        check(&Writer::new(9, 0).finish(&Seal::plain()), Unreadable::Malformed);
    }

    /// The record with what comes first of `from` replaced, sealed as if it had been written so.
    fn forged(record: &[u8], from: &[u8], to: &[u8]) -> Bytes {
        let at = record.windows(from.len()).position(|bytes| bytes == from).expect("it is there");
        let mut out = Writer::new(record[2], record.len());
        out.raw(&record[PAYLOAD_AT..at]);
        out.raw(to);
        out.raw(&record[at + from.len()..]);
        out.finish(&Seal::plain()).into()
    }

    #[test]
    fn what_is_sealed_by_who_means_harm_is_refused_or_harmless() {
        let fields = [("x-fourteen-lon", "9999"), ("x-seventeen-longs", "chunked")];
        let response = with(response(), fields.map(|(name, value)| (HeaderName::from_static(name), value)));
        let record = encode(&held(response), Epoch(7), None);
        let refused = |from: &[u8], to: &[u8]| {
            assert_eq!(decode(&forged(&record, from, to)), Err(Unreadable::Malformed), "{from:?} {to:?}");
        };
        refused(b"\xff latin", b"a\r\nb: c");
        refused(b"\xff latin", b"\xff lat\0n");
        refused(b"text/plain", b"text\nplain");
        refused(b"x-odd", b"x odd");
        refused(b"x-odd", b"x\r\nod");
        refused(b"accept-language", b"accept:language");
        refused("group:ünï".as_bytes(), b"group:\xffn\xfe\xff\xff");
        // Lengths and counts of half a gigabyte and more.
        let lengths = [500_000_000_u32, u32::MAX].map(u32::to_le_bytes);
        for length in lengths {
            refused(b"\x09\0\0\0material", &[&length, &b"material"[..]].concat());
            refused(b"\x02\0\0\0\x09\0\0\0product:1", &[&length, &b"\x09\0\0\0product:1"[..]].concat());
            refused(b"\x0c\0\0\0content-type", &[&length, &b"content-type"[..]].concat());
        }
        let framed = forged(&record, b"x-fourteen-lon", b"content-length");
        let framed = forged(&framed, b"x-seventeen-longs", b"transfer-encoding");
        let Ok(Record::Response { response, .. }) = decode(&framed) else { panic!("expected a response") };
        assert_eq!(response.fields, super::tests::response().fields);
    }

    #[test]
    fn a_million_fields_are_refused() {
        let record = encode(&held(response()), Epoch(7), None);
        let fields: Vec<u8> = (0..1_000_000_u32)
            .flat_map(|nth| {
                let name = format!("x{nth:06}");
                [&7_u32.to_le_bytes()[..], name.as_bytes(), &[0; 4]].concat()
            })
            .collect();
        let counted = [&1_000_004_u32.to_le_bytes()[..], &fields].concat();
        let record =
            forged(&record, b"\x04\0\0\0\x0c\0\0\0content-type", &[&counted[..], b"\x0c\0\0\0content-type"].concat());
        assert_eq!(decode(&record), Err(Unreadable::Malformed));
    }

    #[test]
    fn only_the_seal_that_was_put_on_fits() {
        let (held, marker) =
            (held(response()), Marker { material: Bytes::new(), names: [].into(), variants: [].into() });
        let seals = || [Seal::plain(), Seal::keyed("sixteen or more!"), Seal::keyed("sixteen or more?")];
        for (put_on, by) in seals().iter().enumerate() {
            let body = StoredBody::identity(held.body.clone());
            let records = [encode_response(&held, Epoch(7), &body, None, by), encode_marker(&marker, by)];
            for record in records.map(Bytes::from) {
                for (asked, seal) in seals().iter().enumerate() {
                    let decoded = super::decode(&record, u64::MAX, seal).map(|_| ());
                    let expected = if put_on == asked { Ok(()) } else { Err(Unreadable::Checksum) };
                    assert_eq!(decoded, expected, "sealed by {put_on}, asked of {asked}");
                }
            }
        }
    }

    /// Bytes that pass the seal, and still mean nothing.
    #[test]
    fn random_content_never_panics_nor_allocates_by_its_own_word() {
        let mut random = fastrand::Rng::with_seed(3);
        let valid = encode(&held(response()), Epoch(7), None);
        for round in 0..30_000 {
            let mut out = Writer::new(random.u8(1..4), 0);
            if round % 2 == 0 {
                let bytes: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
                out.raw(&bytes);
            } else {
                let mut bytes = valid[PAYLOAD_AT..].to_vec();
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
                bytes.truncate(random.usize(..=bytes.len()));
                out.raw(&bytes);
            }
            let _ = decode(&out.finish(&Seal::plain()).into());
        }
    }
}
