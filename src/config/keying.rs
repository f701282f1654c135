//! `[route.key]`: what of a request makes its cache key.

use http::HeaderValue;

use super::reader::{Given, Reader, field_name, unexpected_word};
use crate::key::{BodyRule, Choices, KeyHeader, KeyRules, QueryRule, TRACKING};

const FIELD: &str = "is not a field name; expected one, or { name = \"…\", choices = [..], default = \"…\" }";

/// Reads the table of a route, whose upstream may be sent the client's host.
pub(super) fn key(route: &str, preserves_host: bool, reader: &Reader<'_>) -> KeyRules {
    let bodies = [("none", BodyRule::None), ("raw", BodyRule::Raw), ("json", BodyRule::Json)];
    let rules = KeyRules {
        route: route.into(),
        query: query(reader),
        sort_query: reader.boolean("sort_query", true),
        host: reader.boolean("host", true),
        headers: headers(reader),
        cookies: reader.list("cookies", &[], "is not a cookie's name", cookie_name).into(),
        body: reader.choice("body", &bodies),
        body_max: reader.size("body_max", "64 KiB"),
    };
    if !rules.host
        && preserves_host
        && let Some(given) = reader.given("host")
    {
        reader.problem(
            "host",
            &given,
            "would share what is made for one host; expected an upstream whose host is not \"preserve\"",
        );
    }
    reader.finish();
    rules
}

fn query(reader: &Reader<'_>) -> QueryRule {
    let rule = reader.optional("query", Some("\"all\"".to_owned()), |it| match (it.text(), it.value.as_table()) {
        (Some("all"), _) => Ok(QueryRule::All),
        (Some("none"), _) => Ok(QueryRule::None),
        (Some("tracking"), _) => Ok(QueryRule::Deny(TRACKING.iter().map(|name| (*name).into()).collect())),
        (None, Some(table)) => {
            let inner = reader.inline("query", it, table);
            let rule = listed_query(&inner);
            inner.finish();
            rule
        }
        (text, _) => Err(unexpected_word(text, ["all", "none", "tracking"].into_iter())
            + ", or { allow = [..] }, or { deny = [..] }"),
    });
    rule.unwrap_or(QueryRule::All)
}

fn listed_query(reader: &Reader<'_>) -> Result<QueryRule, String> {
    let (allow, deny) = (reader.has("allow"), reader.has("deny"));
    match (allow, deny) {
        (true, false) => Ok(QueryRule::Allow(parameters(reader, "allow"))),
        (false, true) => Ok(QueryRule::Deny(parameters(reader, "deny"))),
        (true, true) | (false, false) => Err("must have one of allow and deny".to_owned()),
    }
}

/// Parameter names, `tracking` among them standing for those that trackers add.
fn parameters(reader: &Reader<'_>, key: &'static str) -> Box<[Box<str>]> {
    let mut names: Vec<Box<str>> = Vec::new();
    for name in reader.strings(key, &[]) {
        match name.as_str() {
            "tracking" => names.extend(TRACKING.iter().map(|name| Box::from(*name))),
            _ => names.push(name.into()),
        }
    }
    names.into()
}

fn cookie_name(text: &str) -> Option<Box<str>> {
    let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"=;,\"".contains(&byte));
    valid.then(|| text.into())
}

fn headers(reader: &Reader<'_>) -> Box<[KeyHeader]> {
    let mut headers: Vec<KeyHeader> = Vec::new();
    for member in reader.values("headers", &[]).unwrap_or_default() {
        let read = match member.value.as_table() {
            Some(table) => reduced(&reader.inline("headers", &member, table)),
            None => member.text().and_then(field_name).map(|name| KeyHeader { name, choices: None }),
        };
        match read {
            Some(header) if headers.iter().any(|known| known.name == header.name) => {
                reader.problem("headers", &member, "is named twice");
            }
            Some(header) => headers.push(header),
            None => wrong_header(reader, &member),
        }
    }
    headers.into()
}

fn wrong_header(reader: &Reader<'_>, member: &Given<'_>) {
    reader.problem("headers", member, FIELD);
}

/// A field reduced to a closed set of values.
fn reduced(reader: &Reader<'_>) -> Option<KeyHeader> {
    // It is sent to the upstream, and so must be what a field can have.
    let is_value = |text: &str| !text.is_empty() && HeaderValue::from_str(text).is_ok();
    let lower = |text: &str| is_value(text).then(|| text.to_ascii_lowercase().into_boxed_str());
    let name = reader.parsed("name", "is not a field name", field_name);
    let values: Box<[_]> = reader.list("choices", &[], "is not a value; expected text", lower).into();
    let default = reader.parsed("default", "is not a value; expected text", lower);
    reader.finish();
    let default = default.or_else(|| values.first().cloned())?;
    Some(KeyHeader { name: name?, choices: Some(Choices { values, default }) })
}
