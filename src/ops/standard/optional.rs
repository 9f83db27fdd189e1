//! # Optional, OptionalHasElement and OptionalGetElement
//! A value that may be absent. Shapes are inferred for a tensor inside, not for sequences.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Optional.html>,
//! <https://onnx.ai/onnx/operators/onnx__OptionalGetElement.html>,
//! <https://onnx.ai/onnx/operators/onnx__OptionalHasElement.html>. Opsets 15 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_optional() -> &'static [OpType] {
    const { &[onnx("Optional"), onnx("OptionalHasElement"), onnx("OptionalGetElement")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_optional, |node| Ok(Box::new(Optional::parse(node))))];

#[derive(Debug)]
struct Optional {
    /// Whether the node only returns if the value is present.
    tests_presence: bool,
}

impl Optional {
    fn parse(node: &Node) -> Self {
        Self { tests_presence: node.proto.op_type == "OptionalHasElement" }
    }
}

impl Operator for Optional {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let fact = match self.tests_presence {
            true => Fact::new(DataType::Bool, vec![]),
            false => Fact { known: None, ..cx.input(0)?.clone() },
        };
        cx.set(0, fact);
        Ok(())
    }
}
