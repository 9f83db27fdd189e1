//! The reference graph: the original network with its full weights, in which removed indices are masked.
//!
//! The reference is built from the original file and the plan alone, with fused nodes in standard operators
//! ([`crate::lower`]). It knows nothing of coupling and slices no
//! weight: every value keeps its original size, and beside it runs a *mask* (float32, 1 for kept, 0 for removed) that
//! starts at the weights the plan names and passes through the graph by each operator's own meaning. A contraction
//! (Conv, MatMul, ...) reads its activations with zeros at the removed places; a norm, a softmax or a mean sees only the
//! kept part. A pruned network is right if its every value equals the kept elements of the reference's value, in
//! row-major order.

use std::collections::HashMap;

use crate::graph::{Node, NodeId, Reader};
use crate::lower::Lowered;
use crate::onnx::builder::Builder;
use crate::operator::RuleError;
use crate::operator::reference::{KeptAxes, Reference, ReferenceCx};

/// Why a node could not be masked.
#[derive(Debug)]
pub struct Unmasked {
    /// Position of the original node in its [`crate::graph::Graph::nodes`].
    pub node: usize,
    /// The cause.
    pub cause: RuleError,
}

/// Builds the reference of a network. `kept` names, by original node and input slot, what the plan keeps of constants.
///
/// # Errors
/// A node whose operator can't be masked stands where something was removed.
pub fn build(lowered: &Lowered, kept: &HashMap<Reader, KeptAxes>) -> Result<Reference, Unmasked> {
    let mut reference = Reference::new(&lowered.graph);
    build_into(&mut reference, lowered, kept, &mut |_, _| Vec::new())?;
    Ok(reference)
}

/// What a node of the lowered network reads instead of its inputs: slots with names.
type Replaced<'r> = dyn FnMut(NodeId, &mut Builder) -> Vec<(usize, String)> + 'r;

/// As [`build`]; a node of the lowered network reads at the slots that `replaced` gives what it names there. That may add
/// nodes before.
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
            // Of a fused node, why it could not be lowered says more.
            Unmasked { node, cause: lowered.refused.get(&node).cloned().unwrap_or(cause) }
        })?;
    }
    Ok(())
}

/// Adds one node, masked if it reads anything that is. Nodes are added in topological order.
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
        // Coupling keeps all that such a node reads, so that it sees whole values, and its own are whole as well. If a
        // plan says otherwise, the outputs will differ.
        Err(_) | Ok(()) => Ok(()),
    }
}
