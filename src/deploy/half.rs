//! A float32 network in half precision: weights and activations, but for what half precision does not hold.
//!
//! Every node that has a form in half precision, as the operators' schemas say, gets it. These stay in float32, with casts
//! where the two meet: nodes that read or give elements near or beyond the largest float16 on the samples, or only
//! elements below its least normal one; nodes that read constants that it does not hold; nodes whose results are angles, or become integers, that are
//! large and that half precision would round too far, with what leads to them; bodies of If, Loop and Scan.

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

/// How a network is brought to half precision.
#[derive(Clone, Debug)]
pub struct HalfOptions<'a> {
    /// float16 or bfloat16.
    pub dtype: DataType,
    /// Whether inputs and outputs of the graph are in half precision too.
    pub halves_interface: bool,
    /// Nodes whose names match one of these stay in float32.
    pub keep: &'a [Regex],
    /// What the values of the network were on samples.
    pub ranges: &'a Ranges,
}

/// A node that stays in float32, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeptNode {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why, in words.
    pub reason: String,
}

/// What became of the nodes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HalfReport {
    /// Nodes that compute in half precision.
    pub half: usize,
    /// Nodes that stay in float32 where half precision would be possible or the schemas have no form in it.
    pub kept: Vec<KeptNode>,
    /// Casts that were added between the two.
    pub casts: usize,
}

/// Whether a network computes in half precision already: more of its values are in it than in float32.
pub fn is_half(facts: &Facts) -> bool {
    let count =
        |wanted: &dyn Fn(DataType) -> bool| facts.values.iter().flatten().filter(|fact| wanted(fact.dtype)).count();
    count(&|dtype| matches!(dtype, DataType::Float16 | DataType::Bfloat16)) > count(&|dtype| dtype == DataType::Float)
}

/// The network in half precision.
///
/// # Errors
/// A network that is in half precision already; a weight that can't be read.
pub fn halve(
    (model, graph, operators, facts): (&Model, &Graph, &Operators, &Facts),
    options: &HalfOptions<'_>,
) -> Result<(Form, HalfReport), Error> {
    if is_half(facts) {
        return Err(Error::usage("expected a network in float32, found one in half precision")
            .in_file(model.path())
            .hint("give --precision float32, which leaves a network as it is"));
    }
    let decision = decide::Decision::new((model, graph, operators, facts), options)?;
    let (form, casts) = emit::emit((model, graph, facts), &decision, options)?;
    let report = HalfReport { half: decision.half_count(), kept: decision.kept(graph), casts };
    Ok((form, report))
}
