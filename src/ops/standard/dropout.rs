//! # Dropout
//! The identity at inference; in training mode, random elements become zero.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Dropout.html>. All opsets (`training_mode` is an input from 12).
//!
//! Coupling: every axis passes through. Training mode is a barrier.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::DataType;
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx,
};

fn types_dropout() -> &'static [OpType] {
    const { &[onnx("Dropout")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_dropout, |node| Ok(Box::new(Dropout::parse(node))))];

#[derive(Debug)]
struct Dropout {
    /// Whether an input states the training mode.
    may_train: bool,
}

impl Dropout {
    fn parse(node: &Node) -> Self {
        Self { may_train: node.input(2).is_some() }
    }
}

impl Operator for Dropout {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?.clone();
        cx.set(1, Fact { dtype: DataType::Bool, shape: input.shape.clone(), known: None });
        cx.set(0, input);
        Ok(())
    }

    fn folding(&self) -> Folding {
        if self.may_train { Folding::Never } else { Folding::Passes }
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if cx.ints(2).and_then(|training| training.first()).is_some_and(|training| !training.is(0)) {
            return Err(RuleError::unsupported("the node is in training mode; export the model for inference"));
        }
        let layout = cx.layout(0)?;
        cx.set(1, layout.clone());
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // The mask is the second output; at inference it is true everywhere.
        let dy = cx.dy()?;
        cx.add_gradient(0, dy);
        Ok(())
    }
}
