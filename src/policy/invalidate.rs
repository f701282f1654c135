//! What an unsafe request invalidates (RFC 9111 §4.4).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, Method, StatusCode, Uri};

/// Whether a response to this method invalidates: an unsafe or unknown method with a 2xx or 3xx answer.
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    let is_safe =
        matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY");
    !is_safe && (status.is_success() || status.is_redirection())
}

/// The further targets to invalidate: `Location` and `Content-Location`, resolved against the request's absolute URI,
/// where they have its origin.
pub fn further_targets(request: &Uri, response: &HeaderMap) -> Vec<Uri> {
    let values = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| response.get(name)?.to_str().ok());
    values.filter_map(|reference| resolve(request, reference)).collect()
}

/// RFC 3986 §5.2, for references that can have the same origin; dot segments are left to the target's normalisation.
fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else if reference.is_empty() {
        base.to_string()
    } else if reference.starts_with('?') {
        format!("{scheme}://{authority}{}{reference}", base.path())
    } else if reference.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        reference.to_owned()
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{reference}")
    };
    let uri = Uri::try_from(text).ok()?;
    let has_same_scheme = uri.scheme_str().is_some_and(|it| it.eq_ignore_ascii_case(scheme));
    let has_same_authority = uri.authority().is_some_and(|it| it.as_str().eq_ignore_ascii_case(authority.as_str()));
    (has_same_scheme && has_same_authority).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::fields;

    #[test]
    fn only_successful_unsafe_requests_invalidate() {
        let check = |method: &str, status: u16, expected: bool| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(invalidates(&method, StatusCode::from_u16(status).unwrap()), expected, "{method} {status}");
        };
        check("POST", 200, true);
        check("PUT", 204, true);
        check("DELETE", 303, true);
        check("M-SEARCH", 200, true);
        check("POST", 404, false);
        check("POST", 500, false);
        check("GET", 200, false);
        check("QUERY", 200, false);
    }

    #[test]
    fn only_targets_of_the_same_origin_follow() {
        let check = |location: &str, expected: Option<&str>| {
            let base = Uri::from_static("http://a.test/x/y?q");
            let found = further_targets(&base, &fields(&[("location", location)]));
            assert_eq!(found.first().map(ToString::to_string).as_deref(), expected, "{location}");
        };
        check("/b", Some("http://a.test/b"));
        check("b?c", Some("http://a.test/x/b?c"));
        check("?c", Some("http://a.test/x/y?c"));
        check("http://A.test/b#f", Some("http://A.test/b"));
        check("//a.test/b", Some("http://a.test/b"));
        check("https://a.test/b", None);
        check("http://b.test/b", None);
        check("http://a.test:81/b", None);
        check("mailto:x", None);
    }
}
