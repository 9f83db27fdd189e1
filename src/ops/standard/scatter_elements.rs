//! # ScatterElements and Scatter
//! Write elements at indices along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ScatterElements.html>, <https://onnx.ai/onnx/operators/onnx__Scatter.html>.
//! Opsets 9 and later; Scatter is the name before opset 11.
//!
//! Coupling: along `axis` everything is kept; every other axis is shared by the data, the indices, the updates and Y
//! if their sizes are equal. Indices that only depend on the position along `axis` write a block, as a Concat does
//! ([`crate::ops::assigned`]).

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::couple::grid::Column;
use crate::operator::couple::layout::Layout;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};
use crate::ops::assigned::{Block, REPLACEMENTS, couple, patch};
use crate::ops::indexed::{Reduction, along_other_axes, one_hot};

fn types_scatterelements() -> &'static [OpType] {
    const { &[onnx("ScatterElements"), onnx("Scatter")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_scatterelements, |node| Ok(Box::new(ScatterElements::parse(node))))];

#[derive(Debug)]
struct ScatterElements {
    axis: i64,
    reduction: Reduction,
    /// Whether the operator is Scatter, from before opset 11, when there is no GatherElements either.
    is_old: bool,
}

impl ScatterElements {
    fn parse(node: &Node) -> Self {
        let is_old = node.proto.op_type == "Scatter";
        Self { axis: node.int("axis", 0), reduction: Reduction::parse(node), is_old }
    }

    /// Returns the block that is written along `axis`, if the indices only depend on the position along it and the
    /// other axes are written whole; the inner `None`: everything is written. The outer `None`: the indices are of
    /// another form, or the elements are not replaced.
    fn block(&self, column: Option<Column>, indices: &[Dim], data: &[Dim]) -> Option<Option<Block>> {
        let Column { axis: along, positions } = column?;
        let axis = axis_index(self.axis, data.len()).ok()?;
        let is_along = along == Some(axis) || along.is_none() && indices.get(axis)?.is(1);
        let is_whole = |at: usize| at == axis || indices[at] == data[at];
        if self.reduction != Reduction::None
            || !is_along
            || indices.len() != data.len()
            || !(0..data.len()).all(is_whole)
        {
            return None;
        }
        Some((!positions.is_whole(&data[axis])).then_some(Block { axis, positions }))
    }
}

impl Operator for ScatterElements {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        cx.shape(1)?;
        let (dtype, data) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, data);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let shape = |cx: &CoupleCx<'_>, slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone());
        if let (Some(data), Some(indices)) = (shape(cx, 0), shape(cx, 1))
            && let Some(block) = self.block(cx.column(1), &indices, &data)
        {
            return couple(cx, block.as_ref());
        }
        let axes = along_other_axes(cx, self.axis, &[0, 1, 2])?;
        cx.set(0, Layout { axes });
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
        match self.block(cx.column(1), &indices, &data) {
            Some(block) => patch(cx, block.as_ref(), data.len()),
            None => Ok(()),
        }
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // A mask is overwritten even if the values are added up.
        let (data, updates) = (cx.full_mask(0), cx.full_mask(2));
        let op_type = if self.is_old { "Scatter" } else { "ScatterElements" };
        let mask = cx.add(op_type, &[&data, &cx.input(1), &updates], vec![attr_int("axis", self.axis)]);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        self.reduction.check_gradient()?;
        if cx.wants(2) {
            let dupdates = if self.is_old {
                elements_at(cx, &dy, &shape, axis_index(self.axis, shape.len())?)?
            } else {
                cx.op_with("GatherElements", &[&dy, &cx.input(1)], vec![attr_int("axis", self.axis)])
            };
            cx.add_gradient(2, dupdates);
        }
        if cx.wants(0) {
            let ddata = self.reduction.data_gradient(cx, &dy)?;
            cx.add_gradient(0, ddata);
        }
        Ok(())
    }
}

/// Selects the elements of a value of this shape at the indices of input 1, as GatherElements does from opset 11 on.
fn elements_at(cx: &mut GradientCx<'_>, value: &str, shape: &[i64], axis: usize) -> Result<String, RuleError> {
    let (indices, taken) = (cx.input(1), cx.shape(1)?);
    let marks = one_hot(cx, &indices, shape[axis], axis);
    let mut value = value.to_owned();
    for at in (0..shape.len()).filter(|at| *at != axis && taken[*at] != shape[*at]) {
        value = cx.slice(&value, at, 0, taken[at], 1);
    }
    let apart = [&taken[..axis], &[shape[axis], 1], &taken[axis + 1..]].concat();
    let value = cx.reshape(&value, &apart);
    let product = cx.mul(&marks, &value);
    Ok(cx.reduce_sum(&product, &[axis], false))
}
