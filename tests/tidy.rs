//! Holds the source tree to its own rules: who may import whom, and what no file may contain.
//!
//! Each test lists every violation it finds. What they hold, and why, is told in ARCHITECTURE.md.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the tree fails")]

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use source::{Source, sources};

/// The crate's own modules that a module may name, beside itself and its children. `store::Tier` allows that path alone.
/// The row with the longest matching module rules.
const IMPORTS: &[(&str, &[&str])] = &[
    // The domain: values and pure decisions.
    ("clock", &[]),
    ("fields", &["clock::Timestamp"]),
    ("target", &["fields"]),
    ("stored", &["clock::Timestamp", "fields"]),
    ("key", &["fields", "stored", "target"]),
    ("route", &["clock::Timestamp", "fields", "key", "policy", "stored", "target"]),
    ("policy", &["clock::Timestamp", "fields", "key", "stored", "target"]),
    // The leaves: each does its own I/O or waiting.
    ("boxed", &[]),
    ("gather", &[]),
    ("store", &["boxed", "clock", "fields", "key", "route", "stored", "telemetry"]),
    ("collapse", &["clock", "key", "stored", "telemetry"]),
    ("upstream", &["boxed", "clock", "fields", "gather", "telemetry"]),
    // What is told of it.
    ("telemetry", &["clock", "policy", "store::Tier", "upstream::UpstreamError"]),
    ("telemetry::stats", &["clock", "collapse", "generation", "policy", "store", "upstream"]),
    // What is written by the operator.
    ("config", &["fields", "key", "policy", "route", "store", "target", "telemetry", "upstream"]),
    // Where the parts meet.
    ("generation", EVERYTHING_BELOW_THE_SHELL),
    ("proxy", EVERYTHING_BELOW_THE_SHELL),
    ("purge", &["clock", "fields", "generation", "key", "route", "store", "target", "telemetry"]),
    // The shell: processes, listeners, commands.
    ("server", SHELL),
    ("admin", SHELL),
    ("reload", SHELL),
    ("demo", &["clock", "config", "server", "telemetry"]),
    ("check", &["config", "store::redis", "upstream"]),
    ("cli", &["admin", "check", "clock", "config", "demo", "reload", "server", "telemetry"]),
    ("main", &["cli"]),
    ("lib", &[]),
];

const EVERYTHING_BELOW_THE_SHELL: &[&str] = &[
    "boxed",
    "clock",
    "collapse",
    "config",
    "fields",
    "generation",
    "key",
    "policy",
    "proxy",
    "purge",
    "route",
    "store",
    "stored",
    "target",
    "telemetry",
    "upstream",
];

const SHELL: &[&str] = &[
    "admin",
    "clock",
    "config",
    "fields",
    "gather",
    "generation",
    "proxy",
    "purge",
    "reload",
    "server",
    "store",
    "target",
    "telemetry",
    "upstream",
];

/// Modules that decide without doing: no runtime, no sockets, no reading of the time.
const PURE: &[&str] = &["fields", "target", "key", "route", "policy", "stored"];

/// Modules that do one thing each and know nothing of one another.
const LEAVES: &[&str] = &["store", "collapse", "upstream"];

/// Crates that do I/O or wait.
const SHELL_CRATES: &[&str] = &["tokio", "tokio_util", "tokio_rustls", "hyper", "hyper_util", "fred", "socket2"];

/// Names that say nothing about what a file holds.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "types", "misc"];

const LINES_MAX: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Panics with every violation, one a line.
fn report(rule: &str, violations: impl IntoIterator<Item = String>) {
    let all: BTreeSet<String> = violations.into_iter().collect();
    let lines: String = all.iter().map(|violation| format!("\n  {violation}")).collect();
    assert!(all.is_empty(), "{rule}: {} violation(s){lines}", all.len());
}

/// The row that rules a module path.
fn row(module: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    IMPORTS.iter().filter(|(name, _)| is_within(module, name)).max_by_key(|(name, _)| name.len())
}

/// Whether `path` is `ancestor` or below it.
fn is_within(path: &str, ancestor: &str) -> bool {
    path == ancestor || path.strip_prefix(ancestor).is_some_and(|rest| rest.starts_with("::"))
}

fn top(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

fn violations_in(files: &[Source], check: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    files
        .iter()
        .flat_map(|file| check(file).into_iter().map(|what| format!("{}: {what}", file.name)).collect::<Vec<_>>())
        .collect()
}

fn everywhere() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(|folder| sources(root(), folder)).collect()
}

fn top_level_modules() -> BTreeSet<String> {
    sources(root(), "src").iter().map(|file| top(&file.module).to_owned()).collect()
}

#[test]
fn modules_import_only_what_their_row_allows() {
    let found = violations_in(&sources(root(), "src"), |file| {
        let Some((name, allowed)) = row(&file.module) else { return Vec::new() };
        let own = top(name);
        let foreign = file.crate_paths().into_iter().filter(|path| top(path) != own);
        let forbidden = foreign.filter(|path| !allowed.iter().any(|entry| is_within(path, entry)));
        forbidden.map(|path| format!("names `crate::{path}`; row `{name}` allows {allowed:?}")).collect()
    });
    report("the import table of tests/tidy.rs", found);
}

#[test]
fn every_module_has_a_row_and_every_row_a_module() {
    let modules = top_level_modules();
    let rows: BTreeSet<String> = IMPORTS.iter().map(|(name, _)| top(name).to_owned()).collect();
    let without_row = modules.difference(&rows).map(|name| format!("module `{name}` has no row"));
    let without_module = rows.difference(&modules).map(|name| format!("row `{name}` has no module"));
    report("the import table of tests/tidy.rs", without_row.chain(without_module));
}

#[test]
fn every_module_is_told_of_in_the_architecture() {
    let text = read("ARCHITECTURE.md");
    let modules = top_level_modules().into_iter().filter(|name| name != "lib" && name != "main");
    let untold = modules.filter(|name| !text.contains(&format!("**`{name}`**")));
    report("ARCHITECTURE.md has a paragraph for each module", untold.map(|name| format!("**`{name}`** is missing")));
}

#[test]
fn every_row_of_the_threats_names_tests_that_are_there() {
    let rows: Vec<String> = (1..=71)
        .map(|nth| nth.to_string())
        .chain((1..=21).map(|nth| format!("R{nth}")))
        .chain((1..=19).map(|nth| format!("U{nth}")))
        .collect();
    let text = read("docs/threats.md");
    let mut found = Vec::new();
    for row in rows {
        let Some(line) = text.lines().find(|line| line.starts_with(&format!("| {row} |"))) else {
            found.push(format!("{row} is missing"));
            continue;
        };
        let tests: Vec<&str> = line.split('`').filter(|quoted| quoted.contains(".rs::")).collect();
        if tests.is_empty() {
            found.push(format!("{row} names no test"));
        }
        for test in tests {
            let (file, name) = test.split_once("::").unwrap();
            let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default();
            let before = source.split_once(&format!("fn {name}()")).map(|(before, _)| before.trim_end());
            // `async`, and the attribute that makes it a test.
            if !before.is_some_and(|before| before.trim_end_matches("async").trim_end().ends_with(']')) {
                found.push(format!("{row} names {test}, which is no test"));
            }
        }
    }
    report("docs/threats.md", found);
}

#[test]
fn the_table_keeps_leaves_apart_and_the_domain_from_config() {
    let mut found = Vec::new();
    for (name, allowed) in IMPORTS {
        for entry in *allowed {
            let (from, to) = (top(name), top(entry));
            if LEAVES.contains(&from) && (LEAVES.contains(&to) || to == "proxy") {
                found.push(format!("leaf `{name}` may import `{entry}`"));
            }
            if (PURE.contains(&from) || LEAVES.contains(&from)) && to == "config" {
                found.push(format!("`{name}` may import `{entry}`"));
            }
            if PURE.contains(&from) && !PURE.contains(&to) && *entry != "clock::Timestamp" {
                found.push(format!("pure `{name}` may import `{entry}`"));
            }
        }
    }
    report("the import table of tests/tidy.rs", found);
}

#[test]
fn pure_modules_neither_wait_nor_read_the_time() {
    let pure: Vec<Source> =
        sources(root(), "src").into_iter().filter(|file| PURE.contains(&top(&file.module))).collect();
    let found = violations_in(&pure, |file| {
        let crates = SHELL_CRATES.iter().filter(|name| file.names(name)).map(|name| format!("names `{name}`"));
        let clocks = ["SystemTime::now", "Instant::now"].into_iter().filter(|call| file.code.contains(call));
        crates.chain(clocks.map(|call| format!("calls `{call}`"))).collect()
    });
    report("pure modules", found);
}

#[test]
fn only_the_redis_tier_knows_fred() {
    let found = violations_in(&sources(root(), "src"), |file| {
        let allowed = is_within(&file.module, "store::redis") || !file.names("fred");
        if allowed { Vec::new() } else { vec!["names `fred`".to_owned()] }
    });
    report("fred is used in store/redis alone", found);
}

#[test]
fn only_telemetry_touches_metrics() {
    let found = violations_in(&sources(root(), "src"), |file| {
        let paths = file.crate_paths().into_iter().filter(|path| is_within(path, "telemetry::metrics"));
        let holds = matches!(top(&file.module), "generation" | "proxy");
        let touched = paths.filter(|path| !(holds && is_within(path, "telemetry::metrics::RouteCounters")));
        match top(&file.module) {
            "telemetry" => Vec::new(),
            _ => touched.map(|path| format!("names `crate::{path}`")).collect(),
        }
    });
    report("metrics are touched in telemetry alone; generation and proxy may hold `RouteCounters`", found);
}

#[test]
fn every_file_says_in_a_sentence_what_it_is_for() {
    let files = everywhere();
    let found = violations_in(&files, |file| {
        let lines = file.text.lines().map_while(|line| line.strip_prefix("//! "));
        let sentence = lines.collect::<Vec<_>>().join(" ");
        if sentence.ends_with('.') {
            Vec::new()
        } else {
            vec![format!("expected a first line `//! …` with a sentence that ends in a period, found {sentence:?}")]
        }
    });
    report("the first line of a file", found);
}

#[test]
fn files_are_short_and_end_with_their_tests() {
    let found = violations_in(&sources(root(), "src"), |file| {
        let lines = file.lines_without_tests();
        let long = (lines > LINES_MAX).then(|| format!("{lines} lines without its tests, at most {LINES_MAX}"));
        let late = file.first_line_after_tests().map(|line| format!("line {line} comes after the tests"));
        long.into_iter().chain(late).collect()
    });
    report("file length and order", found);
}

#[test]
fn files_are_named_by_what_they_hold() {
    let files = everywhere();
    let found = violations_in(&files, |file| {
        let parts = Path::new(&file.name).with_extension("");
        let empty = parts.iter().filter_map(|part| part.to_str()).filter(|part| EMPTY_NAMES.contains(part));
        empty.map(|part| format!("`{part}` does not say what it holds")).collect()
    });
    report("file names", found);
}

#[test]
fn functions_over_60_lines_are_refused_by_the_linter() {
    let expected = [
        ("clippy.toml", "too-many-lines-threshold = 60"),
        ("Cargo.toml", "too_many_lines = \"warn\""),
        ("Cargo.toml", "unwrap_used = \"warn\""),
        ("Cargo.toml", "disallowed_methods = \"warn\""),
        ("Makefile", "-D warnings"),
    ];
    let missing = expected.into_iter().filter(|(path, text)| !read(path).contains(text));
    let missing = missing.map(|(path, text)| format!("{path} does not say `{text}`"));
    let files = everywhere();
    let lifted = files.iter().filter(|file| file.code.contains("clippy::too_many_lines"));
    report("lints", missing.chain(lifted.map(|file| format!("{}: lifts the limit on functions", file.name))));
}
