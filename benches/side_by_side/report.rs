//! The table that people read, and the JSON that programs do.

use serde_json::{Map, Value, json};

use super::cases::Case;
use super::measure::{
    BUSIEST_OVER_MEAN, CONNECTION_KIB, CPU_US, ERRORS, Figures, LAST_MS, MEMORY_MIB, NOISE, P50_MS, P99_MS,
    P99_OVER_P50, RATE, REDIS_US, UNSEEN, UNSEEN_MAX, UPSTREAM_REQUESTS,
};

/// What a contender did in a case, round by round; or why it could not.
pub struct Row {
    pub contender: String,
    pub rounds: Vec<Figures>,
    pub skipped: Option<String>,
}

/// A case with its rows.
pub struct Outcome {
    pub case: &'static Case,
    pub rows: Vec<Row>,
}

/// Heading, figure and digits of the columns with a figure each.
const COLUMNS: [(&str, &str, usize); 6] = [
    ("CPU µs", CPU_US, 2),
    ("req/s", RATE, 0),
    ("p50 ms", P50_MS, 3),
    ("p99 ms", P99_MS, 3),
    ("Redis µs", REDIS_US, 2),
    ("MiB", MEMORY_MIB, 0),
];

/// One table of all cases: medians, and the ratios of each case's figure.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut lines: Vec<Vec<String>> = vec![["case", "contender"].map(str::to_owned).to_vec()];
    lines[0].extend(COLUMNS.map(|(heading, ..)| heading.to_owned()));
    lines[0].extend(["× hyper", "× nginx", "besides"].map(str::to_owned));
    for outcome in outcomes {
        for row in &outcome.rows {
            let figure = |(_, name, digits)| shown(row.median(name), digits);
            let ratio = |to: &str| shown(outcome.ratio(row, to), 2);
            let mut line = vec![outcome.case.title.to_owned(), row.contender.clone()];
            line.extend(COLUMNS.map(figure));
            line.extend([ratio("hyper"), ratio("nginx"), besides(outcome, row)]);
            lines.push(line);
        }
    }
    aligned(&lines)
}

/// Every figure of every round, the medians and the ratios.
pub fn json(outcomes: &[Outcome]) -> Value {
    let mut cases = Map::new();
    for outcome in outcomes {
        let mut rows = Map::new();
        for row in &outcome.rows {
            let median: Map<_, _> = row.names().map(|name| (name.to_owned(), row.median(name).into())).collect();
            let others = outcome
                .rows
                .iter()
                .filter_map(|other| Some((other.contender.clone(), outcome.ratio(row, &other.contender)?.into())));
            let ratios: Map<String, Value> = others.collect();
            rows.insert(
                row.contender.clone(),
                json!({ "median": median, "ratios": ratios, "rounds": row.rounds, "skipped": row.skipped }),
            );
        }
        let Case { name, title, figure, .. } = *outcome.case;
        cases.insert(name.to_owned(), json!({ "title": title, "figure": figure, "contenders": rows }));
    }
    Value::Object(cases)
}

impl Row {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.rounds.first().into_iter().flat_map(|round| round.keys().copied())
    }

    fn median(&self, name: &str) -> Option<f64> {
        median(self.rounds.iter().filter_map(|round| round.get(name).copied()).collect())
    }
}

impl Outcome {
    /// The median of the rounds' own ratios: the machine's speed drifts from one round to the next.
    fn ratio(&self, row: &Row, to: &str) -> Option<f64> {
        let other = self.rows.iter().find(|other| other.contender == to && other.contender != row.contender)?;
        let pairs = row.rounds.iter().zip(&other.rounds);
        let figure = self.case.figure;
        median(pairs.filter_map(|(own, other)| Some(own.get(figure)? / other.get(figure)?)).collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => Some(values[middle]),
        _ => Some((values.get(middle.checked_sub(1)?)? + values[middle]) / 2.0),
    }
}

/// What has no column: the figures of single cases, and what casts doubt on a row.
fn besides(outcome: &Outcome, row: &Row) -> String {
    let mut notes: Vec<String> = row.skipped.clone().into_iter().map(|why| format!("skipped: {why}")).collect();
    let mut note = |name: &str, digits: usize, unit: &str| {
        if let Some(value) = row.median(name) {
            notes.push(format!("{value:.digits$} {unit}"));
        }
    };
    note(LAST_MS, 0, "ms to the last answer");
    note(CONNECTION_KIB, 1, "KiB a connection");
    note(BUSIEST_OVER_MEAN, 2, "× the mean has the busiest worker");
    match outcome.case.figure {
        P99_OVER_P50 => note(P99_OVER_P50, 1, "p99 / p50"),
        LAST_MS => note(UPSTREAM_REQUESTS, 0, "upstream request(s)"),
        _ => {}
    }
    if let Some(asked) = row.median(UPSTREAM_REQUESTS).filter(|asked| *asked > 0.0 && outcome.case.hits) {
        notes.push(format!("{asked:.0} upstream request(s) AMONG THE HITS"));
    }
    if let Some(first) = outcome.rows.first().filter(|first| !["hyper", "nginx"].contains(&first.contender.as_str())) {
        let ratio = outcome.ratio(row, &first.contender).filter(|_| row.contender != "nginx");
        notes.extend(ratio.map(|ratio| format!("{ratio:.2} × {}", first.contender)));
    }
    if let Some(errors) = row.median(ERRORS).filter(|errors| *errors > 0.0) {
        notes.push(format!("{errors:.0} ERRORS"));
    }
    if let Some(noise) = row.median(NOISE).filter(|noise| *noise > outcome.case.noise_max) {
        notes.push(format!("DOUBTFUL: others used {noise:.3} CPUs"));
    }
    if let Some(unseen) = row.median(UNSEEN).filter(|unseen| *unseen > UNSEEN_MAX) {
        notes.push(format!("DOUBTFUL: {:.1} % not seen", unseen * 100.0));
    }
    notes.join(", ")
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
}

/// As Markdown, the first line being the heading.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                2..=9 => format!("{cell:>width$}"),
                _ => format!("{cell:width$}"),
            })
            .collect();
        text += &format!("| {} |\n", cells.join(" | "));
        if at == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text += &format!("| {} |\n", rules.join(" | "));
        }
    }
    text
}
