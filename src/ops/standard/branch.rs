//! # If
//! Runs one of two graphs, as a condition says.
//! Spec: <https://onnx.ai/onnx/operators/onnx__If.html>. Opsets 1 and later.
//!
//! Coupling: an If whose condition follows from known sizes and constants is replaced by its branch when the file is read.
//! Any other is a barrier.

use crate::graph::Node;
use crate::onnx::GraphProto;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_if() -> &'static [OpType] {
    const { &[onnx("If")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_if, |node| Ok(Box::new(If::parse(node))))];

#[derive(Debug)]
struct If {
    then_branch: Option<GraphProto>,
    else_branch: Option<GraphProto>,
}

impl If {
    fn parse(node: &Node) -> Self {
        let body = |name: &str| node.proto.attr(name).and_then(|attribute| attribute.g.clone());
        Self { then_branch: body("then_branch"), else_branch: body("else_branch") }
    }
}

const CAUSE: &str = "which branch runs is not known before the network does";

impl Operator for If {
    fn decided_body(&self, known: &dyn Fn(usize) -> Option<i64>) -> Option<&GraphProto> {
        if known(0)? != 0 { self.then_branch.as_ref() } else { self.else_branch.as_ref() }
    }

    fn infer(&self, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }
}
