//! What is noted while a file is read: its problems, and every effective value with where it came from.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use super::Problem;

/// The notes on one file.
pub(super) struct Notes<'t> {
    file: Arc<str>,
    text: &'t str,
    /// The offsets at which lines after the first begin.
    breaks: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    sections: RefCell<Vec<Section>>,
}

/// A table of the file with its effective values.
pub(super) struct Section {
    header: String,
    values: Vec<Effective>,
}

/// One effective value.
pub(super) struct Effective {
    key: String,
    /// As in the file, secrets too, which are only named there; none: not set, and without a default.
    value: Option<String>,
    source: Source,
}

/// Where a value came from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Nobody set it.
    Default,
    /// The table itself, at this line.
    Line(usize),
    /// The profile that a route uses.
    Profile(String),
}

/// A section's place among the others.
#[derive(Clone, Copy)]
pub(super) struct SectionId(usize);

impl<'t> Notes<'t> {
    pub(super) fn new(file: &str, text: &'t str) -> Self {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self { file: file.into(), text, breaks, problems: RefCell::default(), sections: RefCell::default() }
    }

    /// The line of an offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.breaks.partition_point(|start| *start <= offset) + 1
    }

    /// A part of the file as written.
    pub(super) fn source(&self, span: Range<usize>) -> &'t str {
        self.text.get(span).unwrap_or_default()
    }

    pub(super) fn problem(&self, line: usize, message: impl Into<String>) {
        self.note(line, message.into(), false);
    }

    pub(super) fn warn(&self, line: usize, message: impl Into<String>) {
        self.note(line, message.into(), true);
    }

    fn note(&self, line: usize, message: String, warning: bool) {
        let problem = Problem { file: Arc::clone(&self.file), line, message, warning };
        let mut problems = self.problems.borrow_mut();
        // A profile's mistake is met by each route that uses it.
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// A new section of effective values.
    pub(super) fn section(&self, header: String) -> SectionId {
        let mut sections = self.sections.borrow_mut();
        sections.push(Section { header, values: Vec::new() });
        SectionId(sections.len() - 1)
    }

    /// Records an effective value.
    pub(super) fn record(&self, section: SectionId, key: &str, value: Option<String>, source: Source) {
        if let Some(section) = self.sections.borrow_mut().get_mut(section.0) {
            section.values.push(Effective { key: key.to_owned(), value, source });
        }
    }

    /// Every effective value, as TOML whose comments say where each came from.
    pub(super) fn resolved(&self) -> String {
        let mut text = String::new();
        for section in self.sections.borrow().iter().filter(|section| !section.values.is_empty()) {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", section.header);
            for value in &section.values {
                let _ = writeln!(text, "{}", value.line());
            }
        }
        text
    }

    /// The values of a section and those made with it (its headers begin alike), without where they came from.
    pub(super) fn settings(&self, section: SectionId) -> String {
        let sections = self.sections.borrow();
        let Some(first) = sections.get(section.0) else { return String::new() };
        let below = format!("{}.", first.header.trim_end_matches(']'));
        let is_own = |it: &&Section| it.header == first.header || it.header.starts_with(&below);
        let own = sections.iter().filter(is_own);
        let values = own.flat_map(|section| &section.values);
        values.map(|it| format!("{} = {}\n", it.key, it.value.as_deref().unwrap_or_default())).collect()
    }

    /// The value recorded for a key of a section.
    pub(super) fn setting(&self, section: SectionId, key: &str) -> String {
        let sections = self.sections.borrow();
        let values = sections.get(section.0).map(|it| &it.values[..]).unwrap_or_default();
        values.iter().find(|it| it.key == key).and_then(|it| it.value.clone()).unwrap_or_default()
    }

    /// The problems by line: the errors, or where there is none, the warnings as `Ok`.
    pub(super) fn verdict(&self) -> Result<Vec<Problem>, Vec<Problem>> {
        let mut problems = self.problems.take();
        problems.sort_by_key(|problem| problem.line);
        if problems.iter().all(|problem| problem.warning) {
            return Ok(problems);
        }
        problems.retain(|problem| !problem.warning);
        Err(problems)
    }
}

impl Effective {
    fn line(&self) -> String {
        let Self { key, value, source } = self;
        match (value, source) {
            (None, _) => format!("# {key} is not set"),
            (Some(value), Source::Default) => format!("{key} = {value}  # default"),
            (Some(value), Source::Line(line)) => format!("{key} = {value}  # line {line}"),
            (Some(value), Source::Profile(name)) => format!("{key} = {value}  # profile {name:?}"),
        }
    }
}
