//! # If
//! Runs one of two graphs, as a condition says.
//! Spec: <https://onnx.ai/onnx/operators/onnx__If.html>. Opsets 1 and later.
//!
//! Coupling: an If whose condition follows from known sizes and constants is replaced by its branch when the file is read.
//! Any other is a barrier.

use crate::graph::Node;
use crate::onnx::{GraphProto, NodeProto};
use crate::operator::couple::CoupleCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, onnx};

fn types_if() -> &'static [OpType] {
    const { &[onnx("If")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_if, &If)];

struct If;

const CAUSE: &str = "which branch runs is not known before the network does";

impl NodeRules for If {
    fn decided_body<'n>(&self, node: &'n NodeProto, known: &dyn Fn(usize) -> Option<i64>) -> Option<&'n GraphProto> {
        let branch = if known(0)? != 0 { "then_branch" } else { "else_branch" };
        node.attr(branch)?.g.as_ref()
    }

    fn infer(&self, _node: &Node, _cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn couple(&self, _node: &Node, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }
}
