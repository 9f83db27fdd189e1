//! # Gather
//! `Y = X[..., indices, ...]` along `axis`: a table lookup, the selection of one entry, or a permutation.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gather.html>. All opsets.
//!
//! Coupling: other axes pass through. Constant indices unite the selected indices with those of the output; for
//! indices that are computed at run time, the axis is kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, static_shape, take_along};
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::axis_size;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};
use crate::ops::indexed::one_hot;

fn types_gather() -> &'static [OpType] {
    const { &[onnx("Gather")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_gather, |node| Ok(Box::new(Gather::parse(node))))];

#[derive(Debug)]
struct Gather {
    axis: i64,
}

impl Gather {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 0) }
    }
}

/// Returns the constant indices, counted from the front.
fn constant_indices(known: Option<&[Dim]>, size: usize) -> Option<Vec<usize>> {
    let size = i64::try_from(size).ok()?;
    let from_front = |index: &Dim| {
        let index = index.as_const()?;
        usize::try_from(if index < 0 { index + size } else { index }).ok().filter(|index| (*index as i64) < size)
    };
    known?.iter().map(from_front).collect()
}

fn is_identity(indices: &[usize], axis: &Axis) -> bool {
    axis_size(axis) == Some(indices.len()) && indices.iter().copied().eq(0..indices.len())
}

impl Operator for Gather {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (data, indices) = (cx.shape(0)?, cx.shape(1)?);
        let axis = axis_index(self.axis, data.len())?;
        let shape = [&data[..axis], &indices[..], &data[axis + 1..]].concat();
        let input = cx.input(0)?;
        let size = data[axis].as_const().and_then(|size| usize::try_from(size).ok());
        let chosen = size.and_then(|size| constant_indices(cx.ints(1), size));
        let known = match (&input.known, static_shape(&data), chosen) {
            (Some(known), Some(sizes), Some(chosen)) => take_along(known, &sizes, axis, &chosen),
            _ => None,
        };
        let fact = Fact::new(input.dtype, shape).with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let data = cx.separated(0)?;
        let axis = axis_index(self.axis, data.rank())?;
        let indices_shape = cx.fact(1).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let along = data.axes[axis].clone();
        let known = axis_size(&along).and_then(|size| constant_indices(cx.ints(1), size.max(1)));
        let mut inserted = Layout::fixed(&indices_shape).axes;
        // The whole axis in order, as repeat_interleave by one leaves it.
        let is_whole = indices_shape.len() == 1 && known.as_ref().is_some_and(|known| is_identity(known, &along));
        let space = if is_whole { None } else { cx.single(&along) };
        if is_whole {
            inserted = vec![along.clone()];
        }
        match (space, known) {
            (None, _) => {}
            (Some(space), Some(known)) if indices_shape.is_empty() => {
                let index = known.first().copied().ok_or(RuleError::UnknownShape)?;
                cx.keep_range(space, index..index + 1, "Gather selects this index with a constant");
            }
            (Some(space), Some(known)) if indices_shape.len() == 1 && known.len() > 1 => {
                let chosen = cx.new_space(known.len())?;
                known.iter().enumerate().for_each(|(at, index)| cx.unite(space, *index, chosen, at));
                inserted = vec![cx.whole(chosen)];
            }
            (Some(space), Some(known)) => {
                for index in known {
                    cx.keep_range(space, index..index + 1, "Gather selects this index with a constant");
                }
            }
            (Some(_), None) => cx.keep(&along, "Gather reads this axis with indices that are computed at run time"),
        }
        if cx.is_weight(0) && !cx.is_weight(1) {
            // The rows of a lookup table produce channels as the rows of a linear layer do.
            data.axes.iter().enumerate().filter(|(at, _)| *at != axis).for_each(|(_, other)| cx.produces(other));
        }
        let axes = [&data.axes[..axis], &inserted[..], &data.axes[axis + 1..]].concat();
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axis = axis_index(self.axis, cx.rank(0))?;
        let Some(kept) = cx.kept_input(0, axis) else {
            return Ok(());
        };
        let size = cx.old_size(0, axis).and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let old = cx.old_ints(1);
        let old = constant_indices(old.as_deref(), size)
            .ok_or_else(|| RuleError::unsupported("the indices are not constant"))?;
        let new: Vec<i64> =
            old.iter().filter_map(|index| kept.binary_search(index).ok()).map(|position| position as i64).collect();
        let dims: Vec<i64> = match cx.rank(1) {
            0 => vec![],
            1 => vec![new.len() as i64],
            rank => (0..rank).filter_map(|axis| cx.old_size(1, axis)).collect(),
        };
        cx.set_input_tensor(1, &new, &dims);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, data, indices) = (cx.dy()?, cx.shape(0)?, cx.shape(1)?);
        let axis = axis_index(self.axis, data.len())?;
        let count: i64 = indices.iter().product();
        let flat = [&data[..axis], &[count], &data[axis + 1..]].concat();
        let dy = cx.reshape(&dy, &flat);
        // Row i of the map is one where the i-th element was read. Indices may repeat, and may be known only at run
        // time.
        let positions = cx.reshape(&cx.input(1), &[count]);
        let rows = one_hot(cx, &positions, data[axis], 0);
        let dx = cx.along_axis(&dy, axis, data.len(), &rows);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
