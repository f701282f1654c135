//! aside beside bare hyper and nginx, one after another: what a request costs each.

mod cases;
mod clients;
mod load;
mod machine;
mod measure;
mod options;
mod process;
mod report;
mod servers;
mod stage;

use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use cases::{CASES, Case};
use measure::{Figures, NOISE};
use options::{Options, Part};
use report::{Outcome, Row};
use stage::{Contender, Stage};

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.part {
        Some(part) => play(part).map_err(|error| error.to_string()),
        None => compare(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Does one part as a process of its own.
fn play(part: &Part) -> std::io::Result<()> {
    let told = match part.clone() {
        Part::Origin { port } => return servers::origin(port),
        Part::Hyper { port, length } => return servers::bare_hyper(port, length),
        Part::Warm { port, prefix, keys } => clients::run(clients::warm(port, prefix, keys)),
        Part::Herd { port, path, count } => clients::run(clients::herd(port, path, count)),
        Part::Idle { port, path, count } => clients::run(clients::idle(port, path, count)),
        Part::Paced { port, path, count, rate, seconds } => {
            clients::run(clients::paced(port, path, count, rate, seconds))
        }
    };
    println!("{}", told?);
    Ok(())
}

/// Measures all, prints the table, writes the JSON.
fn compare(options: &Options) -> Result<(), String> {
    if options.list {
        CASES.iter().for_each(|case| println!("{:10} {}", case.name, case.title));
        return Ok(());
    }
    if let Some(unknown) = options.case.iter().find(|name| CASES.iter().all(|case| case.name != **name)) {
        return Err(format!("{unknown:?} is no case; --list tells them"));
    }
    if !options.binary.is_file() {
        return Err(format!("{} is not there; `make build` builds it", options.binary.display()));
    }
    let chosen =
        CASES.iter().filter(|case| options.case.is_empty() || options.case.iter().any(|name| name == case.name));
    let mut outcomes = Vec::new();
    for case in chosen {
        let outcome = outcome(case, options);
        if let Some(why) = outcome.rows.iter().find_map(|row| row.skipped.as_ref().filter(|_| options.alone)) {
            return Err(format!("{}: {why}", case.name));
        }
        outcomes.push(outcome);
    }
    println!("\n{}", report::table(&outcomes));
    let told = json!({ "rounds": options.rounds, "seconds": options.seconds, "cases": report::json(&outcomes) });
    if let Some(folder) = options.json.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(&options.json, format!("{told:#}\n")).map_err(|error| format!("{}: {error}", options.json.display()))
}

/// All rounds of a case, the contenders in turn, so that a machine that slows down does so for all.
fn outcome(case: &'static Case, options: &Options) -> Outcome {
    let is_wanted = |contender: &&Contender| !options.alone || matches!(contender, Contender::Aside(_));
    let contenders: Vec<&Contender> = case.contenders.iter().filter(is_wanted).collect();
    let row = |contender: &&Contender| Row { contender: contender.name(), rounds: Vec::new(), skipped: None };
    let mut rows: Vec<Row> = contenders.iter().map(row).collect();
    for round in 1..=options.rounds {
        for (contender, row) in contenders.iter().zip(&mut rows) {
            // What is not installed in the first round is not in the next.
            if row.skipped.is_some() {
                continue;
            }
            let result = Stage::set(**contender, case.length, options).and_then(|stage| (case.run)(&stage));
            eprintln!("{} {round}/{} {}: {}", case.name, options.rounds, row.contender, told(case, &result));
            match result {
                Ok(figures) => row.rounds.push(figures),
                Err(why) => row.skipped = Some(why),
            }
        }
    }
    Outcome { case, rows }
}

fn told(case: &Case, result: &Result<Figures, String>) -> String {
    match result {
        Ok(figures) => {
            let noise = figures.get(NOISE).filter(|noise| **noise > case.noise_max);
            let doubt = noise.map_or_else(String::new, |noise| format!(" (doubtful: others used {noise:.3} CPUs)"));
            format!("{} {:.2}{doubt}", case.figure, figures.get(case.figure).copied().unwrap_or(f64::NAN))
        }
        Err(why) => format!("skipped: {why}"),
    }
}
