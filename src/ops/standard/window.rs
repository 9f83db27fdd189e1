//! # BlackmanWindow, HammingWindow and HannWindow
//! Windows for Fourier transforms, of a given length.
//! Spec: <https://onnx.ai/onnx/operators/onnx__HannWindow.html>, <https://onnx.ai/onnx/operators/onnx__HammingWindow.html>,
//! <https://onnx.ai/onnx/operators/onnx__BlackmanWindow.html>. Opsets 17 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_window() -> &'static [OpType] {
    const { &[onnx("BlackmanWindow"), onnx("HammingWindow"), onnx("HannWindow")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_window, |node| Ok(Box::new(WindowFunction::parse(node))))];

#[derive(Debug)]
struct WindowFunction {
    dtype: DataType,
}

impl WindowFunction {
    fn parse(node: &Node) -> Self {
        let named = node.proto.int("output_datatype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        Self { dtype: named.unwrap_or(DataType::Float) }
    }
}

impl Operator for WindowFunction {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let size = cx.ints(0).and_then(|sizes| sizes.first().cloned()).unwrap_or_else(|| cx.fresh());
        cx.set_shape(0, self.dtype, vec![size]);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
