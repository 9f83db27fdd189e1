//! The interface of differentiation to an operator: [`GradientCx`], and gradients that several operators contain.

mod activation;
mod context;
mod norm;
mod shaping;
mod tape;

use crate::graph::fact::static_shape;

pub use context::GradientCx;
pub(crate) use tape::Given;
pub use tape::{Step, Tape};

/// Returns the sizes as ONNX stores them; `None` unless all are numbers.
pub(crate) fn signed_shape(shape: &[crate::graph::dim::Dim]) -> Option<Vec<i64>> {
    static_shape(shape).map(|sizes| sizes.into_iter().map(|size| size as i64).collect())
}
