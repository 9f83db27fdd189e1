//! # Det
//! The determinants of the matrices in the last two axes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Det.html>. Opsets 11 and later.
//!
//! Coupling: the last two axes are kept; the others pass through.

use crate::operator::couple::layout::Layout;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_det() -> &'static [OpType] {
    const { &[onnx("Det")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_det, |_| Ok(Box::new(Det)))];

#[derive(Debug)]
struct Det;

impl Operator for Det {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 2 {
            return Err(RuleError::invalid(format!("matrices have rank 2 or more, found {}", shape.len())));
        }
        shape.truncate(shape.len() - 2);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut axes = cx.separated(0)?.axes;
        for axis in axes.split_off(axes.len().saturating_sub(2)) {
            cx.keep(&axis, "the axis belongs to the matrices of Det");
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            let rank = cx.rank(0)? as i64;
            let mask = cx.reduce("ReduceMax", &mask, &[rank - 2, rank - 1]);
            let shape = cx.add("Shape", &[&mask], vec![]);
            let shape = cx.span(&shape, 0, 0, rank - 2);
            let mask = cx.add("Reshape", &[&mask, &shape], vec![]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }
}
