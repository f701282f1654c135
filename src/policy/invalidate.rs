//! What an unsafe request invalidates (RFC 9111 §4.4).

use http::response::Parts;
use http::{Method, Uri};

/// Whether a response to this method invalidates: an unsafe (or unknown) method with a 2xx or 3xx answer.
pub fn invalidates(method: &Method, status: http::StatusCode) -> bool {
    todo!("{method} {status:?}")
}

/// The further targets to invalidate: `Location` and `Content-Location`, resolved against the request's URI,
/// where they have its origin.
pub fn further_targets(request: &Uri, response: &http::HeaderMap) -> Vec<Uri> {
    todo!("{request} {response:?}")
}
