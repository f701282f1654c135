//! A source file as the checks see it: its code without comments and literals, and the paths it names.

use std::path::Path;

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path from the root of the repository.
    pub name: String,
    /// Its module path, without `crate::`: `store::redis` for `src/store/redis/mod.rs`.
    pub module: String,
    /// Its text.
    pub text: String,
    /// Its code without tests (nothing in a file `tests.rs`); comments and literals are blanked.
    pub code: String,
}

/// What others wrote or a build left.
const FOREIGN: [&str; 2] = ["node_modules", "target"];

/// Every `.rs` file below a folder, by name.
pub fn sources(root: &Path, folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(next) = folders.pop() {
        let listing = std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display()));
        for path in listing.map(|listed| listed.unwrap().path()) {
            if path.is_dir() {
                let is_ours = FOREIGN.iter().all(|name| path.file_name().unwrap() != *name);
                folders.extend(is_ours.then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source::new(name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Source {
    fn new(name: String, text: String) -> Self {
        let path = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module = path.replace('/', "::");
        let all_tests = module.ends_with("::tests");
        let code = if all_tests { String::new() } else { without_tests(&blanked(&text)) };
        Self { name, module, text, code }
    }

    /// How long it is; tests do not count.
    pub fn lines_without_tests(&self) -> usize {
        self.code.split_inclusive('\n').count()
    }

    /// The first line of code that follows its inline tests.
    pub fn first_line_after_tests(&self) -> Option<usize> {
        let blank = blanked(&self.text);
        let lines: Vec<&str> = blank.lines().collect();
        let start = tests_start(&lines)?;
        let end = start + lines[start..].iter().position(|line| *line == "}")?;
        let after = lines[end + 1..].iter().position(|line| !line.trim().is_empty())?;
        Some(end + after + 2)
    }

    /// Whether its code names this identifier.
    pub fn names(&self, name: &str) -> bool {
        words(&self.code).any(|word| word == name)
    }

    /// Every path below the crate's root that it names, without `crate::`, each `use` group taken apart.
    pub fn crate_paths(&self) -> Vec<String> {
        let tokens: Vec<&str> = words(&self.code).collect();
        let mut paths = Vec::new();
        for at in 0..tokens.len() {
            let continued = at > 0 && (tokens[at - 1] == "::" || tokens[at - 1] == "$");
            let Some((base, next)) = self.base(&tokens, at).filter(|_| !continued) else { continue };
            paths.extend(expand(base, &tokens, next).0);
        }
        paths
    }

    /// Where a path that begins at a token starts from, and where it goes on.
    fn base(&self, tokens: &[&str], at: usize) -> Option<(Vec<String>, usize)> {
        let own = || self.module.split("::").map(str::to_owned).collect::<Vec<_>>();
        let is_path = |at: usize| tokens.get(at + 1) == Some(&"::");
        match tokens[at] {
            "crate" | "aside" if is_path(at) => Some((Vec::new(), at + 2)),
            "super" if is_path(at) => {
                let (mut base, mut next) = (own(), at);
                while tokens.get(next) == Some(&"super") && is_path(next) {
                    base.pop();
                    next += 2;
                }
                Some((base, next))
            }
            _ => None,
        }
    }
}

/// The paths that start with `base` and go on at a token, and the first token after them.
fn expand(mut base: Vec<String>, tokens: &[&str], mut at: usize) -> (Vec<String>, usize) {
    loop {
        match tokens.get(at) {
            Some(&"{") => return expand_group(&base, tokens, at + 1),
            Some(word) if is_word(word) => base.push((*word).to_owned()),
            _ => return (vec![base.join("::")], at),
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            return (vec![base.join("::")], at);
        }
        at += 1;
    }
}

fn expand_group(base: &[String], tokens: &[&str], mut at: usize) -> (Vec<String>, usize) {
    let mut paths = Vec::new();
    while let Some(token) = tokens.get(at) {
        match *token {
            "}" => return (paths, at + 1),
            "self" => {
                paths.push(base.join("::"));
                at += 1;
            }
            word if is_word(word) => {
                let (more, next) = expand(base.to_vec(), tokens, at);
                paths.extend(more);
                at = next + if tokens.get(next) == Some(&"as") { 2 } else { 0 };
            }
            _ => at += 1,
        }
    }
    (paths, at)
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Identifiers, `::`, and each other visible character by itself.
fn words(code: &str) -> impl Iterator<Item = &str> {
    let mut rest = code;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let end = match word {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            _ => word,
        };
        let (token, after) = rest.split_at(end);
        rest = after;
        Some(token)
    })
}

/// The first line of the attribute above inline tests.
fn tests_start(lines: &[&str]) -> Option<usize> {
    (0..lines.len()).find(|&at| {
        let item = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        lines[at].starts_with("#[cfg(test)]") && item.is_some_and(|item| is_inline_module(item))
    })
}

fn is_inline_module(line: &str) -> bool {
    line.trim_start_matches("pub ").starts_with("mod ") && line.ends_with('{')
}

fn without_tests(code: &str) -> String {
    let lines: Vec<&str> = code.lines().collect();
    let end = tests_start(&lines).unwrap_or(lines.len());
    code.split_inclusive('\n').take(end).collect()
}

/// The text with comments and literals blanked; lines stay where they are.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let follows_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            '\'' => character(rest),
            'r' | 'b' if !follows_word => raw_string(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|&c| c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => chars.find(|&(_, c)| c == '\'').map_or(0, |(at, _)| at + 1),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// The length of `r"…"`, `r#"…"#` and their `b` forms; 0 for anything else.
fn raw_string(rest: &str) -> usize {
    let Some(marks) = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')) else { return 0 };
    let hashes = marks.len() - marks.trim_start_matches('#').len();
    if !marks[hashes..].starts_with('"') {
        return 0;
    }
    let content = rest.len() - marks.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    rest[content..].find(&close).map_or(rest.len(), |at| content + at + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        assert_eq!(Source::new(name.to_owned(), text.to_owned()).crate_paths(), expected, "{name}: {text}");
    }

    #[test]
    fn paths_are_found_wherever_they_are_written() {
        check("src/a.rs", "use crate::store::Tier;", &["store::Tier"]);
        check(
            "src/a.rs",
            "use crate::store::{self, Tier, redis::{Pool as P, Wire}};",
            &["store", "store::Tier", "store::redis::Pool", "store::redis::Wire"],
        );
        check("src/a.rs", "use crate::{key::Key, route::*};", &["key::Key", "route"]);
        check(
            "src/a.rs",
            "fn f(x: &crate::stored::Epoch) { crate::key::hash::<u8>(x) }",
            &["stored::Epoch", "key::hash"],
        );
        check("src/a.rs", "pub(crate) fn f() {}", &[]);
        check("src/main.rs", "fn main() { aside::cli::run() }", &["cli::run"]);
    }

    #[test]
    fn super_is_resolved_against_the_file() {
        check("src/policy/mod.rs", "use super::config::Config;", &["config::Config"]);
        check("src/policy/reuse.rs", "use super::Rules;", &["policy::Rules"]);
        check("src/store/redis/mod.rs", "use super::super::upstream::Upstreams;", &["upstream::Upstreams"]);
        check(
            "src/store/redis/pool.rs",
            "use super::{Wire, codec as c};",
            &["store::redis::Wire", "store::redis::codec"],
        );
    }

    #[test]
    fn comments_literals_and_tests_name_nothing() {
        check("src/a.rs", "//! [`crate::a`]\n/* crate::b /* crate::c */ crate::d */ use crate::e::F;", &["e::F"]);
        check(
            "src/a.rs",
            "const A: &str = \"crate::b \\\" crate::c\"; const B: char = '\"'; use crate::e::F;",
            &["e::F"],
        );
        check("src/a.rs", "const A: &str = r#\"crate::b \" crate::c\"#; fn f<'a>(x: &'a crate::e::F) {}", &["e::F"]);
        check(
            "src/a.rs",
            "use crate::e::F;\n#[cfg(test)]\nmod tests {\n    use crate::config::Config;\n}\n",
            &["e::F"],
        );
        check("src/a.rs", "#[cfg(test)]\nmod tests;\nuse crate::e::F;\n", &["e::F"]);
    }

    #[test]
    fn tests_do_not_count_and_come_last() {
        let check = |text: &str, lines: usize, after: Option<usize>| {
            let source = Source::new("src/a.rs".to_owned(), text.to_owned());
            assert_eq!((source.lines_without_tests(), source.first_line_after_tests()), (lines, after), "{text}");
        };
        check("//! A.\n\nfn f() {}\n", 3, None);
        check("//! A.\n\n#[cfg(test)]\nmod tests {\n    const A: &str = \"\n}\n\";\n}\n", 2, None);
        check("//! A.\n#[cfg(test)]\nmod tests {\n}\n\nfn f() {}\n", 1, Some(6));
    }
}
