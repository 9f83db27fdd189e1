//! # Attention
//! `Y = softmax(scale * Q K^T + mask) V` per head; Q, K and V are `[B, heads, L, D]` or `[B, L, heads * D]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Attention.html>. Opsets 23 and later.
//!
//! Coupling: heads of Q, K, V and Y are one axis; where several heads of Q share one of K and V, they go with it. D of Q
//! and K is one, D of V and Y is one; the positions of K and V stay. A scale that is implied by D is written out where D shrinks.

use super::multi_head_attention::couple_positions;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::attr_int;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::{Attention, GradientCx};
use crate::operator::infer::InferCx;
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, onnx};

fn types_standardattention() -> &'static [OpType] {
    const { &[onnx("Attention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_standardattention, &StandardAttention)];

struct StandardAttention;

/// Heads of the queries and of keys and values, where the inputs have three axes.
fn head_counts(node: &Node) -> (i64, i64) {
    (node.int("q_num_heads", 1).max(1), node.int("kv_num_heads", 1).max(1))
}

impl NodeRules for StandardAttention {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (q, v) = (cx.shape(0)?, cx.shape(2)?);
        let mut shape = q.clone();
        match (q.len(), v.len()) {
            (4, 4) => shape[3] = v[3].clone(),
            (3, 3) => {
                let (heads, kv_heads) = head_counts(node);
                let each = v[2].div_exact(&Dim::from(kv_heads)).unwrap_or_else(|| cx.fresh());
                shape[2] = &each * &Dim::from(heads);
            }
            (a, b) => {
                return Err(RuleError::invalid(format!("Q and V have ranks {a} and {b}")));
            }
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if (4..6).any(|slot| cx.has(slot)) || (1..4).any(|slot| node.output(slot).is_some()) {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if cx.has(3) {
            let mask = cx.separated(3)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "is an axis of an attention mask"));
        }
        let (q, k, v) = (cx.separated(0)?.axes, cx.separated(1)?.axes, cx.separated(2)?.axes);
        let batch = cx.tie(&q[0], &k[0]);
        let batch = cx.tie(&batch, &v[0]);
        for axes in [&k, &v] {
            couple_positions(cx, &batch, None, axes.iter().rev().nth(1));
        }
        if let ([_, q_heads, length, q_dims], [_, k_heads, _, k_dims], [_, v_heads, _, v_dims]) =
            (q.as_slice(), k.as_slice(), v.as_slice())
        {
            let heads = share_heads(cx, q_heads, k_heads, v_heads, v_dims)?;
            cx.tie(q_dims, k_dims);
            cx.set(0, Layout { axes: vec![batch, heads, length.clone(), v_dims.clone()] });
            return Ok(());
        }
        let (heads, kv_heads) = head_counts(node);
        let (q_heads, q_dims) = divide(cx, &q[2], heads)?;
        let (k_heads, k_dims) = divide(cx, &k[2], kv_heads)?;
        let (v_heads, v_dims) = divide(cx, &v[2], kv_heads)?;
        let out_heads = share_heads(cx, &q_heads, &k_heads, &v_heads, &v_dims)?;
        cx.tie(&q_dims, &k_dims);
        // The output's axis is the product of heads and the dimensions of V.
        let out: Axis = out_heads.into_iter().chain(v_dims).collect();
        cx.set(0, Layout { axes: vec![batch, q[1].clone(), out] });
        Ok(())
    }

    fn macs(&self, node: &Node, cx: &MacsCx<'_>) -> f64 {
        let (Some(q), Some(k), Some(v)) = (cx.input(0), cx.input(1), cx.input(2)) else {
            return 0.0;
        };
        match (q, k, v) {
            ([b, heads, l, d], [_, _, s, _], [_, _, _, e]) => (b * heads * l * s) as f64 * (d + e) as f64,
            ([b, l, hd], [_, s, _], [_, _, he]) => {
                let (heads, kv_heads) = head_counts(node);
                (b * l * s) as f64 * (hd + he * heads / kv_heads) as f64
            }
            _ => 0.0,
        }
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (heads, kv_heads) = head_counts(node);
        let is_flat = cx.rank(0) == 3;
        let old_dims = if is_flat { cx.old_size(0, 2).map(|size| size / heads) } else { cx.old_size(0, 3) };
        let mut new_heads = heads;
        if is_flat {
            if let Some(count) = cx.norm_group_count(0, 2, heads) {
                new_heads = count;
                cx.set_int("q_num_heads", count);
            }
            if let Some(count) = cx.norm_group_count(1, 2, kv_heads) {
                cx.set_int("kv_num_heads", count);
            }
        }
        let new_dims = if is_flat { cx.new_size(0, 2).map(|size| size / new_heads.max(1)) } else { cx.new_size(0, 3) };
        if let (Some(old), Some(new)) = (old_dims, new_dims)
            && old != new
            && node.proto.float("scale").is_none()
        {
            cx.set_float("scale", 1.0 / (old as f32).sqrt());
        }
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Zeros in Q and K leave the scores of the kept dimensions; the scale follows from the original size.
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1)), (2, cx.zeroed(2))];
        cx.emit(&replaced);
        let rank = cx.rank(0)?;
        let mut out = None;
        if let Some(mask) = cx.mask(2) {
            // Keys and values pass through the sum over positions.
            let (heads, kv_heads) = reference_heads(node, cx, rank);
            let mask = if heads == kv_heads { mask } else { cx.full_mask(2) };
            let columns = cx.reduce("ReduceMax", &mask, &[if rank == 4 { 2 } else { 1 }]);
            out = Some(if heads == kv_heads { columns } else { repeated_heads(cx, &columns, rank, heads, kv_heads) });
        }
        if let (4, Some(mask)) = (rank, cx.mask(0)) {
            let rows = cx.reduce("ReduceMax", &mask, &[3]);
            out = Some(match out {
                None => rows,
                Some(columns) => cx.add("Mul", &[&rows, &columns], vec![]),
            });
        }
        if let Some(mask) = out {
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let unsupported = |text: &str| Err(RuleError::unsupported(text));
        if (4..6).any(|slot| !cx.input(slot).is_empty()) || node.float("softcap", 0.0) != 0.0 {
            return unsupported("caches and softcap have no gradient");
        }
        let (q, k, v) = (cx.shape(0)?, cx.shape(1)?, cx.shape(2)?);
        let (heads, kv_heads) = if q.len() == 4 { (q[1], k[1]) } else { head_counts(node) };
        if kv_heads < 1 || heads % kv_heads != 0 {
            return Err(RuleError::invalid(format!("{heads} heads can't share {kv_heads} heads of keys and values")));
        }
        // [B, heads, length, D]
        let divided = |cx: &mut GradientCx<'_>, value: String, shape: &[i64], is_kv: bool| match shape {
            [b, l, channels] => cx.by_head(&value, &[*b, *l, *channels], if is_kv { kv_heads } else { heads }),
            _ => value,
        };
        let joined = |cx: &mut GradientCx<'_>, value: String, shape: &[i64]| {
            if shape.len() == 4 { value } else { cx.from_heads(&value, shape) }
        };
        let dy = cx.dy()?;
        let dy = divided(cx, dy, &cx.output_shape(0)?, false);
        let (q4, k4, v4) = (cx.input(0), cx.input(1), cx.input(2));
        let (q4, k4, v4) = (divided(cx, q4, &q, false), divided(cx, k4, &k, true), divided(cx, v4, &v, true));
        let dims = if q.len() == 4 { q[3] } else { q[2] / heads };
        let scale = node.proto.float("scale").map_or(1.0 / (dims as f64).sqrt(), f64::from);
        let scores = [q[0], heads, q[q.len() - 2], k[k.len() - 2]];
        let mut added = Vec::new();
        if node.int("is_causal", 0) != 0 {
            added.push(cx.causal_mask(scores[2], scores[3], 0));
        }
        if !cx.input(3).is_empty() {
            let mut mask = cx.input(3);
            if !cx.is_float(3) {
                let (zero, far) = (cx.scalar(0.0), cx.scalar(-1e30));
                mask = cx.op("Where", &[&mask, &zero, &far]);
            }
            added.push(mask);
        }
        // Neighbouring heads of queries share keys and values: [B, shared, S, D] stands for [B, heads, S, D].
        let repeats = heads / kv_heads;
        let sizes = |shape: &[i64]| match shape {
            [b, _, s, d] => [*b, *s, *d],
            shape => [shape[0], shape[1], shape[2] / kv_heads],
        };
        let repeated = |cx: &mut GradientCx<'_>, value: String, shape: &[i64]| {
            let [b, s, d] = sizes(shape);
            if repeats == 1 {
                return value;
            }
            let value = cx.reshape(&value, &[b, kv_heads, 1, s, d]);
            let value = cx.expand(&value, &[b, kv_heads, repeats, s, d]);
            cx.reshape(&value, &[b, heads, s, d])
        };
        let summed = |cx: &mut GradientCx<'_>, value: String, shape: &[i64]| {
            let [b, s, d] = sizes(shape);
            if repeats == 1 {
                return value;
            }
            let value = cx.reshape(&value, &[b, kv_heads, repeats, s, d]);
            cx.reduce_sum(&value, &[2], false)
        };
        let (k4, v4) = (repeated(cx, k4, &k), repeated(cx, v4, &v));
        let attention = Attention { q: q4, k: k4, v: v4, scale, added };
        let mut found = cx.through_attention(&attention, &dy);
        (found.k, found.v) = (summed(cx, found.k, &k), summed(cx, found.v, &v));
        for (slot, gradient, shape) in [(0, found.q, q), (1, found.k, k), (2, found.v, v)] {
            let gradient = joined(cx, gradient, &shape);
            cx.give(slot, gradient);
        }
        cx.give_score_term(3, &found.added, &scores)
    }
}

/// Ties the heads of Q, K and V and returns those of the output: `[heads of K and V, heads of Q that share one]` where
/// there are fewer of K and V.
fn share_heads(cx: &mut CoupleCx<'_>, q: &Axis, k: &Axis, v: &Axis, v_dims: &Axis) -> Result<Axis, RuleError> {
    let (Some(heads), Some(kv_heads)) = (axis_size(q), axis_size(k)) else {
        return Ok(tie_heads(cx, q, k, v, v_dims));
    };
    if heads == kv_heads || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || axis_size(v) != Some(kv_heads) {
        return Ok(tie_heads(cx, q, k, v, v_dims));
    }
    let (shared, sharing) = divide(cx, q, kv_heads as i64)?;
    cx.keep(&sharing, "is the number of heads that share keys and values");
    let shared = cx.tie(&shared, k);
    let shared = cx.tie(&shared, v);
    Ok(shared.into_iter().chain(sharing).collect())
}

/// Heads of Q, and of K and V, of the original network.
fn reference_heads(node: &Node, cx: &ReferenceCx<'_>, rank: usize) -> (i64, i64) {
    let size = |slot: usize| cx.fact(slot)?.shape.as_ref()?.get(1)?.as_const();
    match (rank, size(0), size(1)) {
        (4, Some(heads), Some(kv_heads)) => (heads, kv_heads),
        (4, _, _) => (1, 1),
        _ => head_counts(node),
    }
}

/// A mask of the heads of V, `[B, kv_heads, 1, D]` or `[B, 1, kv_heads * D]`, for the heads of Q that share them.
fn repeated_heads(cx: &mut ReferenceCx<'_>, mask: &str, rank: usize, heads: i64, kv_heads: i64) -> String {
    let places: Vec<i64> = (0..heads).map(|head| head / (heads / kv_heads.max(1)).max(1)).collect();
    let places = cx.ints(&places, &[heads]);
    if rank == 4 {
        return cx.add("Gather", &[mask, &places], vec![attr_int("axis", 1)]);
    }
    let divided = cx.ints(&[0, 0, kv_heads, -1], &[4]);
    let mask = cx.add("Reshape", &[mask, &divided], vec![]);
    let mask = cx.add("Gather", &[&mask, &places], vec![attr_int("axis", 2)]);
    let joined = cx.ints(&[0, 0, -1], &[3]);
    cx.add("Reshape", &[&mask, &joined], vec![])
}

/// Ties the heads of Q, K and V. Where K and V have fewer, heads stay, and so do the dimensions of V.
pub(super) fn tie_heads(cx: &mut CoupleCx<'_>, q: &Axis, k: &Axis, v: &Axis, v_dims: &Axis) -> Axis {
    if axis_size(q) == axis_size(k) && axis_size(k) == axis_size(v) {
        let heads = cx.tie(q, k);
        return cx.tie(&heads, v);
    }
    for axis in [q, k, v, v_dims] {
        cx.keep(axis, "belongs to heads that share keys and values");
    }
    q.clone()
}

/// The heads and dimensions of an axis `[heads * D]`.
pub(super) fn divide(cx: &mut CoupleCx<'_>, axis: &Axis, heads: i64) -> Result<(Axis, Axis), RuleError> {
    let heads = usize::try_from(heads).unwrap_or(1);
    let size = axis_size(axis).ok_or(RuleError::UnknownShape)?;
    if !size.is_multiple_of(heads) {
        return Err(RuleError::invalid(format!("{size} channels can't be divided among {heads} heads")));
    }
    match cx.single(axis) {
        Some(space) => {
            let mut digits = cx.digits(space, &[heads, size / heads], None).into_iter();
            Ok((digits.next().unwrap_or_default(), digits.next().unwrap_or_default()))
        }
        None => {
            let fixed = |size: usize| crate::operator::couple::layout::fixed_axis(&Dim::from(size as i64));
            Ok((fixed(heads), fixed(size / heads)))
        }
    }
}
