//! # BiasSplitGelu
//! `Y = left * gelu(right)` where left and right are the halves of `X + bias` along the last axis.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. It has no CPU kernel.
//!
//! Coupling: index i of Y is index i of both halves of X and of the bias.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_biassplitgelu() -> &'static [OpType] {
    const { &[microsoft("BiasSplitGelu")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_biassplitgelu, &BiasSplitGelu)];

struct BiasSplitGelu;

impl NodeRules for BiasSplitGelu {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let Some(last) = shape.last_mut() else {
            return Err(RuleError::invalid("a scalar can't be halved"));
        };
        let whole = last.clone();
        let half = whole.div_exact(&Dim::from(2));
        *last = match (half, whole.as_const()) {
            (Some(half), _) => half,
            (None, Some(size)) => return Err(RuleError::invalid(format!("{size} channels can't be halved"))),
            (None, None) => cx.fresh(),
        };
        cx.expect_vector(1, Some(&whole))?;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut axes = cx.separated(0)?.axes;
        let bias = cx.separated(1)?.axes;
        let output = cx.output_shape(0)?;
        let (Some(x), Some(half), [bias]) = (axes.pop(), output.last(), bias.as_slice()) else {
            return Err(RuleError::UnknownShape);
        };
        let tied = cx.tie(&x, bias);
        let size = half.as_const().and_then(|size| usize::try_from(size).ok());
        axes.push(match (cx.single(&tied), size) {
            (Some(space), Some(size)) => cx.digits(space, &[2, size], Some(1)).swap_remove(1),
            (Some(_), None) => return Err(RuleError::UnknownShape),
            (None, _) => fixed_axis(half),
        });
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn is_decomposed(&self, _node: &Node) -> bool {
        true
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let last = cx.rank(0)? as i64 - 1;
        let size = cx.fact(0).and_then(|fact| fact.shape.as_ref()?.last()?.as_const());
        let half = size.ok_or(RuleError::UnknownShape)? / 2;
        let (x, bias) = (cx.zeroed_float(0), cx.zeroed_float(1));
        let sum = cx.add("Add", &[&x, &bias], vec![]);
        let (left, right) = (cx.span(&sum, last, 0, half), cx.span(&sum, last, half, 2 * half));
        let right = cx.gelu(&right);
        let y = cx.add("Mul", &[&left, &right], vec![]);
        if let Some(mask) = cx.common_mask(&[0, 1]) {
            let mask = cx.mask_of(&sum, Some(&mask));
            let (left, right) = (cx.span(&mask, last, 0, half), cx.span(&mask, last, half, 2 * half));
            let mask = cx.add("Mul", &[&left, &right], vec![]);
            cx.set_mask(0, mask);
        }
        cx.emit_floats(&[(0, y)]);
        Ok(())
    }

    fn gradient(&self, _node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let last = shape.len() - 1;
        let half = shape[last] / 2;
        let sum = cx.op("Add", &[&cx.input(0), &cx.input(1)]);
        let (left, right) = (cx.slice(&sum, last, 0, half, 1), cx.slice(&sum, last, half, 2 * half, 1));
        let gelu = cx.gelu(&right);
        let slope = cx.gelu_slope(&right, false);
        let by_gelu = cx.mul(&dy, &left);
        let parts = [cx.mul(&dy, &gelu), cx.mul(&by_gelu, &slope)];
        let dx = cx.concat(&parts, last);
        if cx.wants(1) {
            let axes: Vec<usize> = (0..last).collect();
            let db = cx.reduce_sum(&dx, &axes, false);
            cx.give(1, db);
        }
        cx.give(0, dx);
        Ok(())
    }
}
