//! # Clip
//! Limits elements to `[min, max]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Clip.html>. Opsets 6 and later (limits are inputs from 11).
//!
//! Coupling: every axis passes through; the limits are scalars.

use crate::couple::CoupleCx;
use crate::fact::Fact;
use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, RuleError, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Clip];

struct Clip;

impl Operator for Clip {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("Clip")] }
    }

    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?;
        let fact = Fact { dtype: input.dtype, shape: input.shape.clone(), known: None };
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }
}
