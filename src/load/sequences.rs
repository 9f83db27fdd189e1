//! Replacement of sequences by tensors.
//!
//! `split` and `unbind` are exported as SplitToSequence and SequenceAt. If lengths and positions are known, tensors
//! replace the elements that are taken from the sequence. The nodes of the sequence are removed, or kept for other
//! users of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::{Graph, Node, ValueId};
use crate::infer::infer;
use crate::onnx::NodeProto;
use crate::onnx::builder::{inputs_of, outputs_of};
use crate::onnx::names::Names;
use crate::operator::RuleError;
use crate::operator::sequence::{Given, Sequence, SequenceCx};
use crate::ops;

/// The replacement of a node that handles sequences: nodes that use only tensors.
struct Resolved {
    /// The nodes that compute these tensors.
    nodes: Vec<NodeProto>,
    /// Whether one of the node's outputs is a tensor.
    gives_tensor: bool,
}

/// Replaces elements that are taken from sequences with tensors. Returns whether anything was replaced.
///
/// # Errors
/// A position that a sequence does not have.
pub(super) fn take_tensors(model: &mut Model) -> Result<bool, Error> {
    let is_of_sequences =
        |node: &NodeProto| ops::find(&node.domain, &node.op_type).is_some_and(|rules| rules.handles_sequences());
    if !model.graph.node.iter().any(is_of_sequences) {
        return Ok(false);
    }
    // Errors of the graph are reported by later passes.
    let Ok(graph) = Graph::new(model) else { return Ok(false) };
    let operators = ops::parse(&graph);
    let Ok(facts) = infer(model, &graph, &operators) else { return Ok(false) };
    let mut names = Names::of_graph(model.graph());
    let mut known: BTreeMap<ValueId, Sequence> = BTreeMap::new();
    let mut resolved: BTreeMap<usize, Resolved> = BTreeMap::new();
    for node in &graph.nodes {
        let reads_known = node.inputs.iter().flatten().any(|value| known.contains_key(value));
        if !reads_known && !is_of_sequences(&node.proto) {
            continue;
        }
        let mut cx = SequenceCx {
            node,
            facts: &facts,
            opset: graph.opset,
            known: &known,
            names: &mut names,
            nodes: Vec::new(),
            given: BTreeMap::new(),
        };
        match operators.of(node.id).and_then(|op| op.in_tensors(&mut cx)) {
            Ok(()) => {}
            Err(RuleError::Invalid(text)) => {
                return Err(Error::malformed(model.path(), text).at_node(&node.name, node.op()));
            }
            // The node is kept and is a barrier.
            Err(_) => continue,
        }
        let SequenceCx { nodes, given, .. } = cx;
        if let Some(done) = outputs(node, nodes, given, &mut known) {
            resolved.insert(node.index, done);
        }
    }
    if !resolved.values().any(|done| done.gives_tensor) {
        return Ok(false);
    }
    replace(model, &graph, resolved, &known);
    Ok(true)
}

/// Records the sequences that a node outputs, and names its output tensors. Returns `None` if an output is not known.
fn outputs(
    node: &Node,
    mut nodes: Vec<NodeProto>,
    mut given: BTreeMap<usize, Given>,
    known: &mut BTreeMap<ValueId, Sequence>,
) -> Option<Resolved> {
    let outputs: Vec<(usize, ValueId)> =
        node.outputs.iter().enumerate().filter_map(|(slot, value)| Some((slot, (*value)?))).collect();
    if outputs.iter().any(|(slot, _)| !given.contains_key(slot)) {
        return None;
    }
    let mut gives_tensor = false;
    for (slot, value) in outputs {
        match given.remove(&slot)? {
            Given::Sequence(sequence) => {
                known.insert(value, sequence);
            }
            Given::Tensor(tensor) => {
                gives_tensor = true;
                nodes.push(NodeProto {
                    name: node.proto.name.clone(),
                    op_type: "Identity".to_owned(),
                    input: vec![tensor],
                    output: vec![node.proto.output[slot].clone()],
                    ..NodeProto::default()
                });
            }
        }
    }
    Some(Resolved { nodes, gives_tensor })
}

/// Replaces the nodes of sequences with those of tensors. Removes new nodes that nothing uses.
fn replace(model: &mut Model, graph: &Graph, resolved: BTreeMap<usize, Resolved>, known: &BTreeMap<ValueId, Sequence>) {
    // A sequence that other nodes use is kept in addition to the tensors, together with the nodes from which it is
    // built.
    let mut is_kept = vec![false; graph.nodes.len()];
    for node in graph.nodes.iter().rev() {
        let is_read = |value: &ValueId| {
            let value = &graph.values[*value];
            let mut readers = value.consumers.iter().map(|(node, _)| *node).chain(value.captured_by.iter().copied());
            value.is_output || readers.any(|node| is_kept[node] || !resolved.contains_key(&graph.nodes[node].index))
        };
        is_kept[node.id] = node.outputs.iter().flatten().any(|value| known.contains_key(value) && is_read(value));
    }
    let kept: HashSet<usize> = graph.nodes.iter().filter(|node| is_kept[node.id]).map(|node| node.index).collect();
    let mut is_new = Vec::new();
    let mut nodes = Vec::new();
    for (index, proto) in model.graph.node.iter().enumerate() {
        let done = resolved.get(&index);
        if done.is_none() || kept.contains(&index) {
            nodes.push(proto.clone());
            is_new.push(false);
        }
        let new = done.into_iter().flat_map(|done| &done.nodes);
        nodes.extend(new.cloned());
        is_new.resize(nodes.len(), true);
    }
    let mut read: HashSet<String> = model.graph.output.iter().map(|output| output.name.clone()).collect();
    let old = nodes.iter().zip(&is_new).filter(|(_, is_new)| !**is_new);
    read.extend(old.flat_map(|(node, _)| inputs_of(node)).map(str::to_owned));
    // Nodes may be in any order in the file.
    loop {
        let before = read.len();
        for (node, _) in nodes.iter().zip(&is_new).rev().filter(|(_, is_new)| **is_new) {
            if outputs_of(node).iter().any(|name| read.contains(*name)) {
                read.extend(inputs_of(node).into_iter().map(str::to_owned));
            }
        }
        if read.len() == before {
            break;
        }
    }
    let mut at = 0;
    nodes.retain(|node| {
        at += 1;
        !is_new[at - 1] || outputs_of(node).iter().any(|name| read.contains(*name))
    });
    let proto = Arc::make_mut(&mut model.graph);
    let given: HashSet<&str> = nodes.iter().flat_map(outputs_of).collect();
    let gone: HashSet<&str> = known.keys().map(|value| graph.values[*value].name.as_str()).collect();
    proto.value_info.retain(|info| given.contains(info.name.as_str()) || !gone.contains(info.name.as_str()));
    proto.node = nodes;
    model.inlined = true;
}
