//! # Operators that sample images at computed places
//! GridSample, RoiAlign and MaxRoiPool read an image `[N, C, H, W]` at places that another input gives.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GridSample.html>, <https://onnx.ai/onnx/operators/onnx__RoiAlign.html>,
//! <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html>. All opsets.
//!
//! Coupling: axis 1 of X passes through; everything else stays.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::{DataType, attr_int};
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Layout;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft, onnx};

fn types_sampling() -> &'static [OpType] {
    const { &[onnx("GridSample"), microsoft("GridSample"), onnx("RoiAlign"), onnx("MaxRoiPool")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_sampling, &Sampling)];

struct Sampling;

impl NodeRules for Sampling {
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

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if (1..node.inputs.len()).any(|slot| cx.wants(slot)) {
            return Err(RuleError::unsupported("its places depend on a weight"));
        }
        let is_largest = node.proto.op_type == "MaxRoiPool" || node.proto.string("mode") == Some("max");
        if is_largest {
            return Err(RuleError::unsupported("the largest of a region has no gradient"));
        }
        let (dy, x, y) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let (pixels, samples): (i64, i64) = (x[2..].iter().product(), y[2..].iter().product());
        // The operator is linear in the image: it says itself what it makes of every unit image, one per channel.
        let mut unit_shape = vec![1, pixels];
        unit_shape.extend_from_slice(&x[2..]);
        let unit = cx.identity(pixels, &unit_shape);
        let is_grid = node.proto.op_type == "GridSample";
        let images = if is_grid {
            unit_shape[0] = x[0];
            let unit = cx.expand(&unit, &unit_shape);
            cx.same_op(&[&unit, &cx.input(1)])
        } else {
            // All regions of one image.
            let batch = cx.ints(&vec![0; usize::try_from(y[0]).unwrap_or(0)]);
            cx.same_op(&[&unit, &cx.input(1), &batch])
        };
        let rows = cx.reshape(&images, &[y[0], pixels, samples]);
        let rows = cx.matrix_transpose(&rows, 3);
        let dy = cx.reshape(&dy, &[y[0], y[1], samples]);
        let mut dx = cx.op("MatMul", &[&dy, &rows]);
        if !is_grid {
            // Regions of the same image add up.
            let images: Vec<i64> = (0..x[0]).collect();
            let images = cx.ints(&images);
            let images = cx.reshape(&images, &[x[0], 1]);
            let own = cx.op("Equal", &[&images, &cx.input(2)]);
            let own = cx.op_with("Cast", &[&own], vec![attr_int("to", DataType::Float as i64)]);
            let flat = cx.reshape(&dx, &[y[0], y[1] * pixels]);
            dx = cx.op("MatMul", &[&own, &flat]);
        }
        let dx = cx.reshape(&dx, &x);
        cx.give(0, dx);
        Ok(())
    }
}
