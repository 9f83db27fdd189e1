//! The choice of this tool's CPU kernels, after differentiation.
//!
//! Differentiation emits only standard operators. Its tape records the gradient that each input of every node got. Each
//! pattern finds regions of the network that a kernel of [`crate::kernels`] can compute. The kernel then computes the
//! region's gradients under the same names, instead of the standard operators, and the region's output in the forward
//! pass. Nodes without readers are dropped when the graph is assembled. Operators describe themselves as [`Part`]s, so
//! that no pattern names an operator.

mod chain;
mod norm;
mod silu;
mod softmax;
mod winograd;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Network;
use crate::graph::{Node, NodeId, ValueId};
use crate::kernels::DOMAIN;
use crate::onnx::{AttributeProto, NodeProto};
use crate::operator::gradient::{Given, Step, Tape};
use crate::operator::part::{Part, PartCx};

/// The patterns in the order in which they are tested at every node: a whole chain that ends at the node before its
/// last part.
const PATTERNS: &[fn(&mut Choice<'_, '_>, &Step) -> Option<()>] = &[
    chain::with_silu,
    silu::of_product,
    chain::without_silu,
    silu::of_node,
    norm::rows,
    softmax::rows,
    winograd::tiles,
];

/// Replaces computations of standard operators with kernels. The first `forward` nodes of the tape are the forward
/// pass. Returns the number of nodes in the new forward pass.
pub(super) fn choose(network: &Network<'_>, tape: &mut Tape, forward: usize) -> usize {
    let step_of = tape.steps.iter().enumerate().map(|(at, step)| (step.node, at)).collect();
    let mut choice = Choice {
        network,
        tape,
        step_of,
        covered: HashSet::new(),
        inserted: BTreeMap::new(),
        computed: HashMap::new(),
        start: 0,
    };
    // A chain is found at its last node, which was differentiated first.
    for step in choice.tape.steps.clone() {
        if !choice.covered.contains(&step.node) {
            let _ = PATTERNS.iter().find_map(|pattern| pattern(&mut choice, &step));
        }
    }
    choice.insert_nodes(forward)
}

struct Choice<'n, 't> {
    network: &'n Network<'n>,
    tape: &'t mut Tape,
    /// The index of every differentiated node's step on the tape.
    step_of: HashMap<NodeId, usize>,
    /// Nodes of regions that kernels replace.
    covered: HashSet<NodeId>,
    /// New nodes, by the position on the tape before which they are inserted.
    inserted: BTreeMap<usize, Vec<NodeProto>>,
    /// New nodes of the forward pass, by the name of the value whose node they replace.
    computed: HashMap<String, Vec<NodeProto>>,
    /// Position on the tape of the first node that the current pattern emits.
    start: usize,
}

impl<'n> Choice<'n, '_> {
    fn node(&self, node: NodeId) -> &'n Node {
        &self.network.graph.nodes[node]
    }

    fn name(&self, value: ValueId) -> &'n str {
        &self.network.graph.values[value].name
    }

    fn shape(&self, value: ValueId) -> Option<Vec<i64>> {
        self.network.shape(value)
    }

    /// Returns how the patterns see a node.
    fn part(&self, node: NodeId) -> Option<Part> {
        let cx = PartCx { node: self.node(node), facts: self.network.facts };
        self.network.operators.get(node)?.part(&cx)
    }

    /// Returns the node that computes a value as its output 0.
    fn producer(&self, value: ValueId) -> Option<&'n Node> {
        match self.network.graph.values[value].producer {
            Some((node, 0)) => Some(self.node(node)),
            _ => None,
        }
    }

    /// Returns whether only these nodes use a value: no other node, not the loss, and no request for its gradient.
    fn is_read_only_by(&self, value: ValueId, nodes: &[NodeId]) -> bool {
        let of_graph = &self.network.graph.values[value];
        let is_inner = !of_graph.is_output && of_graph.captured_by.is_empty();
        let is_free = !self.tape.compared.contains(&value) && !self.tape.wanted_values.contains(&value);
        is_inner && is_free && of_graph.consumers.iter().all(|(node, _)| nodes.contains(node))
    }

    /// Returns the gradient that input `slot` of a node got.
    fn given(&self, node: NodeId, slot: usize) -> Option<&Given> {
        self.tape.steps[*self.step_of.get(&node)?].given.iter().find(|given| given.slot == slot)
    }

    /// Replaces the gradients of the nodes in `region` with nodes that `emit` adds, inserted before the nodes that
    /// `step` emitted. `emit` calls [`Choice::take_over`] for every gradient that it replaces.
    fn replace(&mut self, step: &Step, region: &[NodeId], emit: impl FnOnce(&mut Self)) {
        self.start = self.tape.builder.nodes.len();
        emit(self);
        let nodes = self.tape.builder.nodes.split_off(self.start);
        self.inserted.entry(step.nodes.start).or_default().extend(nodes);
        self.covered.extend(region);
    }

    /// Renames `output`, of a node just emitted, to the gradient of input `slot` of a node, if a step of the `region`
    /// computed that gradient. A gradient that was only passed on from another node remains unchanged.
    fn take_over(&mut self, region: &[NodeId], node: NodeId, slot: usize, output: &str) {
        let Some(name) = self.given(node, slot).map(|given| given.name.clone()) else { return };
        let steps = region.iter().filter_map(|node| self.step_of.get(node));
        let places = steps.flat_map(|step| self.tape.steps[*step].nodes.clone());
        let builder = &mut self.tape.builder;
        let is_it = |at: &usize| builder.nodes[*at].output.contains(&name);
        let Some(at) = places.into_iter().find(is_it) else { return };
        let unread = builder.fresh("unread");
        rename(builder.nodes[at].output.iter_mut(), &name, &unread);
        for new in &mut builder.nodes[self.start..] {
            rename(new.input.iter_mut().chain(&mut new.output), output, &name);
        }
    }

    /// Removes the gradient of input `slot` of a node from the sum to which it was added.
    fn withdraw(&mut self, node: NodeId, slot: usize) {
        let Some(Given { value, name, .. }) = self.given(node, slot).cloned() else { return };
        let Some(total) = self.tape.totals.get(&value).copied() else { return };
        let summands = &mut self.tape.builder.nodes[total];
        if let Some(at) = summands.input.iter().position(|input| *input == name) {
            summands.input.remove(at);
            Tape::name_sum(summands);
        }
    }

    /// Replaces the forward computation of the value `output` with the nodes that `emit` adds. `emit` returns the name
    /// of the value that its last node computes.
    fn compute(&mut self, output: &str, emit: impl FnOnce(&mut Self) -> String) {
        let start = self.tape.builder.nodes.len();
        let value = emit(self);
        let mut nodes = self.tape.builder.nodes.split_off(start);
        rename(nodes.iter_mut().flat_map(|node| &mut node.output), &value, output);
        self.computed.insert(output.to_owned(), nodes);
    }

    /// Adds a kernel with N outputs.
    fn kernel<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> [String; N] {
        let outputs: [String; N] = std::array::from_fn(|slot| self.tape.builder.fresh(&format!("{op_type}/{slot}")));
        self.tape.builder.push(DOMAIN, op_type, inputs, outputs.to_vec(), attributes);
        outputs
    }

    /// Writes all new nodes to the tape. Returns the number of nodes in the new forward pass.
    fn insert_nodes(mut self, forward: usize) -> usize {
        let mut nodes = Vec::with_capacity(self.tape.builder.nodes.len());
        let mut now_forward = 0;
        for (at, node) in std::mem::take(&mut self.tape.builder.nodes).into_iter().enumerate() {
            nodes.extend(self.inserted.remove(&at).into_iter().flatten());
            let others = node.output.first().filter(|_| at < forward).and_then(|output| self.computed.remove(output));
            match others {
                Some(others) => nodes.extend(others),
                None => nodes.push(node),
            }
            if at < forward {
                now_forward = nodes.len();
            }
        }
        nodes.extend(self.inserted.into_values().flatten());
        self.tape.builder.nodes = nodes;
        now_forward
    }
}

fn rename<'s>(names: impl Iterator<Item = &'s mut String>, from: &str, to: &str) {
    for name in names.filter(|name| *name == from) {
        to.clone_into(name);
    }
}
