//! The reference graph: the original network with its full weights, in which removed indices are masked.
//!
//! The reference is built from the original file and the plan alone. It knows nothing of coupling and slices no
//! weight: every value keeps its original size, and beside it runs a *mask* (float32, 1 for kept, 0 for removed) that
//! starts at the weights the plan names and passes through the graph by each operator's own meaning. A contraction
//! (Conv, MatMul, ...) reads its activations with zeros at the removed places; a norm, a softmax or a mean sees only the
//! kept part. A pruned network is right if its every value equals the kept elements of the reference's value, in
//! row-major order.

use std::collections::HashMap;

use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, Reader};
use crate::operator::reference::{KeptAxes, Reference, ReferenceCx};
use crate::operator::{Operators, RuleError};

/// Why a node could not be masked.
#[derive(Debug)]
pub struct Unmasked {
    /// Position of the node in [`Graph::nodes`].
    pub node: usize,
    /// The cause.
    pub cause: RuleError,
}

impl Reference {
    /// Builds the reference of a graph. `kept` names, by consumer and input slot, what the plan keeps of constants.
    ///
    /// # Errors
    /// A node whose operator has no reference rule stands where something was removed.
    pub fn build(
        graph: &Graph,
        operators: &Operators,
        facts: &Facts,
        kept: &HashMap<Reader, KeptAxes>,
    ) -> Result<Self, Unmasked> {
        let mut reference = Reference::default();
        for node in &graph.nodes {
            reference.push(node, graph, operators, facts, kept)?;
        }
        Ok(reference)
    }

    /// Adds one node, masked if it reads anything that is, or in standard operators if ONNX Runtime has no kernel for it
    /// on the CPU. Nodes are added in topological order.
    ///
    /// # Errors
    /// As [`Reference::build`]; none where `kept` is empty.
    pub fn push(
        &mut self,
        node: &Node,
        graph: &Graph,
        operators: &Operators,
        facts: &Facts,
        kept: &HashMap<Reader, KeptAxes>,
    ) -> Result<(), Unmasked> {
        let is_touched = (0..node.inputs.len()).any(|slot| {
            kept.contains_key(&Reader { node: node.id, slot })
                || node.input(slot).is_some_and(|v| self.masks.contains_key(&graph.values[v].name))
        });
        let op = operators.of(node.id);
        if !is_touched && !op.as_ref().is_ok_and(|op| op.is_decomposed()) {
            self.nodes.push(node.proto.clone());
            return Ok(());
        }
        let mut cx = ReferenceCx { node, graph, facts, kept, reference: self, emitted: false };
        let result = op.and_then(|op| op.reference(&mut cx));
        if !cx.emitted {
            cx.emit(&[]);
        }
        let reads_slices = (0..node.inputs.len()).any(|slot| kept.contains_key(&Reader { node: node.id, slot }));
        match result {
            // Coupling keeps all that such a node reads, so that it sees whole values; if a plan says otherwise, the
            // outputs will differ.
            Err(cause) if reads_slices => Err(Unmasked { node: node.id, cause }),
            _ => Ok(()),
        }
    }
}
