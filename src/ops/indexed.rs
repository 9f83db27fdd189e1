//! What operators share that read or write at indices.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::couple::layout::{Axis, fixed_axis};
use crate::operator::{CoupleCx, GradientCx, RuleError, axis_index};

/// The number of axes that an index tuple names, for indices of this shape.
///
/// # Errors
/// [`RuleError::UnknownShape`] if the last size is not known.
pub(super) fn tuple_length(indices: &[Dim]) -> Result<usize, RuleError> {
    let size = indices.last().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
    usize::try_from(size).map_err(|_| RuleError::UnknownShape)
}

/// The axes of the result of an operator that finds elements along `axis` at indices (input 1): all stay there; along any
/// other, where the inputs `slots` have one size, they share the axis. The first of `slots` is read or written, and the
/// result has its axes along the others, and along `axis` those of the last.
///
/// # Errors
/// [`RuleError::UnknownShape`] if a shape is not known, and an axis that there is not.
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
        let text = if at == axis { "is read or written at indices" } else { "is read or written in part" };
        layouts.iter().for_each(|layout| cx.keep(&layout.axes[at], text));
        axes.push(fixed_axis(&cx.output_shape(0)?[at]));
    }
    Ok(axes)
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
