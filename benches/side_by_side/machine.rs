//! What processes use, as Linux tells it in `/proc`.

use std::collections::{BTreeSet, HashMap};
use std::fs::{DirEntry, read_to_string};

/// `USER_HZ`, in which `/proc` counts; the same on every architecture that Rust's Linux targets run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The CPU time of a process and all below it, with that of children that have ended.
pub fn cpu_seconds(root: u32) -> f64 {
    tree(root).into_iter().filter_map(stat).map(|stat| stat[11..15].iter().sum::<f64>()).sum::<f64>() / TICKS_PER_SECOND
}

/// The CPU time of each process, the kernel's too, that is neither this one nor below it; as process 0, what a hypervisor took.
pub fn others_seconds() -> HashMap<u32, f64> {
    let own = tree(std::process::id());
    let others = processes().filter(|process| !own.contains(process));
    others.map(|process| (process, running_seconds(process))).chain([(0, stolen_seconds())]).collect()
}

/// What they have used since then. What ended meanwhile is not known, nor what a container does not show.
pub fn others_seconds_since(before: &HashMap<u32, f64>) -> f64 {
    let used = |(process, now): (u32, f64)| (now - before.get(&process).unwrap_or(&0.0)).max(0.0);
    others_seconds().into_iter().map(used).sum()
}

/// How long the tasks of a process have run: to the nanosecond, where the kernel tells (`CONFIG_SCHED_INFO`).
fn running_seconds(process: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = |task: DirEntry| {
        read_to_string(task.path().join("schedstat")).ok()?.split_whitespace().next()?.parse::<f64>().ok()
    };
    // One that has ended since it was listed tells nothing.
    let told: Vec<f64> = tasks.filter_map(nanoseconds).collect();
    match told.is_empty() {
        true => stat(process).map_or(0.0, |stat| (stat[11] + stat[12]) / TICKS_PER_SECOND),
        false => told.iter().sum::<f64>() / 1e9,
    }
}

fn stolen_seconds() -> f64 {
    let text = read_to_string("/proc/stat").unwrap_or_default();
    let stolen = text.lines().next().and_then(|all| all.split_whitespace().nth(8)?.parse::<f64>().ok());
    stolen.unwrap_or(0.0) / TICKS_PER_SECOND
}

/// The files that each epoll of a process watches, one epoll for each worker.
pub fn watched_files(process: u32) -> BTreeSet<BTreeSet<u64>> {
    let files = std::fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten().flatten();
    let watched = files.filter_map(|file| {
        let text = read_to_string(file.path()).ok()?;
        let targets = text.lines().filter_map(|line| line.strip_prefix("tfd:"));
        Some(targets.filter_map(|target| target.split_whitespace().next()?.parse().ok()).collect::<BTreeSet<u64>>())
    });
    // The runtime holds each of them twice.
    watched.filter(|files| !files.is_empty()).collect()
}

/// The memory of a process and all below it, in KiB; what several share counts once (proportional set size).
pub fn memory_kib(root: u32) -> f64 {
    let of = |process: u32| {
        let text = read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    tree(root).into_iter().filter_map(of).sum()
}

/// A process and all below it.
fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in processes() {
        if let Some(stat) = stat(process) {
            children.entry(stat[1] as u32).or_default().push(process);
        }
    }
    let (mut found, mut next) = (vec![root], 0);
    while next < found.len() {
        found.extend(children.remove(&found[next]).into_iter().flatten());
        next += 1;
    }
    found
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The fields of a process' `stat` after its name.
fn stat(process: u32) -> Option<Vec<f64>> {
    fields(&read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// From the state on, which counts as 0: it is no number.
fn fields(stat: &str) -> Option<Vec<f64>> {
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
}
