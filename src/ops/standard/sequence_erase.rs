//! # SequenceErase
//! Removes one tensor from a sequence, at a position or the last.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceErase.html>. Opsets 11 and later.
//!
//! Coupling: if all uses of the sequence are known when the file is loaded, the node is removed. Otherwise it is a
//! barrier.

use crate::operator::sequence::{Sequence, from_front};
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_sequence_erase() -> &'static [OpType] {
    const { &[onnx("SequenceErase")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_sequence_erase, |_| Ok(Box::new(SequenceErase))).of_sequences()];

#[derive(Debug)]
struct SequenceErase;

impl Operator for SequenceErase {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let mut list = cx.list(0)?;
        let position = if cx.has(1) { cx.int(1)? } else { -1 };
        list.remove(from_front(position, list.len() as i64)?);
        cx.set_sequence(0, Sequence::List(list));
        Ok(())
    }
}
