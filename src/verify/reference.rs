//! The reference graph: the original network with its full weights, in which removed indices are masked.
//!
//! The reference is built from the original file and the plan alone, with fused nodes lowered to standard operators
//! ([`crate::lower`]). It does not use coupling and slices no weight: every value keeps its original size. Beside it
//! runs a *mask* (float32, 1 for kept, 0 for removed). Masks start at the weights that the plan names and pass through
//! the graph by the semantics of each operator. A contraction (Conv, MatMul, ...) takes its activations with zeros at the
//! removed indices. A norm, a softmax or a mean is computed over the kept part only. A pruned network is right if each of
//! its values equals the kept elements of the reference's value, in row-major order.

use std::collections::HashMap;

use crate::graph::{Node, NodeId, Reader};
use crate::lower::Lowered;
use crate::onnx::builder::Builder;
use crate::operator::RuleError;
use crate::operator::reference::{KeptAxes, Reference, ReferenceCx};

/// The reason why a node could not be masked.
#[derive(Debug)]
pub struct Unmasked {
    /// Position of the original node in its [`crate::graph::Graph::nodes`].
    pub node: usize,
    /// The cause.
    pub cause: RuleError,
}

/// Builds the reference of a network. `kept` contains the kept indices of constants, by original node and input slot.
///
/// # Errors
/// An operator whose input lost channels can't be masked.
pub fn build(lowered: &Lowered, kept: &HashMap<Reader, KeptAxes>) -> Result<Reference, Unmasked> {
    let mut reference = Reference::new(&lowered.graph);
    build_into(&mut reference, lowered, kept, &mut |_, _| Vec::new())?;
    Ok(reference)
}

/// Returns the inputs of a node of the lowered network that are replaced: slots with names.
type Replaced<'r> = dyn FnMut(NodeId, &mut Builder) -> Vec<(usize, String)> + 'r;

/// As [`build`], but `replaced` may replace inputs of a node of the lowered network: it returns slots with the names
/// that the node reads there. It may add nodes before that node.
pub(super) fn build_into(
    reference: &mut Reference,
    lowered: &Lowered,
    kept: &HashMap<Reader, KeptAxes>,
    replaced: &mut Replaced<'_>,
) -> Result<(), Unmasked> {
    let kept = lowered.by_lowered_use(kept.iter().map(|(at, axes)| (*at, axes.clone()))).into_iter().collect();
    for node in &lowered.graph.nodes {
        let slots = replaced(node.id, &mut reference.builder);
        let changed = (!slots.is_empty()).then(|| {
            let mut node = node.clone();
            slots.into_iter().for_each(|(slot, name)| node.proto.input[slot] = name);
            node
        });
        push(reference, changed.as_ref().unwrap_or(node), lowered, &kept).map_err(|cause| {
            let node = lowered.origins[node.id];
            // For a fused node, the reason why it could not be lowered is more helpful.
            Unmasked { node, cause: lowered.refused.get(&node).cloned().unwrap_or(cause) }
        })?;
    }
    Ok(())
}

/// Adds one node, masked if any of its inputs is. Nodes are added in topological order.
fn push(
    reference: &mut Reference,
    node: &Node,
    lowered: &Lowered,
    kept: &HashMap<Reader, KeptAxes>,
) -> Result<(), RuleError> {
    let graph = &lowered.graph;
    let reads_slices = (0..node.inputs.len()).any(|slot| kept.contains_key(&Reader { node: node.id, slot }));
    let reads_masked = node.inputs.iter().flatten().any(|v| reference.masks.contains_key(&graph.values[*v].name));
    if !reads_slices && !reads_masked {
        reference.builder.nodes.push(node.proto.clone());
        return Ok(());
    }
    let mut cx = ReferenceCx { node, graph, facts: &lowered.facts, kept, reference, emitted: false };
    let result = lowered.operators.of(node.id).and_then(|op| op.reference(&mut cx));
    if !cx.emitted {
        cx.emit(&[]);
    }
    match result {
        Err(cause) if reads_slices => Err(cause),
        // Coupling keeps all inputs of such a node, so its inputs and outputs are whole. If a plan contradicts that, the
        // outputs will differ.
        Err(_) | Ok(()) => Ok(()),
    }
}
