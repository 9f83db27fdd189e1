//! # NonMaxSuppression
//! Selects boxes, dropping those that overlap boxes with a higher score.
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html>. Opsets 10 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_non_max_suppression() -> &'static [OpType] {
    const { &[onnx("NonMaxSuppression")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_non_max_suppression, |_| Ok(Box::new(NonMaxSuppression)))];

#[derive(Debug)]
struct NonMaxSuppression;

impl Operator for NonMaxSuppression {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let count = cx.fresh();
        cx.set_shape(0, DataType::Int64, vec![count, Dim::from(3)]);
        Ok(())
    }
}
