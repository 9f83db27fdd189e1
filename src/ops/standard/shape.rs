//! # Shape and Size
//! The sizes of a tensor, or their product, as integers.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Shape.html>. All opsets (`start` and `end` from 15).
//!
//! Coupling: none; the result counts axes, and sizes that shrink follow by themselves.

use crate::graph::Node;
use crate::graph::dim::{Dim, product};
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, onnx};

fn types_shape() -> &'static [OpType] {
    const { &[onnx("Shape")] }
}

fn types_size() -> &'static [OpType] {
    const { &[onnx("Size")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::of_node(types_shape, &Shape), Registration::of_node(types_size, &Size)];

struct Shape;

impl NodeRules for Shape {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let rank = shape.len() as i64;
        let bound = |name: &str, default: i64| {
            let at = node.int(name, default);
            usize::try_from((if at < 0 { at + rank } else { at }).clamp(0, rank)).unwrap_or(0)
        };
        let (start, end) = (bound("start", 0), bound("end", rank));
        cx.set(0, Fact::int_vector(shape.get(start..end.max(start)).unwrap_or_default().to_vec()));
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}

struct Size;

impl NodeRules for Size {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let count: Dim = product(&cx.shape(0)?);
        cx.set(0, Fact::new(DataType::Int64, vec![]).with_known(Some(Known::Ints(vec![count]))));
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
