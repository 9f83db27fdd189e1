//! # GroupQueryAttention, SparseAttention and DecoderMaskedMultiHeadAttention
//! Attention of text models with keys and values of earlier steps.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_group_query_attention() -> &'static [OpType] {
    const { &[microsoft("GroupQueryAttention"), microsoft("SparseAttention"), microsoft("DecoderMaskedMultiHeadAttention")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_group_query_attention, |node| Ok(Box::new(GroupQueryAttention::parse(node))))];

#[derive(Debug)]
struct GroupQueryAttention {
    heads: i64,
    kv_heads: i64,
    /// Whether input 0 holds queries, keys and values packed, which it does if input 1 is omitted.
    may_be_packed: bool,
}

impl GroupQueryAttention {
    fn parse(node: &Node) -> Self {
        let heads = node.int("num_heads", 1).max(1);
        let is_grouped = node.proto.op_type != "DecoderMaskedMultiHeadAttention";
        Self {
            heads,
            kv_heads: node.int("kv_num_heads", heads).max(1),
            may_be_packed: is_grouped && node.input(1).is_none(),
        }
    }
}

impl Operator for GroupQueryAttention {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let [batch, _, hidden] = shape.as_slice() else {
            return Err(RuleError::invalid(format!("queries must have rank 3, found {}", shape.len())));
        };
        let all =
            if self.may_be_packed { self.heads.saturating_add(self.kv_heads.saturating_mul(2)) } else { self.heads };
        let each = hidden.div_exact(&Dim::from(all)).unwrap_or_else(|| cx.fresh());
        let present = vec![batch.clone(), Dim::from(self.kv_heads), cx.fresh(), each.clone()];
        shape[2] = &each * &Dim::from(self.heads);
        cx.set_shape(0, dtype, shape);
        cx.set_shape(1, dtype, present.clone());
        cx.set_shape(2, dtype, present);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
