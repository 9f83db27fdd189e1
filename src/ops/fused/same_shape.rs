//! # BiasSoftmax, BiasDropout, BitmaskDropout, Inverse, LongformerAttention, MoE and QMoE
//! Operators whose result has the type and shape of their first input.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_same_shape() -> &'static [OpType] {
    const {
        &[
            microsoft("BiasSoftmax"),
            microsoft("BiasDropout"),
            microsoft("BitmaskDropout"),
            microsoft("Inverse"),
            microsoft("LongformerAttention"),
            microsoft("MoE"),
            microsoft("QMoE"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_same_shape, |_| Ok(Box::new(SameShape)))];

#[derive(Debug)]
struct SameShape;

impl Operator for SameShape {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
