//! # MatMulFpQ4
//! The product with a matrix stored in 4 bits; an input holds its numbers of rows and columns.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_matmul_fp_q4() -> &'static [OpType] {
    const { &[microsoft("MatMulFpQ4")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_matmul_fp_q4, |_| Ok(Box::new(MatMulFpQ4)))];

#[derive(Debug)]
struct MatMulFpQ4;

impl Operator for MatMulFpQ4 {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let k = shape.pop().ok_or_else(|| RuleError::invalid("A has rank 0"))?;
        let columns = match cx.ints(2).map(<[Dim]>::to_vec).as_deref() {
            Some([rows, columns]) => {
                cx.equal(&k, rows);
                columns.clone()
            }
            _ => cx.fresh(),
        };
        shape.push(columns);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
