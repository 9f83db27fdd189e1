//! # RelativePositionBias and GatedRelativePositionBias
//! The term of attention scores that depends on the distance between positions, `[batch, heads, queries, keys]`.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_relative_position_bia() -> &'static [OpType] {
    const { &[microsoft("RelativePositionBias"), microsoft("GatedRelativePositionBias")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_relative_position_bia, |node| Ok(Box::new(RelativePositionBias::parse(node))))];

#[derive(Debug)]
struct RelativePositionBias {
    /// The number of heads of the gated form; `None` in the other.
    gated: Option<i64>,
}

impl RelativePositionBias {
    fn parse(node: &Node) -> Self {
        Self { gated: (node.proto.op_type == "GatedRelativePositionBias").then(|| node.int("num_heads", 1)) }
    }
}

impl Operator for RelativePositionBias {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let dtype = cx.input(0)?.dtype;
        let shape = match self.gated {
            None => {
                let table = cx.shape(0)?;
                let heads = table.last().cloned().ok_or(RuleError::UnknownShape)?;
                let one = |slot: usize| cx.ints(slot).and_then(|values| values.first().cloned());
                let (queries, keys) = (one(1), one(2));
                vec![Dim::from(1), heads, queries.unwrap_or_else(|| cx.fresh()), keys.unwrap_or_else(|| cx.fresh())]
            }
            Some(heads) => {
                let query = cx.shape(0)?;
                let [batch, length, ..] = query.as_slice() else { return Err(RuleError::UnknownShape) };
                vec![batch.clone(), Dim::from(heads), length.clone(), length.clone()]
            }
        };
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
