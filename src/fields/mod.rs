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
