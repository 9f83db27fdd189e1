//! The minimum and maximum element of every value of a network, over runs on samples.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::array::Array;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::lower::session_with_outputs;
use crate::onnx::builder::Builder;
use crate::onnx::names::Names;
use crate::onnx::{DataType, GraphProto, attr_int};
use crate::runtime::{Runtime, RuntimeError, Session, SessionOptions};

/// The minimum and maximum element of a value; infinite if an element is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The minimum element.
    pub low: f64,
    /// The maximum element.
    pub high: f64,
}

impl Range {
    /// Returns the smallest range that contains both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// Returns the largest magnitude.
    pub fn magnitude(self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    fn of(low: f64, high: f64) -> Self {
        if low.is_nan() || high.is_nan() {
            Self { low: f64::NEG_INFINITY, high: f64::INFINITY }
        } else {
            Self { low, high }
        }
    }
}

/// Ranges by the names of values.
pub type Ranges = BTreeMap<String, Range>;

/// The inputs of one run, by name.
pub type Inputs = Vec<(String, Array)>;

/// A callback that gets the number of runs done and of all runs; its error ends the work.
pub type Steps<'a> = dyn FnMut(usize, usize) -> Result<(), Error> + 'a;

/// Computes the ranges of all float32 values that nodes compute or the network takes, over runs on these inputs.
///
/// # Errors
/// The network does not run, or `steps` returns an error.
pub fn watch_ranges(
    runtime: &Runtime,
    (model, graph, facts): (&Model, &Graph, &Facts),
    batches: &[Inputs],
    steps: &mut Steps<'_>,
) -> Result<Ranges, Error> {
    let is_watched = |value: &ValueId| {
        let fact = facts.values[*value].as_ref().filter(|fact| fact.dtype == DataType::Float);
        let is_empty = |fact: &crate::graph::fact::Fact| fact.shape.iter().flatten().any(|size| size.is(0));
        fact.is_some_and(|fact| !is_empty(fact)) && graph.tensor(model, *value).is_none()
    };
    let computed: Vec<ValueId> =
        graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten()).copied().filter(is_watched).collect();
    let mut builder = Builder::new("__range", graph.opset, Names::of_graph(model.graph()));
    let mut reduce = |op_type: &str, value: &str| builder.add(op_type, &[value], vec![attr_int("keepdims", 0)]);
    let ends: Vec<[String; 2]> = computed
        .iter()
        .map(|value| ["ReduceMin", "ReduceMax"].map(|op_type| reduce(op_type, &graph.values[*value].name)))
        .collect();
    let node = graph.nodes.iter().map(|node| node.proto.clone()).chain(builder.nodes).collect();
    let watched = GraphProto { node, ..model.graph().clone() };
    let names: Vec<&str> = ends.iter().flatten().map(String::as_str).collect();
    let mut ranges = Ranges::new();
    let mut note = |name: &str, range: Range| {
        ranges.entry(name.to_owned()).and_modify(|known: &mut Range| *known = known.union(range)).or_insert(range);
    };
    let mut session = session_with_outputs(runtime, &model.with_graph(watched), &names, &SessionOptions::default())?;
    for (at, inputs) in batches.iter().enumerate() {
        steps(at, batches.len())?;
        for (name, array) in inputs {
            let values = array.to_f64();
            let (low, high) = values
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
            note(name, Range::of(low, high));
        }
        let given = taken(&session, inputs);
        let outputs: BTreeMap<String, Array> =
            session.run(&given).map_err(|error| failed(model, &error))?.into_iter().collect();
        for (value, [low, high]) in computed.iter().zip(&ends) {
            let end = |name: &String| outputs.get(name).and_then(|array| array.to_f64().first().copied());
            if let (Some(low), Some(high)) = (end(low), end(high)) {
                note(&graph.values[*value].name, Range::of(low, high));
            }
        }
    }
    Ok(ranges)
}

/// Returns those inputs that a session takes.
pub(crate) fn taken(session: &Session, inputs: &[(String, Array)]) -> Inputs {
    let is_taken = |name: &str| session.inputs().iter().any(|input| input.name == name);
    inputs.iter().filter(|(name, _)| is_taken(name)).cloned().collect()
}

/// Returns the error of a run that failed.
pub(crate) fn failed(model: &Model, error: &RuntimeError) -> Error {
    Error::unmet(error.to_string()).in_file(model.path())
}
