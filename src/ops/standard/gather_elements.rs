//! # GatherElements
//! Reads elements at indices along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherElements.html>. Opsets 11 and later.
//!
//! Coupling: along `axis` everything is kept; every other axis is shared by the data, the indices and Y if their sizes
//! are equal.

use crate::graph::Node;
use crate::onnx::{attr_int, attr_string};
use crate::operator::couple::layout::Layout;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};
use crate::ops::indexed::{along_other_axes, one_hot};

fn types_gatherelements() -> &'static [OpType] {
    const { &[onnx("GatherElements")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_gatherelements, |node| Ok(Box::new(GatherElements::parse(node))))];

#[derive(Debug)]
struct GatherElements {
    axis: i64,
}

impl GatherElements {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 0) }
    }
}

impl Operator for GatherElements {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        cx.shape(0)?;
        let (dtype, indices) = (cx.input(0)?.dtype, cx.shape(1)?);
        cx.set_shape(0, dtype, indices);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let axes = along_other_axes(cx, self.axis, &[0, 1])?;
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = add_up_elements(cx, &dy, &shape, axis_index(self.axis, shape.len())?)?;
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Adds up the gradients of the elements that a GatherElements read from a value of this shape, at the indices of
/// input 1.
fn add_up_elements(cx: &mut GradientCx<'_>, dy: &str, shape: &[i64], axis: usize) -> Result<String, RuleError> {
    let (indices, taken) = (cx.input(1), cx.shape(1)?);
    if cx.opset() >= 16 {
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, shape);
        let attributes = vec![attr_string("reduction", "add"), attr_int("axis", axis as i64)];
        return Ok(cx.op_with("ScatterElements", &[&zeros, &indices, dy], attributes));
    }
    let marks = one_hot(cx, &indices, shape[axis], axis);
    let apart = [&taken[..axis], &[1], &taken[axis..]].concat();
    let dy = cx.reshape(dy, &apart);
    let product = cx.mul(&marks, &dy);
    let sums = cx.reduce_sum(&product, &[axis + 1], false);
    // Along the other axes, the indices may be shorter than the data.
    let after = (0..shape.len()).map(|at| if at == axis { 0 } else { shape[at] - taken[at] }).collect::<Vec<i64>>();
    Ok(cx.pad(&sums, &vec![0; shape.len()], &after))
}
