//! # MatMulNBits and MatMulBnb4
//! The product with a matrix of K rows and N columns stored in few bits, with one scale per block.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, MacsCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_matmul_nbit() -> &'static [OpType] {
    const { &[microsoft("MatMulNBits"), microsoft("MatMulBnb4")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_matmul_nbit, |node| Ok(Box::new(MatMulNBits::parse(node))))];

#[derive(Debug)]
struct MatMulNBits {
    k: i64,
    n: i64,
}

impl MatMulNBits {
    fn parse(node: &Node) -> Self {
        Self { k: node.int("K", 0), n: node.int("N", 0) }
    }
}

impl Operator for MatMulNBits {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let k = shape.pop().ok_or_else(|| RuleError::invalid("A has rank 0"))?;
        if !cx.equal(&k, &Dim::from(self.k)) {
            return Err(RuleError::invalid(format!("A has {k} columns, but B has {} rows", self.k)));
        }
        shape.push(Dim::from(self.n));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        cx.output_elements(0) * self.k as f64
    }
}
