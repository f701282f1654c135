//! The whole file: its tables in turn, and what must hold between them.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::notes::Notes;
use super::reader::{Layer, Reader, nearest};
use super::route::{self, Context};
use super::{Config, Listen, Problem, fingerprint, server, store, upstream};
use crate::route::{Route, RouteTable};
use crate::store::StoreConfig;
use crate::upstream::UpstreamConfig;

/// A file without errors.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) warnings: Vec<Problem>,
    /// Every effective value.
    pub(super) resolved: String,
}

/// Reads the text of a file named `name`.
pub(super) fn read(name: &str, text: &str) -> Result<Checked, Vec<Problem>> {
    let notes = Notes::new(name, text);
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| notes.line(span.start));
        let message = error.message().trim().replace('\n', "; ");
        vec![Problem { file: name.into(), line, message: format!("is not TOML: {message}"), warning: false }]
    })?;
    let root = Layer { table: table.get_ref(), place: String::new(), profile: None };
    let root = Reader::new(&notes, vec![root], 1, None);
    let config = config(&root);
    root.finish();
    let warnings = notes.verdict()?;
    let resolved = notes.resolved();
    match config {
        Some(config) => Ok(Checked { config, warnings, resolved }),
        // Whoever gives none has noted why.
        None => Err(warnings),
    }
}

fn config(root: &Reader<'_>) -> Option<Config> {
    let named = children(root, "upstream");
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let server_reader = section(root, "server");
    let server = server::server(&server_reader, &names);
    server_reader.finish();
    let admin_reader = root.has("admin").then(|| section(root, "admin"));
    let admin = admin_reader.as_ref().map(server::admin);
    let log = server::log(&section(root, "log"));
    let memory_reader = section(root, "memory");
    let memory = store::memory(&memory_reader, root.has("redis"));
    let purge_reader = section(root, "purge");
    let purge_slots = store::purge(&purge_reader);
    let redis_reader = root.has("redis").then(|| section(root, "redis"));
    let redis = redis_reader.as_ref().and_then(store::redis);
    let upstreams: Vec<UpstreamConfig> =
        named.iter().filter_map(|(name, reader)| upstream::upstream(name, reader)).collect();
    if names.is_empty() {
        root.notes.problem(0, "no upstream is defined; expected [upstream.NAME] with a url");
    }
    check_loops(&named, &upstreams, &server.config.listen);
    let context = Context { names: &names, upstreams: &upstreams, server: &server, with_redis: root.has("redis") };
    let routes = routes(root, &context);
    let token = admin.as_ref().and_then(|admin| admin.token.as_deref()).unwrap_or_default();
    let (redis, material) = redis.unzip();
    let redis_settings = redis_reader.as_ref().map(Reader::settings).unwrap_or_default();
    let admin_settings = admin_reader.as_ref().map(Reader::settings).unwrap_or_default();
    let fixed = vec![
        ("server.listen", fingerprint(&[server_reader.setting("listen").as_bytes()])),
        ("server.threads", fingerprint(&[server_reader.setting("threads").as_bytes()])),
        ("admin", fingerprint(&[admin_settings.as_bytes(), token.as_bytes()])),
        ("memory", fingerprint(&[memory_reader.settings().as_bytes()])),
        ("purge", fingerprint(&[purge_reader.settings().as_bytes()])),
        ("redis", fingerprint(&[redis_settings.as_bytes(), &material.unwrap_or_default()])),
    ];
    let store = StoreConfig {
        memory_max_size: memory.max_size,
        memory_max_object: memory.max_object,
        unsynced_residence: memory.unsynced_residence,
        purge_slots,
        redis,
    };
    let store::Memory { max_filling, max_serving, .. } = memory;
    Some(Config { server: server.config, admin, log, store, max_filling, max_serving, upstreams, routes, fixed })
}

/// A top-level table; an absent one is as if it were empty.
fn section<'a>(root: &Reader<'a>, name: &'static str) -> Reader<'a> {
    root.table(name, &format!("[{name}]"))
}

/// The tables within a top-level table, by the names that the operator gave them.
fn children<'a>(root: &Reader<'a>, kind: &'static str) -> Vec<(&'a str, Reader<'a>)> {
    let mut all = Vec::new();
    for (name, given) in root.table(kind, "").members() {
        let Some(table) = given.value.as_table() else {
            root.problem(kind, &given, &format!("is not a table; expected [{kind}.NAME]"));
            continue;
        };
        let layer = Layer { table, place: format!("{kind} {name:?}"), profile: None };
        let header = (kind == "upstream").then(|| format!("[{kind}.{}]", key_of(name)));
        all.push((name, Reader::new(root.notes, vec![layer], given.line, header)));
    }
    all
}

/// A name as a TOML key.
pub(super) fn key_of(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn routes(root: &Reader<'_>, context: &Context<'_>) -> Vec<Route> {
    let profiles: BTreeMap<&str, &DeTable<'_>> = root
        .table("profile", "")
        .members()
        .into_iter()
        .filter_map(|(name, given)| Some((name, given.value.as_table()?)))
        .collect();
    for (name, reader) in children(root, "profile") {
        route::profile(name, &reader, context);
    }
    let (mut routes, mut lines) = (Vec::new(), Vec::new());
    let mut used = BTreeMap::new();
    let Some(given) = root.given("route") else { return routes };
    let Some(members) = given.value.as_array() else {
        root.problem("route", &given, "is not a list of tables; expected [[route]]");
        return routes;
    };
    for (index, member) in members.iter().enumerate() {
        let line = root.notes.line(member.span().start);
        let Some(table) = member.get_ref().as_table() else {
            root.notes.problem(line, "route: is not a table; expected [[route]]");
            continue;
        };
        let name = name_of(table, index);
        if let Some(other) = used.insert(name.clone(), line) {
            let what = format!("route {name:?}: another one, in line {other}, has this name; expected name = \"…\"");
            root.notes.problem(line, what);
        }
        let reader = Reader::new(root.notes, layers(root, &name, table, &profiles), line, Some("[[route]]".to_owned()));
        if let Some(route) = route::route(&name, &reader, context) {
            routes.push(route);
            lines.push(line);
        }
    }
    check_conflicts(root.notes, &routes, &lines);
    routes
}

/// A route's own name, else its path.
fn name_of(table: &DeTable<'_>, index: usize) -> String {
    let text = |key: &str| table.get(key).and_then(|value| value.get_ref().as_str()).filter(|text| !text.is_empty());
    text("name").or_else(|| text("path")).map_or_else(|| format!("#{}", index + 1), str::to_owned)
}

/// A route's own keys before those of the profile it uses.
fn layers<'a>(
    root: &Reader<'_>,
    name: &str,
    table: &'a DeTable<'a>,
    profiles: &BTreeMap<&'a str, &'a DeTable<'a>>,
) -> Vec<Layer<'a>> {
    let mut layers = vec![Layer { table, place: format!("route {name:?}"), profile: None }];
    let Some(value) = table.get("use") else { return layers };
    let DeValue::String(used) = value.get_ref() else { return layers };
    match profiles.get(used.as_ref()) {
        Some(table) => {
            let profile = Some(used.as_ref().to_owned());
            layers.push(Layer { table, place: format!("profile {used:?}"), profile });
        }
        None => {
            let hint = nearest(used, profiles.keys().copied());
            let line = root.notes.line(value.span().start);
            root.notes.problem(line, format!("route {name:?}: profile {used:?} is not defined{hint}"));
        }
    }
    layers
}

/// An upstream that is this proxy itself would ask itself for what it has not.
fn check_loops(named: &[(&str, Reader<'_>)], upstreams: &[UpstreamConfig], listen: &[Listen]) {
    for (name, reader) in named {
        let urls = upstream::find(upstreams, name).map(|upstream| &upstream.urls[..]).unwrap_or_default();
        for url in urls.iter().filter(|url| listen.iter().any(|listen| upstream::is_at(url, listen.address))) {
            reader.problem_here(&format!("{url} is where this proxy itself listens; expected another server"));
        }
    }
}

fn check_conflicts(notes: &Notes<'_>, routes: &[Route], lines: &[usize]) {
    let Err(conflicts) = RouteTable::new(routes.to_vec()) else { return };
    for conflict in conflicts {
        let name = routes.get(conflict.index).map(|route| &*route.name).unwrap_or_default();
        let line = lines.get(conflict.index).copied().unwrap_or_default();
        notes.problem(line, format!("route {name:?}: {}", conflict.reason));
    }
}
