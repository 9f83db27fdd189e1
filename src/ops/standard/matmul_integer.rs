//! # MatMulInteger and QLinearMatMul
//! Matrix products of quantised values; the operators of ONNX Runtime's domain also take or return floats.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>,
//! <https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html>. Opsets 10 and later; ONNX Runtime's contrib operators, domain
//! com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{Folding, InferCx, MacsCx, OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_matmul_intege() -> &'static [OpType] {
    const {
        &[
            onnx("MatMulInteger"),
            onnx("QLinearMatMul"),
            microsoft("MatMulInteger16"),
            microsoft("MatMulIntegerToFloat"),
            microsoft("DynamicQuantizeMatMul"),
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_matmul_intege, |node| Ok(Box::new(MatMulInteger::parse(node))))];

#[derive(Debug)]
struct MatMulInteger {
    /// The input that holds B.
    b: usize,
    result: Type,
}

impl MatMulInteger {
    fn parse(node: &Node) -> Self {
        let (b, result) = match node.proto.op_type.as_str() {
            "QLinearMatMul" => (3, Type::OfInput(7)),
            "MatMulIntegerToFloat" => (1, Type::OfInput(2)),
            "DynamicQuantizeMatMul" => (1, Type::OfInput(0)),
            _ => (1, Type::Int32),
        };
        Self { b, result }
    }
}

/// The element type of the product.
#[derive(Clone, Copy, Debug)]
enum Type {
    Int32,
    OfInput(usize),
}

impl Operator for MatMulInteger {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (a, b) = (cx.shape(0)?, cx.shape(self.b)?);
        let (Some((k, a_rest)), false) = (a.split_last(), b.is_empty()) else {
            return Err(RuleError::invalid("A and B must have rank 1 or more, found a scalar"));
        };
        let rows = &b[b.len().saturating_sub(2)];
        if !cx.equal(k, rows) {
            return Err(RuleError::invalid(format!("A has {k} columns, but B has {rows} rows")));
        }
        let (a_leading, m) = a_rest.split_at(a_rest.len().saturating_sub(1));
        let (b_leading, n) = if b.len() > 1 { (&b[..b.len() - 2], &b[b.len() - 1..]) } else { (&b[..0], &b[..0]) };
        let mut shape = cx.broadcast(&[a_leading.to_vec(), b_leading.to_vec()])?;
        shape.extend(m.iter().chain(n).cloned());
        let dtype = match self.result {
            Type::Int32 => DataType::Int32,
            Type::OfInput(slot) => cx.optional(slot).map_or(DataType::Undefined, |fact| fact.dtype),
        };
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        cx.output_elements(0) * cx.input(0).and_then(<[i64]>::last).map_or(0.0, |k| *k as f64)
    }
}
