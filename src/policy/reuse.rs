//! May a stored response answer this request, and how (RFC 9111 §4, RFC 5861).

use std::sync::Arc;

use http::HeaderMap;
use http::request::Parts;

use super::Rules;
use crate::clock::Timestamp;
use crate::stored::StoredResponse;

/// What to do with a request, given what is stored.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Answer from the stored response.
    Serve(Arc<StoredResponse>, Use),
    /// Answer from it, and validate it in the background.
    ServeWhileRevalidating(Arc<StoredResponse>),
    /// Ask the upstream on the stored response's conditions, or complete the stored part.
    Validate(Arc<StoredResponse>, Why),
    /// Ask the upstream as if nothing were stored.
    Forward(Why),
    /// `only-if-cached` and nothing usable stored: 504 (RFC 9111 §5.2.1.7).
    GatewayTimeout,
}

/// In what state a stored response is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Fresh.
    Fresh,
    /// Stale, as the client's `max-stale` allows.
    Stale,
}

/// Why the upstream is asked: the `fwd` parameter of RFC 9211 §2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Not looked up: `bypass`.
    Bypass,
    /// The method is not one that a cache answers: `method`.
    Method,
    /// Nothing stored for the URI: `uri-miss`.
    UriMiss,
    /// Stored for the URI, but not for these selecting fields: `vary-miss`.
    VaryMiss,
    /// Nothing stored, no distinction made: `miss`.
    Miss,
    /// A fresh one is stored, but the request's directives refuse it: `request`.
    Request,
    /// Stored, but stale or to be validated: `stale`.
    Stale,
    /// Only a part is stored, and not all that is asked for: `partial`.
    Partial,
}

/// Decides. `purged` tells that the ledger allows it only after validation (soft purge, unsynced residence).
pub fn decide(
    request: &Parts,
    stored: Option<Arc<StoredResponse>>,
    must_validate: bool,
    miss: Why,
    rules: &Rules,
    now: Timestamp,
) -> Decision {
    todo!("{request:?} {stored:?} {must_validate} {miss:?} {rules:?} {now:?}")
}

/// Whether the stored response may answer after the upstream failed (RFC 5861 §4), by its own windows and the
/// request's `stale-if-error` and `max-stale`.
pub fn usable_on_error(request: &HeaderMap, stored: &StoredResponse, now: Timestamp) -> bool {
    todo!("{request:?} {stored:?} {now:?}")
}
