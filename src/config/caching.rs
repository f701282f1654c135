//! The caching keys of a route: how long, for whom, under which tags.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode, header};

use super::keying;
use super::reader::{Reader, unexpected_word};
use super::units;
use crate::policy::settle::is_of_one_request;
use crate::policy::{Admission, ClientCacheControl, IgnoreOrigin, Rules, SetCookie, TtlMode};
use crate::route::{Caching, Collapse, Cookies, TagTemplate};

/// What a route's caching takes from elsewhere.
pub(super) struct Surroundings<'s> {
    /// The route's name.
    pub(super) route: &'s str,
    pub(super) targeted_fields: &'s Arc<[HeaderName]>,
    pub(super) credential_headers: &'s Arc<[HeaderName]>,
    /// The longest its upstream takes to a response's head.
    pub(super) patience: Duration,
    /// Whether its upstream is sent the client's host.
    pub(super) preserves_host: bool,
    /// Whether processes share a Redis.
    pub(super) with_redis: bool,
    /// The path's parameters; none in a profile, whose tags are checked with each route.
    pub(super) params: Option<&'s [&'s str]>,
}

/// Reads a route's caching keys.
pub(super) fn caching(reader: &Reader<'_>, around: &Surroundings<'_>) -> Caching {
    let key = keying::key(around.route, around.preserves_host, &reader.table("key", "[route.key]"));
    let authorization_keyed = key.headers.iter().any(|field| field.name == header::AUTHORIZATION);
    let rules = rules(reader, around, authorization_keyed);
    let vary = reader.table("vary", "[route.vary]");
    let (max_variants, vary_ignore) = (vary.whole("max_variants", 64, 1..=10_000), vary.field_names("ignore", &[]));
    vary.finish();
    let patience = units::written(around.patience);
    Caching {
        rules,
        key,
        cookies: reader.choice("cookies", &[("bypass", Cookies::Bypass), ("ignore", Cookies::Ignore)]),
        credential_headers: Arc::clone(around.credential_headers),
        bypass: bypass(reader),
        max_object: reader.size("max_object", "8 MiB"),
        collapse: collapse(reader, around),
        collapse_wait: reader.given_duration("collapse_wait", Some(&patience)).unwrap_or(around.patience),
        collapse_waiters: reader.whole("collapse_waiters", 10_000, 1..=10_000_000),
        uncacheable_for: reader.duration("uncacheable_for", "10s"),
        tags: tags(reader, "tags", around.params),
        invalidates: tags(reader, "invalidates", around.params),
        max_variants,
        vary_ignore: vary_ignore.into(),
    }
}

fn rules(reader: &Reader<'_>, around: &Surroundings<'_>, authorization_keyed: bool) -> Rules {
    let modes = [("default", TtlMode::Default), ("override", TtlMode::Override), ("cap", TtlMode::Cap)];
    let set_cookies = [("bypass", SetCookie::Bypass), ("strip", SetCookie::Strip), ("store", SetCookie::Store)];
    let clients = [("ignore", ClientCacheControl::Ignore), ("respect", ClientCacheControl::Respect)];
    Rules {
        ttl: reader.given_duration("ttl", None),
        ttl_mode: reader.choice("ttl_mode", &modes),
        status_ttl: status_ttl(reader),
        ttl_jitter: reader.fraction("ttl_jitter", 0.1),
        ignore_origin: ignore_origin(reader),
        admission: reader.choice("admission", &[("first", Admission::First), ("second", Admission::Second)]),
        keep: reader.duration("keep", "60s"),
        stale_while_revalidate: reader.duration("stale_while_revalidate", "0s"),
        stale_if_error: reader.duration("stale_if_error", "60s"),
        heuristic: reader.fraction("heuristic", 0.0),
        set_cookie: reader.choice("set_cookie", &set_cookies),
        client_cache_control: reader.choice("client_cache_control", &clients),
        targeted_fields: Arc::clone(around.targeted_fields),
        authorization_keyed,
    }
}

fn collapse(reader: &Reader<'_>, around: &Surroundings<'_>) -> Collapse {
    let words = [("local", Collapse::Local), ("off", Collapse::Off), ("cluster", Collapse::Cluster)];
    let collapse = reader.choice("collapse", &words);
    if collapse == Collapse::Cluster
        && !around.with_redis
        && let Some(given) = reader.given("collapse")
    {
        reader.problem("collapse", &given, "needs [redis]; expected it, or \"local\"");
    }
    collapse
}

fn status_ttl(reader: &Reader<'_>) -> Box<[(StatusCode, Duration)]> {
    let mut all = Vec::new();
    for (name, given) in reader.named("status_ttl") {
        let status = Some(name).filter(|it| it.len() == 3).and_then(|it| it.parse().ok());
        let status = status.filter(|status: &StatusCode| status.as_u16() >= 200 && status.as_u16() < 600);
        match (status, given.text().and_then(units::duration)) {
            (Some(status), _) if is_of_one_request(status) => {
                let what = "is for a status that tells of one request alone, and is never stored";
                reader.problem(&format!("status_ttl.{name}"), &given, what);
            }
            (Some(status), Some(ttl)) => all.push((status, ttl)),
            (None, _) => reader.problem("status_ttl", &given, &format!("is for {name:?}, not a status of 200 to 599")),
            (_, None) => reader.problem(&format!("status_ttl.{name}"), &given, units::DURATION),
        }
    }
    all.into()
}

fn ignore_origin(reader: &Reader<'_>) -> IgnoreOrigin {
    const WORDS: [&str; 3] = ["no-store", "private", "no-cache"];
    let mut ignored = IgnoreOrigin::default();
    for member in reader.values("ignore_origin", &[]).unwrap_or_default() {
        match member.text() {
            Some("no-store") => ignored.no_store = true,
            Some("private") => ignored.private = true,
            Some("no-cache") => ignored.no_cache = true,
            text => reader.problem("ignore_origin", &member, &unexpected_word(text, WORDS.into_iter())),
        }
    }
    if ignored != IgnoreOrigin::default() {
        reader
            .warn("ignore_origin", "what the origin forbids will be stored; be sure that none of it is for one client");
    }
    ignored
}

/// Fields whose presence makes a request bypass the cache.
fn bypass(reader: &Reader<'_>) -> Box<[HeaderName]> {
    let mut fields = Vec::new();
    for member in reader.values("bypass", &[]).unwrap_or_default() {
        let Some(table) = member.value.as_table() else {
            reader.problem("bypass", &member, "is not a condition; expected { header = \"…\" }");
            continue;
        };
        let condition = reader.inline("bypass", &member, table);
        if !condition.has("header") {
            condition.problem_here("no header; expected { header = \"…\" }");
        }
        fields.extend(condition.parsed("header", "is not a field name", super::reader::field_name));
        condition.finish();
    }
    fields.into()
}

fn tags(reader: &Reader<'_>, key: &'static str, params: Option<&[&str]>) -> Box<[TagTemplate]> {
    let mut tags = Vec::new();
    for member in reader.values(key, &[]).unwrap_or_default() {
        match (member.text(), params) {
            (None, _) => reader.problem(key, &member, "is not a tag; expected for example \"product:{id}\""),
            (Some(_), None) => {}
            (Some(text), Some(params)) => match TagTemplate::parse(text, params) {
                Ok(tag) => tags.push(tag),
                Err(bad) => reader.problem(key, &member, &format!("is not a tag here: {}", bad.0)),
            },
        }
    }
    tags.into()
}
