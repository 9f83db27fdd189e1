//! # Attention
//! `Y = softmax(scale * Q K^T + mask) V` per head; Q, K and V are `[B, heads, L, D]` or `[B, L, heads * D]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Attention.html>. Opsets 23 and later.
//!
//! Coupling: the heads of Q, K, V and Y are one axis; if several heads of Q share one of K and V, they are removed
//! with it. D of Q and K is one, D of V and Y is one; the positions of K and V are kept. If D shrinks, a scale that
//! follows from D is written as an attribute.

use super::multi_head_attention::couple_positions;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::{Shrinks, axis_size};
use crate::operator::infer::InferCx;
use crate::operator::lower::{Attention, LowerCx};
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, onnx};

fn types_standardattention() -> &'static [OpType] {
    const { &[onnx("Attention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_standardattention, StandardAttention::parse)];

const MASK: usize = 3;
/// The input with the number of valid keys of every sample (`nonpad_kv_seqlen`, opset 24).
const LENGTHS: usize = 6;

#[derive(Debug)]
struct StandardAttention {
    /// The number of query heads, if the inputs have three axes.
    heads: i64,
    /// The number of heads of keys and values, if the inputs have three axes.
    kv_heads: i64,
    scale: Option<f32>,
    softcap: f32,
    is_causal: bool,
    /// Whether the node returns keys and values for later steps, or scores.
    has_caches: bool,
    /// Whether each position sees only positions nearby.
    has_window: bool,
}

impl StandardAttention {
    fn parse(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self {
            heads: node.int("q_num_heads", 1).max(1),
            kv_heads: node.int("kv_num_heads", 1).max(1),
            scale: node.proto.float("scale"),
            softcap: node.float("softcap", 0.0),
            is_causal: node.int("is_causal", 0) != 0,
            has_caches: (1..4).any(|slot| node.uses_output(slot)),
            has_window: ["left_window_size", "right_window_size"].iter().any(|name| node.int(name, -1) != -1),
        }))
    }

    /// Returns Q, K or V as `[B, heads, length, D]`.
    fn by_head(&self, cx: &mut LowerCx<'_>, slot: usize, heads: i64) -> Result<String, RuleError> {
        let value = cx.float(slot);
        Ok(if cx.rank(slot)? == 3 { cx.by_head(&value, heads) } else { value })
    }
}

impl Operator for StandardAttention {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (q, v) = (cx.shape(0)?, cx.shape(2)?);
        let mut shape = q.clone();
        match (q.len(), v.len()) {
            (4, 4) => shape[3] = v[3].clone(),
            (3, 3) => {
                let (heads, kv_heads) = (self.heads, self.kv_heads);
                let each = v[2].div_exact(&Dim::from(kv_heads)).unwrap_or_else(|| cx.fresh());
                shape[2] = &each * &Dim::from(heads);
            }
            (a, b) => {
                return Err(RuleError::invalid(format!(
                    "expected Q and V both of rank 3 or both of rank 4, found ranks {a} and {b}"
                )));
            }
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if (4..6).any(|slot| cx.has(slot)) || self.has_caches {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if cx.has(3) {
            let mask = cx.separated(3)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "the axis belongs to an attention mask"));
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
        let (heads, kv_heads) = (self.heads, self.kv_heads);
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

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let (Some(q), Some(k), Some(v)) = (cx.input(0), cx.input(1), cx.input(2)) else {
            return 0.0;
        };
        match (q, k, v) {
            ([b, heads, l, d], [_, _, s, _], [_, _, _, e]) => (b * heads * l * s) as f64 * (d + e) as f64,
            ([b, l, hd], [_, s, _], [_, _, he]) => {
                let (heads, kv_heads) = (self.heads, self.kv_heads);
                (b * l * s) as f64 * (hd + he * heads / kv_heads) as f64
            }
            _ => 0.0,
        }
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
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
            && self.scale.is_none()
        {
            cx.set_float("scale", 1.0 / (old as f32).sqrt());
        }
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if self.has_caches || (4..6).any(|slot| cx.has(slot)) || self.has_window {
            return Err(RuleError::unsupported(
                "attention with a cache of keys and values or a sliding window can't be lowered",
            ));
        }
        if self.is_causal && cx.has(LENGTHS) {
            return Err(RuleError::unsupported("causal attention with nonpad_kv_seqlen can't be lowered"));
        }
        let is_flat = cx.rank(0)? == 3;
        if cx.has(MASK)
            && let (Ok(columns), Ok(length)) = (cx.size(MASK, None), cx.size(1, Some(if is_flat { 1 } else { 2 })))
            && columns != length
        {
            return Err(RuleError::unsupported(format!(
                "a mask of {columns} columns for {length} keys can't be lowered"
            )));
        }
        let (heads, kv_heads) =
            if is_flat { (self.heads, self.kv_heads) } else { (cx.size(0, Some(1))?, cx.size(1, Some(1))?) };
        if kv_heads < 1 || heads % kv_heads != 0 {
            return Err(RuleError::invalid(format!("{heads} heads can't share {kv_heads} heads of keys and values")));
        }
        let dims = cx.size(0, None)? / if is_flat { heads } else { 1 };
        let q = self.by_head(cx, 0, heads)?;
        let (mut k, mut v) = (self.by_head(cx, 1, kv_heads)?, self.by_head(cx, 2, kv_heads)?);
        if heads != kv_heads {
            // Adjacent query heads share keys and values.
            let shared: Vec<i64> = (0..heads).map(|head| head / (heads / kv_heads)).collect();
            (k, v) = (cx.gathered(&k, 1, &shared), cx.gathered(&v, 1, &shared));
        }
        let mut added = Vec::new();
        if self.is_causal {
            added.push(cx.causal_term(&q, &k, false)?);
        }
        if cx.has(MASK) {
            let is_float = cx.fact(MASK).is_some_and(Fact::is_float);
            added.push(if is_float { cx.float(MASK) } else { cx.boolean_term(MASK) });
        }
        if cx.has(LENGTHS) {
            added.push(cx.lengths_term(LENGTHS, &k)?);
        }
        // Boolean masks and zero lengths, also combined with the causal mask, can hide all keys of a query. Its result
        // is zero.
        let hides = cx.has(LENGTHS) || cx.has(MASK) && !cx.fact(MASK).is_some_and(Fact::is_float);
        let counts = hides.then(|| cx.has_visible(&added));
        let scale = self.scale.map_or(1.0 / (dims as f64).sqrt(), f64::from);
        let mut y = cx.attention(&Attention { q, k, v, scale, softcap: f64::from(self.softcap), added });
        if let Some(counts) = counts {
            y = cx.add("Mul", &[&y, &counts], vec![]);
        }
        let y = if is_flat { cx.from_heads(&y) } else { y };
        cx.emit(0, &y);
        Ok(true)
    }
}

/// Ties the heads of Q, K and V and returns those of the output: `[heads of K and V, query heads per head of K and V]`
/// if K and V have fewer heads.
fn share_heads(cx: &mut CoupleCx<'_>, q: &Axis, k: &Axis, v: &Axis, v_dims: &Axis) -> Result<Axis, RuleError> {
    let (Some(heads), Some(kv_heads)) = (axis_size(q), axis_size(k)) else {
        return Ok(tie_heads(cx, q, k, v, v_dims));
    };
    if heads == kv_heads || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || axis_size(v) != Some(kv_heads) {
        return Ok(tie_heads(cx, q, k, v, v_dims));
    }
    let (shared, sharing) = divide(cx, q, kv_heads as i64)?;
    cx.keep(&sharing, "the axis counts the query heads that share one head of keys and values");
    let shared = cx.tie(&shared, k);
    let shared = cx.tie(&shared, v);
    Ok(shared.into_iter().chain(sharing).collect())
}

/// Ties the heads of Q, K and V. If they differ in number, all heads are kept, and so are the dimensions of V.
pub(super) fn tie_heads(cx: &mut CoupleCx<'_>, q: &Axis, k: &Axis, v: &Axis, v_dims: &Axis) -> Axis {
    if axis_size(q) == axis_size(k) && axis_size(k) == axis_size(v) {
        let heads = cx.tie(q, k);
        return cx.tie(&heads, v);
    }
    for axis in [q, k, v, v_dims] {
        cx.keep(axis, "queries, keys and values differ in their number of heads");
    }
    q.clone()
}

/// Divides an axis `[heads * D]` into heads and dimensions.
pub(super) fn divide(cx: &mut CoupleCx<'_>, axis: &Axis, heads: i64) -> Result<(Axis, Axis), RuleError> {
    let heads = usize::try_from(heads).unwrap_or(1);
    let size = axis_size(axis).ok_or(RuleError::UnknownShape)?;
    if !size.is_multiple_of(heads) {
        return Err(RuleError::invalid(format!("{size} channels can't be divided into {heads} heads")));
    }
    match cx.single(axis) {
        Some(space) => {
            let mut digits = cx.digits(space, &[heads, size / heads], Shrinks::Any).into_iter();
            Ok((digits.next().unwrap_or_default(), digits.next().unwrap_or_default()))
        }
        None => {
            let fixed = |size: usize| crate::operator::couple::layout::fixed_axis(&Dim::from(size as i64));
            Ok((fixed(heads), fixed(size / heads)))
        }
    }
}
