//! # STFT
//! Fourier transforms of windows of a signal; the last axis holds real and imaginary parts.
//! Spec: <https://onnx.ai/onnx/operators/onnx__STFT.html>. Opsets 17 and later.
//!
//! Coupling: every input is kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_stft() -> &'static [OpType] {
    const { &[onnx("STFT")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_stft, |node| Ok(Box::new(Stft::parse(node))))];

#[derive(Debug)]
struct Stft {
    is_onesided: bool,
}

impl Stft {
    fn parse(node: &Node) -> Self {
        Self { is_onesided: node.int("onesided", 1) != 0 }
    }
}

impl Operator for Stft {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, signal) = (cx.input(0)?.dtype, cx.shape(0)?);
        let [batch, length, _] = signal.as_slice() else {
            return Err(RuleError::invalid(format!("the signal must have rank 3, found {}", signal.len())));
        };
        let step = cx.ints(1).and_then(|step| step.first().cloned());
        let window = cx.optional(2).and_then(|window| window.shape.as_ref()?.first().cloned());
        let frame = cx.ints(3).and_then(|length| length.first().cloned()).or(window);
        let one = Dim::from(1);
        let frames = step.and_then(|step| (length - frame.as_ref()?).floor_div(&step)).map(|steps| &steps + &one);
        let bins = match (self.is_onesided, frame) {
            (true, Some(frame)) => frame.floor_div(&Dim::from(2)).map(|half| &half + &one),
            (_, frame) => frame,
        };
        let frames = frames.unwrap_or_else(|| cx.fresh());
        let bins = bins.unwrap_or_else(|| cx.fresh());
        cx.set_shape(0, dtype, vec![batch.clone(), frames, bins, Dim::from(2)]);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("STFT transforms this value");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
