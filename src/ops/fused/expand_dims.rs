//! # ExpandDims
//! Inserts an axis of size one at a given position.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::dim::Dim;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, axis_index, microsoft};

fn types_expand_dim() -> &'static [OpType] {
    const { &[microsoft("ExpandDims")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_expand_dim, |_| Ok(Box::new(ExpandDims)))];

#[derive(Debug)]
struct ExpandDims;

impl Operator for ExpandDims {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = cx.ints(1).and_then(|axis| axis.first()?.as_const()).ok_or(RuleError::UnknownShape)?;
        let axis = axis_index(axis, shape.len() + 1)?;
        shape.insert(axis, Dim::from(1));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }
}
