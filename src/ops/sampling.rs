//! # Operators that sample images at computed places
//! GridSample, RoiAlign and MaxRoiPool read an image `[N, C, H, W]` at places that another input gives.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GridSample.html>, <https://onnx.ai/onnx/operators/onnx__RoiAlign.html>,
//! <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html>. All opsets.
//!
//! Coupling: axis 1 of X passes through; everything else stays.

use crate::couple::CoupleCx;
use crate::couple::layout::Layout;
use crate::dim::Dim;
use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, RuleError, microsoft, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Sampling];

struct Sampling;

impl Operator for Sampling {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("GridSample"), microsoft("GridSample"), onnx("RoiAlign"), onnx("MaxRoiPool")] }
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, places) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || places.is_empty() {
            return Err(RuleError::invalid(format!("X of rank {} can't be sampled", x.len())));
        }
        let mut shape = vec![places[0].clone(), x[1].clone()];
        match node.proto.op_type.as_str() {
            "GridSample" => {
                if places.len() != x.len() {
                    let text = format!("X of rank {} and a grid of rank {} do not fit", x.len(), places.len());
                    return Err(RuleError::invalid(text));
                }
                shape[0].clone_from(&x[0]);
                shape.extend_from_slice(&places[1..places.len() - 1]);
            }
            "RoiAlign" => shape.extend(["output_height", "output_width"].map(|name| Dim::from(node.int(name, 1)))),
            _ => shape.extend(node.proto.ints("pooled_shape").unwrap_or_default().iter().copied().map(Dim::from)),
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?.axes;
        for (at, axis) in x.iter().enumerate().filter(|(at, _)| *at != 1) {
            cx.keep(axis, if at == 0 { "is chosen by places" } else { "is a spatial axis" });
        }
        for slot in 1..node.inputs.len() {
            let places = cx.separated(slot)?;
            places.axes.iter().for_each(|axis| cx.keep(axis, "gives places in an image"));
        }
        let mut y = Layout::fixed(&cx.output_shape(0)?);
        y.axes[1].clone_from(&x[1]);
        cx.set(0, y);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Channels are masked as a whole.
            let rank = cx.rank(0)? as i64;
            let axes: Vec<i64> = (0..rank).filter(|axis| *axis != 1).collect();
            let mask = cx.reduce("ReduceMax", &mask, &axes);
            cx.set_mask(0, mask);
        }
        Ok(())
    }
}
