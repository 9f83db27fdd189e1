//! # SplitToSequence
//! Splits a tensor along `axis` into a sequence of parts.
//! Spec: <https://onnx.ai/onnx/operators/onnx__SplitToSequence.html>. Opsets 11 and later.
//!
//! Coupling: if all uses of the sequence are known when the file is loaded, Split, Gather and Slice compute the parts.
//! Otherwise it is a barrier.

use crate::graph::Node;
use crate::operator::sequence::{Parts, Sequence};
use crate::operator::{CoupleCx, InferCx, OpType, Operator, Registration, RuleError, SequenceCx, axis_index, onnx};
use crate::ops::sequences::CAUSE;

fn types_split_to_sequence() -> &'static [OpType] {
    const { &[onnx("SplitToSequence")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_split_to_sequence, |node| Ok(Box::new(SplitToSequence::parse(node)))).of_sequences()];

/// Maximum number of parts that a single Split computes.
const MOST_AT_ONCE: i64 = 256;

#[derive(Debug)]
struct SplitToSequence {
    axis: i64,
    /// Whether parts of size one keep the axis, if no sizes are given.
    keeps_axis: bool,
}

impl SplitToSequence {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 0), keeps_axis: node.int("keepdims", 1) != 0 }
    }
}

/// Returns the number of parts of size `size`; the last may be smaller.
fn count(whole: i64, size: i64) -> i64 {
    whole / size + i64::from(whole % size != 0)
}

/// Returns the sizes of parts of size `size`; the last may be smaller.
fn equal_sizes(whole: i64, size: i64) -> Vec<i64> {
    (0..count(whole, size)).map(|at| size.min(whole - at * size)).collect()
}

impl Operator for SplitToSequence {
    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        let (value, whole) = (cx.input(0), shape[axis].as_const());
        let is_one_size = !cx.has(1) || cx.shape(1)?.is_empty();
        let sizes = if cx.has(1) { cx.ints(1)? } else { vec![1] };
        if !is_one_size {
            let sum = sizes.iter().fold(0i64, |sum, size| sum.saturating_add(*size));
            if sizes.iter().any(|size| *size < 0) || whole.is_some_and(|whole| whole != sum) {
                let size = &shape[axis];
                return Err(RuleError::invalid(format!(
                    "parts of sizes {sizes:?} do not add up to the axis of size {size}"
                )));
            }
            let list = cx.split(&value, axis, &sizes);
            cx.set_sequence(0, Sequence::List(list));
            return Ok(());
        }
        let size = sizes.first().copied().filter(|size| *size > 0);
        let size = size.ok_or_else(|| RuleError::invalid("the size of a part must be positive"))?;
        // If sizes are given, parts keep the axis.
        let keeps_axis = cx.has(1) || self.keeps_axis;
        let count = whole.map(|whole| count(whole, size));
        let sequence = match (whole, count) {
            (Some(whole), Some(2..=MOST_AT_ONCE)) if keeps_axis => {
                Sequence::List(cx.split(&value, axis, &equal_sizes(whole, size)))
            }
            _ => Sequence::Parts(Parts { value, axis, size, keeps_axis, count }),
        };
        cx.set_sequence(0, sequence);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_may_be_smaller() {
        assert_eq!(equal_sizes(7, 3), [3, 3, 1]);
        assert_eq!(equal_sizes(6, 3), [3, 3]);
        assert_eq!(equal_sizes(2, 3), [2]);
        assert!(equal_sizes(0, 3).is_empty());
    }
}
