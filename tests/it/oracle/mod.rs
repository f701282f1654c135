//! Random sequences of requests, purges, faults and reloads against a tiny reference cache.

mod model;
mod origin;
mod play;

use std::time::Instant;

/// How the parts are laid out: processes, and whether they have a Redis.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    processes: usize,
    with_redis: bool,
    /// Sequences of a run.
    runs: u64,
}

/// Plays the sequences that failed once, then new ones: `ORACLE_RUNS` times as many as else, or `ORACLE_SEED` alone.
async fn explore(layout: Layout) {
    let seeds: Vec<u64> = match number("ORACLE_SEED") {
        Some(seed) => vec![seed; usize::try_from(number("ORACLE_RUNS").unwrap_or(1)).expect("few")],
        None => {
            let first = fastrand::u64(..);
            let new = (0..layout.runs * number("ORACLE_RUNS").unwrap_or(1)).map(|nth| first.wrapping_add(nth));
            known_seeds(layout.name).chain(new).collect()
        }
    };
    let (begun, mut answers, mut exchanges) = (Instant::now(), 0, 0);
    for seed in &seeds {
        let outcome = play::play(*seed, layout.processes, layout.with_redis).await;
        let (wrong, name) = (&outcome.wrong, layout.name);
        assert!(
            wrong.is_empty(),
            "{} of {} answers were wrong; again with ORACLE_SEED={seed} and the test {name}\n{}",
            wrong.len(),
            outcome.answers,
            wrong[..wrong.len().min(4)].join("\n")
        );
        answers += outcome.answers;
        exchanges += outcome.exchanges;
    }
    println!("{} sequences, {answers} answers, {exchanges} exchanges in {:?}", seeds.len(), begun.elapsed());
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|it| it.parse().expect("a number"))
}

fn known_seeds(name: &str) -> impl Iterator<Item = u64> {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(' '))
        .filter(move |(of, _)| *of == name)
        .map(|(_, seed)| seed.split(' ').next().expect("a word").parse().expect("a seed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_by_itself_answers_as_the_model_allows() {
    explore(Layout { name: "one_process_by_itself", processes: 1, with_redis: false, runs: 8 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_with_redis_answers_as_the_model_allows() {
    explore(Layout { name: "one_process_with_redis", processes: 1, with_redis: true, runs: 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_one_redis_answer_as_the_model_allows() {
    explore(Layout { name: "three_processes_on_one_redis", processes: 3, with_redis: true, runs: 2 }).await;
}
