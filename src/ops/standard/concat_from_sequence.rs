//! # ConcatFromSequence
//! Joins the tensors of a sequence along an axis, or stacks them along a new one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConcatFromSequence.html>. Opsets 11 and later.
//!
//! Coupling: if the tensors are known when the file is loaded, Concat replaces the node. Otherwise it is a barrier.

use crate::graph::Node;
use crate::onnx::attr_int;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, onnx};
use crate::ops::sequences::CAUSE;

fn types_concat_from_sequence() -> &'static [OpType] {
    const { &[onnx("ConcatFromSequence")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_concat_from_sequence, |node| Ok(Box::new(ConcatFromSequence::parse(node))))
        .of_sequences()];

#[derive(Debug)]
struct ConcatFromSequence {
    axis: Option<i64>,
    is_new_axis: bool,
}

impl ConcatFromSequence {
    fn parse(node: &Node) -> Self {
        Self { axis: node.proto.int("axis"), is_new_axis: node.int("new_axis", 0) != 0 }
    }
}

impl Operator for ConcatFromSequence {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let axis = self.axis.ok_or_else(|| RuleError::invalid("it has no attribute axis"))?;
        let mut list = cx.list(0)?;
        if list.is_empty() {
            return Err(RuleError::unsupported("the sequence is empty"));
        }
        if self.is_new_axis {
            list = list.iter().map(|tensor| cx.unsqueeze(tensor, axis)).collect();
        }
        let tensors: Vec<&str> = list.iter().map(String::as_str).collect();
        let joined = cx.add("Concat", &tensors, vec![attr_int("axis", axis)]);
        cx.set_output(0, joined);
        Ok(())
    }
}
