//! # NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss
//! Losses of class scores `[N, C, d1, ...]` against classes `[N, d1, ...]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html>,
//! <https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html>. Opsets 12 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_lo() -> &'static [OpType] {
    const { &[onnx("NegativeLogLikelihoodLoss"), onnx("SoftmaxCrossEntropyLoss")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_lo, |node| Ok(Box::new(Loss::parse(node))))];

#[derive(Debug)]
struct Loss {
    /// Whether every position has its own loss.
    is_unreduced: bool,
}

impl Loss {
    fn parse(node: &Node) -> Self {
        Self { is_unreduced: node.proto.string("reduction") == Some("none") }
    }
}

impl Operator for Loss {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, scores, classes) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        cx.set_shape(0, dtype, if self.is_unreduced { classes } else { vec![] });
        cx.set_shape(1, dtype, scores);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
