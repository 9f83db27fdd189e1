//! # Flatten
//! Joins the axes before `axis` into one and the others into a second one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Flatten.html>. All opsets.
//!
//! Coupling: as Reshape.

use crate::graph::Node;
use crate::graph::dim::product;
use crate::graph::fact::Fact;
use crate::operator::couple::layout::{Layout, reshape};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_flatten() -> &'static [OpType] {
    const { &[onnx("Flatten")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_flatten, |node| Ok(Box::new(Flatten::parse(node))))];

#[derive(Debug)]
struct Flatten {
    axis: i64,
}

impl Flatten {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 1) }
    }
}

impl Operator for Flatten {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let rank = shape.len() as i64;
        let axis = if self.axis < 0 { self.axis + rank } else { self.axis };
        let axis = usize::try_from(axis).ok().filter(|axis| *axis <= shape.len());
        let axis = axis.ok_or_else(|| {
            RuleError::invalid(format!("axis {} does not exist in a tensor of rank {rank}", self.axis))
        })?;
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, vec![product(&shape[..axis]), product(&shape[axis..])]));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let shape = cx.output_shape(0)?;
        let axes = reshape(&layout.axes, &shape)
            .ok_or_else(|| RuleError::unsupported("the new sizes do not divide the old ones evenly"))?;
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        cx.same_elements()
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = cx.reshape(&dy, &shape);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
