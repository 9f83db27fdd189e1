//! # LinearAttention
//! Attention as a recurrence over positions, on packed heads `[batch, length, heads * size]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LinearAttention.html>. Opsets 27 and later, and ONNX Runtime's contrib
//! operator.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_linear_attention() -> &'static [OpType] {
    const { &[onnx("LinearAttention"), microsoft("LinearAttention")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_linear_attention, |node| Ok(Box::new(LinearAttention::parse(node))))];

#[derive(Debug)]
struct LinearAttention {
    heads: i64,
    kv_heads: i64,
}

impl LinearAttention {
    fn parse(node: &Node) -> Self {
        Self { heads: node.int("q_num_heads", 1).max(1), kv_heads: node.int("kv_num_heads", 1).max(1) }
    }
}

impl Operator for LinearAttention {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, q, k, v) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?, cx.shape(2)?);
        let ([batch, length, _], [_, _, keys], [_, _, values]) = (q.as_slice(), k.as_slice(), v.as_slice()) else {
            return Err(RuleError::invalid("queries, keys and values must have rank 3"));
        };
        let kv_heads = Dim::from(self.kv_heads);
        let (key, value) = (keys.div_exact(&kv_heads), values.div_exact(&kv_heads));
        let (key, value) = (key.unwrap_or_else(|| cx.fresh()), value.unwrap_or_else(|| cx.fresh()));
        cx.set_shape(0, dtype, vec![batch.clone(), length.clone(), &value * &Dim::from(self.heads)]);
        let state = cx.optional(3).map_or(dtype, |past| past.dtype);
        cx.set_shape(1, state, vec![batch.clone(), kv_heads, key, value]);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
