//! # If
//! Runs one of two graphs, depending on a condition.
//! Spec: <https://onnx.ai/onnx/operators/onnx__If.html>. Opsets 1 and later.
//!
//! Coupling: when the file is loaded, an If whose condition follows from known sizes and constants is replaced by its
//! branch. Any other is a barrier, whose outputs have the sizes on which both branches agree.

use crate::graph::Node;
use crate::graph::fact::Fact;
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

/// Returns what is known of a value that is either `a` or `b`: a size on which they differ is unknown.
pub(super) fn merged(cx: &mut InferCx<'_>, a: Option<Fact>, b: Option<Fact>) -> Option<Fact> {
    let (a, b) = (a?, b?);
    if a == b {
        return Some(a);
    }
    match (a.shape, b.shape) {
        (Some(a_shape), Some(b_shape)) if a_shape.len() == b_shape.len() => {
            let sizes = a_shape.into_iter().zip(b_shape);
            let shape = sizes.map(|(a, b)| if a == b { a } else { cx.fresh() }).collect();
            Some(Fact::new(a.dtype, shape))
        }
        _ => Some(Fact::unranked(a.dtype)),
    }
}

const CAUSE: &str = "which branch runs is only known at run time";

impl Operator for If {
    fn decided_body(&self, known: &dyn Fn(usize) -> Option<i64>) -> Option<&GraphProto> {
        if known(0)? != 0 { self.then_branch.as_ref() } else { self.else_branch.as_ref() }
    }

    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let bodies = [&self.then_branch, &self.else_branch].into_iter().flatten();
        // A branch that contradicts itself at these sizes never runs.
        let given: Vec<Vec<Option<Fact>>> = bodies.filter_map(|body| cx.body(body, Vec::new()).ok()).collect();
        let Some(first) = given.first() else { return Err(RuleError::unsupported(CAUSE)) };
        for (slot, fact) in first.iter().enumerate() {
            let others = given[1..].iter().map(|facts| facts.get(slot).cloned().flatten());
            let merged = others.fold(fact.clone(), |fact, other| merged(cx, fact, other));
            if let Some(fact) = merged {
                cx.set(slot, fact);
            }
        }
        Ok(())
    }

    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported(CAUSE))
    }
}
