//! What operators share that read or write at indices.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::{GradientCx, RuleError};

/// The number of axes that an index tuple names, for indices of this shape.
///
/// # Errors
/// [`RuleError::UnknownShape`] if the last size is not known.
pub(super) fn tuple_length(indices: &[Dim]) -> Result<usize, RuleError> {
    let size = indices.last().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
    usize::try_from(size).map_err(|_| RuleError::UnknownShape)
}

/// Ones where an index names a place among `depth` along a new axis, zeros elsewhere.
pub(super) fn one_hot(cx: &mut GradientCx<'_>, indices: &str, depth: i64, axis: usize) -> String {
    let depth = cx.ints(&[depth]);
    let values = cx.floats(&[0.0, 1.0], &[2]);
    cx.op_with("OneHot", &[indices, &depth, &values], vec![attr_int("axis", axis as i64)])
}

/// What a scatter does with an element that is there already.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    /// It overwrites it.
    None,
    /// It adds to it.
    Add,
    /// Something of this name.
    Other(String),
}

impl Reduction {
    pub(super) fn parse(node: &Node) -> Self {
        match node.proto.string("reduction").unwrap_or("none") {
            "none" => Self::None,
            "add" => Self::Add,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Refuses what has no gradient.
    ///
    /// # Errors
    /// Elements are neither overwritten nor added up.
    pub(super) fn check_gradient(&self) -> Result<(), RuleError> {
        match self {
            Self::None | Self::Add => Ok(()),
            Self::Other(name) => Err(RuleError::unsupported(format!("reduction {name:?} has no gradient"))),
        }
    }

    /// The gradient by the data of a scatter (inputs: data, indices, updates).
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the shape of the updates is not known.
    pub(super) fn data_gradient(&self, cx: &mut GradientCx<'_>, dy: &str) -> Result<String, RuleError> {
        if *self == Self::Add {
            return Ok(dy.to_owned());
        }
        // What was overwritten has no part in the loss.
        let updates = cx.shape(2)?;
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, &updates);
        Ok(cx.same_op(&[dy, &cx.input(1), &zeros]))
    }
}
