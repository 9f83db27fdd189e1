//! # GroupNormalization
//! `Y = scale * (X - mean) / sqrt(variance + epsilon) + bias`, with moments over the members of each of `num_groups`
//! groups of consecutive channels.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GroupNormalization.html>. Opset 18 with a scale per group, 21 and later
//! with a scale per channel.
//!
//! Coupling: axis 1 of X passes through; scale and bias are its channels (21) or its norm groups (18).

use crate::graph::Node;
use crate::operator::couple::layout::Layout;
use crate::operator::part::{Part, PartCx, RowNorm};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_groupnormalization() -> &'static [OpType] {
    const { &[onnx("GroupNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_groupnormalization, |node| Ok(Box::new(GroupNormalization::parse(node))))];

#[derive(Debug)]
struct GroupNormalization {
    groups: i64,
    epsilon: f32,
    /// Whether scale and bias have one element per channel (opset 21 and later) or one per group.
    is_per_channel: bool,
}

impl GroupNormalization {
    fn parse(node: &Node) -> Self {
        Self {
            groups: node.int("num_groups", 1),
            epsilon: node.float("epsilon", 1e-5),
            is_per_channel: node.version >= 21,
        }
    }
}

impl Operator for GroupNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", shape.len())));
        }
        for slot in [1, 2] {
            // Before opset 21 it has one element per group, afterwards one per channel.
            cx.expect_vector(slot, None)?;
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        let count = usize::try_from(self.groups).unwrap_or(1);
        let groups = cx.norm_groups(&x.axes[1], count);
        for slot in [1, 2] {
            let parameter = cx.separated(slot)?;
            cx.tie(if self.is_per_channel { &x.axes[1] } else { &groups }, &parameter.axes[0]);
        }
        cx.set(0, Layout { axes: x.axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        // If whole groups are removed, the size of the kept ones remains unchanged.
        if let (Some(groups), Some(channels)) = (cx.norm_group_count(0, 1, self.groups), cx.new_size(0, 1))
            && groups != self.groups
            && channels % groups.max(1) == 0
        {
            cx.set_int("num_groups", groups);
        }
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)? as i64;
        let y = cx.group_normalized(0, self.groups, self.epsilon);
        let y = if self.is_per_channel {
            cx.scaled(&y, 1, 2, 1, rank)
        } else {
            cx.scaled_groups(&y, 1, 2, self.groups, rank)?
        };
        cx.emit_as(0, &y);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn scales(&self, slot: usize) -> bool {
        slot == 1
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let groups = self.groups.max(1);
        let rest: i64 = shape.get(2..)?.iter().product();
        let row = shape[1] / groups * rest;
        let inner = if cx.shape(1)? == [shape[1]] { rest } else { row };
        let norm = RowNorm { row, groups, inner, epsilon: self.epsilon, is_centred: true, has_silu: false };
        (row > 0 && shape.iter().all(|size| *size > 0)).then_some(Part::Norm(norm))
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let groups = self.groups.max(1);
        let (batch, channels) = (shape[0], shape[1]);
        let rest: i64 = shape[2..].iter().product();
        let per_group = channels / groups;
        let parameter_shape = cx.shape(1)?;
        let is_per_channel = parameter_shape == [channels];
        // [N, G, C / G, rest]: moments over the last two axes.
        let blocks = vec![batch, groups, per_group, rest];
        let x = cx.reshape(&cx.input(0), &blocks);
        let dy = cx.reshape(&dy, &blocks);
        let axes = [2, 3];
        let norm = cx.normalized(&x, &blocks, &axes, f64::from(self.epsilon), true, None);
        let others: &[usize] = if is_per_channel { &[0, 3] } else { &[0, 2, 3] };
        if cx.wants(1) {
            let product = cx.mul(&dy, &norm.y);
            let sum = cx.reduce_sum(&product, others, true);
            let dscale = cx.reshape(&sum, &parameter_shape);
            cx.add_gradient(1, dscale);
        }
        if cx.wants(2) {
            let sum = cx.reduce_sum(&dy, others, true);
            let db = cx.reshape(&sum, &parameter_shape);
            cx.add_gradient(2, db);
        }
        if cx.wants(0) {
            let column = [1, groups, if is_per_channel { per_group } else { 1 }, 1];
            let scale = cx.reshape(&cx.input(1), &column);
            let g = cx.mul(&dy, &scale);
            let dx = cx.through_norm(&norm, &g, &axes);
            let dx = cx.reshape(&dx, &shape);
            cx.add_gradient(0, dx);
        }
        Ok(())
    }
}
