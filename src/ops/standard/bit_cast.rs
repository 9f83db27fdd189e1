//! # BitCast
//! Reinterprets the bits of a value as another element type of the same width.
//! Spec: <https://onnx.ai/onnx/operators/onnx__BitCast.html>. Opsets 26 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_bit_cast() -> &'static [OpType] {
    const { &[onnx("BitCast")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_bit_cast, |node| Ok(Box::new(BitCast::parse(node))))];

#[derive(Debug)]
struct BitCast {
    /// The element type of the output; `None` if this version does not know it.
    to: Option<DataType>,
}

impl BitCast {
    fn parse(node: &Node) -> Self {
        let to = node.proto.int("to").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        Self { to }
    }
}

impl Operator for BitCast {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        cx.set_shape(0, self.to.unwrap_or(DataType::Undefined), shape);
        Ok(())
    }
}
