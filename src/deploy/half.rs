//! A float32 network in half precision: weights and activations, except for what half precision can't represent.
//!
//! Every node that supports half precision, according to the operators' schemas, is converted. Some nodes are kept in
//! float32, with casts where the two meet:
//!
//! - nodes whose inputs or outputs, on the samples, have elements near or beyond the largest float16, or only elements
//!   below its smallest normal number;
//! - nodes that read constants that it can't represent;
//! - nodes whose inputs are angles, or become integers, that are so large that half precision would round them too much,
//!   with the nodes that compute these inputs;
//! - bodies of If, Loop and Scan.

mod decide;

mod emit;

use regex::Regex;
use serde::Serialize;

use super::form::Form;
use super::ranges::Ranges;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::onnx::DataType;
use crate::operator::Operators;

/// The settings of a conversion to half precision.
#[derive(Clone, Debug)]
pub struct HalfOptions<'a> {
    /// float16 or bfloat16.
    pub dtype: DataType,
    /// Whether inputs and outputs of the graph are in half precision too.
    pub halves_interface: bool,
    /// Nodes whose names match one of these are kept in float32.
    pub keep: &'a [Regex],
    /// The ranges of the network's values on samples.
    pub ranges: &'a Ranges,
}

/// A node that is kept in float32, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeptNode {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The reason, in words.
    pub reason: String,
}

/// The result of a conversion to half precision.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HalfReport {
    /// Number of nodes that compute in half precision.
    pub half: usize,
    /// Nodes that are kept in float32, without those whose only reason is their neighbours.
    pub kept: Vec<KeptNode>,
    /// Number of casts that were added between the two.
    pub casts: usize,
}

/// Whether a network already computes in half precision: more of its values are in it than in float32.
pub fn is_half(facts: &Facts) -> bool {
    let count =
        |wanted: &dyn Fn(DataType) -> bool| facts.values.iter().flatten().filter(|fact| wanted(fact.dtype)).count();
    count(&|dtype| matches!(dtype, DataType::Float16 | DataType::Bfloat16)) > count(&|dtype| dtype == DataType::Float)
}

/// Converts the network to half precision.
///
/// # Errors
/// The network is already in half precision, or a weight can't be read.
pub fn halve(
    (model, graph, operators, facts): (&Model, &Graph, &Operators, &Facts),
    options: &HalfOptions<'_>,
) -> Result<(Form, HalfReport), Error> {
    if is_half(facts) {
        return Err(Error::usage("expected a network in float32, found one in half precision")
            .in_file(model.path())
            .hint("use --precision float32, which leaves the network unchanged"));
    }
    let decision = decide::Decision::new((model, graph, operators, facts), options)?;
    let (form, casts) = emit::emit((model, graph, facts), &decision, options)?;
    let report = HalfReport { half: decision.half_count(), kept: decision.kept(graph), casts };
    Ok((form, report))
}
