//! What loads a contender: wrk, h2load, and the benchmark's own clients, each on the load's CPU.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::Value;

use super::process::{Words, pinned, words};
use super::stage::{Stage, part};

/// What a load saw.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: f64,
    pub seconds: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub errors: f64,
    /// The part of the requests whose latency is not known.
    pub unseen: f64,
}

/// HTTP/1.1 as fast as it goes: `prefix` and the number of one of `keys`; with none, another each time.
pub fn wrk(stage: &Stage<'_>, prefix: &str, keys: usize, connections: usize, seconds: u64) -> Result<Load, String> {
    let script = stage.folder.path().join("wrk.lua");
    std::fs::write(&script, include_str!("wrk.lua")).map_err(|error| format!("{}: {error}", script.display()))?;
    let (connections, seconds) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let url = format!("http://127.0.0.1:{}/", stage.port);
    let told = output(
        stage,
        words![
            "wrk",
            "-t1",
            connections,
            seconds,
            "--timeout",
            "10s",
            "-s",
            script,
            url,
            "--",
            prefix,
            keys.to_string()
        ],
    )?;
    let figures = told.lines().find_map(|line| line.strip_prefix("FIGURES "));
    let figures: Vec<f64> = figures.into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
    let [requests, micros, p50, p99, errors] = figures[..] else { return Err(format!("wrk: {told}")) };
    if requests == 0.0 {
        return Err("wrk had no answer".to_owned());
    }
    Ok(Load { requests, seconds: micros / 1e6, p50_ms: p50 / 1e3, p99_ms: p99 / 1e3, errors, unseen: 0.0 })
}

/// HTTP/2 with prior knowledge, as fast as it goes.
pub fn h2load(stage: &Stage<'_>, path: &str, seconds: u64) -> Result<Load, String> {
    let log = stage.folder.path().join("h2load.log");
    let (log_option, url) =
        (format!("--log-file={}", log.display()), format!("http://127.0.0.1:{}{path}", stage.http2_port));
    output(stage, words!["h2load", "-t1", "-c8", "-m8", format!("-D{seconds}"), log_option, url])?;
    let text = std::fs::read_to_string(&log).map_err(|error| format!("h2load: {error}"))?;
    // Of each request its start, its status, and how many microseconds it took.
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.split('\t').skip(1);
        Some((fields.next()? == "200", fields.next()?.parse::<f64>().ok()?))
    });
    let (mut micros, mut errors) = (Vec::new(), 0.0);
    for (is_good, took) in rows {
        micros.push(took);
        errors += f64::from(u8::from(!is_good));
    }
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros.get((micros.len() as f64 * part) as usize).copied().ok_or("h2load had no answer");
    let (p50_ms, p99_ms) = (at(0.5)? / 1e3, at(0.99)? / 1e3);
    Ok(Load { requests: micros.len() as f64, seconds: seconds as f64, p50_ms, p99_ms, errors, unseen: 0.0 })
}

/// Asks once for each of the keys.
pub fn warm(stage: &Stage<'_>, prefix: &str, keys: usize) -> Result<(), String> {
    client(stage, &["warm", &stage.port.to_string(), prefix, &keys.to_string()]).map(drop)
}

/// How long a herd waited for its last answer, in milliseconds.
pub fn herd(stage: &Stage<'_>, path: &str, count: usize) -> Result<f64, String> {
    let told = client(stage, &["herd", &stage.port.to_string(), path, &count.to_string()])?;
    number(&told, "last_ms")
}

/// A fixed number of requests a second on 64 connections.
pub fn paced(stage: &Stage<'_>, path: &str, rate: f64, seconds: u64) -> Result<Load, String> {
    let (port, rate, seconds) = (stage.port.to_string(), rate.to_string(), seconds.to_string());
    let told = client(stage, &["paced", &port, path, "64", &rate, &seconds])?;
    Ok(Load {
        requests: number(&told, "requests")?,
        seconds: number(&told, "seconds")?,
        p50_ms: number(&told, "p50_ms")?,
        p99_ms: number(&told, "p99_ms")?,
        errors: 0.0,
        unseen: number(&told, "unseen")?,
    })
}

/// Connections that stay open while this is held.
pub struct Idle {
    child: Child,
    /// Held so that what the client says last has somebody to go to.
    _said: BufReader<ChildStdout>,
}

impl Idle {
    /// Opens them, each with one answer.
    pub fn open(stage: &Stage<'_>, path: &str, count: usize) -> Result<Self, String> {
        let words = part(&["idle", &stage.port.to_string(), path, &count.to_string()])?;
        let child = pinned(words, &stage.options.load_cpu)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("idle clients: {error}"))?;
        let mut said = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        let read = said.read_line(&mut line);
        let idle = Self { child, _said: said };
        match read {
            Ok(_) if line == "ready\n" => Ok(idle),
            _ => Err(format!("{count} connections could not be opened")),
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn number(told: &Value, name: &str) -> Result<f64, String> {
    told[name].as_f64().ok_or_else(|| format!("a client tells no {name}: {told}"))
}

/// Runs a part of the benchmark to its end.
fn client(stage: &Stage<'_>, arguments: &[&str]) -> Result<Value, String> {
    let told = output(stage, part(arguments)?)?;
    serde_json::from_str(&told).map_err(|error| format!("{}: {error}: {told}", arguments[0]))
}

/// Runs a program to its end and returns what it wrote.
fn output(stage: &Stage<'_>, words: Words) -> Result<String, String> {
    let name = words[0].to_string_lossy().into_owned();
    let output = pinned(words, &stage.options.load_cpu)?.output().map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{name}: {}", text(&output.stderr).trim())),
    }
}
