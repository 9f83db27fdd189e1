//! # Attention of com.microsoft
//! `[Q, K, V] = X W + bias`, `Y = softmax(scale * Q K^T + mask) V` per head; X is `[B, L, I]`, W `[I, channels of Q, K
//! and V]`.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: the last axis of X is axis 0 of W. The heads of Q, K, V and Y are one axis; D of Q and K is one, D of V
//! and Y is one. The bias has the columns of W. If D shrinks, a scale that follows from D is written as an attribute.
//! The positions of keys and values are kept.

use super::attention::tie_heads;
use super::multi_head_attention::{couple_attention_bias, couple_positions, write_scale};
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::{Shrinks, axis_size};
use crate::operator::infer::InferCx;
use crate::operator::lower::{Attention, LowerCx, ScoreTerms};
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_fusedattention() -> &'static [OpType] {
    const { &[microsoft("Attention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_fusedattention, FusedAttention::parse)];

const BIAS: usize = 2;
const MASK: usize = 3;
const ATTENTION_BIAS: usize = 5;

#[derive(Debug)]
struct FusedAttention {
    heads: i64,
    /// The numbers of channels of Q, K and V; `None`: a third of W each.
    sizes: Option<Vec<i64>>,
    /// The factor of the scores; zero: it follows from the dimensions of a head.
    scale: f32,
    is_causal: bool,
    filter_value: f32,
    is_rotary: bool,
    /// Whether the node returns keys and values for later steps.
    has_present: bool,
}

impl FusedAttention {
    fn parse(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self {
            heads: node.int("num_heads", 1),
            sizes: node.proto.ints("qkv_hidden_sizes").map(<[i64]>::to_vec),
            scale: node.float("scale", 0.0),
            is_causal: node.int("unidirectional", 0) != 0,
            filter_value: node.float("mask_filter_value", -10_000.0),
            is_rotary: node.int("do_rotary", 0) != 0,
            has_present: node.uses_output(1),
        }))
    }

    /// Returns the numbers of channels of Q, K and V in a weight of `columns` columns.
    fn hidden_sizes(&self, columns: i64) -> Result<[i64; 3], RuleError> {
        let sizes = match self.sizes.as_deref() {
            Some([q, k, v]) => [*q, *k, *v],
            Some(sizes) => {
                return Err(RuleError::invalid(format!(
                    "expected 3 entries in qkv_hidden_sizes, found {}",
                    sizes.len()
                )));
            }
            None => [columns / 3; 3],
        };
        let heads = self.heads;
        let is_wrong = |size: &i64| *size <= 0 || heads <= 0 || size % heads != 0;
        if sizes.iter().any(is_wrong) || sizes.iter().fold(0i64, |sum, size| sum.saturating_add(*size)) != columns {
            let text = format!(
                "the {columns} columns of W can't be divided into Q, K and V of {sizes:?} channels with {heads} heads"
            );
            return Err(RuleError::invalid(text));
        }
        Ok(sizes)
    }
}

impl Operator for FusedAttention {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, w) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        let ([batch, length, inputs], [rows, columns]) = (x.as_slice(), w.as_slice()) else {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        };
        if !cx.equal(inputs, rows) {
            return Err(RuleError::invalid(format!("X has {inputs} channels, W has {rows} rows")));
        }
        cx.expect_vector(2, Some(columns))?;
        let columns = columns.as_const().ok_or(RuleError::UnknownShape)?;
        let [_, _, v] = self.hidden_sizes(columns)?;
        cx.set_shape(0, dtype, vec![batch.clone(), length.clone(), Dim::from(v)]);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if cx.has(4) || cx.has(6) || self.has_present {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if self.is_rotary {
            return Err(RuleError::unsupported("rotary embedding inside of Attention is not supported"));
        }
        if cx.has(3) {
            let mask = cx.separated(3)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "the axis belongs to an attention mask"));
        }
        let (x, w) = (cx.separated(0)?.axes, cx.separated(1)?.axes);
        cx.tie(&x[2], &w[0]);
        couple_positions(cx, &x[0], None, x.get(1));
        if cx.is_weight(1) {
            cx.consumes(&w[0]);
            cx.produces(&w[1]);
        }
        if cx.has(2) {
            let bias = cx.separated(2)?.axes;
            cx.tie(&w[1], &bias[0]);
        }
        let columns = axis_size(&w[1]).ok_or(RuleError::UnknownShape)?;
        let sizes = self.hidden_sizes(columns as i64)?;
        let Some(space) = cx.single(&w[1]) else {
            if cx.has(ATTENTION_BIAS) {
                couple_attention_bias(cx, ATTENTION_BIAS, &Axis::new())?;
            }
            cx.set_fixed(0)?;
            return Ok(());
        };
        let heads = usize::try_from(self.heads).unwrap_or(1);
        let mut start = 0;
        let mut parts = Vec::new();
        for size in sizes {
            let size = usize::try_from(size).unwrap_or(0);
            let part = cx.new_space(size)?;
            (0..size).for_each(|at| cx.unite(space, start + at, part, at));
            start += size;
            parts.push(cx.digits(part, &[heads, size / heads], Shrinks::Any));
        }
        let tied = tie_heads(cx, &parts[0][0], &parts[1][0], &parts[2][0], &parts[2][1]);
        cx.tie(&parts[0][1], &parts[1][1]);
        if cx.has(ATTENTION_BIAS) {
            couple_attention_bias(cx, ATTENTION_BIAS, &tied)?;
        }
        let out: Axis = tied.into_iter().chain(parts[2][1].clone()).collect();
        cx.set(0, Layout { axes: vec![x[0].clone(), x[1].clone(), out] });
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        // The projection, and the products of activations, which belong to the same node.
        let (Some([b, l, inputs]), Some([_, columns])) = (cx.input(0), cx.input(1)) else {
            return 0.0;
        };
        let bias = i64::from(cx.input(2).is_some());
        let v = cx.output(0).and_then(<[i64]>::last).copied().unwrap_or(0);
        let q = (columns - v) / 2;
        let tokens = (*b as f64) * (*l as f64);
        tokens * *columns as f64 * (inputs + bias) as f64 + tokens * *l as f64 * (q + v) as f64
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (Some(columns), Some(kept)) = (cx.old_size(1, 1), cx.kept_input(1, 1)) else {
            return Ok(());
        };
        let sizes = self.hidden_sizes(columns)?;
        let heads = self.heads;
        let kept: Vec<i64> = kept.into_iter().filter_map(|at| i64::try_from(at).ok()).collect();
        let mut start = 0;
        let mut left = Vec::new();
        let mut left_heads = heads;
        for size in sizes {
            let of_part: Vec<i64> =
                kept.iter().filter(|at| (start..start + size).contains(*at)).map(|at| at - start).collect();
            let mut of_heads: Vec<i64> = of_part.iter().map(|at| at / (size / heads)).collect();
            of_heads.dedup();
            left_heads = of_heads.len() as i64;
            left.push(of_part.len() as i64);
            start += size;
        }
        if left_heads != heads {
            cx.set_int("num_heads", left_heads);
        }
        if self.sizes.is_some() || left.iter().any(|size| *size != left[0]) {
            cx.set_ints("qkv_hidden_sizes", &left);
        }
        write_scale(self.scale, cx, Some(sizes[0] / heads), Some(left[0] / left_heads.max(1)));
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if cx.has(4) || cx.has(6) || self.has_present || self.is_rotary {
            return Err(RuleError::unsupported(
                "attention with keys and values of earlier steps or rotary embedding can't be lowered",
            ));
        }
        let sizes = self.hidden_sizes(cx.size(1, Some(1))?)?;
        let (x, w) = (cx.float(0), cx.float(1));
        let mut projected = cx.add("MatMul", &[&x, &w], vec![]);
        if cx.has(BIAS) {
            let bias = cx.float(BIAS);
            projected = cx.add("Add", &[&projected, &bias], vec![]);
        }
        let mut start = 0;
        let [q, k, v] = sizes.map(|size| {
            let part = cx.span(&projected, 2, start, start + size);
            start += size;
            cx.by_head(&part, self.heads)
        });
        let scale = match self.scale {
            0.0 => 1.0 / ((sizes[0] / self.heads) as f64).sqrt(),
            scale => f64::from(scale),
        };
        let terms =
            ScoreTerms { mask: MASK, bias: ATTENTION_BIAS, is_causal: self.is_causal, filter_value: self.filter_value };
        let added = cx.score_terms(&terms, &q, &k)?;
        let y = cx.attention(&Attention { q, k, v, scale, softcap: 0.0, added });
        let y = cx.from_heads(&y);
        cx.emit(0, &y);
        Ok(true)
    }
}
