//! What a node is to stages that look for patterns: the choice of kernels, the refit.
//!
//! An operator describes its node in these terms ([`crate::operator::Operator::part`]); which parts make a pattern, and
//! when a kernel is worth it, is decided after differentiation (`gradient::kernels`), without operators' names.

use crate::graph::Node;
use crate::graph::facts::Facts;

use super::gradient::signed_shape;

/// A part of a pattern. Inputs and outputs are those of the node.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Input 0 in another shape, its elements in the same order.
    Reshape,
    /// Input 0 with its axes in another order: the axis of the input that stands at each place of the output.
    Transpose(Vec<usize>),
    /// The sum of inputs 0 and 1, broadcast.
    Sum,
    /// The product of inputs 0 and 1, broadcast.
    Product,
    /// `1 / (1 + exp(-x))` of every element.
    Sigmoid,
    /// `x sigmoid(x)` of every element.
    Silu,
    /// A softmax over rows of this many neighbouring elements.
    Softmax {
        /// Elements of a row.
        row: i64,
    },
    /// A norm of input 0 over rows, with scales at input 1 and offsets at input 2, as many as [`RowNorm::parameters`]; there
    /// may be no input 2.
    Norm(RowNorm),
    /// A convolution of input 0 `[N, C, size...]` by input 1 `[O, C / group, kernel...]`, with a bias `[O]` at input 2 if
    /// there is one.
    Convolution(Convolution),
}

/// A norm over rows: rows of `row` neighbouring elements are normalised together; element k of row r has scale and offset
/// `(r mod groups) (row / inner) + k / inner`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorm {
    /// Elements of a row; at least one.
    pub row: i64,
    /// Rows until the scales repeat; at least one.
    pub groups: i64,
    /// Neighbouring elements that share a scale; at least one.
    pub inner: i64,
    /// What is added to the variance.
    pub epsilon: f32,
    /// Whether the mean is taken off.
    pub is_centred: bool,
    /// Whether SiLU follows.
    pub has_silu: bool,
}

impl RowNorm {
    /// The number of scales and of offsets.
    pub fn parameters(&self) -> i64 {
        self.groups * (self.row / self.inner)
    }
}

/// The places that a convolution sums over: `q = p stride + k dilation - before` for the output's place p and the kernel's
/// place k, one entry for every spatial axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Sizes of the kernel.
    pub kernel: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Steps between a window's elements.
    pub dilations: Vec<i64>,
    /// Zeros before the input.
    pub before: Vec<i64>,
    /// Groups of channels.
    pub group: i64,
}

/// What is known where a node describes itself.
pub struct PartCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
}

impl PartCx<'_> {
    /// The shape of input `slot`, if all sizes are known.
    pub fn shape(&self, slot: usize) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.input(slot)?].as_ref()?.shape.as_deref()?)
    }

    /// The shape of output `slot`, if all sizes are known.
    pub fn output_shape(&self, slot: usize) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.output(slot)?].as_ref()?.shape.as_deref()?)
    }

    /// Whether the node has an input at `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }
}
