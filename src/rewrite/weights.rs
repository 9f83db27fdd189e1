//! The slice of every use of a constant, and the name under which it is written.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::Error;
use crate::fold::{Fold, Replaced};
use crate::graph::model::Model;
use crate::graph::{Graph, NodeId, Reader, ValueId};
use crate::onnx::names::Names;
use crate::onnx::{NodeProto, attr_tensor};
use crate::operator::couple::Coupling;
use crate::operator::couple::kept::Kept;
use crate::operator::couple::kept::Slices;
use crate::write::{InitializerOut, constant_slice};

/// One form of a constant: its kept indices, its name and its sizes.
#[derive(Clone, Debug)]
struct Variant {
    slices: Slices,
    name: String,
    dims: Vec<usize>,
}

/// The forms of every constant from which indices are removed.
#[derive(Clone, Debug, Default)]
pub struct WeightSlices {
    /// The distinct forms by value.
    variants: BTreeMap<ValueId, Vec<Variant>>,
    /// The value and the form that each input of a node uses.
    reads: HashMap<Reader, (ValueId, usize)>,
    /// Computed weights that become constants, and the nodes that are no longer needed.
    replaced: Replaced,
}

impl WeightSlices {
    /// Collects the distinct slices of every constant. If uses of a constant need different slices, each slice becomes
    /// a form. The name is kept for the whole constant if any use needs it, else for the first form. The other forms
    /// get new names from `names`.
    pub fn new(model: &Model, graph: &Graph, fold: &Fold, coupling: &Coupling, kept: &Kept, names: &mut Names) -> Self {
        let replaced = fold.replaced(graph, coupling, kept);
        let mut result = Self { replaced, ..Self::default() };
        let mut by_value: BTreeMap<ValueId, Vec<(Reader, Slices)>> = BTreeMap::new();
        for weight in &coupling.uses {
            let mut slices = Slices::new();
            for (axis, space) in weight.axes.iter().enumerate() {
                if let Some(indices) = space.and_then(|space| kept.indices(space)) {
                    slices.insert(axis, indices);
                }
            }
            by_value.entry(weight.value).or_default().push((weight.reader(), slices));
        }
        for (value, uses) in by_value {
            if uses.iter().all(|(_, slices)| slices.is_empty()) {
                continue;
            }
            let Some(tensor) = fold.constant(model, graph, value) else {
                continue;
            };
            let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
            let name = &graph.values[value].name;
            let seen: HashSet<Reader> = uses.iter().map(|(reader, _)| *reader).collect();
            let is_read_whole = graph.values[value].is_output
                || !graph.values[value].captured_by.is_empty()
                || graph.values[value]
                    .consumers
                    .iter()
                    .any(|&(node, slot)| !seen.contains(&Reader { node, slot }) && !result.replaced.is_removed(node));
            let mut variants: Vec<Variant> = Vec::new();
            if is_read_whole || uses.iter().any(|(_, slices)| slices.is_empty()) {
                variants.push(Variant { slices: Slices::new(), name: name.clone(), dims: dims.clone() });
            }
            for (reader, slices) in uses {
                let at = variants.iter().position(|variant| variant.slices == slices).unwrap_or_else(|| {
                    // The output of a Constant node keeps its name, and so does a folded value whose node is kept for
                    // another output.
                    let is_own = graph.values[value].initializer.is_some()
                        || (fold.contains(value) && !result.replaced.is_computed_too(graph, value));
                    let is_original = variants.is_empty() && is_own;
                    let new_name = if is_original {
                        name.clone()
                    } else {
                        names.numbered(&format!("{name}_pruned_"), variants.len())
                    };
                    let new_dims =
                        dims.iter().enumerate().map(|(axis, size)| slices.get(&axis).map_or(*size, Vec::len));
                    variants.push(Variant { slices: slices.clone(), name: new_name, dims: new_dims.collect() });
                    variants.len() - 1
                });
                result.reads.insert(reader, (value, at));
            }
            result.variants.insert(value, variants);
        }
        result
    }

    /// Returns the name and sizes of the form that input `slot` of a node uses. `None`: the constant has not changed.
    pub fn of(&self, node: NodeId, slot: usize) -> Option<(&String, &[usize])> {
        let (value, at) = self.reads.get(&Reader { node, slot })?;
        let variant = self.variants.get(value)?.get(*at)?;
        Some((&variant.name, &variant.dims))
    }

    /// Returns the slices of the constant that input `slot` of a node uses.
    pub fn kept(&self, node: NodeId, slot: usize) -> Option<&Slices> {
        let (value, at) = self.reads.get(&Reader { node, slot })?;
        self.variants.get(value)?.get(*at).map(|variant| &variant.slices)
    }

    /// Returns the computed weights that become constants, and the nodes that are no longer needed.
    pub fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Returns all uses of sliced constants as reader, value and slices, in the order of nodes.
    pub fn reads(&self) -> Vec<(Reader, ValueId, &Slices)> {
        let mut reads: Vec<_> = self
            .reads
            .iter()
            .filter_map(|(reader, (value, at))| Some((*reader, *value, &self.variants.get(value)?.get(*at)?.slices)))
            .filter(|(_, _, slices)| !slices.is_empty())
            .collect();
        reads.sort_by_key(|(reader, _, _)| *reader);
        reads
    }

    /// Returns the initializers to write in the file's order. New forms follow their original.
    ///
    /// # Errors
    /// A tensor can't be sliced.
    pub fn initializers(&self, model: &Model, graph: &Graph, fold: &Fold) -> Result<Vec<InitializerOut>, Error> {
        let mut result = Vec::new();
        for (index, tensor) in model.graph().initializer.iter().enumerate() {
            let variants = graph.value(&tensor.name).and_then(|value| self.variants.get(&value));
            let Some(variants) = variants else {
                result.push(InitializerOut::Original(index));
                continue;
            };
            for variant in variants {
                let axes: Vec<(usize, Vec<usize>)> = variant.slices.clone().into_iter().collect();
                result.push(if axes.is_empty() {
                    InitializerOut::Original(index)
                } else {
                    InitializerOut::Sliced { index, name: variant.name.clone(), axes }
                });
            }
        }
        for value in &self.replaced.values {
            let Some(tensor) = fold.constant(model, graph, *value) else { continue };
            let is_computed_too = self.replaced.is_computed_too(graph, *value);
            let Some(variants) = self.variants.get(value) else {
                if !is_computed_too {
                    result.push(InitializerOut::New(tensor.clone()));
                }
                continue;
            };
            for variant in variants.iter().filter(|variant| !is_computed_too || !variant.slices.is_empty()) {
                let axes: Vec<(usize, Vec<usize>)> = variant.slices.clone().into_iter().collect();
                let mut sliced = constant_slice(model, tensor, &axes)?;
                sliced.name.clone_from(&variant.name);
                result.push(InitializerOut::New(sliced));
            }
        }
        Ok(result)
    }

    /// Returns Constant nodes for the new forms of the outputs of Constant nodes. They remain nodes, because a constant
    /// that an exporter wrote as a node is not a trained weight: for example, a table of frequencies, or the scale of a
    /// norm without one.
    ///
    /// # Errors
    /// A tensor can't be sliced.
    pub fn constant_nodes(&self, model: &Model, graph: &Graph, fold: &Fold) -> Result<Vec<NodeProto>, Error> {
        let mut result = Vec::new();
        for (value, variants) in &self.variants {
            if graph.values[*value].initializer.is_some() || self.replaced.values.contains(value) {
                continue;
            }
            let Some(tensor) = fold.constant(model, graph, *value) else {
                continue;
            };
            // Uses of the whole output of a Constant node still use that output.
            for variant in variants.iter().filter(|variant| !variant.slices.is_empty()) {
                let axes: Vec<(usize, Vec<usize>)> = variant.slices.clone().into_iter().collect();
                result.push(NodeProto {
                    op_type: "Constant".to_owned(),
                    name: variant.name.clone(),
                    output: vec![variant.name.clone()],
                    attribute: vec![attr_tensor("value", constant_slice(model, tensor, &axes)?)],
                    ..NodeProto::default()
                });
            }
        }
        Ok(result)
    }

    /// Returns the initializers that are sliced and keep their name, with their new sizes.
    pub fn renamed_in_place(&self, graph: &Graph) -> Vec<(String, Vec<usize>)> {
        let mut result = Vec::new();
        for (value, variants) in &self.variants {
            let name = &graph.values[*value].name;
            for variant in variants.iter().filter(|variant| variant.name == *name && !variant.slices.is_empty()) {
                result.push((name.clone(), variant.dims.clone()));
            }
        }
        result
    }
}
