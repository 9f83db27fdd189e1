//! # ScatterND
//! Writes slices at tuples of indices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ScatterND.html>. Opsets 11 and later (`reduction` from 16).
//!
//! Coupling: axes that the index tuples refer to are kept; the axes of whole slices pass through. A ScatterND that
//! writes along the diagonal of its first axes, as for a depthwise kernel, ties these to the updates. Indices that are
//! a grid write a block, as `x[:, 2:5] = y` does: a Concat ([`crate::ops::assigned`]).

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::grid::Grid;
use crate::operator::couple::layout::Layout;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx,
};
use crate::ops::assigned::{Block, REPLACEMENTS, couple, patch};
use crate::ops::indexed::{Reduction, tuple_length};

fn types_scatternd() -> &'static [OpType] {
    const { &[onnx("ScatterND")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_scatternd, |node| Ok(Box::new(ScatterNd::parse(node))))];

#[derive(Debug)]
struct ScatterNd {
    reduction: Reduction,
}

impl ScatterNd {
    fn parse(node: &Node) -> Self {
        Self { reduction: Reduction::parse(node) }
    }

    /// Returns the block that is written, if the indices are a grid over the first axes of `data`: along one of these
    /// axes; the inner `None`: everything is written. The outer `None`: the indices are of another form, or the
    /// elements are not replaced.
    fn block(&self, grid: Option<Grid>, shape: &[Dim], data: &[Dim]) -> Option<Option<Block>> {
        let (grid, tuple) = (grid?, tuple_length(shape).ok()?);
        if self.reduction != Reduction::None || grid.len() != tuple || shape.len() != tuple + 1 || data.len() < tuple {
            return None;
        }
        let mut block = None;
        for (axis, column) in grid.into_iter().enumerate() {
            let is_along = column.axis == Some(axis) || column.axis.is_none() && shape[axis].is(1);
            if !is_along {
                return None;
            }
            if !column.positions.is_whole(&data[axis])
                && block.replace(Block { axis, positions: column.positions }).is_some()
            {
                return None;
            }
        }
        Some(block)
    }

    /// Whether `known` indices of shape `shape` are (0, 0, ...), (1, 1, ...), ... along all of the first axes of
    /// `data`, and elements are replaced.
    fn is_diagonal(&self, known: Option<&[Dim]>, shape: &[Dim], data: &[Dim]) -> bool {
        let (Some(known), [rows, tuple]) = (known, shape) else {
            return false;
        };
        let tuple = tuple.as_const().and_then(|tuple| usize::try_from(tuple).ok());
        let (Some(rows), Some(tuple)) = (rows.as_const(), tuple) else {
            return false;
        };
        self.reduction == Reduction::None
            && tuple > 0
            && data.get(..tuple).is_some_and(|sizes| sizes.iter().all(|size| size.is(rows)))
            && known.iter().enumerate().all(|(at, index)| index.is((at / tuple) as i64))
    }
}

impl Operator for ScatterNd {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        cx.shape(1)?;
        let (dtype, data) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, data);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let data = cx.separated(0)?;
        let indices = cx.fact(1).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let first = tuple_length(&indices)?;
        let rest = data.axes.get(first..).ok_or(RuleError::UnknownShape)?;
        let sizes = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        if self.is_diagonal(cx.ints(1), &indices, &sizes) {
            let updates = cx.separated(2)?;
            let mut axes = Vec::new();
            for axis in &data.axes[..first] {
                axes.push(cx.tie(axis, &updates.axes[0]));
            }
            for (axis, update) in rest.iter().zip(&updates.axes[1..]) {
                axes.push(cx.tie(axis, update));
            }
            cx.set(0, Layout { axes });
            return Ok(());
        }
        if let Some(block) = self.block(cx.tuples(1), &indices, &sizes) {
            return couple(cx, block.as_ref());
        }
        data.axes[..first].iter().for_each(|axis| cx.keep(axis, "ScatterND writes this axis at indices"));
        let updates = cx.separated(2)?;
        for (axis, update) in rest.iter().rev().zip(updates.axes.iter().rev()) {
            cx.tie(axis, update);
        }
        let others = updates.rank().saturating_sub(rest.len());
        updates.axes[..others]
            .iter()
            .for_each(|axis| cx.keep(axis, "the axis holds the updates that ScatterND writes at indices"));
        cx.set(0, data);
        Ok(())
    }

    fn replacements(&self) -> &'static [&'static str] {
        REPLACEMENTS
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let shape = |slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone());
        let (Some(data), Some(indices)) = (shape(0), shape(1)) else {
            return Ok(());
        };
        if self.is_diagonal(cx.old_ints(1).as_deref(), &indices, &data)
            && cx.input_shrinks(2, 0)
            && let Some(rows) = cx.new_size(2, 0)
        {
            let tuple = tuple_length(&indices)?;
            let positions: Vec<i64> = (0..rows).flat_map(|row| std::iter::repeat_n(row, tuple)).collect();
            cx.set_input_tensor(1, &positions, &[rows, tuple as i64]);
            return Ok(());
        }
        match self.block(cx.tuples(1), &indices, &data) {
            Some(block) => patch(cx, block.as_ref(), tuple_length(&indices)?),
            None => Ok(()),
        }
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let shape = |slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone()).unwrap_or_default();
        let (data, indices) = (shape(0), shape(1));
        if self.is_diagonal(cx.known_ints(1).as_deref(), &indices, &data) {
            return diagonal_mask(cx, tuple_length(&indices)?, data.len());
        }
        // A mask is overwritten even if the values are added up.
        let (data, updates) = (cx.full_mask(0), cx.full_mask(2));
        let mask = cx.add("ScatterND", &[&data, &cx.input(1), &updates], vec![]);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        self.reduction.check_gradient()?;
        if cx.wants(2) {
            let dupdates = cx.op("GatherND", &[&dy, &cx.input(1)]);
            cx.add_gradient(2, dupdates);
        }
        if cx.wants(0) {
            let ddata = self.reduction.data_gradient(cx, &dy)?;
            cx.add_gradient(0, ddata);
        }
        Ok(())
    }
}

/// Sets the mask of a value of rank `rank` in which the updates fill the diagonal of the first `tuple` axes. The
/// indices that the updates lose along their first axis are removed from each of these axes, including zeros off the
/// diagonal.
fn diagonal_mask(cx: &mut ReferenceCx<'_>, tuple: usize, rank: usize) -> Result<(), RuleError> {
    if cx.mask(2).is_none() {
        return Ok(());
    }
    let updates = cx.full_mask(2);
    let others: Vec<i64> = (1..=rank - tuple).map(|axis| axis as i64).collect();
    let rows = if others.is_empty() { updates.clone() } else { cx.reduce("ReduceMax", &updates, &others) };
    let mut mask = cx.reduce("ReduceMax", &updates, &[0]);
    for axis in 0..tuple {
        let mut target = vec![1; rank];
        target[axis] = -1;
        let target = cx.ints(&target, &[rank as i64]);
        let along = cx.add("Reshape", &[&rows, &target], vec![]);
        mask = cx.add("Mul", &[&mask, &along], vec![]);
    }
    cx.set_mask(0, mask);
    Ok(())
}
