//! # SequenceLength
//! The number of tensors in a sequence.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceLength.html>. Opsets 11 and later.
//!
//! Coupling: if the length is known when the file is loaded, a constant replaces the node. Otherwise it is a barrier.

use crate::onnx::DataType;
use crate::operator::sequence::Sequence;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_sequence_length() -> &'static [OpType] {
    const { &[onnx("SequenceLength")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_sequence_length, |_| Ok(Box::new(SequenceLength))).of_sequences()];

#[derive(Debug)]
struct SequenceLength;

impl Operator for SequenceLength {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        cx.set_shape(0, DataType::Int64, vec![]);
        Ok(())
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let length = match cx.sequence(0)? {
            Sequence::List(list) => Some(list.len() as i64),
            Sequence::Parts(parts) => parts.count,
        };
        let length = length.ok_or_else(|| RuleError::unsupported("the length of a sequence is not known"))?;
        let length = cx.ints_of(&[length], &[]);
        cx.set_output(0, length);
        Ok(())
    }
}
