//! Field values as types: parsed once, judged by name afterwards.

pub mod age;
pub mod cache_control;
pub mod date;
pub mod forwarding;
pub mod hop_by_hop;
pub mod list;
pub mod range;
pub mod surrogate;
pub mod targeted;
pub mod validators;
pub mod vary;

use http::{HeaderMap, HeaderName};

/// Whether one of these fields is there. A request has few fields: comparing their names costs less than looking each of
/// these up, where mostly none is there.
pub fn has_any(fields: &HeaderMap, names: &[HeaderName]) -> bool {
    fields.keys().any(|name| names.contains(name))
}
