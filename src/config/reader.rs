//! A typed reader of one table: each key is asked for by its type, and what nobody asked for is unknown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::key_of;
use super::notes::{Notes, SectionId, Source};
use super::units;

/// Reads one table, and behind it those it takes its missing keys from.
pub(super) struct Reader<'a> {
    pub(super) notes: &'a Notes<'a>,
    /// The first that has a key wins.
    layers: Vec<Layer<'a>>,
    /// The line of its header.
    pub(super) line: usize,
    place: String,
    /// Where effective values are recorded; a profile's are recorded with the routes that use it.
    section: Option<SectionId>,
    known: RefCell<BTreeSet<&'static str>>,
}

/// A table that keys are looked up in.
#[derive(Clone)]
pub(super) struct Layer<'a> {
    pub(super) table: &'a DeTable<'a>,
    /// How messages name it: `server`, `route "products"`.
    pub(super) place: String,
    /// The profile that it is, where it is not the table itself.
    pub(super) profile: Option<String>,
}

/// A value of the file.
#[derive(Clone)]
pub(super) struct Given<'a> {
    pub(super) value: &'a DeValue<'a>,
    /// As written.
    pub(super) written: &'a str,
    pub(super) line: usize,
    pub(super) place: String,
    pub(super) source: Source,
}

impl Given<'_> {
    /// `"x" …`: the value as written, and what is wrong with it.
    fn wrong(&self, what: &str) -> String {
        format!("{} {what}", self.written)
    }

    /// Its text, where it is a string.
    pub(super) fn text(&self) -> Option<&str> {
        self.value.as_str()
    }
}

/// `server` and `route "x"` differ in how a key is put behind them.
fn at(place: &str, key: &str) -> String {
    match place {
        "" => key.to_owned(),
        _ if place.ends_with('"') => format!("{place}: {key}"),
        _ => format!("{place}.{key}"),
    }
}

/// The nearest of some names, where one is near.
pub(super) fn nearest<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    let most = (name.len() / 3).clamp(1, 3);
    let distances = names.into_iter().map(|other| (strsim::damerau_levenshtein(name, other), other));
    let near = distances.filter(|(distance, _)| *distance <= most).min();
    near.map(|(_, other)| format!("; did you mean {other:?}?")).unwrap_or_default()
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

impl<'a> Reader<'a> {
    pub(super) fn new(notes: &'a Notes<'a>, layers: Vec<Layer<'a>>, line: usize, header: Option<String>) -> Self {
        let place = layers.first().map(|layer| layer.place.clone()).unwrap_or_default();
        let section = header.map(|header| notes.section(header));
        Self { notes, layers, line, place, section, known: RefCell::default() }
    }

    /// What `key` is called in messages.
    pub(super) fn path(&self, key: &str) -> String {
        at(&self.place, key)
    }

    /// A table's own values, without where they came from, for a fingerprint.
    pub(super) fn settings(&self) -> String {
        self.section.map(|section| self.notes.settings(section)).unwrap_or_default()
    }

    /// The effective value of one key.
    pub(super) fn setting(&self, key: &str) -> String {
        self.section.map(|section| self.notes.setting(section, key)).unwrap_or_default()
    }

    /// The value of a key from the first layer that has it.
    pub(super) fn given(&self, key: &'static str) -> Option<Given<'a>> {
        self.known.borrow_mut().insert(key);
        self.layers.iter().find_map(|layer| Some(self.in_layer(layer, layer.table.get(key)?)))
    }

    fn in_layer(&self, layer: &Layer<'a>, value: &'a Spanned<DeValue<'a>>) -> Given<'a> {
        let line = self.notes.line(value.span().start);
        let source = layer.profile.clone().map_or(Source::Line(line), Source::Profile);
        let written = self.notes.source(value.span());
        Given { value: value.get_ref(), written, line, place: layer.place.clone(), source }
    }

    /// Notes a problem with a given value.
    pub(super) fn problem(&self, key: &str, given: &Given<'_>, what: &str) {
        self.notes.problem(given.line, format!("{}: {}", at(&given.place, key), given.wrong(what)));
    }

    /// Notes a problem of the table that is no one value's.
    pub(super) fn problem_here(&self, what: &str) {
        self.notes.problem(self.line, format!("{}: {what}", self.place));
    }

    pub(super) fn record(&self, key: &str, value: Option<String>, source: Source) {
        if let Some(section) = self.section {
            self.notes.record(section, key, value, source);
        }
    }

    /// Reads a key: none where it is absent or, after a problem is noted, wrong.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        default: Option<String>,
        parse: impl FnOnce(&Given<'a>) -> Result<T, String>,
    ) -> Option<T> {
        let Some(given) = self.given(key) else {
            self.record(key, default, Source::Default);
            return None;
        };
        self.record(key, Some(self.written(&given)), given.source.clone());
        parse(&given).map_err(|what| self.problem(key, &given, &what)).ok()
    }

    /// Reads a string by `parse`; `expected` says what it is not.
    pub(super) fn parsed<T>(&self, key: &'static str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.optional(key, None, |it| it.text().and_then(parse).ok_or_else(|| expected.to_owned()))
    }

    pub(super) fn duration(&self, key: &'static str, default: &str) -> Duration {
        self.given_duration(key, Some(default)).unwrap_or_else(|| units::duration(default).unwrap_or_default())
    }

    /// `default` is told to the operator; the caller puts it in.
    pub(super) fn given_duration(&self, key: &'static str, default: Option<&str>) -> Option<Duration> {
        self.optional(key, default.map(quoted), |it| {
            it.text().and_then(units::duration).ok_or_else(|| units::DURATION.to_owned())
        })
    }

    pub(super) fn positive_duration(&self, key: &'static str, default: &str) -> Duration {
        let duration = self.duration(key, default);
        if duration.is_zero()
            && let Some(given) = self.given(key)
            && given.text().and_then(units::duration).is_some()
        {
            self.problem(key, &given, "is too short; expected at least \"1ms\"");
        }
        duration
    }

    /// Bytes: a string with a unit, or a whole number.
    pub(super) fn size(&self, key: &'static str, default: &str) -> u64 {
        let size = self.optional(key, Some(quoted(default)), |it| {
            let whole = || it.value.as_integer().and_then(whole);
            it.text().and_then(units::size).or_else(whole).ok_or_else(|| units::SIZE.to_owned())
        });
        size.unwrap_or_else(|| units::size(default).unwrap_or_default())
    }

    /// The same, and at least 1 KiB.
    pub(super) fn size_of_kib(&self, key: &'static str, default: &str) -> u64 {
        let size = self.size(key, default);
        if size < 1024
            && let Some(given) = self.given(key)
        {
            self.problem(key, &given, "is too small; expected at least \"1 KiB\"");
        }
        size
    }

    pub(super) fn whole(&self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let read = self.optional(key, Some(default.to_string()), |it| {
            let number = it.value.as_integer().and_then(whole).and_then(|number| usize::try_from(number).ok());
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("is not a whole number in range; expected {} to {}", range.start(), range.end()))
        });
        read.unwrap_or(default)
    }

    pub(super) fn fraction(&self, key: &'static str, default: f64) -> f64 {
        let read = self.optional(key, Some(format!("{default:?}")), |it| {
            let number = it.value.as_float().map(|float| float.as_str().replace('_', ""));
            let number = number.or_else(|| it.value.as_integer().map(|integer| integer.as_str().to_owned()));
            let number = number.and_then(|number| number.parse().ok()).filter(|number| (0.0..=1.0).contains(number));
            number.ok_or_else(|| "is not a fraction; expected 0 to 1".to_owned())
        });
        read.unwrap_or(default)
    }

    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        let expected = || "is not a boolean; expected true or false".to_owned();
        self.optional(key, Some(default.to_string()), |it| it.value.as_bool().ok_or_else(expected)).unwrap_or(default)
    }

    pub(super) fn string(&self, key: &'static str, default: &str) -> String {
        let read = self.optional(key, Some(quoted(default)), |it| {
            it.text().map(str::to_owned).ok_or_else(|| "is not a string".to_owned())
        });
        read.unwrap_or_else(|| default.to_owned())
    }

    /// One of some words; the first is the default.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> T {
        let read = self.optional(key, Some(quoted(words[0].0)), |it| {
            let found = words.iter().find(|(word, _)| it.text() == Some(word));
            found.map(|(_, value)| *value).ok_or_else(|| unexpected_word(it.text(), words.iter().map(|it| it.0)))
        });
        read.unwrap_or(words[0].1)
    }

    /// A list of strings, or the default.
    pub(super) fn strings(&self, key: &'static str, default: &[&str]) -> Vec<String> {
        self.list(key, default, "is not a string", |text| Some(text.to_owned()))
    }

    /// A list of strings, each parsed; `expected` says what one is not.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        default: &[&str],
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let Some(values) = self.values(key, default) else {
            return default.iter().filter_map(|text| parse(text)).collect();
        };
        let mut parsed = Vec::with_capacity(values.len());
        for value in values {
            match value.text().and_then(&parse) {
                Some(one) => parsed.push(one),
                None => self.problem(key, &value, expected),
            }
        }
        parsed
    }

    /// The members of a list; none where the key is absent or wrong.
    pub(super) fn values(&self, key: &'static str, default: &[&str]) -> Option<Vec<Given<'a>>> {
        self.optional(key, Some(format!("{default:?}")), |it| {
            let members = it.value.as_array().ok_or("is not a list; expected [..]")?;
            Ok(members.iter().map(|member| self.member(it, member)).collect())
        })
    }

    /// A value within a given one.
    pub(super) fn member(&self, of: &Given<'a>, member: &'a Spanned<DeValue<'a>>) -> Given<'a> {
        Given {
            value: member.get_ref(),
            written: self.notes.source(member.span()),
            line: self.notes.line(member.span().start),
            place: of.place.clone(),
            source: of.source.clone(),
        }
    }

    pub(super) fn field_names(&self, key: &'static str, default: &[&str]) -> Vec<HeaderName> {
        self.list(key, default, "is not a field name; expected for example \"x-request-id\"", field_name)
    }

    /// A table within this one, of every layer that has it.
    pub(super) fn table(&self, key: &'static str, header: &str) -> Reader<'a> {
        self.known.borrow_mut().insert(key);
        let (mut layers, mut line) = (Vec::new(), self.line);
        for layer in &self.layers {
            let Some(value) = layer.table.get(key) else { continue };
            if layer.profile.is_none() {
                line = self.notes.line(value.span().start);
            }
            match value.get_ref().as_table() {
                Some(table) => layers.push(Layer { table, place: at(&layer.place, key), ..layer.clone() }),
                None => self.problem(key, &self.in_layer(layer, value), "is not a table"),
            }
        }
        let is_recorded = self.section.is_some() || self.place.is_empty();
        let mut reader = Reader::new(self.notes, layers, line, is_recorded.then(|| header.to_owned()));
        reader.place = at(&self.place, key);
        reader
    }

    /// Whether the table or one behind it has the key.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.known.borrow_mut().insert(key);
        self.layers.iter().any(|layer| layer.table.contains_key(key))
    }

    /// A table given as a value.
    pub(super) fn inline(&self, key: &str, given: &Given<'a>, table: &'a DeTable<'a>) -> Reader<'a> {
        let layer = Layer { table, place: at(&given.place, key), profile: None };
        Reader::new(self.notes, vec![layer], given.line, None)
    }

    /// The members of a table whose names the operator chooses.
    pub(super) fn members(&self) -> Vec<(&'a str, Given<'a>)> {
        let mut members: Vec<(&'a str, Given<'a>)> = Vec::new();
        for layer in &self.layers {
            for (name, value) in layer.table {
                if !members.iter().any(|(known, _)| *known == name.get_ref().as_ref()) {
                    members.push((name.get_ref(), self.in_layer(layer, value)));
                }
            }
        }
        members
    }

    /// The members of a key's table, which the operator names.
    pub(super) fn named(&self, key: &'static str) -> Vec<(&'a str, Given<'a>)> {
        let members = self.optional(key, Some("{}".to_owned()), |it| {
            let table = it.value.as_table().ok_or("is not a table")?;
            Ok(table.iter().map(|(name, value)| (name.get_ref().as_ref(), self.member(it, value))).collect())
        });
        members.unwrap_or_default()
    }

    /// A value in one line, however it was written.
    fn written(&self, given: &Given<'a>) -> String {
        let inner = |value: &'a Spanned<DeValue<'a>>| self.written(&self.member(given, value));
        match given.value {
            DeValue::Table(table) if table.is_empty() => "{}".to_owned(),
            DeValue::Table(table) => {
                let members =
                    table.iter().map(|(name, value)| format!("{} = {}", key_of(name.get_ref()), inner(value)));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
            }
            DeValue::Array(members) => format!("[{}]", members.iter().map(inner).collect::<Vec<_>>().join(", ")),
            _ => given.written.to_owned(),
        }
    }

    /// Warns of a key's value.
    pub(super) fn warn(&self, key: &'static str, what: &str) {
        if let Some(given) = self.given(key) {
            self.notes.warn(given.line, format!("{}: {what}", at(&given.place, key)));
        }
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for layer in self.layers.iter().filter(|layer| layer.profile.is_none()) {
            for (name, _) in layer.table {
                let key: &str = name.get_ref();
                if !known.contains(key) {
                    let hint = nearest(key, known.iter().copied());
                    let place = if layer.place.is_empty() { "the file" } else { &layer.place };
                    let line = self.notes.line(name.span().start);
                    self.notes.problem(line, format!("unknown key {key:?} in {place}{hint}"));
                }
            }
        }
    }
}

/// What is wrong with a word that is none of those expected.
pub(super) fn unexpected_word<'w>(text: Option<&str>, words: impl Iterator<Item = &'w str> + Clone) -> String {
    let hint = text.map(|text| nearest(text, words.clone())).unwrap_or_default();
    let all: Vec<String> = words.map(quoted).collect();
    format!("is not expected here; expected {}{hint}", all.join(" or "))
}

/// A field's name, in lower case whatever it was written in.
pub(super) fn field_name(text: &str) -> Option<HeaderName> {
    text.parse().ok()
}

fn whole(integer: &toml::de::DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}
