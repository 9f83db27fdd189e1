//! # Softmax and LogSoftmax
//! `Y = exp(X) / sum(exp(X))` along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Softmax.html>. All opsets; before 13 the input is flattened to a matrix
//! at `axis`.
//!
//! Coupling: every axis passes through; a softmax over channels acts on the kept ones.

use crate::couple::CoupleCx;
use crate::graph::Node;
use crate::operator::{Folding, InferCx, OpType, Operator, RuleError, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Softmax];

struct Softmax;

impl Operator for Softmax {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("Softmax"), onnx("LogSoftmax"), onnx("Hardmax")] }
    }

    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Far below any activation, yet finite in float16, so that a row without kept elements gives no NaN.
            let x = cx.filled(&cx.input(0), &mask, -60_000.0, 0);
            cx.emit(&[(0, x)]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }
}
