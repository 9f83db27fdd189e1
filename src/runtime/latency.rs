//! Measurement of the duration of runs.

use std::time::Instant;

use serde::Serialize;

use super::error::RuntimeError;
use super::session::{Prepared, Session};
use crate::array::Array;

/// The duration of the runs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The median in milliseconds.
    pub median_ms: f64,
    /// The shortest run in milliseconds.
    pub min_ms: f64,
    /// The 90th percentile in milliseconds: nine of ten runs take at most this long.
    pub p90_ms: f64,
    /// The number of measured runs. It is lower than requested if the time limit was reached.
    pub run_count: usize,
}

/// Measures sessions against each other. They take turns, run by run, so that other load on the machine affects all of
/// them equally.
///
/// `inputs` contains the inputs of each session. After `warmup` rounds, up to `runs` rounds are measured, at least one. No
/// further round begins `max_seconds` after the first warm-up run. Only the run itself is timed, not the handling of
/// inputs and outputs.
pub fn interleaved_latency(
    sessions: &mut [&mut Session],
    inputs: &[&[(String, Array)]],
    runs: usize,
    warmup: usize,
    max_seconds: f64,
) -> Result<Vec<Latency>, RuntimeError> {
    let prepared: Vec<Prepared<'_>> =
        sessions.iter().zip(inputs).map(|(session, inputs)| session.prepare(inputs)).collect::<Result<_, _>>()?;
    if prepared.len() != sessions.len() {
        let message = format!("expected inputs for the {} measured sessions, found {}", sessions.len(), inputs.len());
        return Err(RuntimeError::RunFailed { message });
    }
    let begin = Instant::now();
    let time_is_up = || begin.elapsed().as_secs_f64() >= max_seconds;
    for round in 0..warmup {
        if round > 0 && time_is_up() {
            break;
        }
        for (session, inputs) in sessions.iter_mut().zip(&prepared) {
            session.run_prepared(inputs)?;
        }
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); sessions.len()];
    for round in 0..runs.max(1) {
        if round > 0 && time_is_up() {
            break;
        }
        for ((session, inputs), times) in sessions.iter_mut().zip(&prepared).zip(&mut times) {
            let start = Instant::now();
            session.run_prepared(inputs)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times.into_iter().map(summary).collect())
}

impl Session {
    /// Measures this session alone; see [`interleaved_latency`].
    pub fn median_latency(
        &mut self,
        inputs: &[(String, Array)],
        runs: usize,
        warmup: usize,
        max_seconds: f64,
    ) -> Result<Latency, RuntimeError> {
        let measured = interleaved_latency(&mut [self], &[inputs], runs, warmup, max_seconds)?;
        // One session always has one measurement.
        Ok(measured.first().copied().unwrap_or_else(|| summary(Vec::new())))
    }
}

/// Computes the median, the minimum and the 90th percentile (the nearest rank) of the times.
fn summary(mut times: Vec<f64>) -> Latency {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let at = |index: usize| times.get(index).copied().unwrap_or(f64::NAN);
    let median_ms = if times.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 };
    let p90_ms = at((9 * times.len()).div_ceil(10).saturating_sub(1));
    Latency { median_ms, min_ms: at(0), p90_ms, run_count: times.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_time_or_the_mean_of_two() {
        let expected = Latency { median_ms: 2.0, min_ms: 1.0, p90_ms: 3.0, run_count: 3 };
        assert_eq!(summary(vec![3.0, 1.0, 2.0]), expected);
        assert_eq!(summary((1..=20).map(f64::from).collect()).p90_ms, 18.0);
        assert_eq!(summary(vec![4.0, 1.0, 2.0, 3.0]).median_ms, 2.5);
        assert!(summary(Vec::new()).median_ms.is_nan());
    }
}
