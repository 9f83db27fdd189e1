//! # PRelu
//! `Y = X where X >= 0, else slope * X`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__PRelu.html>. Opsets 7 and later.
//!
//! Coupling: the slope is broadcast to X.

use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_prelu() -> &'static [OpType] {
    const { &[onnx("PRelu")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_prelu, |_| Ok(Box::new(PRelu)))];

#[derive(Debug)]
struct PRelu;

impl Operator for PRelu {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.broadcast(&[0, 1])?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0, 1])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let (x, slope, zero) = (cx.input(0), cx.input(1), cx.scalar(0.0));
        if cx.wants(0) {
            let leak = cx.mul(&dy, &slope);
            let dx = cx.where_positive(&x, &dy, &leak);
            cx.add_gradient(0, dx);
        }
        if cx.wants(1) {
            let product = cx.mul(&dy, &x);
            let below = cx.where_positive(&x, &zero, &product);
            cx.add_broadcast_gradient(1, &below)?;
        }
        Ok(())
    }
}
