//! A part of a network between values that are known and values that are wanted, as a session.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::network::Network;
use crate::error::Error;
use crate::gradient::{value_info, widened_node, widened_tensor, widened_type};
use crate::graph::{NodeId, ValueId};
use crate::onnx::builder::outputs_of;
use crate::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::runtime::{Device, Optimization, Runtime, Session, SessionOptions};

/// Weights and nodes that have changed since the file was written.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Initializers by name, float32.
    pub(super) weights: HashMap<String, TensorProto>,
    /// Biases that the file lacks, by the node that reads them: input slot and name of the initializer.
    pub(super) biases: HashMap<NodeId, (usize, String)>,
}

/// The settings of sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Execution<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) device: Device,
    pub(super) allow_fallback: bool,
    pub(super) threads: Option<usize>,
}

/// A part of a network.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) session: Session,
    /// The names of its inputs: inputs of the network, or values of earlier segments.
    pub(super) takes: Vec<String>,
    /// The nodes that need not run again.
    pub(super) nodes: Vec<NodeId>,
}

/// Stored values that nodes have yet to read.
pub(super) trait Held {
    /// Whether a value is stored.
    fn has(&self, name: &str) -> bool;
}

impl Network {
    /// Returns the part from the values in `held` to `wanted`. It also outputs the values that nodes read that are neither
    /// in `done` nor in the part. `None`: all wanted values are in `held`, or are stored constants.
    ///
    /// # Errors
    /// A constant can't be read, or ONNX Runtime rejects the part.
    pub(super) fn segment(
        &self,
        wanted: &[ValueId],
        held: &dyn Held,
        done: &HashSet<NodeId>,
        changed: &Changed,
        execution: Execution<'_>,
    ) -> Result<Option<Segment>, Error> {
        let graph = self.graph();
        let is_source = |value: ValueId| {
            let value = &graph.values[value];
            value.is_input
                || value.initializer.is_some()
                || held.has(&value.name)
                || changed.weights.contains_key(&value.name)
        };
        let mut open: Vec<ValueId> = wanted.iter().copied().filter(|value| !is_source(*value)).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let mut inside: HashSet<NodeId> = HashSet::new();
        while let Some(value) = open.pop() {
            let Some((node, _)) = graph.values[value].producer else { continue };
            if inside.insert(node) {
                open.extend(self.read_by(&graph.nodes[node]).into_iter().filter(|value| !is_source(*value)));
            }
        }
        let mut nodes: Vec<NodeId> = inside.iter().copied().collect();
        nodes.sort_unstable();
        let mut part = GraphProto { name: "segment".to_owned(), ..GraphProto::default() };
        let mut takes: Vec<String> = Vec::new();
        let mut known: HashSet<String> = HashSet::new();
        for id in &nodes {
            let node = &graph.nodes[*id];
            let mut proto = widened_node(&self.lowered.model, &node.proto)?;
            if let Some((slot, name)) = changed.biases.get(id) {
                add_input(&mut proto, *slot, name);
            }
            for name in crate::onnx::builder::inputs_of(&proto).into_iter().map(str::to_owned).collect::<Vec<_>>() {
                if !known.insert(name.clone()) {
                    continue;
                }
                if let Some(tensor) = changed.weights.get(&name) {
                    part.initializer.push(tensor.clone());
                    continue;
                }
                let Some(value) = graph.value(&name) else { continue };
                if let Some(at) = graph.values[value].initializer {
                    let tensor = &self.lowered.model.graph().initializer[at];
                    part.initializer.push(widened_tensor(&self.lowered.model, tensor)?);
                } else if is_source(value) {
                    takes.push(name);
                }
            }
            part.node.push(proto);
        }
        for name in &takes {
            part.input.extend(graph.value(name).and_then(|value| self.declared(value)));
        }
        let is_read_later = |value: ValueId| {
            let value = &graph.values[value];
            let later = |node: &NodeId| !inside.contains(node) && !done.contains(node);
            value.is_output || value.consumers.iter().map(|(node, _)| node).chain(&value.captured_by).any(later)
        };
        for id in &nodes {
            for name in outputs_of(&graph.nodes[*id].proto) {
                let Some(value) = graph.value(name) else { continue };
                // Values computed from constants alone are computed again in each segment that reads them.
                if wanted.contains(&value) || self.is_computed(value) && is_read_later(value) {
                    part.output.extend(self.declared(value));
                }
            }
        }
        let proto = self.lowered.model.proto();
        let model = ModelProto {
            ir_version: proto.ir_version.max(4),
            opset_import: proto.opset_import.clone(),
            graph: Some(part),
            ..ModelProto::default()
        };
        let options = SessionOptions {
            optimization: Optimization::All,
            external_data_folder: Some(self.lowered.model.data_folder()),
            device: execution.device,
            allow_fallback: execution.allow_fallback,
            threads: execution.threads,
            ..SessionOptions::default()
        };
        let session =
            execution.runtime.session_from_bytes(&self.lowered.model.located(&model).encode_to_vec(), &options)?;
        nodes.retain(|node| graph.nodes[*node].outputs.iter().flatten().any(|value| self.is_computed(*value)));
        Ok(Some(Segment { session, takes, nodes }))
    }

    /// Returns the declaration of a value, with floating point numbers as float32.
    fn declared(&self, value: ValueId) -> Option<crate::onnx::ValueInfoProto> {
        let fact = self.lowered.facts.values[value].as_ref()?;
        let shape: Vec<i64> = self.shape(value)?.into_iter().map(|size| size as i64).collect();
        Some(value_info(&self.graph().values[value].name, widened_type(fact.dtype), &shape))
    }
}

fn add_input(node: &mut NodeProto, slot: usize, name: &str) {
    if node.input.len() <= slot {
        node.input.resize(slot + 1, String::new());
    }
    name.clone_into(&mut node.input[slot]);
}
