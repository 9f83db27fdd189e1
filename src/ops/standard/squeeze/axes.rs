//! The axes of Squeeze and Unsqueeze: an attribute before opset 13, input 1 from there on.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{InferCx, RuleError, axis_index};

/// The attribute; `None` if the node lacks it.
#[derive(Debug)]
pub(in crate::ops::standard) struct Axes {
    attribute: Option<Vec<i64>>,
}

impl Axes {
    pub(in crate::ops::standard) fn parse(node: &Node) -> Self {
        Self { attribute: node.proto.ints("axes").map(<[i64]>::to_vec) }
    }

    /// Returns the axes as the node states them; `input` holds the known integers of input 1.
    pub(in crate::ops::standard) fn named(&self, input: Option<&[Dim]>) -> Option<Vec<Dim>> {
        let attribute = self.attribute.as_ref().map(|axes| axes.iter().copied().map(Dim::from).collect());
        attribute.or_else(|| input.map(<[Dim]>::to_vec))
    }

    /// Returns the axes as the node states them; `None` if it states none.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if input 1 is there but its elements are not known.
    pub(in crate::ops::standard) fn to_infer(&self, cx: &InferCx<'_>) -> Result<Option<Vec<Dim>>, RuleError> {
        let named = self.named(cx.ints(1));
        if named.is_none() && cx.optional(1).is_some() { Err(RuleError::UnknownShape) } else { Ok(named) }
    }
}

/// Returns the stated axes of a value of rank `rank`, in ascending order.
///
/// # Errors
/// One of them is not known, does not exist or occurs twice.
pub(in crate::ops::standard) fn ascending(named: &[Dim], rank: usize) -> Result<Vec<usize>, RuleError> {
    let mut axes = Vec::new();
    for axis in named {
        axes.push(axis_index(axis.as_const().ok_or(RuleError::UnknownShape)?, rank)?);
    }
    axes.sort_unstable();
    if axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(RuleError::invalid(format!("axes {axes:?} contain an axis twice")));
    }
    Ok(axes)
}
