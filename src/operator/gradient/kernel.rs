//! Emitting operators of [`crate::kernels`], and looking back along the graph for what they stand for.

use crate::graph::{Node, NodeId, ValueId};
use crate::kernels::{NORM, NORM_GRADIENT, SILU_GRADIENT, SOFTMAX_GRADIENT};
use crate::onnx::{AttributeProto, attr_float, attr_int};

use super::{GradientCx, signed_shape};

/// A norm over rows, in the terms of the kernels: rows of `row` elements are normalised together; element k of row r has
/// scale and offset `(r mod groups) (row / inner) + k / inner`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    /// Elements of a row.
    pub(crate) row: i64,
    /// Rows until the scales repeat.
    pub(crate) groups: i64,
    /// Neighbouring elements that share a scale.
    pub(crate) inner: i64,
    /// What is added to the variance.
    pub(crate) epsilon: f32,
    /// Whether the mean is taken off.
    pub(crate) is_centred: bool,
    /// Whether SiLU follows.
    pub(crate) has_silu: bool,
}

impl RowNorm {
    fn attributes(&self) -> Vec<AttributeProto> {
        vec![
            attr_int("row", self.row),
            attr_int("groups", self.groups),
            attr_int("inner", self.inner),
            attr_float("epsilon", self.epsilon),
            attr_int("centred", i64::from(self.is_centred)),
            attr_int("silu", i64::from(self.has_silu)),
        ]
    }
}

impl<'a> GradientCx<'a> {
    /// Whether kernels may be emitted: the graph is for the processor.
    pub(crate) fn has_kernels(&self) -> bool {
        self.tape.has_kernels
    }

    /// The gradients `[dx, dscale, doffset]` of a norm. Scale and offset have `groups row / inner` elements in any shape,
    /// their gradients are vectors.
    pub(crate) fn row_norm_gradient(
        &mut self,
        norm: &RowNorm,
        x: &str,
        dy: &str,
        (scale, offset): (&str, &str),
    ) -> [String; 3] {
        self.tape.kernel(NORM_GRADIENT, &[x, dy, scale, offset], norm.attributes())
    }

    /// The gradient of `x sigmoid(x)`.
    pub(crate) fn silu_gradient(&mut self, x: &str, dy: &str) -> String {
        let [dx] = self.tape.kernel(SILU_GRADIENT, &[x, dy], vec![]);
        dx
    }

    /// The gradient of a softmax along a last axis of `row` elements, `y` being its output.
    pub(crate) fn softmax_gradient(&mut self, y: &str, dy: &str, row: i64) -> String {
        let [dx] = self.tape.kernel(SOFTMAX_GRADIENT, &[y, dy], vec![attr_int("row", row)]);
        dx
    }

    /// Lets the forward pass compute output 0 of this node as a norm of `x`, in place of the node and of what leads to it
    /// from x.
    pub(crate) fn compute_as_norm(&mut self, norm: &RowNorm, x: &str, scale: &str, offset: &str) {
        self.compute_as(|cx| {
            let [y] = cx.tape.kernel(NORM, &[x, scale, offset], norm.attributes());
            y
        });
    }

    /// Lets the forward pass compute output 0 of this node by other nodes: those that `emit` adds, the last of which
    /// computes the value whose name `emit` returns.
    pub(crate) fn compute_as(&mut self, emit: impl FnOnce(&mut Self) -> String) {
        let start = self.tape.nodes.len();
        let value = emit(self);
        let mut nodes = self.tape.nodes.split_off(start);
        let output = self.output(0);
        for name in nodes.iter_mut().flat_map(|node| &mut node.output).filter(|name| **name == value) {
            name.clone_from(&output);
        }
        self.tape.replaced.insert(output, nodes);
    }

    /// The node that is differentiated.
    pub(crate) fn node(&self) -> &'a Node {
        self.node
    }

    /// The node that computes a value as its output 0.
    pub(crate) fn producer(&self, value: ValueId) -> Option<&'a Node> {
        match self.graph.values[value].producer {
            Some((node, 0)) => Some(&self.graph.nodes[node]),
            _ => None,
        }
    }

    /// Whether these nodes alone read a value.
    pub(crate) fn is_read_only_by(&self, value: ValueId, nodes: &[NodeId]) -> bool {
        let value = &self.graph.values[value];
        let is_inner = !value.is_output && value.captured_by.is_empty();
        is_inner && value.consumers.iter().all(|(node, _)| nodes.contains(node))
    }

    /// Whether the gradient by a value is asked for.
    pub(crate) fn is_wanted(&self, value: ValueId) -> bool {
        self.depends[value]
    }

    /// The name of a value.
    pub(crate) fn name(&self, value: ValueId) -> &'a str {
        &self.graph.values[value].name
    }

    /// The shape of a value, if it is known.
    pub(crate) fn shape_of(&self, value: ValueId) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[value].as_ref()?.shape.as_deref()?)
    }

    /// The known floats of a value.
    pub(crate) fn floats_of(&self, value: ValueId) -> Option<&'a [f64]> {
        match self.facts.values[value].as_ref()?.known.as_ref()? {
            crate::graph::fact::Known::Floats(values) => Some(values),
            crate::graph::fact::Known::Ints(_) => None,
        }
    }
}
