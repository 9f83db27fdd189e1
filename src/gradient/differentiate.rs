//! Reverse-mode differentiation of a network, node by node.

use std::collections::BTreeSet;

use super::Network;
use crate::error::Error;
use crate::graph::fact::Fact;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::operator::Operator;
use crate::operator::gradient::{GradientCx, Tape};

/// Returns the nodes on which some values depend.
pub(super) fn ancestors(graph: &Graph, values: &[ValueId]) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut open = values.to_vec();
    while let Some(value) = open.pop() {
        if let Some((node, _)) = graph.values[value].producer
            && nodes.insert(node)
        {
            open.extend(graph.nodes[node].inputs.iter().flatten());
            // Values that a subgraph captures are inputs of its node as well.
            open.extend((0..graph.values.len()).filter(|value| graph.values[*value].captured_by.contains(&node)));
        }
    }
    nodes
}

/// Differentiates the needed nodes from last to first, starting with the gradients that the loss has seeded.
pub(super) fn differentiate(network: &Network<'_>, tape: &mut Tape, needed: &BTreeSet<NodeId>) -> Result<(), Error> {
    let depends = depends(network, tape);
    for node in network.graph.nodes.iter().rev().filter(|node| needed.contains(&node.id)) {
        differentiate_node(network, &depends, tape, node)?;
    }
    Ok(())
}

/// Returns for each value whether it depends on a wanted weight or value, as a floating-point number or its quantised
/// form.
fn depends(network: &Network<'_>, tape: &Tape) -> Vec<bool> {
    let Network { graph, operators, facts, .. } = *network;
    let mut depends = vec![false; graph.values.len()];
    for value in tape.wanted.union(&tape.wanted_values) {
        depends[*value] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().flatten().any(|value| depends[*value]) {
            let quantizes = operators.get(node.id).is_some_and(Operator::quantizes);
            for value in node.outputs.iter().flatten() {
                depends[*value] |= quantizes;
                depends[*value] |= facts.values[*value].as_ref().is_none_or(Fact::is_float);
            }
        }
    }
    depends
}

fn differentiate_node(network: &Network<'_>, depends: &[bool], tape: &mut Tape, node: &Node) -> Result<(), Error> {
    let Network { model, operators, facts, .. } = *network;
    let is_wanted = node.inputs.iter().flatten().any(|value| depends[*value]);
    if !is_wanted {
        return Ok(());
    }
    let upstream: Vec<Option<String>> =
        node.outputs.iter().map(|value| value.and_then(|value| tape.gradient(value))).collect();
    if upstream.iter().all(Option::is_none) {
        return Ok(());
    }
    tape.begin(node.id, upstream.clone());
    let mut cx = GradientCx { node, facts, depends, tape, upstream };
    let result = operators.of(node.id).and_then(|op| op.gradient(&mut cx));
    tape.end();
    result.map_err(|cause| {
        // For a fused node, the reason why it could not be lowered is more informative.
        let origin = network.lowered.origins[node.id];
        let cause = network.lowered.refused.get(&origin).unwrap_or(&cause);
        let node = &network.original.nodes[origin];
        let shapes: Vec<String> = node
            .inputs
            .iter()
            .map(|value| value.and_then(|v| facts.values[v].as_ref()).map_or("-".to_owned(), |fact| fact.describe()))
            .collect();
        let text = "the types and shapes of its inputs are";
        Error::unsupported(format!("can't differentiate this node: {cause}; {text}: {}", shapes.join(", ")))
            .in_file(model.path())
            .at_node(&node.name, node.op())
            .hint("use --criterion magnitude, or exclude the weights before the node with --keep")
    })
}
