//! # TopK
//! The largest or smallest elements along `axis`, and their indices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__TopK.html>. All opsets (`k` is an input from 10).
//!
//! Coupling: every input is kept.

use crate::graph::Node;
use crate::onnx::{DataType, attr_int};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_topk() -> &'static [OpType] {
    const { &[onnx("TopK")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_topk, |node| Ok(Box::new(TopK::parse(node))))];

#[derive(Debug)]
struct TopK {
    axis: i64,
}

impl TopK {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", -1) }
    }
}

impl Operator for TopK {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = axis_index(self.axis, shape.len())?;
        let k = cx.ints(1).and_then(|k| k.first().cloned());
        shape[axis] = k.unwrap_or_else(|| cx.fresh());
        cx.set_shape(0, dtype, shape.clone());
        cx.set_shape(1, DataType::Int64, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the indices that TopK returns refer to this value");
        (0..2).try_for_each(|slot| cx.set_fixed(slot))
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing; a plan that removes some of it changes the indices, and verification fails.
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape, indices) = (cx.dy()?, cx.shape(0)?, cx.output(1));
        if indices.is_empty() {
            return Err(RuleError::unsupported(
                "it has no output for the indices of the elements: add the second output of TopK to the node",
            ));
        }
        let axis = axis_index(self.axis, shape.len())? as i64;
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, &shape);
        let scatter = if cx.opset() < 11 { "Scatter" } else { "ScatterElements" };
        let dx = cx.op_with(scatter, &[&zeros, &indices, &dy], vec![attr_int("axis", axis)]);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
