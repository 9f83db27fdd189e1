//! # LpNormalization
//! Divides by the L1 or L2 norm along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LpNormalization.html>. All opsets.
//!
//! Coupling: every axis passes through; a norm over channels acts on the kept ones.

use crate::graph::Node;
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_lpnormalization() -> &'static [OpType] {
    const { &[onnx("LpNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_lpnormalization, |node| Ok(Box::new(LpNormalization::parse(node))))];

#[derive(Debug)]
struct LpNormalization {
    axis: i64,
    /// The order of the norm, 1 or 2.
    p: i64,
}

impl LpNormalization {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", -1), p: node.int("p", 2) }
    }
}

impl Operator for LpNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let rank = cx.layout(0)?.rank();
        let layout = cx.mixing(0, &[axis_index(self.axis, rank)?])?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Zeros add nothing to a norm.
            let x = cx.zeroed(0);
            cx.emit(&[(0, x)]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // y = x / |x|: dx = (dy - y sum(dy y)) / |x| for p = 2, (dy - sign(x) sum(dy y)) / |x| for p = 1.
        let (dy, rank) = (cx.dy()?, cx.shape(0)?.len());
        let axis = [axis_index(self.axis, rank)?];
        let (x, y) = (cx.input(0), cx.output(0));
        let product = cx.mul(&dy, &y);
        let sum = cx.reduce_sum(&product, &axis, true);
        let (direction, norm) = if self.p == 1 {
            let size = cx.op("Abs", &[&x]);
            (cx.op("Sign", &[&x]), cx.reduce_sum(&size, &axis, true))
        } else {
            let square = cx.mul(&x, &x);
            let sum = cx.reduce_sum(&square, &axis, true);
            (y, cx.op("Sqrt", &[&sum]))
        };
        let along = cx.mul(&direction, &sum);
        let difference = cx.op("Sub", &[&dy, &along]);
        let dx = cx.op("Div", &[&difference, &norm]);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
