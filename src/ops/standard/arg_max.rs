//! # ArgMax and ArgMin
//! The indices of the largest or smallest elements along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ArgMax.html>, <https://onnx.ai/onnx/operators/onnx__ArgMin.html>. All opsets.
//!
//! Coupling: every input is kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx};

fn types_argmax() -> &'static [OpType] {
    const { &[onnx("ArgMax"), onnx("ArgMin")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_argmax, |node| Ok(Box::new(ArgMax::parse(node))))];

#[derive(Debug)]
struct ArgMax {
    axis: i64,
    keeps_axis: bool,
}

impl ArgMax {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 0), keeps_axis: node.int("keepdims", 1) != 0 }
    }
}

impl Operator for ArgMax {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        if self.keeps_axis {
            shape[axis] = Dim::from(1);
        } else {
            shape.remove(axis);
        }
        cx.set_shape(0, DataType::Int64, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the indices that ArgMax or ArgMin returns refer to this value");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing; a plan that removes some of it changes the indices, and verification fails.
        Ok(())
    }
}
