//! The time that the nodes of a session take, from the library's profile.
//!
//! The library writes a list of events in JSON: every run of the model (`cat` "Session", `name` "model_run") and every run
//! of a node's kernel (`cat` "Node", a name that ends in "_kernel_time", the operator as `args.op_name`), each with its
//! start `ts` and its duration `dur` in microseconds. The nodes are those of the optimised graph: fused ones, and changes
//! of layout that are not in the file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::RuntimeError;
use super::session::{Session, SessionOptions, failed};
use crate::array::Array;
use crate::files::TemporaryFolder;

/// The time that the nodes of one operator take in one run of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorTime {
    /// The operator, with the name of the library's kernel.
    pub operator: String,
    /// The number of runs of its nodes in one run of the session. It exceeds the number of nodes if a loop repeats them.
    pub count: usize,
    /// The time that all its nodes take, in milliseconds: the median over the runs of the session.
    pub median_ms: f64,
}

/// Runs a session with profiling and returns the times by operator, the longest first. `open` creates the session from
/// options that it must pass on. Profiling itself takes time, so the times are only for comparison with each other.
///
/// # Errors
/// `open` returns an error, the session fails, or the profile can't be read.
pub fn operator_times<E: From<RuntimeError>>(
    options: &SessionOptions,
    open: impl FnOnce(&SessionOptions) -> Result<Session, E>,
    inputs: &[(String, Array)],
    extent: (usize, usize),
) -> Result<Vec<OperatorTime>, E> {
    times_by(options, open, inputs, extent, |event| &event.args.op_name)
}

/// As [`operator_times`], but by the names of nodes instead of operators. The names are those of the optimised graph,
/// most of which are the file's.
///
/// # Errors
/// As [`operator_times`].
pub fn node_times<E: From<RuntimeError>>(
    options: &SessionOptions,
    open: impl FnOnce(&SessionOptions) -> Result<Session, E>,
    inputs: &[(String, Array)],
    extent: (usize, usize),
) -> Result<Vec<OperatorTime>, E> {
    times_by(options, open, inputs, extent, |event| event.name.trim_end_matches(KERNEL))
}

fn times_by<E: From<RuntimeError>>(
    options: &SessionOptions,
    open: impl FnOnce(&SessionOptions) -> Result<Session, E>,
    inputs: &[(String, Array)],
    (warmup, runs): (usize, usize),
    key: fn(&Event) -> &str,
) -> Result<Vec<OperatorTime>, E> {
    let fail = |text: String| RuntimeError::RunFailed { message: format!("the profile of a session: {text}") };
    let folder = TemporaryFolder::anywhere().map_err(|error| fail(error.to_string()))?;
    let prefix = folder.path().join("profile");
    let mut session = open(&SessionOptions { profile: Some(prefix), ..options.clone() })?;
    let prepared = session.prepare(inputs)?;
    for _ in 0..warmup + runs.max(1) {
        session.run_prepared(&prepared)?;
    }
    let path = session.inner.end_profiling().map_err(|error| failed(&error))?;
    let text = std::fs::read_to_string(&path).map_err(|error| fail(format!("{path}: {error}")))?;
    Ok(times(&text, runs.max(1), key).map_err(fail)?)
}

/// The fields of an event that are used.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    op_name: String,
}

/// The suffix of the names of kernel events.
const KERNEL: &str = "_kernel_time";

/// Computes the times in the last `runs` runs of the model, grouped by `key` of an event.
fn times(text: &str, runs: usize, key: fn(&Event) -> &str) -> Result<Vec<OperatorTime>, String> {
    let events: Vec<Event> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut spans: Vec<(u64, u64)> = events
        .iter()
        .filter(|event| event.cat == "Session" && event.name == "model_run")
        .map(|event| (event.ts, event.ts + event.dur))
        .collect();
    spans.sort_unstable();
    let spans = spans.split_off(spans.len().saturating_sub(runs));
    if spans.is_empty() {
        return Err("it contains no run".to_owned());
    }
    // For every operator, the count and the microseconds in each run.
    let mut by_operator: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.cat == "Node" && event.name.ends_with(KERNEL)) {
        let run = spans.iter().position(|(start, end)| (*start..=*end).contains(&event.ts));
        let Some(run) = run else { continue };
        let of_runs = by_operator.entry(key(event)).or_insert_with(|| vec![(0, 0); spans.len()]);
        of_runs[run].0 += 1;
        of_runs[run].1 += event.dur;
    }
    let mut times: Vec<OperatorTime> = by_operator
        .into_iter()
        .map(|(operator, mut of_runs)| {
            of_runs.sort_unstable_by_key(|(_, microseconds)| *microseconds);
            let (count, microseconds) = of_runs[of_runs.len() / 2];
            OperatorTime { operator: operator.to_owned(), count, median_ms: microseconds as f64 / 1e3 }
        })
        .collect();
    times.sort_by(|a, b| b.median_ms.total_cmp(&a.median_ms));
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_medians_over_the_last_runs() {
        let mut events = Vec::new();
        for run in 0..4u64 {
            let start = 1_000 * run;
            events.push(format!(r#"{{"cat":"Session","name":"model_run","ts":{start},"dur":900,"args":{{}}}}"#));
            for (at, dur) in [(10, 10 * (run + 1)), (200, 100)] {
                let args = r#"{"op_name":"Conv","provider":"CPUExecutionProvider"}"#;
                let ts = start + at;
                events.push(format!(r#"{{"cat":"Node","name":"a_kernel_time","ts":{ts},"dur":{dur},"args":{args}}}"#));
                events.push(format!(r#"{{"cat":"Node","name":"a_fence_before","ts":{ts},"dur":500,"args":{args}}}"#));
            }
            let ts = start + 400;
            events.push(format!(
                r#"{{"cat":"Node","name":"b_kernel_time","ts":{ts},"dur":300,"args":{{"op_name":"Mul"}}}}"#
            ));
        }
        let text = format!("[{}]", events.join(","));
        let expected = |operator: &str, count: usize, median_ms: f64| OperatorTime {
            operator: operator.to_owned(),
            count,
            median_ms,
        };
        // The first run is not among the last three. The second of these is the median.
        let by_operator: fn(&Event) -> &str = |event| &event.args.op_name;
        assert_eq!(times(&text, 3, by_operator), Ok(vec![expected("Mul", 1, 0.3), expected("Conv", 2, 0.13)]));
        assert!(times("[]", 3, by_operator).is_err() && times("{", 3, by_operator).is_err());
    }
}
