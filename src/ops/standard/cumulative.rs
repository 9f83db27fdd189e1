//! # CumSum and CumProd
//! The sum or product of all elements up to each one along an axis.
//! Spec: <https://onnx.ai/onnx/operators/onnx__CumSum.html>, <https://onnx.ai/onnx/operators/onnx__CumProd.html>. All
//! opsets.
//!
//! Coupling: the axis of accumulation is kept; all others pass through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::attr_int;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_cumulative() -> &'static [OpType] {
    const { &[onnx("CumSum"), onnx("CumProd")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_cumulative, |node| Ok(Box::new(Cumulative::parse(node))))];

#[derive(Debug)]
struct Cumulative {
    of: Of,
    /// Whether an element itself is excluded.
    is_exclusive: bool,
    /// Whether it accumulates from the end to the start.
    is_reverse: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Of {
    Sums,
    Products,
}

impl Cumulative {
    fn parse(node: &Node) -> Self {
        Self {
            of: if node.proto.op_type == "CumProd" { Of::Products } else { Of::Sums },
            is_exclusive: node.int("exclusive", 0) != 0,
            is_reverse: node.int("reverse", 0) != 0,
        }
    }

    /// Computes the sums of known integers along a vector, as exports of repeat_interleave need them.
    fn known_sums(&self, cx: &InferCx<'_>, shape: &[Dim]) -> Option<Known> {
        if self.of != Of::Sums || shape.len() != 1 || self.is_exclusive || self.is_reverse {
            return None;
        }
        let sums = cx.ints(0)?.iter().scan(Dim::from(0), |sum, value| {
            *sum = &*sum + value;
            Some(sum.clone())
        });
        Some(Known::Ints(sums.collect()))
    }
}

impl Operator for Cumulative {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let known = self.known_sums(cx, &shape);
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let axis = cx.ints(1).and_then(|axis| axis.first()).and_then(Dim::as_const);
        let axis = axis_index(axis.ok_or(RuleError::UnknownShape)?, layout.rank())?;
        cx.keep(&layout.axes[axis], "CumSum or CumProd accumulates along this axis");
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let dy = match self.of {
            Of::Sums => dy,
            // A product is the exponential of a sum of logarithms: dx = (sum of dy y) / x.
            Of::Products => cx.mul(&dy, &cx.output(0)),
        };
        // Every element contributes to all later ones, so its gradient is the sum of theirs.
        let attributes =
            vec![attr_int("reverse", i64::from(!self.is_reverse)), attr_int("exclusive", i64::from(self.is_exclusive))];
        let sum = cx.op_with("CumSum", &[&dy, &cx.input(1)], attributes);
        let dx = match self.of {
            Of::Sums => sum,
            Of::Products => cx.op("Div", &[&sum, &cx.input(0)]),
        };
        cx.add_gradient(0, dx);
        Ok(())
    }
}
