//! Fields that belong to one connection (RFC 9110 §7.6.1) and never travel or get stored.

use http::HeaderMap;

/// Removes the connection's own fields, and those that `Connection` names, besides the ones it must not
/// name: Host, Cookie, Authorization, Cache-Control and framing fields stay.
pub fn remove(fields: &mut HeaderMap) {
    todo!("{fields:?}")
}
