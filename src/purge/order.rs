//! A purge order: what is to be purged, as JSON.

use std::collections::HashSet;

use http::StatusCode;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::fields::surrogate;
use crate::key::{MAX_PREFIX_SEGMENTS, Tag};
use crate::route::RouteTable;
use crate::store::ledger::PurgeKind;
use crate::target::{Authority, Scheme, Target};

/// The bound on an order's JSON, in bytes.
pub const ORDER_BYTES_MAX: usize = 64 * 1024;
/// The bound on what one order names.
const ENTRIES_MAX: usize = 1000;
/// The problems that are told of one order; more are counted.
const PROBLEMS_TOLD: usize = 20;
/// The bound on how much of a wrong value is told, in characters.
const QUOTED_MAX: usize = 200;
const MEMBERS: &str = "the lists urls, prefixes, tags, routes, hosts and the booleans all, soft";

/// What is to be purged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Under which tags.
    pub tags: Vec<Tag>,
    /// Dead, or to be validated.
    pub kind: PurgeKind,
}

/// Why an order is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More bytes than [`ORDER_BYTES_MAX`].
    TooLarge,
    /// Every problem, for people.
    Problems(String),
}

impl Refusal {
    /// Its answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Problems(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge => write!(f, "the order has more than {ORDER_BYTES_MAX} bytes; expected several orders"),
            Self::Problems(problems) => f.write_str(problems),
        }
    }
}

impl Order {
    /// Reads `{"urls": [..], "prefixes": [..], "tags": [..], "routes": [..], "hosts": [..], "all": true, "soft": true}`,
    /// any of them, into the tags that what it names has under these routes. All or nothing: what cannot be purged as
    /// it is written refuses the order.
    pub fn parse(json: &[u8], routes: &RouteTable) -> Result<Self, Refusal> {
        if json.len() > ORDER_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        let members: Members = serde_json::from_slice(json)
            .map_err(|error| Refusal::Problems(format!("the order cannot be read: {error}; expected {MEMBERS}")))?;
        let order = Self { tags: Vec::new(), kind: PurgeKind::Hard };
        let mut reading = Reading { routes, order, entries: 0, problems: Vec::new() };
        reading.members(&members.0);
        reading.finish()
    }

    /// The order to purge the URL of a request.
    pub fn of_url(target: &Target, kind: PurgeKind, routes: &RouteTable) -> Self {
        Self { tags: url_tags(target, routes), kind }
    }
}

/// The tags of a URL; one that no route caches here is purged as it is, for processes with other routes.
fn url_tags(target: &Target, routes: &RouteTable) -> Vec<Tag> {
    let tags = routes.url_tags(target);
    if tags.is_empty() { vec![Tag::url(target)] } else { tags }
}

/// An order as it is read: its tags and problems so far.
struct Reading<'r> {
    routes: &'r RouteTable,
    order: Order,
    entries: usize,
    problems: Vec<String>,
}

/// Reads one entry of a list.
type Entry = fn(&RouteTable, &str) -> Result<Vec<Tag>, String>;

impl Reading<'_> {
    fn members(&mut self, members: &[(String, Value)]) {
        let mut seen = HashSet::new();
        for (name, value) in members {
            if !seen.insert(name) {
                self.problems.push(format!("{} is there twice; expected one", quoted(name)));
                continue;
            }
            match name.as_str() {
                "urls" => self.list(name, value, url),
                "prefixes" => self.list(name, value, prefix),
                "tags" => self.list(name, value, tag),
                "routes" => self.list(name, value, route),
                "hosts" => self.list(name, value, host),
                "all" if self.boolean(name, value) => self.order.tags.push(Tag::All),
                "soft" if self.boolean(name, value) => self.order.kind = PurgeKind::Soft,
                "all" | "soft" => {}
                _ => self.problems.push(format!("{} is not known; expected {MEMBERS}", quoted(name))),
            }
        }
    }

    fn list(&mut self, name: &str, value: &Value, entry: Entry) {
        let Some(values) = value.as_array() else {
            return self.problems.push(format!("{name} is not a list; expected a list of strings"));
        };
        self.entries += values.len();
        if self.entries > ENTRIES_MAX {
            return;
        }
        for value in values {
            let read = value.as_str().ok_or_else(|| "is not a string".to_owned());
            match read.and_then(|text| entry(self.routes, text)) {
                Ok(tags) => self.order.tags.extend(tags),
                Err(what) => {
                    let written = value.as_str().map_or_else(|| shortened(&value.to_string()), quoted);
                    self.problems.push(format!("{name}: {written} {what}"));
                }
            }
        }
    }

    fn boolean(&mut self, name: &str, value: &Value) -> bool {
        value.as_bool().unwrap_or_else(|| {
            self.problems.push(format!("{name} is not a boolean; expected true or false"));
            false
        })
    }

    fn finish(mut self) -> Result<Order, Refusal> {
        if self.entries > ENTRIES_MAX {
            self.problems.push(format!("the order names {}; expected at most {ENTRIES_MAX}", self.entries));
        }
        if self.problems.is_empty() && self.order.tags.is_empty() {
            self.problems
                .push("the order names nothing; expected urls, prefixes, tags, routes, hosts or all".to_owned());
        }
        if self.problems.is_empty() {
            return Ok(self.order);
        }
        let untold = self.problems.len().saturating_sub(PROBLEMS_TOLD);
        self.problems.truncate(PROBLEMS_TOLD);
        if untold > 0 {
            self.problems.push(format!("and {untold} more"));
        }
        Err(Refusal::Problems(self.problems.join("; ")))
    }
}

/// A URL of an order, and whether it says which host's.
struct Named {
    target: Target,
    has_host: bool,
}

fn url(routes: &RouteTable, text: &str) -> Result<Vec<Tag>, String> {
    const EXPECTED: &str = "expected for example \"http://shop.example/a?b=1\"";
    let named = named(routes, text).map_err(|what| format!("{what}; {EXPECTED}"))?;
    if named.has_host {
        return Ok(url_tags(&named.target, routes));
    }
    let tags = routes.url_tags_of_all_hosts(&named.target);
    Ok(if tags.is_empty() { vec![Tag::url(&named.target).without_host()] } else { tags })
}

fn prefix(routes: &RouteTable, text: &str) -> Result<Vec<Tag>, String> {
    const EXPECTED: &str = "expected for example \"http://shop.example/products/\"";
    let named = named(routes, text).map_err(|what| format!("{what}; {EXPECTED}"))?;
    if named.target.query().is_some() || !text.ends_with('/') {
        return Err(format!("does not end with \"/\", where a segment does; {EXPECTED}"));
    }
    let tag = Tag::prefix(&named.target).ok_or_else(|| format!("is deeper than {MAX_PREFIX_SEGMENTS} segments"))?;
    Ok(if named.has_host { in_both_forms(tag) } else { vec![tag.without_host()] })
}

fn tag(_: &RouteTable, text: &str) -> Result<Vec<Tag>, String> {
    if surrogate::is_group(text) {
        return Err("is a cache group; expected none: Cache-Group-Invalidation invalidates groups".to_owned());
    }
    if text.is_empty() || text.trim() != text || text.chars().any(char::is_control) {
        return Err("is not a tag; expected for example \"product:42\"".to_owned());
    }
    Ok(vec![Tag::Surrogate(text.into())])
}

fn route(routes: &RouteTable, name: &str) -> Result<Vec<Tag>, String> {
    let known = || routes.routes().iter().map(|route| &*route.name);
    if known().any(|known| known == name) {
        return Ok(vec![Tag::Route(name.into())]);
    }
    let some: Vec<String> = known().take(PROBLEMS_TOLD).map(quoted).collect();
    Err(format!("is not a route; expected a name from the configuration, which has [{}]", some.join(", ")))
}

fn host(_: &RouteTable, text: &str) -> Result<Vec<Tag>, String> {
    let refused = || "is not a host; expected for example \"shop.example\", without a port".to_owned();
    let has_port = text.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    let authority = Authority::parse(text, Scheme::Http).ok().filter(|_| !has_port).ok_or_else(refused)?;
    Ok(in_both_forms(Tag::Host(authority.host().into())))
}

/// What is stored for every host is stored for this one too.
fn in_both_forms(tag: Tag) -> Vec<Tag> {
    vec![tag.clone(), tag.without_host()]
}

/// Reads an absolute URL; a path alone only where it means the same for every host.
fn named(routes: &RouteTable, text: &str) -> Result<Named, String> {
    let not_a_url = || "is not a URL".to_owned();
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(not_a_url());
    }
    let has_host = !text.starts_with('/');
    if !has_host && !routes.shares_among_hosts() {
        return Err("has no host, which means nothing where a route that caches has the host in its key".to_owned());
    }
    // Of a URL without host no tag with one is made.
    let all_hosts = (Scheme::Http, "all.invalid", text);
    let (scheme, authority, path) = if has_host { absolute(text).ok_or_else(not_a_url)? } else { all_hosts };
    let authority = Authority::parse(authority, scheme).map_err(|_| "has no valid host".to_owned())?;
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let target = Target::new(scheme, authority, path, query).map_err(|_| "has no valid path".to_owned())?;
    Ok(Named { target, has_host })
}

/// Scheme, authority, and the rest of an absolute URL.
fn absolute(text: &str) -> Option<(Scheme, &str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = [Scheme::Http, Scheme::Https].into_iter().find(|it| scheme.eq_ignore_ascii_case(it.as_str()))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Some((scheme, authority, path))
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An object's members in their order, a name that comes twice too.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &str) -> RouteTable {
        let text = format!("[upstream.api]\nurl = \"http://a.test\"\n{routes}");
        let (config, _) = crate::config::parse("f", &text).unwrap_or_else(|problems| panic!("{problems:#?}"));
        RouteTable::new(config.routes).unwrap_or_else(|conflicts| panic!("{conflicts:?}"))
    }

    fn keyed() -> RouteTable {
        table("[[route]]\nname = \"all\"\npath = \"/{*rest}\"\nkey = { query = \"tracking\" }\n")
    }

    fn shared() -> RouteTable {
        table("[[route]]\nname = \"all\"\npath = \"/{*rest}\"\nkey = { host = false, query = \"tracking\" }\n")
    }

    fn check(routes: &RouteTable, json: &str, expected: &[&str]) {
        let order = Order::parse(json.as_bytes(), routes).unwrap_or_else(|refusal| panic!("{json}: {refusal}"));
        let tags: Vec<String> = order.tags.iter().map(Tag::to_string).collect();
        assert_eq!(tags, expected, "{json}");
    }

    fn refused(json: &str) -> String {
        Order::parse(json.as_bytes(), &keyed()).expect_err(json).to_string()
    }

    #[test]
    fn an_order_names_urls_prefixes_tags_routes_hosts_or_all() {
        let routes = keyed();
        check(&routes, r#"{"urls":["http://Shop.example:80/%61"]}"#, &["url shop.example/a"]);
        check(
            &routes,
            r#"{"urls":["https://shop.example:444/a?y=2&gclid=3&x=1"]}"#,
            &["url shop.example:444/a?x=1&y=2", "url shop.example:444/a?y=2&gclid=3&x=1"],
        );
        check(&routes, r#"{"prefixes":["http://shop.example/a/"]}"#, &["prefix shop.example/a/", "prefix /a/"]);
        check(
            &routes,
            r#"{"tags":["product:42","b c"],"routes":["all"]}"#,
            &["tag product:42", "tag b c", "route all"],
        );
        check(&routes, r#"{"hosts":["Shop.example"],"urls":[]}"#, &["host shop.example", "any host"]);
        check(&routes, r#"{"all":true,"soft":false}"#, &["all"]);
    }

    #[test]
    fn a_url_without_host_means_every_host_where_no_key_has_one() {
        check(&shared(), r#"{"urls":["/a?gclid=1"]}"#, &["url /a", "url /a?gclid=1"]);
        check(&shared(), r#"{"urls":["http://b.example/a"]}"#, &["url /a", "url b.example/a"]);
        check(&shared(), r#"{"prefixes":["/a/"]}"#, &["prefix /a/"]);
        let refusal = refused(r#"{"urls":["/a"]}"#);
        assert!(refusal.starts_with("urls: \"/a\" has no host, which means nothing where a route"), "{refusal}");
    }

    #[test]
    fn soft_is_said_and_hard_is_not() {
        let kind = |json: &str| Order::parse(json.as_bytes(), &keyed()).map(|order| order.kind);
        assert_eq!(kind(r#"{"all":true,"soft":true}"#), Ok(PurgeKind::Soft));
        assert_eq!(kind(r#"{"soft":false,"all":true}"#), Ok(PurgeKind::Hard));
    }

    #[test]
    fn what_would_purge_less_than_is_written_is_refused() {
        let check = |json: &str, expected: &str| {
            let refusal = refused(json);
            assert!(refusal.starts_with(expected), "{json}: {refusal}");
        };
        check("", "the order cannot be read: EOF");
        check("[]", "the order cannot be read: invalid type: sequence, expected a JSON object");
        check("{}{}", "the order cannot be read: trailing characters");
        check("{}", "the order names nothing; expected urls,");
        check(r#"{"soft":true,"tags":[],"all":false}"#, "the order names nothing");
        check(r#"{"url":["http://a/"]}"#, "\"url\" is not known; expected the lists urls,");
        check(r#"{"tags":["a"],"tags":["b"]}"#, "\"tags\" is there twice");
        check(r#"{"tags":"a"}"#, "tags is not a list; expected a list of strings");
        check(r#"{"tags":[1]}"#, "tags: 1 is not a string");
        check(r#"{"all":1}"#, "all is not a boolean");
        check(
            r#"{"routes":["al"]}"#,
            "routes: \"al\" is not a route; expected a name from the configuration, which has",
        );
        for text in ["", "a", "ftp://a/", "http://", "http://a b/", "http://u@a/", "http://a/%zz", "http://a/#b"] {
            check(&format!(r#"{{"urls":["{text}"]}}"#), &format!("urls: {text:?} "));
        }
        for text in ["http://a/b", "http://a", "http://a/b?c=/", "http://a/1/2/3/4/5/6/7/8/9/"] {
            check(&format!(r#"{{"prefixes":["{text}"]}}"#), &format!("prefixes: {text:?} "));
        }
        for text in ["", " a", "a\\n", "group:http://a b"] {
            check(&format!(r#"{{"tags":["{text}"]}}"#), "tags: ");
        }
        for text in ["", "a:80", "a/b", "http://a", "a:"] {
            check(&format!(r#"{{"hosts":["{text}"]}}"#), &format!("hosts: {text:?} is not a host"));
        }
    }

    #[test]
    fn all_problems_are_told_at_once_within_a_bound() {
        let refusal = refused(r#"{"all":2,"urls":["x"],"routes":["y"]}"#);
        assert_eq!(refusal.split("; ").filter(|part| part.contains("is not")).count(), 3, "{refusal}");
        let wrong = vec!["\"x\""; 30].join(",");
        assert!(refused(&format!(r#"{{"urls":[{wrong}]}}"#)).ends_with("; and 10 more"));
        let long = refused(&format!(r#"{{"urls":["{}"]}}"#, "x".repeat(10_000)));
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn an_order_is_bounded() {
        let naming = |count: usize| format!(r#"{{"tags":[{}]}}"#, vec!["\"a\""; count].join(","));
        assert!(Order::parse(naming(ENTRIES_MAX).as_bytes(), &keyed()).is_ok());
        assert_eq!(refused(&naming(ENTRIES_MAX + 1)), "the order names 1001; expected at most 1000");
        let large = format!(r#"{{"tags":["{}"]}}"#, "a".repeat(ORDER_BYTES_MAX));
        assert_eq!(Order::parse(large.as_bytes(), &keyed()), Err(Refusal::TooLarge));
    }
}
