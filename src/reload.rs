//! What SIGHUP does: reads the file again and swaps the configuration as a whole, or changes nothing.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Problem};
use crate::generation::Shared;
use crate::telemetry::events::Event;

/// What reload needs to know of the start.
pub struct Origin {
    /// The file.
    pub path: Option<std::path::PathBuf>,
    /// The fingerprints of the sections that only a restart changes, as the process was started.
    pub fixed: Vec<(&'static str, u64)>,
}

/// Reloads. Returns, logs and remembers every problem of a refused file. Only one caller at a time.
pub fn reload(shared: &Shared, origin: &Origin) -> Result<(), Vec<Problem>> {
    match try_reload(shared, origin) {
        Ok(number) => {
            shared.last_error.store(Arc::new(None));
            shared.telemetry.emit(&Event::Reloaded { generation: number });
            Ok(())
        }
        Err(problems) => {
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            shared.last_error.store(Arc::new(Some(texts.join("\n"))));
            shared.telemetry.emit(&Event::ReloadRefused { problems: texts });
            Err(problems)
        }
    }
}

fn try_reload(shared: &Shared, origin: &Origin) -> Result<u64, Vec<Problem>> {
    let Some(path) = &origin.path else {
        return Err(vec![problem(Path::new("-"), "started without a file: there is nothing to reload".to_owned())]);
    };
    let (config, warnings) = config::load(path)?;
    let sections = changed(&origin.fixed, &config.fixed);
    let log = config.log.clone();
    shared.telemetry.reload(&log).map_err(|error| vec![problem(path, format!("log.access: {error}"))])?;
    let number = shared.swap(config).map_err(|conflicts| {
        conflicts.into_iter().map(|conflict| problem(path, conflict.reason)).collect::<Vec<_>>()
    })?;
    for warning in warnings {
        shared.telemetry.emit(&Event::ConfigurationWarned { problem: warning.to_string() });
    }
    if !sections.is_empty() {
        shared.telemetry.emit(&Event::ReloadNeedsRestart { sections });
    }
    Ok(number)
}

/// The sections whose fingerprints differ, or that only one of the two has.
fn changed(started: &[(&'static str, u64)], loaded: &[(&'static str, u64)]) -> Vec<&'static str> {
    let differs = |section: &&(&'static str, u64), other: &[(&'static str, u64)]| !other.contains(section);
    let mut sections: Vec<&'static str> = started.iter().filter(|it| differs(it, loaded)).map(|it| it.0).collect();
    for (name, _) in loaded.iter().filter(|it| differs(it, started)) {
        if !sections.contains(name) {
            sections.push(name);
        }
    }
    sections
}

fn problem(path: &Path, message: String) -> Problem {
    Problem { file: path.to_string_lossy().into(), line: 0, message, warning: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_that_differ_are_named_once() {
        let check = |started: &[(&'static str, u64)], loaded: &[(&'static str, u64)], expected: &[&str]| {
            assert_eq!(changed(started, loaded), expected);
        };
        check(&[("memory", 1), ("redis", 2)], &[("redis", 2), ("memory", 1)], &[]);
        check(&[("memory", 1), ("redis", 2)], &[("memory", 1), ("redis", 3)], &["redis"]);
        check(&[("memory", 1)], &[("admin", 1)], &["memory", "admin"]);
    }
}
