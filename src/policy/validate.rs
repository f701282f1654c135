//! What the upstream is asked when something is stored (RFC 9111 §4.3.1, §3.4).

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use super::partial;
use crate::stored::StoredResponse;

/// How the upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// As if nothing were stored.
    Plain,
    /// With the stored response's validators: 304 freshens it.
    Validating,
    /// For the rest of a stored part.
    Completing,
}

/// Puts the cache's own conditions in place of the client's, which are answered from what comes back: a response that
/// is to be stored must be the whole, not a 304. A range goes on only where nothing whole is stored.
pub fn upstream_conditions(method: &Method, fields: &mut HeaderMap, stored: Option<&StoredResponse>) -> Conditional {
    fields.remove(IF_NONE_MATCH);
    fields.remove(IF_MODIFIED_SINCE);
    let Some(stored) = stored else { return Conditional::Plain };
    if stored.part.is_some() && !partial::covers(method, fields, stored) {
        return complete(fields, stored);
    }
    // A HEAD answer updates what is stored by its fields (RFC 9111 §4.3.5), which a 304 would not all have.
    if method == Method::HEAD {
        return Conditional::Plain;
    }
    let (etag, modified) = (stored.fields.get(ETAG), stored.fields.get(LAST_MODIFIED));
    if etag.is_none() && modified.is_none() {
        return Conditional::Plain;
    }
    if stored.part.is_none() {
        fields.remove(RANGE);
        fields.remove(IF_RANGE);
    }
    for (name, value) in [(IF_NONE_MATCH, etag), (IF_MODIFIED_SINCE, modified)] {
        if let Some(value) = value {
            fields.insert(name, value.clone());
        }
    }
    Conditional::Validating
}

fn complete(fields: &mut HeaderMap, stored: &StoredResponse) -> Conditional {
    let (Some(part), Some(etag)) = (stored.part, stored.fields.get(ETAG)) else { return Conditional::Plain };
    let rest = HeaderValue::from_str(&format!("bytes={}-", part.last + 1));
    let (true, Ok(rest)) = (partial::is_completable(stored) && !fields.contains_key(RANGE), rest) else {
        return Conditional::Plain;
    };
    fields.insert(RANGE, rest);
    fields.insert(IF_RANGE, etag.clone());
    Conditional::Completing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rules;
    use crate::policy::tests::{fields, stored_with};

    fn check(
        client: &[(&'static str, &str)],
        stored: Option<&[(&'static str, &str)]>,
        expected: Conditional,
        sent: &[(&'static str, &str)],
    ) {
        let stored = stored.map(|lines| stored_with(lines, &Rules::default()));
        let mut request = fields(client);
        let found = upstream_conditions(&Method::GET, &mut request, stored.as_ref());
        assert_eq!((found, request), (expected, fields(sent)), "{client:?}");
    }

    #[test]
    fn the_clients_conditions_are_replaced_by_the_stored_validators() {
        let client = [("if-none-match", "\"mine\""), ("range", "bytes=0-1")];
        check(&client, None, Conditional::Plain, &[("range", "bytes=0-1")]);
        check(&client, Some(&[]), Conditional::Plain, &[("range", "bytes=0-1")]);
        check(&client, Some(&[("etag", "W/\"a\"")]), Conditional::Validating, &[("if-none-match", "W/\"a\"")]);
        let both = [("etag", "\"a\""), ("last-modified", "x")];
        let sent = [("if-none-match", "\"a\""), ("if-modified-since", "x")];
        check(&[], Some(&both), Conditional::Validating, &sent);
    }

    #[test]
    fn a_stored_beginning_with_a_strong_validator_is_completed() {
        let stored = [("content-range", "bytes 0-4/10"), ("etag", "\"a\"")];
        let sent = [("range", "bytes=5-"), ("if-range", "\"a\"")];
        check(&[], Some(&stored), Conditional::Completing, &sent);
        check(&[], Some(&[("content-range", "bytes 0-4/10")]), Conditional::Plain, &[]);
        check(&[], Some(&[("content-range", "bytes 1-4/10"), ("etag", "\"a\"")]), Conditional::Plain, &[]);
    }
}
