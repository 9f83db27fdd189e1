//! # MelWeightMatrix
//! The matrix that converts a spectrum to mel bins: `[dft_length / 2 + 1, num_mel_bins]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html>. Opsets 17 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_mel_weight_matrix() -> &'static [OpType] {
    const { &[onnx("MelWeightMatrix")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_mel_weight_matrix, |node| Ok(Box::new(MelWeightMatrix::parse(node))))];

#[derive(Debug)]
struct MelWeightMatrix {
    dtype: DataType,
}

impl MelWeightMatrix {
    fn parse(node: &Node) -> Self {
        let named = node.proto.int("output_datatype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        Self { dtype: named.unwrap_or(DataType::Float) }
    }
}

impl Operator for MelWeightMatrix {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let one = |slot: usize| cx.ints(slot).and_then(|values| values.first().cloned());
        let (bins, length) = (one(0), one(1));
        let rows = length.and_then(|length| length.floor_div(&Dim::from(2))).map(|half| &half + &Dim::from(1));
        let shape = vec![rows.unwrap_or_else(|| cx.fresh()), bins.unwrap_or_else(|| cx.fresh())];
        cx.set_shape(0, self.dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
