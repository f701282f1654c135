//! Which of the bytes that a request asks for a stored response holds (RFC 9110 §14, RFC 9111 §3.3).

use http::header::{IF_RANGE, RANGE};
use http::{HeaderMap, Method, StatusCode};

use crate::fields::has_any;
use crate::fields::range::{RangeSpec, requested};
use crate::fields::validators::if_range_holds;
use crate::stored::StoredResponse;

/// What of a stored response answers a request. [`super::reuse::decide`] and the reply are both made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All of it.
    Whole,
    /// These bytes of the representation, `first..=last`: disjoint, at least one.
    Ranges(Vec<(u64, u64)>),
    /// None of the ranges lies within the representation's length.
    Unsatisfiable(u64),
    /// The stored part is not all that is asked for.
    Outside,
}

/// What of `stored` answers a request with this method and these fields.
pub fn coverage(method: &Method, fields: &HeaderMap, stored: &StoredResponse) -> Coverage {
    let without_range = if stored.part.is_none() { Coverage::Whole } else { Coverage::Outside };
    // RFC 9110 §14.2: a Range counts for GET alone, and only where the answer without it would be a 200.
    let is_representation = matches!(stored.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if method != Method::GET || !is_representation || !has_any(fields, &[RANGE]) {
        return without_range;
    }
    let Some(specs) = requested(fields) else { return without_range };
    if has_any(fields, &[IF_RANGE]) && !if_range_holds(fields, &stored.fields.to_map()) {
        return without_range;
    }
    match stored.part {
        None => of_whole(&specs, stored.body.len() as u64),
        Some(part) => match part.complete {
            Some(complete) => within(of_whole(&specs, complete), part.first, part.last),
            None => within(of_unknown_length(&specs), part.first, part.last),
        },
    }
}

fn of_whole(specs: &[RangeSpec], length: u64) -> Coverage {
    // No range of nothing can be satisfied; nothing itself is the kinder answer.
    if length == 0 {
        return Coverage::Whole;
    }
    let resolved: Vec<_> = specs.iter().filter_map(|spec| spec.resolve(length)).collect();
    if resolved.is_empty() { Coverage::Unsatisfiable(length) } else { Coverage::Ranges(coalesced(resolved)) }
}

/// Without the complete length only ranges with both ends are known.
fn of_unknown_length(specs: &[RangeSpec]) -> Coverage {
    let both_ends = |spec: &RangeSpec| match *spec {
        RangeSpec::FromTo(first, last) => Some((first, last)),
        RangeSpec::From(_) | RangeSpec::Suffix(_) => None,
    };
    let ranges: Option<Vec<_>> = specs.iter().map(both_ends).collect();
    ranges.map_or(Coverage::Outside, |ranges| Coverage::Ranges(coalesced(ranges)))
}

fn within(coverage: Coverage, first: u64, last: u64) -> Coverage {
    match coverage {
        Coverage::Ranges(ranges) if ranges.iter().all(|range| first <= range.0 && range.1 <= last) => {
            Coverage::Ranges(ranges)
        }
        Coverage::Unsatisfiable(length) => Coverage::Unsatisfiable(length),
        Coverage::Whole | Coverage::Ranges(_) | Coverage::Outside => Coverage::Outside,
    }
}

/// In the order asked for; where some overlap or touch, sorted and merged (RFC 9110 §15.3.7.2).
fn coalesced(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut sorted = ranges.clone();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(before) if range.0 <= before.1.saturating_add(1) => before.1 = before.1.max(range.1),
            _ => merged.push(range),
        }
    }
    if merged.len() == ranges.len() { ranges } else { merged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{request, stored};

    fn check(stored_as: &str, body: &'static str, asked: &str, expected: Coverage) {
        let (stored, request) = (stored(stored_as, body), request(asked));
        assert_eq!(coverage(&request.method, &request.headers, &stored), expected, "{stored_as}: {asked}");
    }

    fn ranges(ranges: &[(u64, u64)]) -> Coverage {
        Coverage::Ranges(ranges.to_vec())
    }

    #[test]
    fn a_whole_response_answers_any_range_of_it() {
        let whole = |asked, expected| check("200 | etag: \"a\"", "0123456789", asked, expected);
        whole("GET", Coverage::Whole);
        whole("GET | range: bytes=0-1", ranges(&[(0, 1)]));
        whole("GET | range: bytes=1-", ranges(&[(1, 9)]));
        whole("GET | range: bytes=-1", ranges(&[(9, 9)]));
        whole("GET | range: bytes=-99", ranges(&[(0, 9)]));
        whole("GET | range: bytes=5-99", ranges(&[(5, 9)]));
        whole("GET | range: bytes=10-", Coverage::Unsatisfiable(10));
        whole("GET | range: bytes=-0", Coverage::Unsatisfiable(10));
        whole("GET | range: bytes=10-, 0-0", ranges(&[(0, 0)]));
        whole("GET | range: lines=0-1", Coverage::Whole);
        whole("GET | range: bytes=", Coverage::Whole);
        whole("GET | range: bytes=5-2", Coverage::Whole);
        whole("HEAD | range: bytes=0-1", Coverage::Whole);
        whole("POST | range: bytes=0-1", Coverage::Whole);
    }

    #[test]
    fn several_ranges_keep_their_order_unless_they_overlap_or_touch() {
        let whole = |asked, expected| check("200", "0123456789", asked, expected);
        whole("GET | range: bytes=8-9,0-1", ranges(&[(8, 9), (0, 1)]));
        whole("GET | range: bytes=4-9,0-5", ranges(&[(0, 9)]));
        whole("GET | range: bytes=0-1,2-3", ranges(&[(0, 3)]));
        whole("GET | range: bytes=0-,0-,0-", ranges(&[(0, 9)]));
        whole("GET | range: bytes=8-9,3-4,0-1,1-2", ranges(&[(0, 4), (8, 9)]));
    }

    #[test]
    fn a_range_of_what_is_empty_or_no_representation_is_answered_whole() {
        check("200", "", "GET | range: bytes=0-", Coverage::Whole);
        check("404", "0123456789", "GET | range: bytes=0-1", Coverage::Whole);
    }

    #[test]
    fn if_range_decides_whether_a_range_is_meant() {
        let whole = |asked, expected| check("200 | etag: \"a\"", "0123456789", asked, expected);
        whole("GET | range: bytes=0-1 | if-range: \"a\"", ranges(&[(0, 1)]));
        whole("GET | range: bytes=0-1 | if-range: \"b\"", Coverage::Whole);
        whole("GET | range: bytes=0-1 | if-range: W/\"a\"", Coverage::Whole);
        let part = "206 | etag: \"a\" | content-range: bytes 2-5/10";
        check(part, "2345", "GET | range: bytes=2-3 | if-range: \"b\"", Coverage::Outside);
    }

    #[test]
    fn a_part_answers_only_what_lies_within_it() {
        let part = |asked, expected| check("206 | content-range: bytes 4-7/10", "4567", asked, expected);
        part("GET", Coverage::Outside);
        part("HEAD", Coverage::Outside);
        part("GET | range: bytes=4-7", ranges(&[(4, 7)]));
        part("GET | range: bytes=5-6", ranges(&[(5, 6)]));
        part("GET | range: bytes=5-5,7-7", ranges(&[(5, 5), (7, 7)]));
        part("GET | range: bytes=3-5", Coverage::Outside);
        part("GET | range: bytes=5-8", Coverage::Outside);
        part("GET | range: bytes=5-", Coverage::Outside);
        part("GET | range: bytes=-1", Coverage::Outside);
        part("GET | range: bytes=4-5,9-9", Coverage::Outside);
        part("GET | range: bytes=10-", Coverage::Unsatisfiable(10));
        let end = |asked, expected| check("206 | content-range: bytes 5-9/10", "56789", asked, expected);
        end("GET | range: bytes=-5", ranges(&[(5, 9)]));
        end("GET | range: bytes=6-", ranges(&[(6, 9)]));
        end("GET | range: bytes=-1", ranges(&[(9, 9)]));
        end("GET | range: bytes=-6", Coverage::Outside);
    }

    #[test]
    fn of_a_part_without_a_complete_length_only_both_ends_are_known() {
        let part = |asked, expected| check("206 | content-range: bytes 4-7/*", "4567", asked, expected);
        part("GET | range: bytes=5-6", ranges(&[(5, 6)]));
        part("GET | range: bytes=5-", Coverage::Outside);
        part("GET | range: bytes=-1", Coverage::Outside);
        part("GET | range: bytes=99-100", Coverage::Outside);
    }
}
