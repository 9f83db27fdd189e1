//! # SwiGLU
//! `Y = A * sigmoid(alpha * A) * B`, element by element.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SwiGLU.html>. Opsets 28 and later.
//!
//! Coupling: axes that are broadcast against each other are one axis.

use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_swiglu() -> &'static [OpType] {
    const { &[onnx("SwiGLU")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_swiglu, |_| Ok(Box::new(SwiGlu)))];

#[derive(Debug)]
struct SwiGlu;

impl Operator for SwiGlu {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let dtype = cx.input(0)?.dtype;
        let shape = cx.broadcast(&shapes)?;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.broadcast(&[0, 1])?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0, 1])
    }
}
