//! Records: read as they were written, refused when a byte is missing or changed, and never more than was declared.

use std::sync::Arc;
use std::time::Duration;

use aside::clock::Timestamp;
use aside::fields::range::ContentRange;
use aside::fields::vary::SelectingFields;
use aside::key::{Address, CacheKey};
use aside::store::codec::compression::{Coding, StoredBody};
use aside::store::codec::{Detached, Record, Seal, decode, encode_marker, encode_response};
use aside::store::slot::{Marker, placed};
use aside::stored::{Epoch, Freshness, Place, Provenance, PurgeNumber, StaleUse, StoredResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// No body in a test is longer.
const BODY_MAX: u64 = 1 << 20;

/// The input is a record as it is, one whose checksum is mended, and what a response is made of.
pub fn check(data: &[u8]) {
    check_read(&Bytes::copy_from_slice(data));
    check_read(&mended(data));
    let mut source = Source { rest: data };
    check_written(&mut source);
}

/// What can be read is read the same when it is written again.
fn check_read(record: &Bytes) {
    let Ok(read) = decode(record, BODY_MAX, &Seal::plain()) else { return };
    assert_eq!(decode(&written(&read), BODY_MAX, &Seal::plain()).as_ref(), Ok(&read));
    if let Record::Response { response, detached: None, coding, .. } = read {
        let declared = match coding {
            Coding::Identity => response.body.len() as u64,
            Coding::Lz4 { length } | Coding::Zstd { length } => length,
        };
        assert!(declared <= BODY_MAX);
        if let Ok(body) = (StoredBody { bytes: response.body.clone(), coding }).restored() {
            assert_eq!(body.len() as u64, declared);
        }
    }
}

fn written(record: &Record) -> Bytes {
    match record {
        Record::Marker(marker) => encode_marker(marker, &Seal::plain()),
        Record::Response { response, material, detached, coding } => {
            let body = StoredBody { bytes: response.body.clone(), coding: *coding };
            let held = held(StoredResponse::clone(response), material.clone());
            encode_response(&held, response.provenance.epoch, &body, detached.as_ref(), &Seal::plain())
        }
    }
    .into()
}

fn held(response: StoredResponse, material: Bytes) -> StoredResponse {
    placed(&Address { key: CacheKey::of(&material), material: material.as_ref().into() }, response)
}

/// The bytes as a record's payload.
fn mended(data: &[u8]) -> Bytes {
    let kind = data.first().map_or(1, |first| first % 4);
    let payload = data.get(1..).unwrap_or_default();
    let head = [0xC0, 5, kind];
    let seed = u32::from_le_bytes([head[0], head[1], head[2], 0]);
    let checksum = xxhash_rust::xxh3::xxh3_128_with_seed(payload, seed.into()).to_le_bytes();
    [&head[..], &checksum, payload].concat().into()
}

fn check_written(source: &mut Source<'_>) {
    let (response, material) = (source.response(), Bytes::from(source.text().into_bytes()));
    let epoch = response.provenance.epoch;
    let body = if source.one_in(2) {
        StoredBody::compressed(response.body.clone())
    } else {
        StoredBody::identity(response.body.clone())
    };
    let detached = (source.one_in(4) && !body.bytes.is_empty()).then(|| Detached::of(&body.bytes));
    let record: Bytes =
        encode_response(&held(response.clone(), material.clone()), epoch, &body, detached.as_ref(), &Seal::plain())
            .into();
    let expected_body = if detached.is_some() { Bytes::new() } else { body.bytes.clone() };
    let expected = Record::Response {
        response: Arc::new(StoredResponse { body: expected_body, ..response.clone() }),
        material,
        detached,
        coding: body.coding,
    };
    assert_eq!(decode(&record, BODY_MAX, &Seal::plain()), Ok(expected));
    assert_eq!(body.restored(), Ok(response.body));
    check_damaged(&record, source);
    let names: Vec<HeaderName> = (0..source.u8() % 4).map(|_| source.name()).collect();
    let variants = (0..source.u8() % 4).map(|_| (CacheKey::of(&[source.u8()]), Timestamp::from_millis(source.u64())));
    let variants = variants.collect();
    let marker = Marker { material: Bytes::from_static(b"m"), names: names.into(), variants };
    let record: Bytes = encode_marker(&marker, &Seal::plain()).into();
    assert_eq!(decode(&record, BODY_MAX, &Seal::plain()), Ok(Record::Marker(marker)));
    check_damaged(&record, source);
}

/// A byte less, a byte more, and a byte that is another.
fn check_damaged(record: &Bytes, source: &mut Source<'_>) {
    let at = usize::try_from(source.u64() % record.len() as u64).unwrap();
    assert!(decode(&record.slice(..at), BODY_MAX, &Seal::plain()).is_err());
    let mut changed = record.to_vec();
    changed[at] ^= 1 << (source.u8() % 8);
    assert!(decode(&changed.into(), BODY_MAX, &Seal::plain()).is_err());
    let longer = [record, &b"x"[..]].concat();
    assert!(decode(&longer.into(), BODY_MAX, &Seal::plain()).is_err());
}

/// Values out of the input, and zeros when it is used up.
struct Source<'a> {
    rest: &'a [u8],
}

impl Source<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.rest = rest;
        *first
    }

    fn one_in(&mut self, count: u8) -> bool {
        self.u8().is_multiple_of(count)
    }

    fn u64(&mut self) -> u64 {
        // Now and then one that is very great.
        let bytes = if self.one_in(4) { 8 } else { 2 };
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.u8()))
    }

    fn text(&mut self) -> String {
        (0..self.u8() % 32).map(|_| char::from(self.u8() % 0x5F + 0x20)).collect()
    }

    fn name(&mut self) -> HeaderName {
        let text: String = (0..=self.u8() % 12).map(|_| char::from(self.u8() % 26 + b'a')).collect();
        HeaderName::try_from(text).expect("lower case")
    }

    fn duration(&mut self) -> Duration {
        // Longer ones are written as the longest.
        Duration::from_millis(self.u64() >> 16)
    }

    fn response(&mut self) -> StoredResponse {
        let stale_use = match self.u8() % 3 {
            0 => StaleUse::AlwaysValidate,
            1 => StaleUse::Never,
            _ => StaleUse::Within {
                while_revalidate: self.duration(),
                if_error: self.duration(),
                max_stale: self.one_in(2),
            },
        };
        let freshness =
            Freshness { lifetime: self.duration(), initial_age: self.duration(), stale_use, keep: self.duration() };
        let fields: HeaderMap = (0..self.u8() % 6)
            .map(|_| (self.name(), HeaderValue::from_str(self.text().trim()).expect("visible")))
            .collect();
        let mut names: Vec<HeaderName> = (0..self.u8() % 4).map(|_| self.name()).collect();
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        let first = self.u64() >> 1;
        let last = first + u64::from(self.u8());
        let part = ContentRange { first, last, complete: (self.one_in(2)).then_some(last + 1) };
        let repeated = usize::from(self.u8()) * 8;
        StoredResponse {
            place: Place::default(),
            status: StatusCode::from_u16(100 + u16::from(self.u8())).expect("a status"),
            fields: fields.into(),
            request_time: Timestamp::from_millis(self.u64()),
            response_time: Timestamp::from_millis(self.u64()),
            freshness,
            selecting: if self.one_in(4) { SelectingFields::Any } else { SelectingFields::Names(names.into()) },
            part: (self.one_in(4)).then_some(part),
            provenance: Provenance {
                synced_to: PurgeNumber(self.u64()),
                epoch: Epoch(self.u64()),
                own: 0,
                tags: (0..self.u8() % 4).map(|_| self.text().into()).collect(),
            },
            body: self.rest.iter().copied().cycle().take(if self.rest.is_empty() { 0 } else { repeated }).collect(),
        }
    }
}
