//! What differentiation offers to an operator: [`GradientCx`], and gradients that several operators contain.

mod activation;
mod context;
mod kernel;
mod norm;
mod shaping;
mod winograd;

use crate::graph::fact::static_shape;

pub use context::{GradientCx, Tape};
pub(crate) use kernel::RowNorm;
pub(crate) use winograd::WinogradConv;

/// Sizes that are all known, as ONNX stores them.
pub(crate) fn signed_shape(shape: &[crate::graph::dim::Dim]) -> Option<Vec<i64>> {
    static_shape(shape).map(|sizes| sizes.into_iter().map(|size| size as i64).collect())
}
