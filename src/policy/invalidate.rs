//! What an unsafe request invalidates (RFC 9111 §4.4).

use http::response::Parts;
use http::{Method, Uri};

/// Whether a response to this method invalidates: an unsafe (or unknown) method with a 2xx or 3xx answer.
pub fn invalidates(method: &Method, response: &Parts) -> bool {
    todo!("{method} {response:?}")
}

/// The further targets to invalidate: `Location` and `Content-Location`, resolved against the request's URI,
/// where they have its origin.
pub fn further_targets(request: &Uri, response: &Parts) -> Vec<Uri> {
    todo!("{request} {response:?}")
}
