//! # DynamicQuantizeLinear
//! Quantises values to integers, with a scale and zero point computed from their range.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html>. Opsets 11 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::onnx::DataType;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_dynamic_quantize_linea() -> &'static [OpType] {
    const { &[onnx("DynamicQuantizeLinear")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_dynamic_quantize_linea, |_| Ok(Box::new(DynamicQuantizeLinear)))];

#[derive(Debug)]
struct DynamicQuantizeLinear;

impl Operator for DynamicQuantizeLinear {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        cx.set_shape(0, DataType::Uint8, shape);
        cx.set_shape(1, DataType::Float, vec![]);
        cx.set_shape(2, DataType::Uint8, vec![]);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn quantizes(&self) -> bool {
        true
    }
}
