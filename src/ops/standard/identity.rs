//! # Identity
//! Returns its input unchanged.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Identity.html>. All opsets.
//!
//! Coupling: every axis passes through.

use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, SequenceCx, onnx,
};

fn types_identity() -> &'static [OpType] {
    const { &[onnx("Identity")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_identity, |_| Ok(Box::new(Identity)))];

#[derive(Debug)]
struct Identity;

impl Operator for Identity {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?.clone();
        cx.set(0, input);
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        cx.reshaped()
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn in_tensors(&self, cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        let sequence = cx.sequence(0)?.clone();
        cx.set_sequence(0, sequence);
        Ok(())
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        cx.same_elements()
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        cx.add_gradient(0, dy);
        Ok(())
    }
}
