//! # Shape
//! The sizes of a tensor as integers.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Shape.html>. All opsets (`start` and `end` from 15).
//!
//! Coupling: none; the result numbers axes, and sizes that shrink are updated when the network runs.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_shape() -> &'static [OpType] {
    const { &[onnx("Shape")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_shape, |node| Ok(Box::new(Shape::parse(node))))];

/// The range of axes whose sizes are returned, `start..end`; negative numbers count from the end.
#[derive(Debug)]
struct Shape {
    start: i64,
    /// The end of the range; `None`: the rank.
    end: Option<i64>,
}

impl Shape {
    fn parse(node: &Node) -> Self {
        Self { start: node.int("start", 0), end: node.proto.int("end") }
    }
}

impl Operator for Shape {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let rank = shape.len() as i64;
        let bound = |at: i64| usize::try_from((if at < 0 { at + rank } else { at }).clamp(0, rank)).unwrap_or(0);
        let (start, end) = (bound(self.start), bound(self.end.unwrap_or(rank)));
        cx.set(0, Fact::int_vector(shape.get(start..end.max(start)).unwrap_or_default().to_vec()));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reads_sizes_alone(&self) -> bool {
        true
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
