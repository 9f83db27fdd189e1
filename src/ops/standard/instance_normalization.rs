//! # InstanceNormalization
//! `Y = scale * (X - mean) / sqrt(variance + epsilon) + B`, moments over all axes after the second.
//! Spec: <https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html>. Opsets 6 and later.
//!
//! Coupling: axis 1 of X, scale and B are one; the other axes pass through. The operator also occurs in the middle of
//! a group norm (Reshape → InstanceNormalization → Reshape), where axis 1 numbers the norm groups and the axes after
//! it hold their members.

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::part::{Part, PartCx, RowNorm};
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, OpType, Operator, Registration, RuleError, onnx};

fn types_instancenormalization() -> &'static [OpType] {
    const { &[onnx("InstanceNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_instancenormalization, |node| Ok(Box::new(InstanceNormalization::parse(node))))];

/// A norm of every channel of every image.
#[derive(Debug)]
struct InstanceNormalization {
    epsilon: f32,
}

impl InstanceNormalization {
    fn parse(node: &Node) -> Self {
        Self { epsilon: node.float("epsilon", 1e-5) }
    }
}

impl Operator for InstanceNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        if shape.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", shape.len())));
        }
        for slot in 1..3 {
            cx.expect_vector(slot, Some(&shape[1]))?;
        }
        let dtype = cx.input(0)?.dtype;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.layout(0)?;
        for slot in [1, 2] {
            let parameter = cx.separated(slot)?;
            cx.tie(&x.axes[1], &parameter.axes[0]);
        }
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)? as i64;
        let axes: Vec<i64> = (2..rank).collect();
        let y = cx.normalized(0, &axes, self.epsilon);
        let y = cx.scaled(&y, 1, 2, 1, rank);
        cx.emit_as(0, &y);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn scales(&self, slot: usize) -> bool {
        slot == 1
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axes: Vec<usize> = (2..shape.len()).collect();
        let per_channel: Vec<i64> = (0..shape.len()).map(|axis| if axis == 1 { shape[1] } else { 1 }).collect();
        let is_all = |values: Option<Vec<f64>>, wanted: f64| {
            values.is_some_and(|values| !values.is_empty() && values.iter().all(|value| *value == wanted))
        };
        // In the middle of a group norm, the scale is one and the bias zero: the output is the normalised value that
        // the gradient needs.
        let is_plain = is_all(cx.known_floats(1), 1.0) && is_all(cx.known_floats(2), 0.0);
        let own = is_plain.then(|| cx.output(0));
        let epsilon = f64::from(self.epsilon);
        let norm = cx.normalized(&cx.input(0), &shape, &axes, epsilon, true, own);
        let others: Vec<usize> = (0..shape.len()).filter(|axis| *axis != 1).collect();
        if cx.wants(1) {
            let product = cx.mul(&dy, &norm.y);
            let dscale = cx.reduce_sum(&product, &others, false);
            cx.add_gradient(1, dscale);
        }
        if cx.wants(2) {
            let db = cx.reduce_sum(&dy, &others, false);
            cx.add_gradient(2, db);
        }
        if cx.wants(0) {
            let mut g = dy;
            if !is_plain {
                let scale = cx.reshape(&cx.input(1), &per_channel);
                g = cx.mul(&g, &scale);
            }
            let dx = cx.through_norm(&norm, &g, &axes);
            cx.add_gradient(0, dx);
        }
        Ok(())
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let (row, groups) = (shape.get(2..)?.iter().product(), shape[1]);
        let norm = RowNorm { row, groups, inner: row, epsilon: self.epsilon, is_centred: true, has_silu: false };
        (row > 0 && groups > 0).then_some(Part::Norm(norm))
    }
}
