//! Recomputation of activations: the backward pass computes activations again when it needs them, instead of keeping
//! them. This saves memory and costs time ("Training Deep Nets with Sublinear Memory Cost", Chen et al., 2016).
//!
//! The forward pass is divided into segments ([`segments`]). Values that a later segment takes as input are kept, as
//! are the values that the loss compares. The other values that the backward pass needs are recomputed from the kept
//! ones when the backward pass reaches their segment.
//!
//! ONNX Runtime would undo this. It computes equal expressions once and keeps their values. It may run a node as soon
//! as its inputs are available. It also runs the nodes for the gradients of weights last, since no other node depends
//! on them, and keeps all their inputs until then. To prevent this, every input of a recomputed segment is replaced by
//! its sum with zero times an element of every gradient that was computed since the last segment. This is a different
//! expression, which can't be computed before these gradients. The sum does not change the results unless a gradient is
//! not finite, in which case the step fails anyway.

mod segments;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::Network;
use crate::graph::fact::Fact;
use crate::macs::memory::float32_bytes;
use crate::onnx::NodeProto;
use crate::onnx::builder::{inputs_of, needed, outputs_of};
use crate::operator::Folding;
use crate::operator::gradient::Tape;
use segments::Values;

/// Returns the name of the recomputed value.
fn again(name: &str) -> String {
    format!("{name}/again")
}

/// Inserts the recomputation of activations into the backward pass. The first `forward` nodes of the tape are the
/// forward pass, and the next `seeds` nodes the loss. `outputs` are the outputs of the graph. Returns the estimated
/// maximum size in bytes of the activations that are in memory at the same time.
pub(super) fn insert(
    network: &Network<'_>,
    tape: &mut Tape,
    (forward, seeds): (usize, usize),
    outputs: &[String],
) -> u64 {
    let nodes = std::mem::take(&mut tape.builder.nodes);
    let wanted = outputs.iter().map(String::as_str);
    let (is_needed, _) = needed(nodes.iter().map(|node| (inputs_of(node), outputs_of(node), false)), wanted);
    let count = |range: Range<usize>| is_needed[range].iter().filter(|is_needed| **is_needed).count();
    let (forward, seeds) = (count(0..forward), count(forward..forward + seeds));
    let mut is_needed = is_needed.into_iter();
    let mut nodes: Vec<NodeProto> = nodes.into_iter().filter(|_| is_needed.next().unwrap_or(true)).collect();
    let backward = nodes.split_off(forward);
    let values = values(network, &nodes, &backward, seeds, outputs);
    let (starts, bytes) = segments::choose(&values);
    let again = Again { values: &values, forward: &nodes, backward: &backward, seeds, starts: &starts };
    let after = again.write(tape);
    nodes.extend(after);
    tape.builder.nodes = nodes;
    bytes
}

/// Collects the properties of the forward pass's values that the choice of segments needs.
fn values(
    network: &Network<'_>,
    forward: &[NodeProto],
    backward: &[NodeProto],
    seeds: usize,
    outputs: &[String],
) -> Values {
    let Network { graph, operators, facts, .. } = *network;
    let size = |name: &str| Some(float32_bytes(&network.shape(graph.value(name)?)?));
    let is_number =
        |name: &str| graph.value(name).is_none_or(|value| facts.values[value].as_ref().is_none_or(Fact::is_float));
    let mut values = Values::new(forward.len());
    // Values that change with the network's inputs. Weights do not change within a run.
    let inputs = graph.inputs.iter().map(|value| graph.values[*value].name.as_str());
    let mut changing: HashSet<&str> = inputs.collect();
    for (at, node) in forward.iter().enumerate() {
        let read = inputs_of(node);
        let has_body = node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty());
        let of_network = outputs_of(node).iter().find_map(|name| graph.values[graph.value(name)?].producer);
        let is_random = of_network
            .and_then(|(node, _)| operators.get(node))
            .is_some_and(|operator| operator.folding() == Folding::Never);
        let changes = is_random || read.iter().any(|name| changing.contains(name));
        // Outputs of a kernel have no known shapes here. They are assumed to be as large as the kernel's largest input.
        let largest = read.iter().filter_map(|name| size(name)).max().unwrap_or(0);
        for name in &read {
            values.read(name, at);
            if has_body {
                values.keep(name);
            }
        }
        for name in outputs_of(node) {
            changing.extend(changes.then_some(name));
            values.add(name, at, size(name).unwrap_or(largest));
            if has_body || is_random || !changes || !is_number(name) {
                values.keep(name);
            }
        }
    }
    for name in backward[..seeds].iter().flat_map(inputs_of).chain(outputs.iter().map(String::as_str)) {
        values.keep(name);
    }
    for node in &backward[seeds..] {
        inputs_of(node).into_iter().for_each(|name| values.read_back(name));
    }
    // The zero can be added only to float32 values with at least one axis.
    let has_axes = |name: &&str| {
        is_number(name)
            && graph.value(name).and_then(|value| network.shape(value)).is_some_and(|shape| !shape.is_empty())
    };
    values.sources = changing.into_iter().filter(has_axes).map(str::to_owned).collect();
    values
}

/// A forward pass in segments that begin at the nodes `starts`, and the backward pass that uses its values.
struct Again<'a> {
    values: &'a Values,
    forward: &'a [NodeProto],
    backward: &'a [NodeProto],
    seeds: usize,
    starts: &'a [usize],
}

impl Again<'_> {
    /// Returns the backward pass with the nodes that recompute activations. The nodes of each segment precede their
    /// first reader.
    fn write(&self, tape: &mut Tape) -> Vec<NodeProto> {
        let kept = self.values.kept(self.starts);
        // The segment of every value that is recomputed.
        let mut segment_of: HashMap<&str, usize> = HashMap::new();
        for (segment, start) in self.starts.iter().enumerate().take(self.starts.len().saturating_sub(1)) {
            let nodes = &self.forward[*start..self.starts[segment + 1]];
            let computed = nodes.iter().flat_map(outputs_of).filter(|name| !kept.contains(*name));
            segment_of.extend(computed.map(|name| (name, segment)));
        }
        let mut last_reader: HashMap<&str, usize> = HashMap::new();
        for (at, node) in self.backward.iter().enumerate() {
            last_reader.extend(inputs_of(node).into_iter().map(|name| (name, at)));
        }
        let mut is_done = vec![false; self.starts.len()];
        let mut written = Vec::with_capacity(self.backward.len());
        // Gradients: all values that depend on the seeds of the loss.
        let mut gradients: HashSet<&str> = self.backward[..self.seeds].iter().flat_map(outputs_of).collect();
        // The gradients that were computed since the last segment.
        let mut new: Vec<&str> = Vec::new();
        for (at, original) in self.backward.iter().enumerate() {
            let mut node = original.clone();
            for name in node.input.iter_mut().filter(|_| at >= self.seeds) {
                let Some(segment) = segment_of.get(name.as_str()) else { continue };
                if !std::mem::replace(&mut is_done[*segment], true) {
                    new.retain(|name| last_reader.get(name).is_none_or(|last| *last >= at));
                    written.extend(self.segment(*segment, &segment_of, &new, tape));
                    new.clear();
                }
                *name = again(name);
            }
            if inputs_of(original).iter().any(|name| gradients.contains(name)) {
                gradients.extend(outputs_of(original));
            }
            new.extend(outputs_of(original).into_iter().filter(|name| gradients.contains(name)));
            written.push(node);
        }
        written
    }

    /// Returns the nodes that recompute the values of a segment for the backward pass, after `gradients` are computed.
    fn segment(
        &self,
        segment: usize,
        segment_of: &HashMap<&str, usize>,
        gradients: &[&str],
        tape: &mut Tape,
    ) -> Vec<NodeProto> {
        let range = self.starts[segment]..self.starts[segment + 1];
        let is_own = |name: &str| segment_of.get(name) == Some(&segment);
        let wanted = self.backward[self.seeds..].iter().flat_map(inputs_of).filter(|name| is_own(name));
        let parts = self.forward[range].iter().map(|node| {
            (inputs_of(node), outputs_of(node).into_iter().filter(|name| is_own(name)).collect::<Vec<_>>(), false)
        });
        let (is_needed, _) = needed(parts.collect::<Vec<_>>().into_iter(), wanted);
        let nodes: Vec<&NodeProto> = self.forward[self.starts[segment]..self.starts[segment + 1]]
            .iter()
            .zip(is_needed)
            .filter_map(|(node, is_needed)| is_needed.then_some(node))
            .collect();
        let is_source = |name: &str| !is_own(name) && self.values.sources.contains(name);
        let sources: BTreeSet<&str> =
            nodes.iter().flat_map(|node| inputs_of(node)).filter(|name| is_source(name)).collect();
        let before = tape.builder.nodes.len();
        let element = |name: &&str| {
            let flat = tape.reshape(name, &[-1]);
            tape.slice(&flat, 0, 0, 1, 1)
        };
        let elements: Vec<String> = gradients.iter().map(element).collect();
        let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
        let sum = tape.builder.add("Sum", &elements, vec![]);
        let zero = tape.builder.floats(&[0.0], &[1]);
        let zero = tape.builder.add("Mul", &[&sum, &zero], vec![]);
        let late: HashMap<&str, String> =
            sources.into_iter().map(|name| (name, tape.builder.add("Add", &[name, &zero], vec![]))).collect();
        let mut emitted = tape.builder.nodes.split_off(before);
        for node in nodes {
            let mut node = node.clone();
            for name in &mut node.input {
                if is_own(name) {
                    *name = again(name);
                } else if let Some(late) = late.get(name.as_str()) {
                    name.clone_from(late);
                }
            }
            for name in node.output.iter_mut().filter(|name| !name.is_empty()) {
                *name = again(name);
            }
            node.name = again(&node.name);
            emitted.push(node);
        }
        emitted
    }
}
