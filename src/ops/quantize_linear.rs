//! # QuantizeLinear and DequantizeLinear
//! `y = saturate(round(x / scale) + zero_point)` and back, with one scale or one per index of `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>. Opsets 10 and later; blocked forms (21) stay.
//!
//! Coupling: every axis passes through; a scale per index is coupled to `axis`.

use crate::couple::CoupleCx;
use crate::fact::Fact;
use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, RuleError, axis_index, microsoft, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&QuantizeLinear];

struct QuantizeLinear;

impl Operator for QuantizeLinear {
    fn op_types(&self) -> &'static [OpType] {
        const {
            &[
                onnx("QuantizeLinear"),
                onnx("DequantizeLinear"),
                microsoft("QuantizeLinear"),
                microsoft("DequantizeLinear"),
            ]
        }
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let dtype = if node.proto.op_type == "DequantizeLinear" {
            cx.input(1)?.dtype
        } else {
            cx.optional(2).map_or(DataType::Uint8, |zero_point| zero_point.dtype)
        };
        let named = node.proto.int("output_dtype").filter(|to| *to != 0);
        let named = named.and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        cx.set(0, Fact::new(named.unwrap_or(dtype), shape));
        Ok(())
    }

    fn quantizes(&self, _node: &Node) -> bool {
        true
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if node.int("block_size", 0) != 0 {
            return Err(RuleError::unsupported("it is quantised in blocks"));
        }
        let x = cx.layout(0)?;
        for slot in [1, 2] {
            if !cx.has(slot) {
                continue;
            }
            let parameter = cx.separated(slot)?;
            if let [entries] = parameter.axes.as_slice()
                && !entries.is_empty()
            {
                let axis = axis_index(node.int("axis", 1), x.rank())?;
                cx.tie(&x.axes[axis], entries);
            }
        }
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }
}
