//! # GatherBlockQuantized
//! Looks up rows of a table stored in few bits, with one scale per block.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, axis_index, microsoft};

fn types_gather_block_quantized() -> &'static [OpType] {
    const { &[microsoft("GatherBlockQuantized")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_gather_block_quantized, |node| Ok(Box::new(GatherBlockQuantized::parse(node))))];

#[derive(Debug)]
struct GatherBlockQuantized {
    axis: i64,
    quantize_axis: i64,
    bits: i64,
}

impl GatherBlockQuantized {
    fn parse(node: &Node) -> Self {
        Self {
            axis: node.int("gather_axis", 0),
            quantize_axis: node.int("quantize_axis", 1),
            bits: node.int("bits", 4),
        }
    }
}

impl Operator for GatherBlockQuantized {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (mut data, indices) = (cx.shape(0)?, cx.shape(1)?);
        let (axis, along) = (axis_index(self.axis, data.len())?, axis_index(self.quantize_axis, data.len())?);
        if cx.input(0)?.dtype == DataType::Uint8 && self.bits > 0 {
            // A byte holds several elements.
            data[along] = &data[along] * &Dim::from((8 / self.bits).max(1));
        }
        let dtype = cx.input(2)?.dtype;
        cx.set_shape(0, dtype, [&data[..axis], &indices, &data[axis + 1..]].concat());
        Ok(())
    }
}
