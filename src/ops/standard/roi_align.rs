//! # RoiAlign
//! Samples regions of an image `[N, C, H, W]` by interpolation, each on a grid of the same size.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RoiAlign.html>. Opsets 10 and later.
//!
//! Coupling: axis 1 of X passes through; everything else is kept.

use super::grid_sample::image;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::{DataType, attr_int};
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_roialign() -> &'static [OpType] {
    const { &[onnx("RoiAlign")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_roialign, |node| Ok(Box::new(RoiAlign::parse(node))))];

#[derive(Debug)]
struct RoiAlign {
    /// Height and width of the output.
    sizes: [i64; 2],
    /// Whether the maximum of the samples is taken, not their mean.
    takes_largest: bool,
    input_count: usize,
}

impl RoiAlign {
    fn parse(node: &Node) -> Self {
        Self {
            sizes: ["output_height", "output_width"].map(|name| node.int(name, 1)),
            takes_largest: node.proto.string("mode") == Some("max"),
            input_count: node.inputs.len(),
        }
    }
}

impl Operator for RoiAlign {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, regions) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || regions.is_empty() {
            return Err(RuleError::invalid(format!(
                "X must have rank 3 or more and the regions rank 1 or more, found {} and {}",
                x.len(),
                regions.len()
            )));
        }
        let mut shape = vec![regions[0].clone(), x[1].clone()];
        shape.extend(self.sizes.map(Dim::from));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        image::couple(cx, self.input_count)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        image::reference(cx)
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        image::require_constant_positions(cx, self.input_count)?;
        if self.takes_largest {
            return Err(RuleError::unsupported("no gradient is implemented for mode max"));
        }
        let (dy, x, y) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let unit = image::unit_images(cx, &x);
        // All regions are of one image.
        let batch = cx.ints(&vec![0; usize::try_from(y[0]).unwrap_or(0)]);
        let sampled = cx.same_op(&[&unit, &cx.input(1), &batch]);
        let dx = image::pixel_gradient(cx, &dy, &sampled, &x, &y);
        // The gradients of regions of the same image add up.
        let images: Vec<i64> = (0..x[0]).collect();
        let images = cx.ints(&images);
        let images = cx.reshape(&images, &[x[0], 1]);
        let own = cx.op("Equal", &[&images, &cx.input(2)]);
        let own = cx.op_with("Cast", &[&own], vec![attr_int("to", DataType::Float as i64)]);
        let pixels: i64 = x[2..].iter().product();
        let flat = cx.reshape(&dx, &[y[0], y[1] * pixels]);
        let dx = cx.op("MatMul", &[&own, &flat]);
        let dx = cx.reshape(&dx, &x);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
