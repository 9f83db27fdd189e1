//! # SequenceAt
//! One tensor of a sequence.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceAt.html>. Opsets 11 and later.
//!
//! Coupling: if sequence and position are known when the file is loaded, the tensor replaces the node. Otherwise it is
//! a barrier.

use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_sequence_at() -> &'static [OpType] {
    const { &[onnx("SequenceAt")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_sequence_at, |_| Ok(Box::new(SequenceAt))).of_sequences()];

#[derive(Debug)]
struct SequenceAt;

impl Operator for SequenceAt {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let position = cx.int(1)?;
        let tensor = cx.element(0, position)?;
        cx.set_output(0, tensor);
        Ok(())
    }
}
