//! The constants of the pruned network: their current values, and the stored ones that must change for a weight to change.

use std::collections::{BTreeSet, HashMap, HashSet};

use ndarray::{ArrayD, IxDyn};
use prost::Message;

use super::network::Network;
use super::segment::Changed;
use crate::changed::Changes;
use crate::error::Error;
use crate::gradient::{widened_node, widened_tensor};
use crate::graph::tensor::stored_bytes;
use crate::graph::{NodeId, ValueId};
use crate::onnx::numbers::{packed_numbers, rounded};
use crate::onnx::{GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::operator::PreimageCx;
use crate::runtime::{Optimization, Runtime, SessionOptions};

/// How much a constant that should remain unchanged may change, relative to its largest element. Undoing and redoing a
/// product is not exact.
const TOLERANCE: f32 = 1e-6;

/// Returns the elements of a tensor of numbers.
pub(super) fn elements(tensor: &TensorProto) -> Option<Vec<f32>> {
    let count = tensor.dims.iter().product::<i64>();
    packed_numbers(tensor.element_type(), &stored_bytes(tensor), usize::try_from(count).ok()?)
}

/// Values of constants by their ids.
type Values = HashMap<ValueId, ArrayD<f32>>;

/// Stored constants that have changed, and the new weight that is computed from them.
pub(super) struct Assigned {
    pub(super) tensors: Vec<TensorProto>,
    /// The elements of the weight as the network now computes them.
    pub(super) weight: Vec<f32>,
}

/// The constants of a network.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) network: &'a Network,
    pub(super) runtime: &'a Runtime,
    /// The constants of the file that can change.
    pub(super) changes: &'a Changes<'a>,
}

impl Stored<'_> {
    /// Whether a value is stored in the form in which it is read: an initializer, or the constant of a Constant node.
    pub(super) fn is_direct(&self, value: ValueId) -> bool {
        self.network.graph().tensor(&self.network.lowered.model, value).is_some()
    }

    /// Returns the nodes that compute a constant, in the order of the graph, and the stored constants that they start from.
    fn origin(&self, value: ValueId) -> (BTreeSet<NodeId>, BTreeSet<ValueId>) {
        let graph = self.network.graph();
        let (mut nodes, mut sources) = (BTreeSet::new(), BTreeSet::new());
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            match graph.values[value].producer {
                Some((node, _)) if !self.is_direct(value) => {
                    if nodes.insert(node) {
                        open.extend(graph.nodes[node].inputs.iter().flatten());
                    }
                }
                _ => _ = sources.insert(value),
            }
        }
        (nodes, sources)
    }

    /// Returns the current value of a stored constant.
    fn source(&self, value: ValueId, changed: &Changed) -> Result<ArrayD<f32>, Error> {
        let (model, graph) = (&self.network.lowered.model, self.network.graph());
        let name = &graph.values[value].name;
        let fail = || Error::unmet(format!("{name:?} is not a constant whose elements can be read"));
        let (dims, values) = match changed.weights.get(name) {
            Some(tensor) => (tensor.dims.clone(), elements(tensor)),
            None => {
                let tensor = graph.tensor(model, value).ok_or_else(fail)?;
                let bytes = model.tensor_bytes(tensor)?;
                let count = usize::try_from(tensor.dims.iter().product::<i64>()).unwrap_or(0);
                (tensor.dims.clone(), packed_numbers(tensor.element_type(), &bytes, count))
            }
        };
        let dims: Vec<usize> = dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        ArrayD::from_shape_vec(IxDyn(&dims), values.ok_or_else(fail)?).map_err(|_| fail())
    }

    /// Returns the current value of a constant.
    ///
    /// # Errors
    /// Its elements can't be read or computed.
    pub(super) fn value(&self, value: ValueId, changed: &Changed) -> Result<ArrayD<f32>, Error> {
        if self.is_direct(value) {
            return self.source(value, changed);
        }
        let mut values = self.computed(&[value], changed)?;
        let name = &self.network.graph().values[value].name;
        values.remove(&value).ok_or_else(|| Error::unmet(format!("{name:?} can't be computed from constants")))
    }

    /// Returns the current values of constants that nodes compute, without those that are not floating point.
    fn computed(&self, wanted: &[ValueId], changed: &Changed) -> Result<Values, Error> {
        let (model, graph) = (&self.network.lowered.model, self.network.graph());
        let mut part = GraphProto { name: "constants".to_owned(), ..GraphProto::default() };
        let mut nodes = BTreeSet::new();
        let mut sources = BTreeSet::new();
        for value in wanted.iter().filter(|value| self.network.is_float(**value)) {
            let (of, from) = self.origin(*value);
            nodes.extend(of);
            sources.extend(from);
            part.output.push(ValueInfoProto { name: graph.values[*value].name.clone(), ..ValueInfoProto::default() });
        }
        for source in sources {
            let name = &graph.values[source].name;
            if let Some(tensor) = changed.weights.get(name) {
                part.initializer.push(tensor.clone());
            } else if let Some(tensor) = graph.tensor(model, source) {
                part.initializer.push(TensorProto { name: name.clone(), ..widened_tensor(model, tensor)? });
            }
        }
        for node in nodes {
            part.node.push(widened_node(model, &graph.nodes[node].proto)?);
        }
        if part.output.is_empty() {
            return Ok(Values::new());
        }
        let proto = model.proto();
        let whole = ModelProto {
            ir_version: proto.ir_version.max(4),
            opset_import: proto.opset_import.clone(),
            graph: Some(part),
            ..ModelProto::default()
        };
        let options = SessionOptions {
            optimization: Optimization::None,
            external_data_folder: Some(model.data_folder()),
            ..SessionOptions::default()
        };
        let bytes = model.located(&whole).encode_to_vec();
        let mut session = self.runtime.session_from_bytes(&bytes, &options)?;
        let mut values = Values::new();
        for (name, array) in session.run(&[])? {
            if let (Some(value), Some(array)) = (graph.value(&name), super::arrays::floats(array)) {
                values.insert(value, array);
            }
        }
        Ok(values)
    }

    /// Returns the names of the stored constants that may change for a weight to change.
    pub(super) fn sources(&self, weight: ValueId) -> Vec<String> {
        let graph = self.network.graph();
        let (_, sources) = self.origin(weight);
        let names = sources.into_iter().filter(|value| self.is_direct(*value));
        names.map(|value| graph.values[value].name.clone()).collect()
    }

    /// Returns the values computed from `sources` that nodes outside the constant part of the network read.
    fn read_outside(&self, sources: &HashSet<ValueId>) -> Vec<ValueId> {
        let graph = self.network.graph();
        let mut follows = sources.clone();
        for node in &graph.nodes {
            let is_constant = |value: &ValueId| !self.network.is_computed(*value);
            if self.network.read_by(node).iter().any(|value| follows.contains(value)) {
                follows.extend(node.outputs.iter().flatten().copied().filter(is_constant));
            }
        }
        let is_read = |value: &ValueId| {
            let value = &graph.values[*value];
            let is_outside = |node: &NodeId| {
                graph.nodes[*node].outputs.iter().flatten().any(|output| self.network.is_computed(*output))
            };
            value.is_output || value.consumers.iter().map(|(node, _)| node).chain(&value.captured_by).any(is_outside)
        };
        let mut values: Vec<ValueId> = follows.into_iter().filter(is_read).collect();
        values.sort_unstable();
        values
    }

    /// Changes the stored constants from which nodes compute a weight, so that they compute `wanted` as closely as the
    /// stored types allow. The inner `Err` is the reason why this is not possible.
    ///
    /// # Errors
    /// Constants can't be read or computed.
    pub(super) fn assign(
        &self,
        weight: ValueId,
        wanted: ArrayD<f32>,
        changed: &mut Changed,
    ) -> Result<Result<Assigned, String>, Error> {
        let graph = self.network.graph();
        let (nodes, sources) = self.origin(weight);
        let mut all: Vec<ValueId> =
            nodes.iter().flat_map(|node| graph.nodes[*node].outputs.iter().flatten()).copied().collect();
        all.sort_unstable();
        let mut values = self.computed(&all, changed)?;
        for source in &sources {
            if let Ok(value) = self.source(*source, changed) {
                values.insert(*source, value);
            }
        }
        let mut targets: Values = HashMap::from([(weight, wanted)]);
        for id in nodes.iter().rev() {
            let node = &graph.nodes[*id];
            if !node.outputs.iter().flatten().any(|output| targets.contains_key(output)) {
                continue;
            }
            let current = |value: &Option<ValueId>| value.and_then(|value| values.get(&value).cloned());
            let wanted = |value: &Option<ValueId>| {
                value.and_then(|value| targets.get(&value).or_else(|| values.get(&value)).cloned())
            };
            let inputs: Vec<_> = node.inputs.iter().map(current).collect();
            let outputs: Vec<_> = node.outputs.iter().map(wanted).collect();
            let mut cx = PreimageCx { inputs: &inputs, outputs: &outputs, given: Vec::new() };
            let result = self.network.lowered.operators.of(*id).and_then(|operator| operator.preimage(&mut cx));
            if let Err(cause) = result {
                return Ok(Err(format!("its weight is computed by node {:?} ({}): {cause}", node.name, node.op())));
            }
            for (slot, value) in cx.given {
                if let Some(input) = node.input(slot) {
                    targets.insert(input, value);
                }
            }
        }
        let mut tensors = Vec::new();
        for source in &sources {
            let Some(target) = targets.remove(source) else { continue };
            if values.get(source) == Some(&target) {
                continue;
            }
            let Some(tensor) = graph.tensor(&self.network.lowered.model, *source) else { continue };
            if let Some(why) = self.changes.refusal(&graph.values[*source].name) {
                return Ok(Err(why));
            }
            let (name, elements) = (&graph.values[*source].name, target.iter().copied().collect::<Vec<f32>>());
            // Floating point numbers are rounded once, when the file is written.
            let dtype = crate::gradient::widened_type(tensor.element_type());
            match rounded(name, dtype, &elements, &tensor.dims) {
                Some(tensor) => tensors.push(tensor),
                None => {
                    return Ok(Err(format!(
                        "its weight {name:?} is stored as {}, which a refit can't write",
                        dtype.spec_name()
                    )));
                }
            }
        }
        self.compared(weight, tensors, changed)
    }

    /// Returns the weight computed from these stored constants, if no other value changes with them.
    fn compared(
        &self,
        weight: ValueId,
        tensors: Vec<TensorProto>,
        changed: &mut Changed,
    ) -> Result<Result<Assigned, String>, Error> {
        let graph = self.network.graph();
        let sources: HashSet<ValueId> = tensors.iter().filter_map(|tensor| graph.value(&tensor.name)).collect();
        let outside = self.read_outside(&sources);
        if let Some(other) = outside.iter().find(|value| sources.contains(value)) {
            let name = &graph.values[*other].name;
            return Ok(Err(format!("other nodes read {name:?}, from which its weight is computed")));
        }
        let before = self.computed(&outside, changed)?;
        let names: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let old: Vec<Option<TensorProto>> = names.iter().map(|name| changed.weights.remove(name)).collect();
        changed.weights.extend(tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone())));
        let after = self.computed(&outside, changed);
        for (name, old) in names.into_iter().zip(old) {
            match old {
                Some(tensor) => changed.weights.insert(name, tensor),
                None => changed.weights.remove(&name),
            };
        }
        let mut after = after?;
        for value in outside.iter().filter(|value| **value != weight) {
            let name = &graph.values[*value].name;
            let is_same = before.get(value).zip(after.get(value)).is_some_and(|(a, b)| is_unchanged(a, b));
            if !is_same {
                return Ok(Err(format!("{name:?} is computed from the same constants as its weight")));
            }
        }
        let Some(weight) = after.remove(&weight) else {
            return Ok(Err("its weight can't be computed from constants".to_owned()));
        };
        Ok(Ok(Assigned { tensors, weight: weight.iter().copied().collect() }))
    }
}

fn is_unchanged(before: &ArrayD<f32>, after: &ArrayD<f32>) -> bool {
    let largest = before.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    before.shape() == after.shape() && before.iter().zip(after).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest)
}
