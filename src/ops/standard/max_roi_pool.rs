//! # MaxRoiPool
//! Max pooling over regions of an image `[N, C, H, W]`, each divided into a grid of the same size.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html>. All opsets.
//!
//! Coupling: axis 1 of X passes through; everything else is kept.

use super::grid_sample::image;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_maxroipool() -> &'static [OpType] {
    const { &[onnx("MaxRoiPool")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_maxroipool, |node| Ok(Box::new(MaxRoiPool::parse(node))))];

#[derive(Debug)]
struct MaxRoiPool {
    /// Height and width of the output.
    pooled_shape: Vec<i64>,
    input_count: usize,
}

impl MaxRoiPool {
    fn parse(node: &Node) -> Self {
        let pooled_shape = node.proto.ints("pooled_shape").unwrap_or_default().to_vec();
        Self { pooled_shape, input_count: node.inputs.len() }
    }
}

impl Operator for MaxRoiPool {
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
        shape.extend(self.pooled_shape.iter().copied().map(Dim::from));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        image::couple(cx, self.input_count)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        image::reference(cx)
    }
}
