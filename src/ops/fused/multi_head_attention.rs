//! # MultiHeadAttention
//! `Y = softmax(scale * Q K^T + mask) V` per head, after a bias is added to Q, K and V. Q is `[B, L, heads * D]`; K and V
//! are `[B, S, heads * D]` or `[B, heads, S, D]`. Packed forms: K is `[B, S, heads, 2, D]` and holds V, or Q is
//! `[B, L, heads, 3, D]` and holds all.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. The packed forms have no CPU kernel.
//!
//! Coupling: heads of Q, K, V and Y are one axis; D of Q and K is one, D of V and Y is one (all are one where they are
//! packed). The bias is Q's, K's and V's channels in a row. A scale that is implied by D is written out where D shrinks. The positions of keys and
//! values stay.

use super::attention::{divide, tie_heads};
use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::{Attention, GradientCx};
use crate::operator::infer::InferCx;
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_multiheadattention() -> &'static [OpType] {
    const { &[microsoft("MultiHeadAttention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_multiheadattention, &MultiHeadAttention)];

struct MultiHeadAttention;

const BIAS: usize = 3;
const KEY_PADDING_MASK: usize = 4;
const ATTENTION_BIAS: usize = 5;

/// Where Q, K and V come from.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Three inputs.
    Separate,
    /// K and V in input 1.
    PackedKv,
    /// All in input 0.
    PackedQkv,
}

impl Form {
    fn of(node: &Node) -> Self {
        match (node.input(1), node.input(2)) {
            (None, _) => Form::PackedQkv,
            (Some(_), None) => Form::PackedKv,
            _ => Form::Separate,
        }
    }

    /// The inputs that hold Q, K and V, and their places in packed ones.
    fn places(self) -> [(usize, Option<i64>); 3] {
        match self {
            Form::Separate => [(0, None), (1, None), (2, None)],
            Form::PackedKv => [(0, None), (1, Some(0)), (1, Some(1))],
            Form::PackedQkv => [(0, Some(0)), (0, Some(1)), (0, Some(2))],
        }
    }
}

/// The head and dimension axes of one of Q, K and V.
#[derive(Clone)]
struct Part {
    heads: Axis,
    dims: Axis,
    /// The axis `[heads * D]`, where it is one.
    flat: Option<Axis>,
}

impl NodeRules for MultiHeadAttention {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, q) = (cx.input(0)?.dtype, cx.shape(0)?);
        let refuse = |what: &str, rank: usize| RuleError::invalid(format!("{what} of rank {rank} is not allowed"));
        let flat_v = match Form::of(node) {
            Form::PackedQkv => match q.as_slice() {
                [_, _, heads, _, dims] => heads * dims,
                _ => return Err(refuse("a packed Q", q.len())),
            },
            Form::PackedKv => match cx.shape(1)?.as_slice() {
                [_, _, heads, _, dims] => heads * dims,
                k => return Err(refuse("a packed K", k.len())),
            },
            Form::Separate => match cx.shape(2)?.as_slice() {
                [_, _, flat] => flat.clone(),
                [_, heads, _, dims] => heads * dims,
                v => return Err(refuse("V", v.len())),
            },
        };
        if Form::of(node) != Form::PackedQkv && q.len() != 3 {
            return Err(refuse("Q", q.len()));
        }
        cx.set_shape(0, dtype, vec![q[0].clone(), q[1].clone(), flat_v]);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if (6..10).any(|slot| cx.has(slot)) || (1..4).any(|slot| node.output(slot).is_some()) {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if cx.has(4) {
            let mask = cx.separated(4)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "is an axis of an attention mask"));
        }
        let count = node.int("num_heads", 1);
        let q = cx.separated(0)?.axes;
        let (batch, length) = (q[0].clone(), q[1].clone());
        let parts = match Form::of(node) {
            Form::PackedQkv => {
                let part = packed(cx, &q)?;
                couple_positions(cx, &batch, None, Some(&length));
                [part.clone(), part.clone(), part]
            }
            Form::PackedKv => {
                let k = cx.separated(1)?.axes;
                let part = packed(cx, &k)?;
                couple_positions(cx, &batch, k.first(), k.get(1));
                [flat(cx, &q, count)?, part.clone(), part]
            }
            Form::Separate => {
                let (k, v) = (cx.separated(1)?.axes, cx.separated(2)?.axes);
                for axes in [&k, &v] {
                    couple_positions(cx, &batch, axes.first(), axes.iter().rev().nth(1));
                }
                let mut of = |axes: &[Axis]| match axes {
                    [_, heads, _, dims] => Ok(Part { heads: heads.clone(), dims: dims.clone(), flat: None }),
                    axes => flat(cx, axes, count),
                };
                [of(&q)?, of(&k)?, of(&v)?]
            }
        };
        let [q, k, v] = &parts;
        let heads = tie_heads(cx, &q.heads, &k.heads, &v.heads, &v.dims);
        cx.tie(&q.dims, &k.dims);
        if cx.has(BIAS) {
            couple_bias(cx, &parts)?;
        }
        if cx.has(ATTENTION_BIAS) {
            couple_attention_bias(cx, ATTENTION_BIAS, &heads)?;
        }
        let out: Axis = heads.into_iter().chain(v.dims.clone()).collect();
        cx.set(0, Layout { axes: vec![batch, length, out] });
        Ok(())
    }

    fn macs(&self, node: &Node, cx: &MacsCx<'_>) -> f64 {
        let product = |sizes: &[i64]| sizes.iter().map(|size| *size as f64).product::<f64>();
        let (Some(q), Some(y)) = (cx.input(0), cx.output(0)) else {
            return 0.0;
        };
        let (scores, dims) = match (Form::of(node), q, cx.input(1)) {
            (Form::PackedQkv, [b, l, heads, _, d], _) => (product(&[*b, *l, *l]), heads * d),
            (_, [b, l, flat], Some([_, s, _] | [_, s, _, _, _] | [_, _, s, _])) => (product(&[*b, *l, *s]), *flat),
            _ => return 0.0,
        };
        scores * (dims + y.last().copied().unwrap_or(0)) as f64
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let heads = node.int("num_heads", 1).max(1);
        let is_flat = cx.rank(0) == 3;
        let new_heads = if is_flat { cx.norm_group_count(0, 2, heads) } else { cx.new_size(0, 2) }.unwrap_or(heads);
        if new_heads != heads {
            cx.set_int("num_heads", new_heads);
        }
        let (old, new) = if is_flat {
            (cx.old_size(0, 2).map(|size| size / heads), cx.new_size(0, 2).map(|size| size / new_heads.max(1)))
        } else {
            (cx.old_size(0, 4), cx.new_size(0, 4))
        };
        write_scale(node, cx, old, new);
        Ok(())
    }

    fn is_decomposed(&self, node: &Node) -> bool {
        Form::of(node) != Form::Separate
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Zeros in Q and K leave the scores of the kept dimensions; the scale follows from the original size.
        let from = Form::of(node).places();
        let v_mask = cx.mask(from[2].0);
        let mut replaced = Vec::new();
        for (to, (slot, place)) in from.into_iter().enumerate() {
            let mut value = cx.zeroed(slot);
            if let Some(place) = place {
                value = unpacked(cx, &value, place);
            }
            replaced.push((to, value));
        }
        replaced.push((BIAS, cx.zeroed(BIAS)));
        cx.emit(&replaced);
        if v_mask.is_none() {
            return Ok(());
        }
        let (slot, place) = from[2];
        let mut mask = cx.full_mask(slot);
        if let Some(place) = place {
            mask = unpacked(cx, &mask, place);
        } else if cx.rank(slot)? == 4 {
            mask = cx.transposed(&mask, &[0, 2, 1, 3]);
            let target = cx.ints(&[0, 0, -1], &[3]);
            mask = cx.add("Reshape", &[&mask, &target], vec![]);
        }
        // Values pass through the sum over positions.
        let mask = cx.reduce("ReduceMax", &mask, &[1]);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if (6..10).any(|slot| !cx.input(slot).is_empty()) || (1..4).any(|slot| cx.dy_of(slot).is_some()) {
            return Err(RuleError::unsupported("keys and values of earlier steps have no gradient"));
        }
        let heads = node.int("num_heads", 1).max(1);
        let places = Form::of(node).places();
        let mut parts = Vec::new();
        let mut start = 0;
        for (slot, place) in places {
            let shape = cx.shape(slot)?;
            let part = PartGradient { slot, place, start, shape };
            start += part.channels();
            parts.push(part);
        }
        let has_bias = !cx.input(BIAS).is_empty();
        if has_bias && parts.iter().any(|part| part.shape.len() != 3) {
            return Err(RuleError::unsupported("a bias of packed queries, keys or values has no gradient"));
        }
        let by_head: Vec<String> = parts.iter().map(|part| part.by_head(cx, heads, has_bias)).collect();
        let ([batch, length], [.., columns]) = ([parts[0].shape[0], parts[0].shape[1]], [parts[1].length()]);
        let scores = [batch, heads, length, columns];
        let dims = parts[0].channels() / heads;
        let scale = match node.float("scale", 0.0) {
            0.0 => 1.0 / (dims as f64).sqrt(),
            scale => f64::from(scale),
        };
        let added = cx.score_terms(node, KEY_PADDING_MASK, ATTENTION_BIAS, &scores)?;
        let dy = cx.dy()?;
        let dy = cx.by_head(&dy, &[batch, length, parts[2].channels()], heads);
        let [q, k, v] = by_head.as_slice() else { return Err(RuleError::UnknownShape) };
        let attention = Attention { q: q.clone(), k: k.clone(), v: v.clone(), scale, added };
        let found = cx.through_attention(&attention, &dy);
        cx.give_score_term(ATTENTION_BIAS, &found.added, &scores)?;
        give_parts(cx, &parts, [found.q, found.k, found.v]);
        Ok(())
    }
}

/// The heads and dimensions of `[B, L, heads * D]`.
fn flat(cx: &mut CoupleCx<'_>, axes: &[Axis], count: i64) -> Result<Part, RuleError> {
    let [_, _, flat] = axes else {
        return Err(RuleError::invalid(format!("expected rank 3, found {}", axes.len())));
    };
    let (heads, dims) = divide(cx, flat, count)?;
    Ok(Part { heads, dims, flat: Some(flat.clone()) })
}

/// The heads and dimensions of `[B, L, heads, 2 or 3, D]`.
fn packed(cx: &mut CoupleCx<'_>, axes: &[Axis]) -> Result<Part, RuleError> {
    let [_, _, heads, places, dims] = axes else {
        return Err(RuleError::invalid(format!("expected rank 5, found {}", axes.len())));
    };
    cx.keep(places, "counts queries, keys and values");
    Ok(Part { heads: heads.clone(), dims: dims.clone(), flat: None })
}

/// Unites the bias, `[Q's, K's and V's channels]`, with the channels of Q, K and V.
fn couple_bias(cx: &mut CoupleCx<'_>, parts: &[Part; 3]) -> Result<(), RuleError> {
    let bias = cx.separated(BIAS)?.axes;
    let flat: Option<Vec<Axis>> = parts.iter().map(|part| part.flat.clone()).collect();
    let (Some(flat), [bias]) = (flat, bias.as_slice()) else {
        return Err(RuleError::unsupported("a bias of packed queries, keys or values is not supported"));
    };
    let sizes: Option<Vec<usize>> = flat.iter().map(axis_size).collect();
    let sizes = sizes.ok_or(RuleError::UnknownShape)?;
    if axis_size(bias) != Some(sizes.iter().sum()) {
        return Err(RuleError::unsupported(format!("the bias does not fit channels of sizes {sizes:?}")));
    }
    let Some(space) = cx.single(bias) else {
        flat.iter().for_each(|axis| cx.keep(axis, "meets a bias that stays"));
        return Ok(());
    };
    let mut start = 0;
    for (axis, size) in flat.iter().zip(sizes) {
        match cx.single(axis) {
            Some(part) => (0..size).for_each(|at| cx.unite(space, start + at, part, at)),
            None => cx.keep_range(space, start..start + size, "meets channels that stay"),
        }
        start += size;
    }
    Ok(())
}

/// Keeps the positions of keys or values, which are of one batch with the queries: a position that is zero still takes
/// part in the softmax, one that is gone does not.
pub(super) fn couple_positions(cx: &mut CoupleCx<'_>, batch: &Axis, of: Option<&Axis>, positions: Option<&Axis>) {
    if let Some(of) = of {
        cx.tie(batch, of);
    }
    if let Some(positions) = positions {
        cx.keep(positions, "counts keys and values");
    }
}

/// Ties the heads of what is added to the scores, `[B or 1, heads or 1, L, S]`; its other axes stay.
pub(super) fn couple_attention_bias(cx: &mut CoupleCx<'_>, slot: usize, heads: &Axis) -> Result<(), RuleError> {
    let bias = cx.separated(slot)?.axes;
    for (at, axis) in bias.iter().enumerate() {
        if bias.len() == 4 && at == 1 {
            if !axis.is_empty() {
                cx.tie(axis, heads);
            }
        } else {
            cx.keep(axis, "is an axis of an attention mask");
        }
    }
    Ok(())
}

/// Writes out the scale that follows from `old` dimensions of a head where `new` ones are left.
pub(super) fn write_scale(node: &Node, cx: &mut PatchCx<'_>, old: Option<i64>, new: Option<i64>) {
    if let (Some(old), Some(new)) = (old, new)
        && old != new
        && node.float("scale", 0.0) == 0.0
    {
        cx.set_float("scale", 1.0 / (old as f32).sqrt());
    }
}

/// Place `place` of a packed value `[B, L, heads, places, D]` as `[B, L, heads * D]`.
fn unpacked(cx: &mut ReferenceCx<'_>, value: &str, place: i64) -> String {
    let part = cx.span(value, 3, place, place + 1);
    let target = cx.ints(&[0, 0, -1], &[3]);
    cx.add("Reshape", &[&part, &target], vec![])
}

/// One of Q, K and V while the gradient is taken.
struct PartGradient {
    /// The input that holds it.
    slot: usize,
    /// Its place in a packed input.
    place: Option<i64>,
    /// Where its channels start in the bias.
    start: i64,
    /// The shape of the input.
    shape: Vec<i64>,
}

impl PartGradient {
    /// `heads * D`.
    fn channels(&self) -> i64 {
        match self.shape.as_slice() {
            [_, heads, _, dims] | [_, _, heads, _, dims] => heads * dims,
            shape => shape.last().copied().unwrap_or(0),
        }
    }

    /// The number of positions.
    fn length(&self) -> i64 {
        if self.shape.len() == 4 { self.shape[2] } else { self.shape[1] }
    }

    /// The part with its bias as `[B, heads, length, D]`.
    fn by_head(&self, cx: &mut GradientCx<'_>, heads: i64, has_bias: bool) -> String {
        let mut value = cx.input(self.slot);
        if self.shape.len() == 4 {
            return value;
        }
        if let Some(place) = self.place {
            value = cx.slice(&value, 3, place, place + 1, 1);
        }
        if has_bias {
            let bias = cx.slice(&cx.input(BIAS), 0, self.start, self.start + self.channels(), 1);
            value = cx.op("Add", &[&value, &bias]);
        }
        cx.by_head(&value, &[self.shape[0], self.shape[1], self.channels()], heads)
    }
}

/// Gives the gradients by Q, K and V, `[B, heads, length, D]`, to the inputs that hold them and to their bias.
fn give_parts(cx: &mut GradientCx<'_>, parts: &[PartGradient], gradients: [String; 3]) {
    let mut of_inputs: Vec<(usize, Vec<String>)> = Vec::new();
    let mut of_bias = Vec::new();
    for (part, gradient) in parts.iter().zip(gradients) {
        let shape = &part.shape;
        let gradient = match (shape.as_slice(), part.place) {
            ([_, _, _, _], _) => gradient,
            ([batch, length, heads, _, dims], Some(_)) => {
                cx.from_heads(&gradient, &[*batch, *length, *heads, 1, *dims])
            }
            _ => cx.from_heads(&gradient, shape),
        };
        if shape.len() == 3 {
            of_bias.push(cx.reduce_sum(&gradient, &[0, 1], false));
        }
        match of_inputs.last_mut().filter(|(slot, _)| *slot == part.slot) {
            Some((_, places)) => places.push(gradient),
            None => of_inputs.push((part.slot, vec![gradient])),
        }
    }
    for (slot, places) in of_inputs {
        let gradient = cx.concat(&places, 3);
        cx.give(slot, gradient);
    }
    if cx.wants(BIAS) {
        let gradient = cx.concat(&of_bias, 0);
        cx.give(BIAS, gradient);
    }
}
