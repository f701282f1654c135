//! Vary, entity tags and conditions: one form for each meaning, and a tag that is itself.

use aside::clock::Timestamp;
use aside::fields::date;
use aside::fields::validators::{Condition, EntityTag, Validators, evaluate, if_range_holds};
use aside::fields::vary::{SelectingFields, normalise_into};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, VARY,
};

/// Each line of the input is a field line, of every field in turn.
pub fn check(data: &[u8]) {
    let lines: Vec<HeaderValue> =
        data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).take(8).collect();
    check_selecting(&lines);
    for name in [ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCEPT, COOKIE, HeaderName::from_static("x-any")] {
        check_normalised(&name, &lines);
    }
    for value in &lines {
        check_tag(value);
        check_date(value);
    }
    if let [stored, asked @ ..] = &lines[..] {
        check_conditions(stored, asked);
    }
}

fn fields(name: &HeaderName, lines: &[HeaderValue]) -> HeaderMap {
    lines.iter().map(|line| (name.clone(), line.clone())).collect()
}

fn check_selecting(lines: &[HeaderValue]) {
    let all = SelectingFields::of(&fields(&VARY, lines));
    let SelectingFields::Names(names) = &all else { return };
    assert!(names.is_sorted_by(|a, b| a.as_str() < b.as_str()), "{names:?}");
    let joined = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let again = SelectingFields::of(&fields(&VARY, &[HeaderValue::from_str(&joined).unwrap()]));
    assert_eq!(again, all);
    // A line less selects by no more.
    for nth in 0..lines.len() {
        let mut fewer = lines.to_vec();
        fewer.remove(nth);
        let SelectingFields::Names(fewer) = SelectingFields::of(&fields(&VARY, &fewer)) else { panic!("any by less") };
        assert!(fewer.iter().all(|name| names.contains(name)));
    }
}

fn normalised(name: &HeaderName, lines: &[HeaderValue]) -> Vec<u8> {
    let mut out = b"before".to_vec();
    normalise_into(&fields(name, lines), name, &mut out);
    assert!(out.starts_with(b"before"));
    out.split_off(b"before".len())
}

fn check_normalised(name: &HeaderName, lines: &[HeaderValue]) {
    let once = normalised(name, lines);
    let [1, rest @ ..] = &once[..] else { return assert!(lines.is_empty() && once == [0]) };
    let (length, text) = rest.split_at(4);
    assert_eq!(length, u32::try_from(text.len()).unwrap().to_be_bytes());
    // What was normalised is normal. What is malformed only has to differ: an open quote, parameters of nothing.
    if lines.iter().any(|line| line.as_bytes().iter().any(|byte| b"\";".contains(byte))) {
        return;
    }
    let Ok(value) = HeaderValue::from_bytes(text) else { return };
    assert_eq!(normalised(name, &[value]).escape_ascii().to_string(), once.escape_ascii().to_string(), "{name}");
}

fn check_tag(value: &HeaderValue) {
    let Some(tag) = EntityTag::parse(value.as_bytes()) else { return };
    assert!(tag.matches_weakly(&tag));
    assert_eq!(tag.matches_strongly(&tag), tag.is_strong());
    let response = fields(&ETAG, std::slice::from_ref(value));
    assert_eq!(Validators::of(&response).etag, Some(tag.clone()));
    // A client that sends back what it was given gets a 304, and its range where the tag is strong.
    let asked = fields(&IF_NONE_MATCH, std::slice::from_ref(value));
    assert_eq!(evaluate(&asked, &response, Timestamp::default()), Condition::NotModified);
    if date::parse(value).is_none() {
        assert_eq!(if_range_holds(&fields(&IF_RANGE, std::slice::from_ref(value)), &response), tag.is_strong());
    }
}

fn check_date(value: &HeaderValue) {
    let Some(time) = date::parse(value) else { return };
    assert_eq!(date::parse(&date::format(time)), Some(time));
    let response = fields(&LAST_MODIFIED, std::slice::from_ref(value));
    let asked = fields(&IF_MODIFIED_SINCE, std::slice::from_ref(value));
    assert_eq!(evaluate(&asked, &response, time), Condition::NotModified);
}

fn check_conditions(stored: &HeaderValue, asked: &[HeaderValue]) {
    let mut response = fields(&ETAG, std::slice::from_ref(stored));
    response.insert(LAST_MODIFIED, stored.clone());
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE] {
        let request = fields(&name, asked);
        let condition = evaluate(&request, &response, Timestamp::default());
        assert!(!asked.is_empty() && name != IF_RANGE || condition == Condition::None);
        let _ = if_range_holds(&request, &response);
    }
}
