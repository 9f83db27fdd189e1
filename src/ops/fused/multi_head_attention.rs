//! # MultiHeadAttention
//! `Y = softmax(scale * Q K^T + mask) V` per head, after a bias is added to Q, K and V. Q is `[B, L, heads * D]`; K and V
//! are `[B, S, heads * D]` or `[B, heads, S, D]`. Packed forms: K is `[B, S, heads, 2, D]` and holds V, or Q is
//! `[B, L, heads, 3, D]` and holds all.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. The packed forms have no CPU kernel.
//!
//! Coupling: the heads of Q, K, V and Y are one axis; D of Q and K is one, D of V and Y is one (all are one in packed
//! forms). The bias holds the channels of Q, K and V, one after the other. If D shrinks, a scale that follows from D
//! is written as an attribute. The positions of keys and values are kept.

use super::attention::{divide, tie_heads};
use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::axis_size;
use crate::operator::infer::InferCx;
use crate::operator::lower::{Attention, LowerCx, ScoreTerms};
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_multiheadattention() -> &'static [OpType] {
    const { &[microsoft("MultiHeadAttention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_multiheadattention, MultiHeadAttention::parse)];

const BIAS: usize = 3;
const KEY_PADDING_MASK: usize = 4;
const ATTENTION_BIAS: usize = 5;

#[derive(Debug)]
struct MultiHeadAttention {
    form: Form,
    heads: i64,
    /// The factor of the scores; zero: it follows from the dimensions of a head.
    scale: f32,
    is_causal: bool,
    filter_value: f32,
    /// Whether the node returns keys and values for later steps.
    has_present: bool,
}

/// Which inputs hold Q, K and V.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Three inputs.
    Separate,
    /// K and V in input 1.
    PackedKv,
    /// All in input 0.
    PackedQkv,
}

impl Form {
    /// Returns the inputs that hold Q, K and V, with their positions in packed ones.
    fn sources(self) -> [(usize, Option<i64>); 3] {
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
    /// The axis `[heads * D]`, if there is one.
    flat: Option<Axis>,
}

impl MultiHeadAttention {
    fn parse(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        let form = match (node.input(1), node.input(2)) {
            (None, _) => Form::PackedQkv,
            (Some(_), None) => Form::PackedKv,
            _ => Form::Separate,
        };
        Ok(Box::new(Self {
            form,
            heads: node.int("num_heads", 1),
            scale: node.float("scale", 0.0),
            is_causal: node.int("unidirectional", 0) != 0,
            filter_value: node.float("mask_filter_value", -10_000.0),
            has_present: (1..4).any(|slot| node.uses_output(slot)),
        }))
    }
}

impl Operator for MultiHeadAttention {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, q) = (cx.input(0)?.dtype, cx.shape(0)?);
        let refuse = |what: &str, rank: usize| RuleError::invalid(format!("{what} can't have rank {rank}"));
        let flat_v = match self.form {
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
        if self.form != Form::PackedQkv && q.len() != 3 {
            return Err(refuse("Q", q.len()));
        }
        cx.set_shape(0, dtype, vec![q[0].clone(), q[1].clone(), flat_v]);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if (6..10).any(|slot| cx.has(slot)) || self.has_present {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if cx.has(4) {
            let mask = cx.separated(4)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "the axis belongs to an attention mask"));
        }
        let count = self.heads;
        let q = cx.separated(0)?.axes;
        let (batch, length) = (q[0].clone(), q[1].clone());
        let parts = match self.form {
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

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let product = |sizes: &[i64]| sizes.iter().map(|size| *size as f64).product::<f64>();
        let (Some(q), Some(y)) = (cx.input(0), cx.output(0)) else {
            return 0.0;
        };
        let (scores, dims) = match (self.form, q, cx.input(1)) {
            (Form::PackedQkv, [b, l, heads, _, d], _) => (product(&[*b, *l, *l]), heads * d),
            (_, [b, l, flat], Some([_, s, _] | [_, s, _, _, _] | [_, _, s, _])) => (product(&[*b, *l, *s]), *flat),
            _ => return 0.0,
        };
        scores * (dims + y.last().copied().unwrap_or(0)) as f64
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let heads = self.heads.max(1);
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
        write_scale(self.scale, cx, old, new);
        Ok(())
    }

    fn lacks_cpu_kernel(&self) -> bool {
        self.form != Form::Separate
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if self.has_present || (6..10).any(|slot| cx.has(slot)) {
            return Err(RuleError::unsupported("keys and values of earlier steps can't be lowered"));
        }
        let heads = self.heads.max(1);
        let mut parts = Vec::new();
        // The position in the bias at which the channels of each part start.
        let mut start = 0;
        for source in self.form.sources() {
            parts.push(lowered_part(cx, source, heads, start)?);
            start += channels(cx, source.0)?;
        }
        let dims = channels(cx, self.form.sources()[0].0)? / heads;
        let scale = match self.scale {
            0.0 => 1.0 / (dims as f64).sqrt(),
            scale => f64::from(scale),
        };
        let Ok([q, k, v]) = <[String; 3]>::try_from(parts) else { return Err(RuleError::UnknownShape) };
        let terms = ScoreTerms {
            mask: KEY_PADDING_MASK,
            bias: ATTENTION_BIAS,
            is_causal: self.is_causal,
            filter_value: self.filter_value,
        };
        let added = cx.score_terms(&terms, &q, &k)?;
        let y = cx.attention(&Attention { q, k, v, scale, softcap: 0.0, added });
        let y = cx.from_heads(&y);
        cx.emit(0, &y);
        Ok(true)
    }
}

/// Returns `heads * D` of an input that holds some of Q, K and V.
fn channels(cx: &LowerCx<'_>, slot: usize) -> Result<i64, RuleError> {
    match cx.rank(slot)? {
        4 => Ok(cx.size(slot, Some(1))? * cx.size(slot, Some(3))?),
        5 => Ok(cx.size(slot, Some(2))? * cx.size(slot, Some(4))?),
        _ => cx.size(slot, None),
    }
}

/// Returns one of Q, K and V, plus its bias, which starts at `start`, as `[B, heads, length, D]`.
fn lowered_part(
    cx: &mut LowerCx<'_>,
    (slot, position): (usize, Option<i64>),
    heads: i64,
    start: i64,
) -> Result<String, RuleError> {
    let mut value = cx.float(slot);
    if cx.rank(slot)? == 4 {
        return match cx.has(BIAS) {
            true => Err(RuleError::unsupported("a bias for keys or values of rank 4 can't be lowered")),
            false => Ok(value),
        };
    }
    if let Some(position) = position {
        let part = cx.span(&value, 3, position, position + 1);
        value = cx.reshaped(&part, &[0, 0, -1]);
    }
    if cx.has(BIAS) {
        let bias = cx.float(BIAS);
        let bias = cx.span(&bias, 0, start, start + channels(cx, slot)?);
        value = cx.add("Add", &[&value, &bias], vec![]);
    }
    Ok(cx.by_head(&value, heads))
}

/// Returns the heads and dimensions of `[B, L, heads * D]`.
fn flat(cx: &mut CoupleCx<'_>, axes: &[Axis], count: i64) -> Result<Part, RuleError> {
    let [_, _, flat] = axes else {
        return Err(RuleError::invalid(format!("expected rank 3, found {}", axes.len())));
    };
    let (heads, dims) = divide(cx, flat, count)?;
    Ok(Part { heads, dims, flat: Some(flat.clone()) })
}

/// Returns the heads and dimensions of `[B, L, heads, 2 or 3, D]`.
fn packed(cx: &mut CoupleCx<'_>, axes: &[Axis]) -> Result<Part, RuleError> {
    let [_, _, heads, positions, dims] = axes else {
        return Err(RuleError::invalid(format!("expected rank 5, found {}", axes.len())));
    };
    cx.keep(positions, "the axis holds the packed queries, keys and values");
    Ok(Part { heads: heads.clone(), dims: dims.clone(), flat: None })
}

/// Unites the bias, `[channels of Q, K and V]`, with the channels of Q, K and V.
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
        flat.iter().for_each(|axis| cx.keep(axis, "the bias of queries, keys and values keeps its size"));
        return Ok(());
    };
    let mut start = 0;
    for (axis, size) in flat.iter().zip(sizes) {
        match cx.single(axis) {
            Some(part) => (0..size).for_each(|at| cx.unite(space, start + at, part, at)),
            None => cx.keep_range(space, start..start + size, "the bias is added to channels that are all kept"),
        }
        start += size;
    }
    Ok(())
}

/// Keeps the positions of keys or values, whose batch is that of the queries: a position that is zero still takes part
/// in the softmax, one that is removed does not.
pub(super) fn couple_positions(cx: &mut CoupleCx<'_>, batch: &Axis, of: Option<&Axis>, positions: Option<&Axis>) {
    if let Some(of) = of {
        cx.tie(batch, of);
    }
    if let Some(positions) = positions {
        cx.keep(positions, "the axis holds the positions of keys and values");
    }
}

/// Ties the heads of the attention bias, `[B or 1, heads or 1, L, S]`; its other axes are kept.
pub(super) fn couple_attention_bias(cx: &mut CoupleCx<'_>, slot: usize, heads: &Axis) -> Result<(), RuleError> {
    let bias = cx.separated(slot)?.axes;
    for (at, axis) in bias.iter().enumerate() {
        if bias.len() == 4 && at == 1 {
            if !axis.is_empty() {
                cx.tie(axis, heads);
            }
        } else {
            cx.keep(axis, "the axis belongs to an attention mask");
        }
    }
    Ok(())
}

/// Writes the scale as an attribute if it follows from the number of dimensions of a head and a cut leaves `new` of
/// `old`. A scale that the node states remains unchanged.
pub(super) fn write_scale(scale: f32, cx: &mut PatchCx<'_>, old: Option<i64>, new: Option<i64>) {
    if let (Some(old), Some(new)) = (old, new)
        && old != new
        && scale == 0.0
    {
        cx.set_float("scale", 1.0 / (old as f32).sqrt());
    }
}
