//! # Softmax and LogSoftmax
//! `Y = exp(X) / sum(exp(X))` along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Softmax.html>. All opsets; before 13 the input is flattened to a matrix
//! at `axis`.
//!
//! Coupling: every axis passes through; a softmax over channels acts on the kept ones. If axes are digits of channels,
//! every row keeps equally many.

use crate::graph::Node;
use crate::operator::part::{Part, PartCx};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_softmax() -> &'static [OpType] {
    const { &[onnx("Softmax"), onnx("LogSoftmax"), onnx("Hardmax")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_softmax, |node| Ok(Box::new(Softmax::parse(node))))];

#[derive(Debug)]
struct Softmax {
    kind: Kind,
    axis: i64,
    /// Whether a row consists of all axes from `axis` on, as before opset 13.
    flattens: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Softmax,
    Logarithm,
    /// One at the first maximum, else zero.
    Hard,
}

impl Softmax {
    fn parse(node: &Node) -> Self {
        let flattens = node.version < 13;
        let kind = match node.proto.op_type.as_str() {
            "LogSoftmax" => Kind::Logarithm,
            "Hardmax" => Kind::Hard,
            _ => Kind::Softmax,
        };
        Self { kind, axis: node.int("axis", if flattens { 1 } else { -1 }), flattens }
    }

    /// Returns the axes of a row.
    fn axes(&self, rank: usize) -> Result<Vec<usize>, RuleError> {
        let axis = axis_index(self.axis, rank)?;
        Ok(if self.flattens { (axis..rank).collect() } else { vec![axis] })
    }
}

impl Operator for Softmax {
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
        let layout = cx.mixing(0, &self.axes(rank)?)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Far below any activation, yet finite in float16, so that a row without kept elements does not become
            // NaN.
            let x = cx.filled(&cx.input(0), &mask, -60_000.0, 0);
            cx.emit(&[(0, x)]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len()).ok()?;
        let is_last = self.flattens || axis + 1 == shape.len();
        let row: i64 = shape[axis..].iter().product();
        (self.kind == Kind::Softmax && is_last && row > 0).then_some(Part::Softmax { row })
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, y, shape) = (cx.dy()?, cx.output(0), cx.shape(0)?);
        let axes = self.axes(shape.len())?;
        let dx = match self.kind {
            Kind::Softmax => {
                // y (dy - sum(dy y))
                let product = cx.mul(&dy, &y);
                let sum = cx.reduce_sum(&product, &axes, true);
                let difference = cx.op("Sub", &[&dy, &sum]);
                cx.mul(&difference, &y)
            }
            Kind::Logarithm => {
                let sum = cx.reduce_sum(&dy, &axes, true);
                let share = cx.op("Exp", &[&y]);
                let product = cx.mul(&share, &sum);
                cx.op("Sub", &[&dy, &product])
            }
            // The derivative is zero wherever it exists.
            Kind::Hard => return Ok(()),
        };
        cx.add_gradient(0, dx);
        Ok(())
    }
}
