//! # SequenceConstruct and SequenceEmpty
//! Makes a sequence of tensors, or an empty one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html>. Opsets 11 and later.
//!
//! Coupling: if all uses of the sequence are known when the file is loaded, the node is removed. Otherwise it is a
//! barrier.

use crate::operator::sequence::Sequence;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_sequence_construct() -> &'static [OpType] {
    const { &[onnx("SequenceConstruct"), onnx("SequenceEmpty")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_sequence_construct, |node| Ok(Box::new(SequenceConstruct { count: node.inputs.len() })))
        .of_sequences()];

#[derive(Debug)]
struct SequenceConstruct {
    count: usize,
}

impl Operator for SequenceConstruct {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let list = (0..self.count).map(|slot| cx.input(slot)).collect();
        cx.set_sequence(0, Sequence::List(list));
        Ok(())
    }
}
