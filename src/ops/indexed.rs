//! The common part of operators that read or write at indices.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::couple::layout::{Axis, fixed_axis};
use crate::operator::{CoupleCx, GradientCx, RuleError, axis_index};

/// Returns the number of axes to which an index tuple refers, for indices of this shape.
///
/// # Errors
/// [`RuleError::UnknownShape`] if the last size is not known.
pub(super) fn tuple_length(indices: &[Dim]) -> Result<usize, RuleError> {
    let size = indices.last().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
    usize::try_from(size).map_err(|_| RuleError::UnknownShape)
}

/// Returns the axes of the result of an operator that reads or writes elements along `axis` at indices (input 1). All
/// indices along `axis` are kept. Along every other axis where the inputs `slots` have the same size, they share it.
/// The first of `slots` is read or written; the result has its axes along the others, and along `axis` that of the
/// last of `slots`.
/// # Errors
/// [`RuleError::UnknownShape`] if a shape is not known; another error if `axis` does not exist.
pub(super) fn along_other_axes(cx: &mut CoupleCx<'_>, axis: i64, slots: &[usize]) -> Result<Vec<Axis>, RuleError> {
    let shape = |cx: &CoupleCx<'_>, slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone());
    let shapes =
        slots.iter().map(|slot| shape(cx, *slot).ok_or(RuleError::UnknownShape)).collect::<Result<Vec<_>, _>>()?;
    let rank = shapes[0].len();
    let axis = axis_index(axis, rank)?;
    if shapes.iter().any(|shape| shape.len() != rank) {
        return Err(RuleError::UnknownShape);
    }
    let mut layouts = Vec::new();
    for slot in slots {
        layouts.push(if *slot == 1 { cx.of_indices(1)? } else { cx.separated(*slot)? });
    }
    let mut axes = Vec::new();
    for at in 0..rank {
        if at != axis && shapes.iter().all(|shape| shape[at] == shapes[0][at]) {
            let mut shared = layouts[0].axes[at].clone();
            for layout in &layouts[1..] {
                shared = cx.tie(&shared, &layout.axes[at]);
            }
            axes.push(shared);
            continue;
        }
        let text =
            if at == axis { "the axis is read or written at indices" } else { "the axis is read or written in part" };
        layouts.iter().for_each(|layout| cx.keep(&layout.axes[at], text));
        axes.push(fixed_axis(&cx.output_shape(0)?[at]));
    }
    Ok(axes)
}

/// Computes one-hot vectors of length `depth` along a new axis: one at the index, zeros elsewhere.
pub(super) fn one_hot(cx: &mut GradientCx<'_>, indices: &str, depth: i64, axis: usize) -> String {
    let depth = cx.ints(&[depth]);
    let values = cx.floats(&[0.0, 1.0], &[2]);
    cx.op_with("OneHot", &[indices, &depth, &values], vec![attr_int("axis", axis as i64)])
}

/// What a scatter does with the element that it overwrites.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    /// It replaces the element.
    None,
    /// It adds to the element.
    Add,
    /// Another reduction, by name.
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

    /// Refuses reductions without a gradient.
    ///
    /// # Errors
    /// Elements are neither replaced nor added up.
    pub(super) fn check_gradient(&self) -> Result<(), RuleError> {
        match self {
            Self::None | Self::Add => Ok(()),
            Self::Other(name) => {
                Err(RuleError::unsupported(format!("the gradient of reduction {name:?} is not supported")))
            }
        }
    }

    /// Computes the gradient with respect to the data of a scatter (inputs: data, indices, updates).
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the shape of the updates is not known.
    pub(super) fn data_gradient(&self, cx: &mut GradientCx<'_>, dy: &str) -> Result<String, RuleError> {
        if *self == Self::Add {
            return Ok(dy.to_owned());
        }
        // The loss does not depend on the elements that were replaced.
        let updates = cx.shape(2)?;
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, &updates);
        Ok(cx.same_op(&[dy, &cx.input(1), &zeros]))
    }
}
