//! # SequenceInsert
//! Inserts a tensor into a sequence, at a position or at the end.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceInsert.html>. Opsets 11 and later.
//!
//! Coupling: if all uses of the sequence are known when the file is loaded, the node is removed. Otherwise it is a
//! barrier.

use crate::operator::sequence::Sequence;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_sequence_insert() -> &'static [OpType] {
    const { &[onnx("SequenceInsert")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_sequence_insert, |_| Ok(Box::new(SequenceInsert))).of_sequences()];

#[derive(Debug)]
struct SequenceInsert;

impl Operator for SequenceInsert {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let mut list = cx.list(0)?;
        let length = list.len() as i64;
        let position = if cx.has(2) { cx.int(2)? } else { length };
        let at = if position < 0 { position + length } else { position };
        let at = usize::try_from(at).ok().filter(|at| *at <= list.len()).ok_or_else(|| {
            RuleError::invalid(format!("position {position} does not exist in a sequence of {length} tensors"))
        })?;
        list.insert(at, cx.input(1));
        cx.set_sequence(0, Sequence::List(list));
        Ok(())
    }
}
