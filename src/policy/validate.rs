//! stub
use crate::stored::StoredResponse;
use http::HeaderMap;
/// c
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// a
    Plain,
    /// b
    Validating,
    /// c
    Completing,
}
/// stub
pub fn upstream_conditions(fields: &mut HeaderMap, stored: Option<&StoredResponse>) -> Conditional {
    todo!("{fields:?} {stored:?}")
}
