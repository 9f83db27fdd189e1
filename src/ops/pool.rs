//! # Pooling
//! MaxPool, AveragePool and LpPool over windows, and their global forms.
//! Spec: <https://onnx.ai/onnx/operators/onnx__AveragePool.html>. All opsets.
//!
//! Coupling: batch and channels pass through; spatial axes stay.

use super::conv::Window;
use crate::couple::CoupleCx;
use crate::couple::layout::{Layout, fixed_axis};
use crate::dim::Dim;
use crate::fact::Fact;
use crate::graph::Node;
use crate::macs::MacsCx;
use crate::operator::{InferCx, OpType, Operator, RuleError, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Pool];

struct Pool;

impl Operator for Pool {
    fn op_types(&self) -> &'static [OpType] {
        const {
            &[
                onnx("MaxPool"),
                onnx("AveragePool"),
                onnx("LpPool"),
                onnx("GlobalAveragePool"),
                onnx("GlobalMaxPool"),
                onnx("GlobalLpPool"),
            ]
        }
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        if shape.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", shape.len())));
        }
        if node.proto.op_type.starts_with("Global") {
            shape[2..].iter_mut().for_each(|size| *size = Dim::from(1));
        } else {
            let window = Window::of(node, &[], shape.len() - 2)?;
            for axis in 0..shape.len() - 2 {
                shape[axis + 2] = window.output(axis, &shape[axis + 2]).unwrap_or_else(|| cx.fresh());
            }
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(1, Fact::new(crate::onnx::DataType::Int64, shape.clone()));
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if node.output(1).is_some() {
            return Err(RuleError::unsupported("the places of the maxima are read"));
        }
        let x = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        for axis in x.axes.iter().skip(2) {
            cx.keep(axis, "is a spatial axis of a pooling");
        }
        let mut axes: Vec<_> = x.axes.iter().take(2).cloned().collect();
        axes.extend(shape.iter().skip(2).map(fixed_axis));
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn macs(&self, node: &Node, cx: &MacsCx<'_>) -> f64 {
        // Averages add one term per element of the window; maxima multiply nothing.
        let Some(input) = cx.input(0) else { return 0.0 };
        match node.proto.op_type.as_str() {
            "GlobalAveragePool" | "GlobalLpPool" => crate::macs::elements(input),
            "AveragePool" | "LpPool" => {
                let window = Window::of(node, &[], input.len().saturating_sub(2));
                cx.output_elements(0) * window.map_or(0.0, |window| window.kernel_elements())
            }
            _ => 0.0,
        }
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Channels are masked as a whole; what is left along the spatial axes is one value.
            let rank = cx.rank(0)? as i64;
            let axes: Vec<i64> = (2..rank).collect();
            let mask = cx.reduce("ReduceMax", &mask, &axes);
            cx.set_mask(0, mask);
        }
        Ok(())
    }
}
