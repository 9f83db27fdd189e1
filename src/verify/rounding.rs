//! What a network rounds on its way: half precision, and activations in a few quantisation steps.
//!
//! Rounding can hide a fault as large as one wrong channel, and a difference in the last bit becomes a whole step. So
//! networks that round are compared as they are with a tolerance of a few steps, and once more *without rounding*: what
//! has half precision is [widened](super::widen), and quantised activations pass as they are. Both networks are
//! written so by the operators themselves ([`Operator::without_rounding`]), so that what is compared are the same numbers.
//! Quantised weights stay what they are: they are the same numbers in both files.

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

/// Names of new values and constants begin with this.
const PREFIX: &str = "__unrounded";

/// Relative tolerance in half precision, where rounding alone differs by so much.
pub(super) const HALF: f64 = 2e-2;

/// Quantisation steps by which outputs may differ.
const STEPS: f64 = 4.0;

/// No tolerance is larger: what remains is a sign of life.
const MOST: f64 = 0.25;

/// How a network rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rounding {
    /// Whether any value has half precision.
    pub(super) is_half: bool,
    /// The bits of the coarsest activations that are quantised.
    pub(super) bits: Option<u32>,
}

impl Rounding {
    /// How the network of an analysis rounds.
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

    /// The relative tolerance for the network as it is; `exact` is that of one that does not round.
    pub(super) fn tolerance(self, exact: f64) -> f64 {
        let half = if self.is_half { HALF } else { exact };
        // A step is a share of the whole range, which may be twice the largest magnitude.
        let steps = |bits: u32| (STEPS * 2.0 / ((1_u64 << bits) - 1) as f64).min(MOST);
        self.bits.map_or(0.0, steps) + half
    }
}

/// The bits in which quantised numbers of a type differ from their neighbours; `None` for types that do not round.
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

/// Which values are computed from constants alone.
fn computed_from_constants(graph: &Graph) -> Vec<bool> {
    let mut is_constant: Vec<bool> = graph.values.iter().map(|value| value.initializer.is_some()).collect();
    for node in &graph.nodes {
        if node.inputs.iter().flatten().all(|value| is_constant[*value]) {
            node.outputs.iter().flatten().for_each(|value| is_constant[*value] = true);
        }
    }
    is_constant
}

/// A network whose quantised activations are not rounded; `proto` has the operator sets of `model`.
///
/// # Errors
/// The network contradicts itself, or quantises activations in a form that can't be written without rounding.
pub(super) fn without_rounding(model: &Model, proto: &ModelProto) -> Result<ModelProto, Error> {
    let model = model.with_graph(proto.graph.clone().unwrap_or_default());
    let graph = Graph::new(&model)?;
    let operators = ops::parse(&graph);
    // Rules of this kind need no shapes, which are not known of all that is compared.
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
        // What was quantised is a float now; ONNX Runtime finds out by itself.
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
