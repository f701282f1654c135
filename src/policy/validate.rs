//! The conditions a request to the upstream carries (RFC 9111 §4.3.1).

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use super::ranges::{Coverage, coverage};
use crate::fields::range::ContentRange;
use crate::fields::validators::{EntityTag, Validators};
use crate::stored::StoredResponse;

/// On which conditions the upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// On none of ours; a client's `Range` goes as it came.
    Plain,
    /// With the stored response's validators: 304 when it still holds.
    Validating,
    /// For the rest of a stored part, if it is still the same: 206 with the rest, or 200 with the new whole.
    Completing,
}

/// Replaces the client's `If-None-Match` and `If-Modified-Since` by conditions made from what is stored.
///
/// The client's own go in every case, with nothing stored too: the answer is to be stored whole, and is then compared
/// with them. (RFC 9111 §4.3.1 lets a cache send the union of both; a 304 that means the client's would leave nothing
/// to store.) Its `Range` and `If-Range` stay, so that a small range of a large response stays small; with them the
/// validators are sent only where the stored response holds what is asked for (RFC 9111 §4.3.2).
/// A HEAD goes without, for its answer updates what is stored by its fields (RFC 9111 §4.3.5), which a 304 would not all
/// have. Other methods keep what they came with: to them `If-None-Match` means another thing (RFC 9110 §13.1.2).
pub fn upstream_conditions(method: &Method, fields: &mut HeaderMap, stored: Option<&StoredResponse>) -> Conditional {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Conditional::Plain;
    }
    fields.remove(IF_NONE_MATCH);
    fields.remove(IF_MODIFIED_SINCE);
    if !fields.contains_key(RANGE) {
        fields.remove(IF_RANGE);
    }
    let Some(stored) = stored.filter(|_| method == Method::GET) else { return Conditional::Plain };
    match (coverage(method, fields, stored), stored.part) {
        (Coverage::Whole | Coverage::Ranges(_) | Coverage::Unsatisfiable(_), _) => validate(fields, stored),
        (Coverage::Outside, Some(part)) if !fields.contains_key(RANGE) => complete(fields, stored, part),
        (Coverage::Outside, _) => Conditional::Plain,
    }
}

fn validate(fields: &mut HeaderMap, stored: &StoredResponse) -> Conditional {
    let known = stored.fields.to_map();
    let validators = Validators::of(&known);
    if validators.is_empty() {
        return Conditional::Plain;
    }
    if let (Some(_), Some(value)) = (&validators.etag, known.get(ETAG)) {
        fields.insert(IF_NONE_MATCH, value.clone());
    }
    if let (Some(_), Some(value)) = (validators.last_modified, known.get(LAST_MODIFIED)) {
        fields.insert(IF_MODIFIED_SINCE, value.clone());
    }
    Conditional::Validating
}

/// Asks for what is behind the part. Only a strong entity tag lets two parts be combined (RFC 9110 §15.3.7.3), so a
/// part without one is fetched anew.
fn complete(fields: &mut HeaderMap, stored: &StoredResponse, part: ContentRange) -> Conditional {
    let is_strong = EntityTag::of(&stored.fields.to_map()).is_some_and(|tag| tag.is_strong());
    let has_rest = part.complete.is_none_or(|complete| part.last.saturating_add(1) < complete);
    let value = HeaderValue::try_from(format!("bytes={}-", part.last.saturating_add(1)));
    match (stored.fields.get(&ETAG), value) {
        (Some(tag), Ok(value)) if is_strong && has_rest && part.first == 0 => {
            fields.insert(IF_RANGE, tag.clone());
            fields.insert(RANGE, value);
            Conditional::Completing
        }
        _ => Conditional::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::given::{fields, stored, text};

    fn check(asked: &str, stored_as: Option<(&str, &'static str)>, expected: (Conditional, &str)) {
        check_method(&Method::GET, asked, stored_as, expected);
    }

    fn check_method(
        method: &Method,
        asked: &str,
        stored_as: Option<(&str, &'static str)>,
        expected: (Conditional, &str),
    ) {
        let mut fields = fields(asked);
        let stored = stored_as.map(|(head, body)| stored(head, body));
        let conditional = upstream_conditions(method, &mut fields, stored.as_ref());
        assert_eq!((conditional, text(&fields).as_str()), expected, "{asked}");
    }

    #[test]
    fn with_nothing_stored_the_clients_conditions_go_and_its_range_stays() {
        check("accept: a | if-none-match: \"a\"", None, (Conditional::Plain, "accept: a"));
        check("if-modified-since: {0}", None, (Conditional::Plain, ""));
        check("range: bytes=0-1", None, (Conditional::Plain, "range: bytes=0-1"));
        let ranged = "if-range: \"a\" | range: bytes=0-1";
        check(ranged, None, (Conditional::Plain, ranged));
        check("if-range: \"a\"", None, (Conditional::Plain, ""));
        check("if-match: \"a\"", None, (Conditional::Plain, "if-match: \"a\""));
    }

    #[test]
    fn the_stored_validators_replace_the_clients() {
        let date = "Thu, 01 Jan 2026 00:00:00 GMT";
        let both = Some(("200 | etag: \"s\" | last-modified: {0}", "body"));
        let expected = format!("if-modified-since: {date} | if-none-match: \"s\"");
        check("", both, (Conditional::Validating, &expected));
        check("if-none-match: \"c\"", both, (Conditional::Validating, &expected));
        check("", Some(("200 | etag: W/\"s\"", "body")), (Conditional::Validating, "if-none-match: W/\"s\""));
        let dated = format!("if-modified-since: {date}");
        check("if-none-match: \"c\"", Some(("200 | last-modified: {0}", "")), (Conditional::Validating, &dated));
        check("if-none-match: \"c\"", Some(("200", "body")), (Conditional::Plain, ""));
        check("", Some(("200 | last-modified: nonsense", "body")), (Conditional::Plain, ""));
    }

    #[test]
    fn a_head_is_sent_without_conditions_and_other_methods_as_they_came() {
        let stored = Some(("200 | etag: \"s\"", "body"));
        check_method(&Method::HEAD, "if-none-match: \"c\"", stored, (Conditional::Plain, ""));
        check_method(&Method::POST, "if-none-match: *", stored, (Conditional::Plain, "if-none-match: *"));
    }

    #[test]
    fn a_range_goes_along_with_the_validators_of_what_holds_it() {
        let part = Some(("206 | etag: \"s\" | content-range: bytes 2-5/10", "2345"));
        let validated = "if-none-match: \"s\" | range: bytes=3-4";
        check("range: bytes=3-4", part, (Conditional::Validating, validated));
        check("range: bytes=3-4", Some(("200 | etag: \"s\"", "0123456789")), (Conditional::Validating, validated));
        check("range: bytes=4-8", part, (Conditional::Plain, "range: bytes=4-8"));
    }

    #[test]
    fn the_rest_of_a_part_is_asked_for_where_a_strong_tag_allows_to_combine_it() {
        let completing = "if-range: \"s\" | range: bytes=5-";
        let check = |stored_as, expected| check("if-none-match: \"c\"", Some((stored_as, "01234")), expected);
        check("206 | etag: \"s\" | content-range: bytes 0-4/10", (Conditional::Completing, completing));
        check("206 | etag: \"s\" | content-range: bytes 0-4/*", (Conditional::Completing, completing));
        check("206 | etag: W/\"s\" | content-range: bytes 0-4/10", (Conditional::Plain, ""));
        check("206 | content-range: bytes 0-4/10", (Conditional::Plain, ""));
        check("206 | last-modified: {0} | content-range: bytes 0-4/10", (Conditional::Plain, ""));
        check("206 | etag: \"s\" | content-range: bytes 5-9/10", (Conditional::Plain, ""));
        check("206 | etag: \"s\" | content-range: bytes 0-4/5", (Conditional::Plain, ""));
    }
}
