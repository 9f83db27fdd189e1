//! # ReverseSequence
//! Reverses the first entries along `time_axis`; their number is given per entry of `batch_axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReverseSequence.html>. Opsets 10 and later.
//!
//! Coupling: both axes are kept; all others pass through.

use crate::graph::Node;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_reversesequence() -> &'static [OpType] {
    const { &[onnx("ReverseSequence")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_reversesequence, |node| Ok(Box::new(ReverseSequence::parse(node))))];

#[derive(Debug)]
struct ReverseSequence {
    time_axis: i64,
    batch_axis: i64,
}

impl ReverseSequence {
    fn parse(node: &Node) -> Self {
        Self { time_axis: node.int("time_axis", 0), batch_axis: node.int("batch_axis", 1) }
    }
}

impl Operator for ReverseSequence {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 2 {
            return Err(RuleError::invalid(format!("the input must have rank 2 or more, found {}", shape.len())));
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        for axis in [self.time_axis, self.batch_axis] {
            let axis = axis_index(axis, layout.rank())?;
            cx.keep(&layout.axes[axis], "the axis is the time or batch axis of ReverseSequence");
        }
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // Reversing twice changes nothing, so the node is its own transpose.
        let dy = cx.dy()?;
        let dx = cx.same_op(&[&dy, &cx.input(1)]);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
