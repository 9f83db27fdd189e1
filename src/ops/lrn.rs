//! # LRN
//! `Y = X / (bias + alpha / size * sum of X^2 over neighbouring channels)^beta`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LRN.html>. All opsets.
//!
//! Coupling: axis 1 stays, because neighbours would become others; the other axes pass through.

use crate::couple::CoupleCx;
use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, RuleError, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Lrn];

struct Lrn;

impl Operator for Lrn {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("LRN")] }
    }

    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 2 {
            return Err(RuleError::invalid(format!("X must have rank 2 or more, found {}", shape.len())));
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        cx.keep(x.axes.get(1).ok_or(RuleError::UnknownShape)?, "is normalised with its neighbours");
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }
}
