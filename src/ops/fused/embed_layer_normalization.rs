//! # EmbedLayerNormalization
//! The norm of a sum of word, position and segment embeddings.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::onnx::DataType;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_embed_layer_normalization() -> &'static [OpType] {
    const { &[microsoft("EmbedLayerNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_embed_layer_normalization, |_| Ok(Box::new(EmbedLayerNormalization)))];

#[derive(Debug)]
struct EmbedLayerNormalization;

impl Operator for EmbedLayerNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, ids, table) = (cx.input(2)?.dtype, cx.shape(0)?, cx.shape(2)?);
        let ([batch, length], [_, size]) = (ids.as_slice(), table.as_slice()) else {
            return Err(RuleError::invalid("input_ids and word_embedding must have rank 2"));
        };
        let shape = vec![batch.clone(), length.clone(), size.clone()];
        cx.set_shape(0, dtype, shape.clone());
        cx.set_shape(1, DataType::Int32, vec![batch.clone()]);
        cx.set_shape(2, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
