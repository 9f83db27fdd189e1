//! # Where
//! `Y = condition ? X : Y`, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Where.html>. Opsets 9 and later.
//!
//! Coupling: axes that are broadcast against each other are one axis.

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_where() -> &'static [OpType] {
    const { &[onnx("Where")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_where, |_| Ok(Box::new(Where)))];

#[derive(Debug)]
struct Where;

impl Operator for Where {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = [cx.shape(0)?, cx.shape(1)?, cx.shape(2)?];
        let dtype = cx.input(1)?.dtype;
        let known = selected(cx);
        let shape = cx.broadcast(&shapes)?;
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.broadcast(&[0, 1, 2])?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0, 1, 2])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, condition, zero) = (cx.dy()?, cx.input(0), cx.scalar(0.0));
        if cx.wants(1) {
            let chosen = cx.op("Where", &[&condition, &dy, &zero]);
            cx.add_broadcast_gradient(1, &chosen)?;
        }
        if cx.wants(2) {
            let chosen = cx.op("Where", &[&condition, &zero, &dy]);
            cx.add_broadcast_gradient(2, &chosen)?;
        }
        Ok(())
    }
}

/// Computes the elements of the result if the condition is known; for scalars and vectors of one length.
fn selected(cx: &InferCx<'_>) -> Option<Known> {
    let (condition, a, b) = (cx.ints(0)?, cx.ints(1)?, cx.ints(2)?);
    let count = condition.len().max(a.len()).max(b.len());
    let at = |values: &[Dim], at: usize| match values.len() {
        1 => values.first().cloned(),
        len if len == count => values.get(at).cloned(),
        _ => None,
    };
    let pick = |index: usize| {
        let chosen = if at(condition, index)?.as_const()? != 0 { a } else { b };
        at(chosen, index)
    };
    (0..count).map(pick).collect::<Option<Vec<_>>>().map(Known::Ints)
}
