//! The layers that can be quantised.

use super::QuantizeOptions;
use crate::deploy::half::KeptNode;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, NodeId, ValueId};
use crate::onnx::DataType;
use crate::onnx::floats::Floats;
use crate::operator::{Operators, Quantized};

/// A layer: a node with a constant weight.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) node: NodeId,
    pub(super) slots: Quantized,
    pub(super) data: ValueId,
    pub(super) weight: ValueId,
    /// The bias, if it is constant.
    pub(super) bias: Option<ValueId>,
    pub(super) output: ValueId,
}

/// Returns all layers that can be quantised, and those that are kept in float32.
pub(super) fn find(
    (model, graph, operators, facts): (&Model, &Graph, &Operators, &Facts),
    options: &QuantizeOptions<'_>,
) -> Result<(Vec<Layer>, Vec<KeptNode>), Error> {
    let is_float = |value: ValueId| facts.values[value].as_ref().is_some_and(|fact| fact.dtype == DataType::Float);
    let (mut layers, mut kept) = (Vec::new(), Vec::new());
    for node in &graph.nodes {
        let Some(operator) = operators.get(node.id) else { continue };
        let rank = |slot: usize| facts.values[node.input(slot)?].as_ref()?.rank();
        let Some(slots) = rank(1).and_then(|rank| operator.quantized(rank)) else { continue };
        let (Some(data), Some(weight), Some(output)) =
            (node.input(slots.data), node.input(slots.weight), node.output(0))
        else {
            continue;
        };
        let constant = |value: ValueId| graph.tensor(model, value).is_some();
        if !constant(weight) || constant(data) || ![data, weight, output].into_iter().all(is_float) {
            continue;
        }
        let mut keep = |reason: String| kept.push(KeptNode { node: node.name.clone(), op: node.op(), reason });
        let names = [&node.name, &graph.values[weight].name];
        if options.keep.iter().any(|pattern| names.iter().any(|name| pattern.is_match(name))) {
            keep("requested by --keep".to_owned());
            continue;
        }
        let range = options.ranges.get(&graph.values[data].name);
        if !range.is_some_and(|range| range.magnitude().is_finite()) {
            keep("the range of its input is not known or not finite".to_owned());
            continue;
        }
        let bias = node.input(slots.bias);
        if options.style.quantizes_biases && bias.is_some_and(|bias| !constant(bias)) {
            keep("its bias is computed".to_owned());
            continue;
        }
        layers.push(Layer { node: node.id, slots, data, weight, bias: bias.filter(|bias| constant(*bias)), output });
    }
    Ok((layers, kept))
}

/// Returns the elements of a constant, and its sizes.
pub(super) fn floats(model: &Model, graph: &Graph, value: ValueId) -> Result<(Vec<f32>, Vec<i64>), Error> {
    let Some(tensor) = graph.tensor(model, value) else { return Ok((Vec::new(), Vec::new())) };
    let bytes = model.tensor_bytes(tensor)?;
    let values = Floats::of(tensor.element_type(), &bytes).map(Floats::to_f32).unwrap_or_default();
    Ok((values, tensor.dims.clone()))
}
