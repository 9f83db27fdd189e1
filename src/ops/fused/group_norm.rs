//! # GroupNorm and SkipGroupNorm
//! `S = X + skip + bias` (the skip form alone), `Y = activation(gamma * (S - mean) / sqrt(variance + epsilon) + beta)`,
//! moments over the members of each of `groups` groups of consecutive channels. Values are `[N, H, W, C]`, or
//! `[N, C, H, W]` where `channels_last` is 0.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. They have no CPU kernel.
//!
//! Coupling: the channels of X, gamma, beta, skip, bias, Y and S are one; the other axes pass through.

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Layout;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_groupnorm() -> &'static [OpType] {
    const { &[microsoft("GroupNorm"), microsoft("SkipGroupNorm")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_groupnorm, &GroupNorm)];

struct GroupNorm;

const SKIP: usize = 3;
const BIAS: usize = 4;

fn is_channels_last(node: &Node) -> bool {
    node.int("channels_last", 1) != 0
}

/// The axis of the channels in a value of rank `rank`.
fn channel_axis(node: &Node, rank: usize) -> usize {
    if is_channels_last(node) { rank - 1 } else { 1 }
}

impl NodeRules for GroupNorm {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() != 4 {
            return Err(RuleError::invalid(format!("X must have rank 4, found {}", shape.len())));
        }
        let channels = &shape[channel_axis(node, 4)];
        let groups = node.int("groups", 1);
        if groups < 1 || channels.as_const().is_some_and(|channels| channels % groups != 0) {
            return Err(RuleError::invalid(format!("{channels} channels can't be divided into {groups} norm groups")));
        }
        for slot in [1, 2, BIAS] {
            cx.expect_vector(slot, Some(channels))?;
        }
        cx.set_shape(1, dtype, shape.clone());
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut x = cx.separated(0)?;
        let axis = channel_axis(node, x.rank());
        for slot in [1, 2, BIAS] {
            if cx.has(slot) {
                let parameter = cx.separated(slot)?;
                x.axes[axis] = cx.tie(&x.axes[axis], &parameter.axes[0]);
            }
        }
        if cx.has(SKIP) {
            let mut skip = cx.separated(SKIP)?;
            if skip.rank() == 2 {
                // [N, C] is the same for every pixel.
                let at = if is_channels_last(node) { 1 } else { 2 };
                skip.axes.splice(at..at, [vec![], vec![]]);
            }
            x = cx.tie_broadcast(&[x, skip]);
        }
        let groups = usize::try_from(node.int("groups", 1)).unwrap_or(1);
        cx.norm_groups(&x.axes[axis], groups);
        cx.set(1, Layout { axes: x.axes.clone() });
        cx.set(0, x);
        Ok(())
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (axis, groups) = (channel_axis(node, cx.rank(0)), node.int("groups", 1));
        // Where whole groups go, their size is what stays.
        if let (Some(left), Some(channels)) = (cx.norm_group_count(0, axis, groups), cx.new_size(0, axis))
            && left != groups
            && channels % left.max(1) == 0
        {
            cx.set_int("groups", left);
        }
        Ok(())
    }

    fn is_decomposed(&self, _node: &Node) -> bool {
        true
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let first = [0, 3, 1, 2];
        let last = [0, 2, 3, 1];
        let mut sum = cx.zeroed_float(0);
        if node.input(SKIP).is_some() {
            let skip = per_pixel(node, cx, SKIP)?;
            sum = cx.add("Add", &[&sum, &skip], vec![]);
        }
        if node.input(BIAS).is_some() {
            let bias = vector(node, cx, BIAS);
            sum = cx.add("Add", &[&sum, &bias], vec![]);
        }
        let mask = cx.mask(0).map(|mask| cx.mask_of(&sum, Some(&mask)));
        let (mut x, mut x_mask) = (sum.clone(), mask.clone());
        if is_channels_last(node) {
            x = cx.transposed(&x, &first);
            x_mask = x_mask.map(|mask| cx.transposed(&mask, &first));
        }
        let groups = node.int("groups", 1);
        let mut y = cx.group_norm_of(&x, x_mask.as_deref(), groups, node.float("epsilon", 1e-5));
        if is_channels_last(node) {
            y = cx.transposed(&y, &last);
        }
        for (slot, op_type) in [(1, "Mul"), (2, "Add")] {
            let parameter = vector(node, cx, slot);
            y = cx.add(op_type, &[&y, &parameter], vec![]);
        }
        if node.int("activation", 0) == 1 {
            y = cx.silu(&y);
        }
        cx.emit_floats(&[(0, y), (1, sum)]);
        if let Some(mask) = mask {
            cx.set_mask(0, mask.clone());
            cx.set_mask(1, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = channel_axis(node, 4);
        let per_channel: Vec<i64> = (0..4).map(|at| if at == axis { shape[axis] } else { 1 }).collect();
        let mut by_sum = cx.dy_of(1);
        if let Some(dy) = cx.dy_of(0) {
            let through = through_output(node, cx, &dy, &shape, &per_channel)?;
            by_sum = Some(match by_sum {
                Some(direct) => cx.op("Add", &[&direct, &through]),
                None => through,
            });
        }
        let by_sum = by_sum.ok_or(RuleError::UnknownShape)?;
        if cx.wants(SKIP) {
            let skip = cx.shape(SKIP)?;
            let rank_4 = if skip.len() == 2 {
                // [N, C] is the same for every pixel.
                let mut rank_4 = per_channel.clone();
                rank_4[0] = skip[0];
                rank_4
            } else {
                skip.clone()
            };
            let sum = cx.sum_to(&by_sum, &shape, &rank_4);
            let sum = cx.reshape(&sum, &skip);
            cx.give(SKIP, sum);
        }
        if cx.wants(BIAS) {
            let others: Vec<usize> = (0..4).filter(|at| *at != axis).collect();
            let sum = cx.reduce_sum(&by_sum, &others, false);
            cx.give(BIAS, sum);
        }
        cx.give(0, by_sum);
        Ok(())
    }
}

/// Gives gamma and beta their gradients, and returns that by what is normalised, from the gradient `dy` by Y.
fn through_output(
    node: &Node,
    cx: &mut GradientCx<'_>,
    dy: &str,
    shape: &[i64],
    per_channel: &[i64],
) -> Result<String, RuleError> {
    let axis = channel_axis(node, 4);
    let groups = node.int("groups", 1).max(1);
    let mut sum = cx.input(0);
    for (slot, own) in [(SKIP, cx.shape(SKIP).ok()), (BIAS, None)] {
        if cx.input(slot).is_empty() {
            continue;
        }
        let mut term = cx.input(slot);
        if slot == BIAS || own.as_ref().is_some_and(|own| own.len() == 2) {
            let mut target = per_channel.to_vec();
            target[0] = own.map_or(1, |own| own[0]);
            term = cx.reshape(&term, &target);
        }
        sum = cx.op("Add", &[&sum, &term]);
    }
    // The channels of a group are `C / G` neighbours: [N, H, W, G, C / G] or [N, G, C / G, H, W].
    let mut blocks = shape.to_vec();
    blocks.splice(axis..=axis, [groups, shape[axis] / groups]);
    let axes: Vec<usize> = (1..5).filter(|at| *at != axis).collect();
    let x = cx.reshape(&sum, &blocks);
    let norm = cx.normalized(&x, &blocks, &axes, f64::from(node.float("epsilon", 1e-5)), true, None);
    let y = cx.reshape(&norm.y, shape);
    let gamma = cx.reshape(&cx.input(1), per_channel);
    let mut dy = dy.to_owned();
    if node.int("activation", 0) == 1 {
        // a s with s = sigmoid(a): s + a s (1 - s).
        let beta = cx.reshape(&cx.input(2), per_channel);
        let a = cx.mul(&y, &gamma);
        let a = cx.op("Add", &[&a, &beta]);
        let (s, one) = (cx.op("Sigmoid", &[&a]), cx.scalar(1.0));
        let rest = cx.op("Sub", &[&one, &s]);
        let rest = cx.mul(&rest, &a);
        let slope = cx.op("Add", &[&one, &rest]);
        let slope = cx.mul(&slope, &s);
        dy = cx.mul(&dy, &slope);
    }
    let others: Vec<usize> = (0..4).filter(|at| *at != axis).collect();
    if cx.wants(1) {
        let product = cx.mul(&dy, &y);
        let dgamma = cx.reduce_sum(&product, &others, false);
        cx.give(1, dgamma);
    }
    if cx.wants(2) {
        let dbeta = cx.reduce_sum(&dy, &others, false);
        cx.give(2, dbeta);
    }
    let g = cx.mul(&dy, &gamma);
    let g = cx.reshape(&g, &blocks);
    let dx = cx.through_norm(&norm, &g, &axes);
    Ok(cx.reshape(&dx, shape))
}

/// Parameter `slot`, `[C]`, in float32 and of a shape that broadcasts to X.
fn vector(node: &Node, cx: &mut ReferenceCx<'_>, slot: usize) -> String {
    let parameter = cx.zeroed_float(slot);
    if is_channels_last(node) {
        return parameter;
    }
    let target = cx.ints(&[1, -1, 1, 1], &[4]);
    cx.add("Reshape", &[&parameter, &target], vec![])
}

/// The skip connection, `[N, H, W, C]`, `[N, 1, 1, C]` or `[N, C]`, in float32 and of rank 4.
fn per_pixel(node: &Node, cx: &mut ReferenceCx<'_>, slot: usize) -> Result<String, RuleError> {
    let skip = cx.zeroed_float(slot);
    if cx.rank(slot)? != 2 {
        return Ok(skip);
    }
    let size = cx.fact(slot).and_then(|fact| fact.shape.as_ref()?.get(1)?.as_const());
    let channels: i64 = size.ok_or(RuleError::UnknownShape)?;
    let target: [i64; 4] = if is_channels_last(node) { [-1, 1, 1, channels] } else { [-1, channels, 1, 1] };
    let target = cx.ints(&target, &[4]);
    Ok(cx.add("Reshape", &[&skip, &target], vec![]))
}
