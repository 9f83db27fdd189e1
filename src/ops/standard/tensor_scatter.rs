//! # TensorScatter
//! Writes new positions into a cache.
//! Spec: <https://onnx.ai/onnx/operators/onnx__TensorScatter.html>. Opsets 24 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_tensor_scatte() -> &'static [OpType] {
    const { &[onnx("TensorScatter")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_tensor_scatte, |_| Ok(Box::new(TensorScatter)))];

#[derive(Debug)]
struct TensorScatter;

impl Operator for TensorScatter {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }
}
