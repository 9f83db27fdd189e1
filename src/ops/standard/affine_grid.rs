//! # AffineGrid
//! A grid of places `[N, H, W, 2]` or `[N, D, H, W, 3]` from affine matrices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__AffineGrid.html>. Opsets 20 and later.
//!
//! Coupling: every input stays.

use crate::graph::dim::Dim;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_affinegrid() -> &'static [OpType] {
    const { &[onnx("AffineGrid")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_affinegrid, |_| Ok(Box::new(AffineGrid)))];

#[derive(Debug)]
struct AffineGrid;

impl Operator for AffineGrid {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let dtype = cx.input(0)?.dtype;
        let size = cx.ints(1).map(<[Dim]>::to_vec).ok_or(RuleError::UnknownShape)?;
        let [batch, _, image @ ..] = size.as_slice() else {
            return Err(RuleError::invalid(format!("expected a size of 4 or 5 entries, found {}", size.len())));
        };
        let mut shape = vec![batch.clone()];
        shape.extend_from_slice(image);
        shape.push(Dim::from(image.len() as i64));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("is a matrix of places");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
