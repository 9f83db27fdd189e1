//! A node as seen by the stages that look for patterns: the choice of kernels, and the refit.
//!
//! An operator describes its node in these terms ([`crate::operator::Operator::part`]). Which parts form a pattern,
//! and when a kernel is worth it, is decided after differentiation (`gradient::kernels`), without names of operators.

use crate::graph::Node;
use crate::graph::facts::Facts;

use super::gradient::signed_shape;

/// A part of a pattern. Inputs and outputs are those of the node.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Input 0 in another shape, its elements in the same order.
    Reshape,
    /// Input 0 with its axes in another order: the axis of the input at each position of the output.
    Transpose(Vec<usize>),
    /// The sum of inputs 0 and 1, broadcast.
    Sum,
    /// The product of inputs 0 and 1, broadcast.
    Product,
    /// `1 / (1 + exp(-x))` of every element.
    Sigmoid,
    /// `x sigmoid(x)` of every element.
    Silu,
    /// A softmax over rows of neighbouring elements.
    Softmax {
        /// The number of elements in a row.
        row: i64,
    },
    /// A norm of input 0 over rows, with scales at input 1 and offsets at input 2, both of length
    /// [`RowNorm::parameters`]. Input 2 is optional.
    Norm(RowNorm),
    /// A convolution of input 0 `[N, C, size...]` by input 1 `[O, C / group, kernel...]`, with an optional bias `[O]`
    /// at input 2.
    Convolution(Convolution),
}

/// A norm over rows: the `row` neighbouring elements of a row are normalised together. Element k of row r has scale
/// and offset `(r mod groups) (row / inner) + k / inner`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorm {
    /// The number of elements in a row; at least one.
    pub row: i64,
    /// The number of rows after which the scales repeat; at least one.
    pub groups: i64,
    /// The number of neighbouring elements that share a scale; at least one.
    pub inner: i64,
    /// The value that is added to the variance.
    pub epsilon: f32,
    /// Whether the mean is subtracted.
    pub is_centred: bool,
    /// Whether SiLU follows.
    pub has_silu: bool,
}

impl RowNorm {
    /// Returns the number of scales, which is that of offsets.
    pub fn parameters(&self) -> i64 {
        self.groups * (self.row / self.inner)
    }
}

/// The geometry of a convolution: the output at position p sums over the input at `q = p stride + k dilation - before`
/// for every kernel position k. Every list has one entry per spatial axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// The sizes of the kernel.
    pub kernel: Vec<i64>,
    /// The strides.
    pub strides: Vec<i64>,
    /// The dilations.
    pub dilations: Vec<i64>,
    /// The number of zeros before the input.
    pub before: Vec<i64>,
    /// The number of groups of channels.
    pub group: i64,
}

/// What is known while a node describes itself.
pub struct PartCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
}

impl PartCx<'_> {
    /// Returns the shape of input `slot`, if all sizes are known.
    pub fn shape(&self, slot: usize) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.input(slot)?].as_ref()?.shape.as_deref()?)
    }

    /// Returns the shape of output `slot`, if all sizes are known.
    pub fn output_shape(&self, slot: usize) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.output(slot)?].as_ref()?.shape.as_deref()?)
    }

    /// Whether the node has an input at `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }
}
