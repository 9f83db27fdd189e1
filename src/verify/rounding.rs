//! The rounding of a network: half precision, and activations quantised to few steps.
//!
//! Rounding can hide a fault as large as one wrong channel, and a difference in the last bit may become a whole step.
//! Networks that round are therefore compared as they are with a tolerance of a few steps, and once more *without
//! rounding*: half precision is [widened](super::widen), and activations are not quantised. The operators themselves
//! write both networks in this form ([`Operator::without_rounding`]), so the same numbers are compared. Quantised weights
//! are left as they are: they are the same numbers in both files.

use super::widen;
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::fact::is_float;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::onnx::builder::Builder;
use crate::onnx::type_proto::Value;
use crate::onnx::{DataType, GraphProto, ModelProto};
use crate::operator::{LowerCx, Operator};
use crate::ops;

/// The prefix of the names of new values and constants.
const PREFIX: &str = "__unrounded";

/// Relative tolerance in half precision, whose rounding alone causes differences of this size.
pub(super) const HALF: f64 = 2e-2;

/// Number of quantisation steps by which outputs may differ.
const STEPS: f64 = 4.0;

/// Maximum tolerance. At this one, a run shows little more than that the network works.
const MOST: f64 = 0.25;

/// How a network rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rounding {
    /// Whether any value has half precision.
    pub(super) is_half: bool,
    /// The number of bits of the coarsest quantised activations. `None`: no activation is quantised.
    pub(super) bits: Option<u32>,
}

impl Rounding {
    /// Returns how the network of an analysis rounds.
    pub(super) fn of(analysis: &Analysis) -> Self {
        let is_half = analysis.facts.values.iter().flatten().any(|fact| widen::is_half(fact.dtype as i32));
        let is_constant = computed_from_constants(&analysis.graph);
        let bits = analysis.graph.nodes.iter().filter_map(|node| {
            let is_activation = node.input(0).is_some_and(|value| !is_constant[value]);
            let quantizes = analysis.operators.get(node.id).is_some_and(<dyn Operator>::quantizes);
            let fact = analysis.facts.values[node.output(0)?].as_ref()?;
            (is_activation && quantizes).then_some(significant_bits(fact.dtype)?)
        });
        Self { is_half, bits: bits.min() }
    }

    /// Whether it rounds at all.
    pub(super) fn is_any(self) -> bool {
        self.is_half || self.bits.is_some()
    }

    /// Returns the relative tolerance for the network as it is; `exact` is that of a network without rounding.
    pub(super) fn tolerance(self, exact: f64) -> f64 {
        let half = if self.is_half { HALF } else { exact };
        // A step is a fraction of the whole range, which may be twice the largest magnitude.
        let steps = |bits: u32| (STEPS * 2.0 / ((1_u64 << bits) - 1) as f64).min(MOST);
        self.bits.map_or(0.0, steps) + half
    }
}

/// Returns the number of significant bits of a quantised type. `None`: the type does not round.
fn significant_bits(dtype: DataType) -> Option<u32> {
    match dtype {
        DataType::Float8e4m3fn | DataType::Float8e4m3fnuz => Some(4),
        DataType::Float8e5m2 | DataType::Float8e5m2fnuz => Some(3),
        DataType::Float4e2m1 => Some(2),
        DataType::Bool | DataType::String => None,
        _ if is_float(dtype) => None,
        other => other.bit_size().and_then(|bits| u32::try_from(bits).ok()).filter(|bits| *bits <= 32),
    }
}

/// Returns which values are computed from constants alone.
fn computed_from_constants(graph: &Graph) -> Vec<bool> {
    let mut is_constant: Vec<bool> = graph.values.iter().map(|value| value.initializer.is_some()).collect();
    for node in &graph.nodes {
        if node.inputs.iter().flatten().all(|value| is_constant[*value]) {
            node.outputs.iter().flatten().for_each(|value| is_constant[*value] = true);
        }
    }
    is_constant
}

/// Returns a network whose quantised activations are not rounded. `proto` has the operator sets of `model`.
///
/// # Errors
/// The network contradicts itself, or quantises activations in a form that can't be written without rounding.
pub(super) fn without_rounding(model: &Model, proto: &ModelProto) -> Result<ModelProto, Error> {
    let model = model.with_graph(proto.graph.clone().unwrap_or_default());
    let graph = Graph::new(&model)?;
    let operators = ops::parse(&graph);
    // These rules need no shapes, which are not known for all compared networks.
    let facts = Facts::unknown(graph.values.len());
    let is_constant = computed_from_constants(&graph);
    let mut builder = Builder::new(PREFIX, graph.opset, graph.names());
    for node in &graph.nodes {
        let is_activation = node.input(0).is_some_and(|value| !is_constant[value]);
        if let Some(operator) = operators.get(node.id).filter(|_| is_activation)
            && operator
                .without_rounding(&mut LowerCx::new(node, &facts, &mut builder))
                .map_err(|cause| Error::unsupported(cause.to_string()).at_node(&node.name, node.op()))?
        {
            continue;
        }
        builder.nodes.push(node.proto.clone());
    }
    let mut rewritten = GraphProto { node: builder.nodes, value_info: Vec::new(), ..model.graph().clone() };
    rewritten.initializer.extend(builder.initializers);
    for output in &mut rewritten.output {
        // Quantised outputs are floats now; ONNX Runtime infers their type.
        let tensor = match output.r#type.as_ref().and_then(|declared| declared.value.as_ref()) {
            Some(Value::TensorType(tensor)) => DataType::try_from(tensor.elem_type).ok(),
            _ => None,
        };
        if tensor.and_then(significant_bits).is_some_and(|bits| bits <= 16) {
            output.r#type = None;
        }
    }
    Ok(ModelProto { graph: Some(rewritten), ..proto.clone() })
}
