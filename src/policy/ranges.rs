//! Which of the bytes that a request asks for a stored response holds (RFC 9110 §14, RFC 9111 §3.3).

use http::header::RANGE;
use http::{HeaderMap, Method, StatusCode};

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
    if method != Method::GET || !is_representation || !fields.contains_key(RANGE) {
        return without_range;
    }
    let Some(specs) = requested(fields) else { return without_range };
    if !if_range_holds(fields, &stored.fields) {
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
