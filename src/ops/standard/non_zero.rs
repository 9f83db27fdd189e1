//! # NonZero
//! The indices of the elements that are not zero, one column per element.
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonZero.html>. Opsets 9 and later.
//!
//! Coupling: every input is kept.

use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_nonzero() -> &'static [OpType] {
    const { &[onnx("NonZero")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_nonzero, |_| Ok(Box::new(NonZero)))];

#[derive(Debug)]
struct NonZero;

impl Operator for NonZero {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let rank = cx.shape(0)?.len();
        let count = cx.fresh();
        cx.set_shape(0, DataType::Int64, vec![Dim::from(rank as i64), count]);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the indices that NonZero returns refer to this value");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing; a plan that removes some of it changes the indices, and verification fails.
        Ok(())
    }
}
