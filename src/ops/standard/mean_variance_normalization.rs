//! # MeanVarianceNormalization
//! `Y = (X - mean) / (deviation + 1e-9)`, with moments over `axes`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html>. Opsets 9 and later.
//!
//! Coupling: every axis passes through; a normalisation over channels acts on the kept ones.

use crate::graph::Node;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_meanvariancenormalization() -> &'static [OpType] {
    const { &[onnx("MeanVarianceNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_meanvariancenormalization, |node| Ok(Box::new(MeanVarianceNormalization::parse(node))))];

#[derive(Debug)]
struct MeanVarianceNormalization {
    axes: Vec<i64>,
}

impl MeanVarianceNormalization {
    fn parse(node: &Node) -> Self {
        Self { axes: node.proto.ints("axes").unwrap_or(&[0, 2, 3]).to_vec() }
    }

    /// Returns the axes of the moments, counted from the front.
    fn axes(&self, rank: usize) -> Result<Vec<usize>, RuleError> {
        self.axes.iter().map(|axis| axis_index(*axis, rank)).collect()
    }
}

impl Operator for MeanVarianceNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        self.axes(shape.len())?;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let rank = cx.layout(0)?.rank();
        let layout = cx.mixing(0, &self.axes(rank)?)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let axes: Vec<i64> = self.axes(cx.rank(0)?)?.into_iter().map(|axis| axis as i64).collect();
        // The specification adds 1e-9 to the deviation; this is its square.
        let x = cx.zeroed_float(0);
        let y = cx.norm_of(&x, Some(&mask), &axes, 1e-18, true);
        cx.emit_floats(&[(0, y)]);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axes = self.axes(shape.len())?;
        let norm = cx.normalized(&cx.input(0), &shape, &axes, 1e-18, true, Some(cx.output(0)));
        let dx = cx.through_norm(&norm, &dy, &axes);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
