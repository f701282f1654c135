//! What holds for any bytes: the bodies of the fuzz targets, each played on inputs that failed once and on new ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "properties/cache_control.rs"]
mod cache_control;
#[path = "properties/configuration.rs"]
mod configuration;
#[path = "properties/head.rs"]
mod head;
#[path = "properties/mutation.rs"]
mod mutation;
#[path = "properties/range.rs"]
mod range;
#[path = "properties/record.rs"]
mod record;
#[path = "properties/target.rs"]
mod target;
#[path = "properties/vary.rs"]
mod vary;

use std::path::Path;

use mutation::Mutation;

/// Plays the fuzzer's seeds and what failed once, and as many inputs made of these; `FUZZ_RUNS` times as many where it
/// is set.
fn hold(name: &str, runs: usize, check: fn(&[u8])) {
    let known: Vec<Vec<u8>> = ["seeds", "regressions"].iter().flat_map(|folder| inputs(folder, name)).collect();
    assert!(!known.is_empty());
    let times = std::env::var("FUZZ_RUNS").map_or(1, |times| times.parse().unwrap());
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("again with FUZZ_SEED={seed}");
    let mut mutation = Mutation::new(seed, &known);
    let new = std::iter::repeat_with(|| mutation.input()).take(runs * times);
    for input in known.iter().cloned().chain(new) {
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("does not hold for b\"{}\"", input.escape_ascii());
        }
    }
}

fn inputs(folder: &str, name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(name);
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn a_record_is_read_as_it_was_written_or_not_at_all() {
    hold("record", 10_000, record::check);
}

#[test]
fn cache_control_is_read_in_the_most_restrictive_way() {
    hold("cache_control", 20_000, cache_control::check);
}

#[test]
fn selecting_fields_and_validators_are_read_in_one_form() {
    hold("vary", 20_000, vary::check);
}

#[test]
fn a_range_is_answered_with_the_bytes_that_it_names() {
    hold("range", 20_000, range::check);
}

#[test]
fn what_is_sent_upstream_has_the_key_it_is_stored_under() {
    hold("target", 20_000, target::check);
}

#[test]
fn every_head_that_hyper_hands_out_was_seen_before() {
    hold("head", 5_000, head::check);
}

#[test]
fn a_configuration_that_is_accepted_prints_as_one_that_is() {
    hold("configuration", 1_500, configuration::check);
}
