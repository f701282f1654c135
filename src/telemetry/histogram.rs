//! Latencies in log-linear buckets of atomics, and their quantiles.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets per octave: a quantile is off by at most half a sixteenth of its value.
const PER_OCTAVE_BITS: u32 = 4;
const PER_OCTAVE: u64 = 1 << PER_OCTAVE_BITS;
/// Values from 2^32 µs (71 minutes) on share the last bucket.
const MAX_MICROS: u64 = u32::MAX as u64;
const BUCKETS: usize = bucket(MAX_MICROS) + 1;

/// How often which latency was seen.
pub struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new(std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(MAX_MICROS).min(MAX_MICROS);
        self.buckets[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// The latency, in milliseconds, that each of `fractions` of all did not exceed; none while nothing was recorded.
    pub fn quantiles<const N: usize>(&self, fractions: [f64; N]) -> Option<[f64; N]> {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        (total > 0).then(|| fractions.map(|fraction| quantile(&counts, total, fraction)))
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
fn quantile(counts: &[u64], total: u64, fraction: f64) -> f64 {
    let rank = ((total as f64 * fraction).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    for (index, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return middle(index) / 1000.0;
        }
    }
    middle(BUCKETS - 1) / 1000.0
}

/// Below 16 µs a bucket is one microsecond; above, each octave has sixteen.
#[allow(clippy::cast_possible_truncation, reason = "at most BUCKETS")]
const fn bucket(micros: u64) -> usize {
    if micros < PER_OCTAVE {
        return micros as usize;
    }
    let octave = micros.ilog2() - PER_OCTAVE_BITS;
    let within = (micros >> octave) - PER_OCTAVE;
    (PER_OCTAVE * (octave as u64 + 1) + within) as usize
}

/// The middle of a bucket in microseconds.
#[allow(clippy::cast_precision_loss, reason = "below 2^33")]
fn middle(index: usize) -> f64 {
    let index = index as u64;
    if index < PER_OCTAVE {
        return index as f64;
    }
    let octave = index / PER_OCTAVE - 1;
    let low = (index % PER_OCTAVE + PER_OCTAVE) << octave;
    low as f64 + ((1_u64 << octave) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        let mut last = 0;
        for micros in 0..200_000 {
            let next = bucket(micros);
            assert!(next == last || next == last + 1, "{micros}");
            last = next;
        }
        assert_eq!(bucket(MAX_MICROS), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_within_a_thirtieth_of_the_value() {
        for micros in [1_u64, 15, 16, 17, 100, 999, 4096, 300_000, 71_000_000] {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros));
            let [p50, p99] = histogram.quantiles([0.5, 0.99]).unwrap();
            let millis = Duration::from_micros(micros).as_secs_f64() * 1000.0;
            assert!((p50 - millis).abs() <= millis / 30.0, "{micros} µs: {p50} ms");
            assert!((p50 - p99).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn quantiles_split_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles([0.5]), None);
        for _ in 0..98 {
            histogram.record(Duration::from_micros(10));
        }
        histogram.record(Duration::from_secs(7200));
        histogram.record(Duration::from_secs(7200));
        let [p50, p99] = histogram.quantiles([0.5, 0.99]).unwrap();
        assert!((p50 - 0.01).abs() < 1e-9);
        assert!(p99 > 4_000_000.0);
    }
}
