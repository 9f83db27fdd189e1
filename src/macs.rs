//! Costs of a network before and after a cut: parameters, multiply-accumulate operations and activation memory.

pub mod demand;
pub mod memory;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::fold::{Fold, Replaced};
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, is_float};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, Node, ValueId};
use crate::onnx::DataType;
use crate::operator::couple::Coupling;
use crate::operator::couple::kept::Kept;
use crate::operator::macs::{MacsCx, elements};
use crate::operator::{Operator, Operators};

/// The costs of a network at given sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Number of elements of all floating-point and quantised constants that nodes take as input. Excludes the scales
    /// and zero points of quantised constants, and tables of zeros.
    pub parameters: u64,
    /// Multiply-accumulate operations of layers with weights. A bias counts as one operation, as in the paper and in
    /// Torch-Pruning.
    pub macs: f64,
    /// Multiply-accumulate operations of products of activations, as in attention.
    pub attention_macs: f64,
    /// Maximum total size in bytes of the values that are alive at the same time, if nodes run in order.
    pub activation_bytes: u64,
}

/// Counts the costs of a network, or of its kept part after a cut.
#[derive(Clone, Copy)]
pub struct Counter<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its operators.
    pub operators: &'a Operators,
    /// The values that are computed ahead of time.
    pub fold: &'a Fold,
    /// The facts of its values.
    pub facts: &'a Facts,
    /// Its coupling.
    pub coupling: &'a Coupling,
    /// Returns whether a value is a constant.
    pub is_constant: &'a dyn Fn(ValueId) -> bool,
    /// Constants that are not parameters, see [`zero_tables`].
    pub zero_tables: &'a BTreeSet<ValueId>,
}

/// Returns the outputs of Constant nodes that contain only zeros: exporters write them as buffers that are filled
/// later. An initializer of zeros is a parameter that is not trained yet.
pub fn zero_tables(model: &Model, graph: &Graph) -> BTreeSet<ValueId> {
    let is_table = |value: &ValueId| {
        let of_node = graph.values[*value].producer.and_then(|_| graph.tensor(model, *value));
        let bytes = of_node.and_then(|tensor| model.tensor_bytes(tensor).ok());
        bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    };
    (0..graph.values.len()).filter(is_table).collect()
}

/// Returns whether a constant of this type may be a weight. Sizes and indices have other types.
fn may_be_weight(dtype: DataType) -> bool {
    let is_wide = matches!(dtype, DataType::Bool | DataType::String | DataType::Undefined);
    is_float(dtype) || (!is_wide && dtype.bit_size().is_some_and(|bits| bits <= 16))
}

impl Counter<'_> {
    fn shape_of(&self, value: usize, kept: Option<&Kept>, sizes: &Sizes) -> Option<Vec<i64>> {
        let shape = self.facts.values[value].as_ref()?.shape.as_ref()?;
        let dims = match (kept, &self.coupling.layouts[value]) {
            (Some(kept), Some(layout)) => kept.shape(layout),
            _ => shape.clone(),
        };
        // The pieces of an axis may use other symbols than its size. If nothing shrinks, the size counts.
        dims.iter().zip(shape).map(|(dim, old)| dim.eval(sizes).or_else(|| old.eval(sizes))).collect()
    }

    fn input_shape(&self, node: &Node, slot: usize, kept: Option<&Kept>, sizes: &Sizes) -> Option<Vec<i64>> {
        let value = node.input(slot)?;
        let (Some(kept), Some(weight)) = (kept, self.coupling.weight_use(node.id, slot)) else {
            return self.shape_of(value, kept, sizes);
        };
        let shape = self.facts.values[value].as_ref()?.shape.as_ref()?;
        let size = |(axis, size): (usize, &Dim)| match weight.axes.get(axis).copied().flatten() {
            Some(space) => kept.axis_size(&self.coupling.spaces.whole(space)).as_const(),
            None => size.eval(sizes),
        };
        shape.iter().enumerate().map(size).collect()
    }

    /// Returns the computed weights that a cut turns into constants.
    fn replaced(&self, kept: Option<&Kept>) -> Replaced {
        kept.map_or_else(Replaced::default, |kept| self.fold.replaced(self.graph, self.coupling, kept))
    }

    /// Returns the number of operations of every node.
    pub fn macs_by_node(&self, kept: Option<&Kept>, sizes: &Sizes) -> Vec<f64> {
        let replaced = self.replaced(kept);
        self.graph
            .nodes
            .iter()
            .map(|node| {
                if replaced.is_removed(node.id) {
                    return 0.0;
                }
                let inputs: Vec<_> =
                    (0..node.inputs.len()).map(|slot| self.input_shape(node, slot, kept, sizes)).collect();
                let outputs: Vec<_> =
                    node.outputs.iter().map(|v| v.and_then(|v| self.shape_of(v, kept, sizes))).collect();
                let cx = MacsCx {
                    inputs: inputs.iter().map(Option::as_deref).collect(),
                    outputs: outputs.iter().map(Option::as_deref).collect(),
                };
                self.operators.get(node.id).map_or(0.0, |op| op.macs(&cx))
            })
            .collect()
    }

    /// Returns whether a constant counts as a parameter at an input of a node. Input 0 of a quantisation operator holds
    /// the numbers.
    fn is_parameter(&self, node: &Node, slot: usize, fact: &Fact) -> bool {
        match self.operators.get(node.id).is_some_and(<dyn Operator>::quantizes) {
            true => slot == 0,
            false => may_be_weight(fact.dtype),
        }
    }

    /// Returns the number of elements of the constants that nodes use as weights. Different slices of one constant
    /// count separately.
    pub fn parameters(&self, kept: Option<&Kept>) -> u64 {
        let mut forms: BTreeSet<(usize, crate::operator::couple::kept::Slices)> = BTreeSet::new();
        let mut total = 0;
        let replaced = self.replaced(kept);
        let is_read = |node: &&Node| !replaced.is_removed(node.id);
        for node in self.graph.nodes.iter().filter(is_read) {
            for (slot, value) in node.inputs.iter().enumerate() {
                let Some(value) = value.filter(|value| (self.is_constant)(*value)) else {
                    continue;
                };
                let fact = self.facts.values[value].as_ref().filter(|fact| self.is_parameter(node, slot, fact));
                let Some(fact) = fact.filter(|_| !self.zero_tables.contains(&value)) else {
                    continue;
                };
                if self.fold.contains(value) && !replaced.values.contains(&value) {
                    // Nodes compute it from constants that are counted themselves.
                    continue;
                }
                let mut slices = crate::operator::couple::kept::Slices::new();
                if let (Some(kept), Some(weight)) = (kept, self.coupling.weight_use(node.id, slot)) {
                    for (axis, space) in weight.axes.iter().enumerate() {
                        slices.extend(space.and_then(|space| kept.indices(space)).map(|indices| (axis, indices)));
                    }
                }
                let mut dims: Vec<i64> = fact.shape.iter().flatten().map(|size| size.as_const().unwrap_or(1)).collect();
                for (axis, indices) in &slices {
                    dims[*axis] = indices.len() as i64;
                }
                if forms.insert((value, slices)) {
                    total += elements(&dims) as u64;
                }
            }
        }
        total
    }

    /// Returns for every node whether it uses a weight: a constant, or a value computed only from constants.
    fn has_weight(&self) -> Vec<bool> {
        let mut is_weight: Vec<bool> = (0..self.graph.values.len()).map(|value| (self.is_constant)(value)).collect();
        self.graph
            .nodes
            .iter()
            .map(|node| {
                let mut inputs = node.inputs.iter().flatten();
                if node.inputs.iter().flatten().next().is_some() && inputs.clone().all(|value| is_weight[*value]) {
                    node.outputs.iter().flatten().for_each(|value| is_weight[*value] = true);
                }
                inputs.any(|value| is_weight[*value])
            })
            .collect()
    }

    /// Returns the number of operations of all layers with weights, and of all products of activations.
    pub fn macs(&self, kept: Option<&Kept>, sizes: &Sizes) -> (f64, f64) {
        let (mut weights, mut activations) = (0.0, 0.0);
        for (macs, has_weight) in self.macs_by_node(kept, sizes).into_iter().zip(self.has_weight()) {
            if has_weight { weights += macs } else { activations += macs }
        }
        (weights, activations)
    }

    /// Returns all costs.
    pub fn cost(&self, kept: Option<&Kept>, sizes: &Sizes) -> Cost {
        let (macs, attention_macs) = self.macs(kept, sizes);
        Cost {
            parameters: self.parameters(kept),
            macs,
            attention_macs,
            activation_bytes: self.activation_bytes(kept, sizes),
        }
    }

    fn activation_bytes(&self, kept: Option<&Kept>, sizes: &Sizes) -> u64 {
        let replaced = self.replaced(kept);
        let is_removed =
            |value: usize| self.graph.values[value].producer.is_some_and(|(node, _)| replaced.is_removed(node));
        let bytes: Vec<u64> = (0..self.graph.values.len())
            .map(|value| {
                if (self.is_constant)(value) || is_removed(value) {
                    return 0;
                }
                let element = self.facts.values[value].as_ref().and_then(|fact: &Fact| fact.dtype.byte_size());
                let count = self.shape_of(value, kept, sizes).map_or(0.0, |shape| elements(&shape));
                // A model may declare sizes that exceed any memory.
                (count.max(0.0) as u64).saturating_mul(element.unwrap_or(0) as u64)
            })
            .collect();
        memory::peak(self.graph, &|value| bytes[value])
    }
}
