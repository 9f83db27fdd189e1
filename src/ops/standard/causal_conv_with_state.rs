//! # CausalConvWithState
//! A depthwise convolution over past positions, `[batch, channels, length]`, that also returns the last positions as
//! state.
//! Spec: <https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html>. Opsets 27 and later, and ONNX Runtime's contrib
//! operator.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_causal_conv_with_state() -> &'static [OpType] {
    const { &[onnx("CausalConvWithState"), microsoft("CausalConvWithState")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_causal_conv_with_state, |_| Ok(Box::new(CausalConvWithState)))];

#[derive(Debug)]
struct CausalConvWithState;

impl Operator for CausalConvWithState {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, w) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        let ([batch, channels, _], [rows, _, kernel]) = (x.as_slice(), w.as_slice()) else {
            return Err(RuleError::invalid(format!("X and W must have rank 3, found {} and {}", x.len(), w.len())));
        };
        if !cx.equal(channels, rows) {
            return Err(RuleError::invalid(format!("expected {rows} channels (W axis 0), found {channels}")));
        }
        cx.set_shape(1, dtype, vec![batch.clone(), channels.clone(), kernel - &Dim::from(1)]);
        cx.set_shape(0, dtype, x);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
