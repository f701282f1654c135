//! `[[route]]` and `[profile.*]`: what matches, where it goes, and what is edited on the way.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, header};

use super::caching::{Surroundings, caching};
use super::reader::{Given, Reader, field_name, nearest};
use super::server::{Server, host};
use super::{units, upstream};
use crate::route::{FieldEdits, ForwardFields, Route, pattern_params};
use crate::telemetry::UNROUTED;
use crate::upstream::{HostRule, UpstreamConfig};

/// What routes refer to.
pub(super) struct Context<'c> {
    /// Every name that is defined, also of those that have problems.
    pub(super) names: &'c [&'c str],
    pub(super) upstreams: &'c [UpstreamConfig],
    pub(super) server: &'c Server,
    /// Whether there is a `[redis]`.
    pub(super) with_redis: bool,
}

/// Fields that the connection decides, not an edit.
const NOT_EDITED: [HeaderName; 4] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING];

/// Reads a route; none where it has no valid path or no upstream, after a problem was noted.
pub(super) fn route(name: &str, reader: &Reader<'_>, context: &Context<'_>) -> Option<Route> {
    reader.string("name", name);
    if let Some(given) = reader.given("name").filter(|_| name == UNROUTED) {
        reader.problem("name", &given, "stands for what no route matches; expected another name");
    }
    let host = reader.parsed("host", "is not a host; expected for example \"api.example.com\"", host);
    if let Some(given) = reader.given("use").filter(|given| given.text().is_none()) {
        reader.problem("use", &given, "is not a string; expected a profile's name");
    }
    let path = path(reader);
    let params = path.and_then(|path| pattern_params(path).ok());
    let mut route = settings(name, reader, context, params.as_deref());
    reader.finish();
    route.host = host;
    route.path = path?.into();
    if !route.path.starts_with(&*route.strip_prefix)
        && let Some(given) = reader.given("strip_prefix")
    {
        reader.problem("strip_prefix", &given, &format!("is not how the path {:?} begins", route.path));
    }
    (!route.upstream.is_empty()).then_some(route)
}

/// Checks a profile by itself, so that its mistakes are told though no route uses it.
pub(super) fn profile(name: &str, reader: &Reader<'_>, context: &Context<'_>) {
    settings(name, reader, context, None);
    reader.finish();
}

fn path<'a>(reader: &Reader<'a>) -> Option<&'a str> {
    let given = reader.given("path");
    if given.is_none() {
        reader.problem_here("no path; expected for example path = \"/v1/products/{id}\"");
    }
    reader.optional("path", None, |it| {
        let path = it.value.as_str().ok_or("is not a path; expected for example \"/v1/products/{id}\"")?;
        pattern_params(path).map(|_| path).map_err(|why| format!("is not a path: {why}"))
    })
}

/// What a profile may say too; without `params` it is one.
fn settings(name: &str, reader: &Reader<'_>, context: &Context<'_>, params: Option<&[&str]>) -> Route {
    let upstream = upstream_name(reader, context);
    let methods = methods(reader);
    let first_byte_timeout = reader.given_duration("first_byte_timeout", None);
    let found = upstream::find(context.upstreams, &upstream);
    let patience = found.map(|upstream| upstream::patience(upstream, first_byte_timeout)).unwrap_or_default();
    let strip_prefix = strip_prefix(reader);
    let request_headers = edits(reader, "request_headers");
    let response_headers = edits(reader, "response_headers");
    let forward_headers = forward_headers(reader);
    let request_body_max = reader.size("request_body_max", "10 MiB");
    let upgrade = reader.list("upgrade", &["websocket"], "is not a protocol that may be upgraded to", upgrade);
    let caches = reader.boolean("cache", true);
    let around = Surroundings {
        route: name,
        targeted_fields: &context.server.targeted_fields,
        credential_headers: &context.server.credential_headers,
        patience,
        preserves_host: found.is_some_and(|upstream| upstream.host == HostRule::Preserve),
        with_redis: context.with_redis,
        params,
    };
    let caching = caching(reader, &around);
    Route {
        name: name.into(),
        host: None,
        path: Box::default(),
        methods,
        upstream,
        strip_prefix,
        request_headers,
        response_headers,
        forward_headers,
        request_body_max,
        first_byte_timeout,
        upgrade: upgrade.into(),
        caching: caches.then_some(caching),
    }
}

/// The upstream's name: as given, or the only one; empty after a problem was noted, and in a profile without one.
fn upstream_name(reader: &Reader<'_>, context: &Context<'_>) -> Arc<str> {
    let only = Some(context.names).filter(|names| names.len() == 1).map(|names| names[0]);
    let Some(given) = reader.given("upstream") else {
        reader.record("upstream", only.map(|name| format!("{name:?}")), super::notes::Source::Default);
        if context.names.len() > 1 && reader.has("path") {
            reader.problem_here(&format!("no upstream, though there are several; expected one of {:?}", context.names));
        }
        return only.unwrap_or_default().into();
    };
    reader.record("upstream", Some(given.written.to_owned()), given.source.clone());
    match given.text() {
        Some(name) if context.names.contains(&name) => name.into(),
        Some(name) => {
            let hint = nearest(name, context.names.iter().copied());
            reader.notes.problem(given.line, format!("{}: upstream {name:?} is not defined{hint}", given.place));
            Arc::default()
        }
        None => {
            reader.problem("upstream", &given, "is not a string");
            Arc::default()
        }
    }
}

fn methods(reader: &Reader<'_>) -> Box<[Method]> {
    const METHOD: &str = "is not a method; expected for example \"GET\"";
    let methods = reader.list("methods", &["GET", "HEAD"], METHOD, |text| {
        text.parse().ok().filter(|_| !text.bytes().any(|byte| byte.is_ascii_lowercase()))
    });
    if let Some(given) = reader.given("methods").filter(|it| it.value.as_array().is_some_and(|list| list.is_empty())) {
        reader.problem("methods", &given, "is empty; expected at least one");
    }
    methods.into()
}

fn strip_prefix(reader: &Reader<'_>) -> Box<str> {
    let read = reader.optional("strip_prefix", Some("\"\"".to_owned()), |it| {
        let text = it.text().map(|text| text.trim_end_matches('/'));
        let valid = text.filter(|text| text.is_empty() || text.starts_with('/'));
        valid.map(Box::from).ok_or_else(|| "is not the beginning of a path; expected for example \"/api\"".to_owned())
    });
    read.unwrap_or_default()
}

fn upgrade(text: &str) -> Option<Box<str>> {
    let text = text.to_ascii_lowercase();
    // RFC 9113 §3.1: h2c is obsolete, and a tunnel in which requests are smuggled past the proxy.
    (field_name(&text).is_some() && text != "h2c").then(|| text.into())
}

fn forward_headers(reader: &Reader<'_>) -> ForwardFields {
    if reader.given("forward_headers").is_some_and(|it| it.value.is_array()) {
        return ForwardFields::Only(reader.field_names("forward_headers", &[]).into());
    }
    reader.choice("forward_headers", &[("all", ())]);
    ForwardFields::All
}

fn edits(reader: &Reader<'_>, key: &'static str) -> FieldEdits {
    let edits = reader.optional(key, Some("{ remove = [], set = {} }".to_owned()), |it| {
        let table = it.value.as_table().ok_or("is not a table; expected { remove = [], set = {} }")?;
        let inner = reader.inline(key, it, table);
        let remove = inner.field_names("remove", &[]);
        let named = inner.named("set");
        inner.finish();
        let set = named.iter().filter_map(|(name, value)| edit(&inner, name, value, key == "request_headers"));
        let edits = FieldEdits { set: set.collect(), remove: remove.into() };
        // RFC 8586 §2: no configuration may take it away.
        if edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name)).any(|name| name == "cdn-loop") {
            return Err("changes CDN-Loop, by which loops are found; expected other fields".to_owned());
        }
        Ok(edits)
    });
    edits.unwrap_or_default()
}

/// One field to set; towards the upstream its value may be a secret.
fn edit(reader: &Reader<'_>, name: &str, given: &Given<'_>, may_be_secret: bool) -> Option<(HeaderName, HeaderValue)> {
    let refuse = |what: &str| {
        reader.problem(&format!("set.{name}"), given, what);
        None
    };
    let Some(field) = field_name(name) else { return refuse("is for what is not a field name") };
    if NOT_EDITED.contains(&field) {
        return refuse("is for a field that the connection decides; expected another one");
    }
    let Some(text) = given.text() else { return refuse("is not a string") };
    let is_secret = may_be_secret && units::is_secret(text);
    let value = if is_secret { units::secret(text) } else { Ok(text.to_owned()) };
    match value.map(|value| HeaderValue::from_str(&value)) {
        Ok(Ok(mut value)) => {
            value.set_sensitive(is_secret);
            Some((field, value))
        }
        Ok(Err(_)) => refuse("is not a field value; expected one line of text"),
        Err(what) => refuse(&format!("cannot be had: {what}")),
    }
}
