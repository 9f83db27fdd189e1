//! # GridSample
//! Samples an image `[N, C, H, W]` at the positions of a grid.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GridSample.html>. All opsets.
//!
//! Coupling: axis 1 of X passes through; everything else is kept.

mod gradient;
pub(in crate::ops::standard) mod image;

use crate::graph::Node;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, microsoft, onnx,
};
use gradient::Sampling;

fn types_gridsample() -> &'static [OpType] {
    const { &[onnx("GridSample"), microsoft("GridSample")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_gridsample, |node| Ok(Box::new(GridSample::parse(node))))];

#[derive(Debug)]
struct GridSample {
    input_count: usize,
    sampling: Sampling,
}

/// The first opset in which ScatterElements adds up; the operator of ONNX Runtime's own domain also occurs in older
/// ones.
const SCATTER_ADDS: i64 = 16;

impl GridSample {
    fn parse(node: &Node) -> Self {
        Self { input_count: node.inputs.len(), sampling: Sampling::parse(node) }
    }
}

impl Operator for GridSample {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, grid) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", x.len())));
        }
        if grid.len() != x.len() {
            let text = format!("X and the grid must have the same rank, found {} and {}", x.len(), grid.len());
            return Err(RuleError::invalid(text));
        }
        let mut shape = x[..2].to_vec();
        shape.extend_from_slice(&grid[1..grid.len() - 1]);
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
        if cx.opset() >= SCATTER_ADDS {
            return self.sampling.gradient(cx);
        }
        image::require_constant_positions(cx, self.input_count)?;
        let (dy, x, y) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let unit = image::unit_images(cx, &x);
        // Every image of the batch has its own grid.
        let mut batch = vec![x[0], x[2..].iter().product()];
        batch.extend_from_slice(&x[2..]);
        let unit = cx.expand(&unit, &batch);
        let sampled = cx.same_op(&[&unit, &cx.input(1)]);
        let dx = image::pixel_gradient(cx, &dy, &sampled, &x, &y);
        let dx = cx.reshape(&dx, &x);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
