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

/// Plays what failed once, the seeds as they are, and as many changed inputs; `FUZZ_RUNS` times as many where it is set.
fn hold(name: &str, seeds: &[&[u8]], runs: usize, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(name);
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
    }
    seeds.iter().for_each(|seed| check(seed));
    let times = std::env::var("FUZZ_RUNS").map_or(1, |times| times.parse().unwrap());
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("again with FUZZ_SEED={seed}");
    let mut mutation = Mutation::new(seed, seeds);
    for _ in 0..runs * times {
        let input = mutation.next();
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("does not hold for \"{}\"", input.escape_ascii());
        }
    }
}

#[test]
fn a_record_is_read_as_it_was_written_or_not_at_all() {
    hold("record", record::SEEDS, 10_000, record::check);
}

#[test]
fn cache_control_is_read_in_the_most_restrictive_way() {
    hold("cache_control", cache_control::SEEDS, 20_000, cache_control::check);
}

#[test]
fn selecting_fields_and_validators_are_read_in_one_form() {
    hold("vary", vary::SEEDS, 20_000, vary::check);
}

#[test]
fn a_range_is_answered_with_the_bytes_that_it_names() {
    hold("range", range::SEEDS, 20_000, range::check);
}

#[test]
fn what_is_sent_upstream_has_the_key_it_is_stored_under() {
    hold("target", target::SEEDS, 20_000, target::check);
}

#[test]
fn every_head_that_hyper_hands_out_was_seen_before() {
    hold("head", head::SEEDS, 5_000, head::check);
}

#[test]
fn a_configuration_that_is_accepted_prints_as_one_that_is() {
    hold("configuration", configuration::SEEDS, 1_500, configuration::check);
}
