//! Ranges: what is asked for lies within the length, and the answer has just those bytes.

use std::time::Duration;

use aside::clock::Timestamp;
use aside::fields::range::{ContentRange, RANGES_MAX, requested};
use aside::fields::vary::SelectingFields;
use aside::policy::ranges::{Coverage, coverage};
use aside::proxy::reply::{ReplyBody, from_stored};
use aside::stored::{Freshness, Place, Provenance, StaleUse, StoredResponse};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use http::{Method, Request, StatusCode};

/// The first byte is a length, the rest a field value.
pub fn check(data: &[u8]) {
    let Some((length, value)) = data.split_first() else { return };
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    check_content_range(&value);
    let fields = HeaderMap::from_iter([(RANGE, value.clone())]);
    let body: Bytes = (0..*length).collect();
    let size = body.len() as u64;
    let specs = requested(&fields);
    if let Some(specs) = &specs {
        assert!((1..=RANGES_MAX).contains(&specs.len()));
        let ends: Vec<(u64, u64)> = specs.iter().filter_map(|spec| spec.resolve(size)).collect();
        assert!(ends.iter().all(|(first, last)| first <= last && *last < size), "{ends:?} of {size}");
    }
    check_answer(&value, &stored(body, None), specs.is_some());
    // A part from the middle of something longer.
    let part = ContentRange { first: 10, last: 9 + size, complete: Some(20 + size) };
    if size > 0 {
        check_answer(&value, &stored((0..*length).collect(), Some(part)), specs.is_some());
    }
}

fn check_content_range(value: &HeaderValue) {
    let read = |value: HeaderValue| ContentRange::of(&HeaderMap::from_iter([(CONTENT_RANGE, value)]));
    let Some(range) = read(value.clone()) else { return };
    assert!(range.first <= range.last && range.complete.is_none_or(|complete| range.last < complete));
    assert!(range.length() >= 1);
    assert_eq!(read(range.to_value()), Some(range));
}

fn check_answer(value: &HeaderValue, stored: &StoredResponse, is_valid: bool) {
    let request = Request::get("/").header(RANGE, value.clone()).body(()).unwrap().into_parts().0;
    let first = stored.part.map_or(0, |part| part.first);
    let last = first + stored.body.len() as u64;
    let covered = coverage(&Method::GET, &request.headers, stored);
    if let Coverage::Ranges(ranges) = &covered {
        assert!(is_valid && !ranges.is_empty());
        assert!(ranges.iter().all(|(from, to)| first <= *from && from <= to && *to < last), "{ranges:?}");
        let disjoint = |a: &(u64, u64), b: &(u64, u64)| a.1 < b.0 || b.1 < a.0;
        for (nth, range) in ranges.iter().enumerate() {
            assert!(ranges[..nth].iter().all(|other| disjoint(range, other)), "{ranges:?}");
        }
    }
    if covered == Coverage::Outside {
        return;
    }
    let (head, body) = from_stored(&request, stored, Timestamp::default());
    let bytes = match body {
        ReplyBody::Empty => Vec::new(),
        ReplyBody::Whole(bytes) => bytes.to_vec(),
        ReplyBody::Parts(parts) => parts.concat(),
    };
    let told = head.headers().get(CONTENT_LENGTH).map(|it| it.to_str().unwrap().parse::<usize>().unwrap());
    assert!(told.is_none_or(|told| told == bytes.len()), "{told:?} of {}", bytes.len());
    match (head.status(), covered) {
        (StatusCode::OK, Coverage::Whole) => assert_eq!(bytes, stored.body),
        (StatusCode::RANGE_NOT_SATISFIABLE, Coverage::Unsatisfiable(_)) => {}
        (StatusCode::PARTIAL_CONTENT, Coverage::Ranges(ranges)) => {
            let slice = |(from, to): (u64, u64)| {
                let offset = |at: u64| usize::try_from(at - first).unwrap();
                stored.body.slice(offset(from)..=offset(to))
            };
            if let [only] = ranges[..] {
                let told = ContentRange::of(head.headers()).expect("a content range");
                assert_eq!((told.first, told.last), only);
                assert_eq!(bytes, slice(only));
            } else {
                assert!(ranges.into_iter().all(|range| contains(&bytes, &slice(range))));
            }
        }
        (status, covered) => panic!("{status} for {covered:?}"),
    }
}

fn contains(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|window| window == piece)
}

fn stored(body: Bytes, part: Option<ContentRange>) -> StoredResponse {
    let freshness = Freshness {
        lifetime: Duration::from_secs(60),
        initial_age: Duration::ZERO,
        stale_use: StaleUse::Never,
        keep: Duration::ZERO,
    };
    StoredResponse {
        place: Place::default(),
        status: if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK },
        fields: part.map(|part| (CONTENT_RANGE, part.to_value())).into_iter().collect(),
        request_time: Timestamp::default(),
        response_time: Timestamp::default(),
        freshness,
        selecting: SelectingFields::Names(Box::default()),
        part,
        provenance: Provenance::default(),
        body,
    }
}
