//! # ImageDecoder
//! The pixels of an encoded image, `[height, width, channels]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ImageDecoder.html>. Opsets 20 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_image_decode() -> &'static [OpType] {
    const { &[onnx("ImageDecoder")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_image_decode, |node| Ok(Box::new(ImageDecoder::parse(node))))];

#[derive(Debug)]
struct ImageDecoder {
    channels: i64,
}

impl ImageDecoder {
    fn parse(node: &Node) -> Self {
        Self { channels: if node.proto.string("pixel_format") == Some("Grayscale") { 1 } else { 3 } }
    }
}

impl Operator for ImageDecoder {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = vec![cx.fresh(), cx.fresh(), Dim::from(self.channels)];
        cx.set_shape(0, DataType::Uint8, shape);
        Ok(())
    }
}
