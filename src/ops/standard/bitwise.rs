//! # Bitwise operators of two inputs
//! BitShift, BitwiseAnd, BitwiseOr and BitwiseXor of integers, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/onnx__BitShift.html>. Opsets 11 (BitShift) and 18 and later.
//!
//! Coupling: axes that are broadcast against each other are one axis.

use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_bitwise() -> &'static [OpType] {
    const { &[onnx("BitShift"), onnx("BitwiseAnd"), onnx("BitwiseOr"), onnx("BitwiseXor")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_bitwise, |_| Ok(Box::new(Bitwise)))];

#[derive(Debug)]
struct Bitwise;

impl Operator for Bitwise {
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
