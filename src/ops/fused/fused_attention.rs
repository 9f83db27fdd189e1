//! # Attention of com.microsoft
//! `[Q, K, V] = X W + bias`, `Y = softmax(scale * Q K^T + mask) V` per head; X is `[B, L, I]`, W `[I, Q's, K's and V's
//! channels]`.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: the last axis of X is axis 0 of W. Heads of Q, K, V and Y are one axis; D of Q and K is one, D of V and Y is
//! one. The bias is the columns of W. A scale that is implied by D is written out where D shrinks. The positions of keys and
//! values stay.

use super::attention::tie_heads;
use super::multi_head_attention::{couple_attention_bias, couple_positions, write_scale};
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::{Attention, GradientCx};
use crate::operator::infer::InferCx;
use crate::operator::macs::MacsCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_fusedattention() -> &'static [OpType] {
    const { &[microsoft("Attention")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_fusedattention, &FusedAttention)];

struct FusedAttention;

const MASK: usize = 3;
const ATTENTION_BIAS: usize = 5;

/// The number of channels of Q, K and V in a weight of `columns` columns.
fn hidden_sizes(node: &Node, columns: i64) -> Result<[i64; 3], RuleError> {
    let sizes = match node.proto.ints("qkv_hidden_sizes") {
        Some([q, k, v]) => [*q, *k, *v],
        Some(sizes) => return Err(RuleError::invalid(format!("qkv_hidden_sizes has {} entries, not 3", sizes.len()))),
        None => [columns / 3; 3],
    };
    let heads = node.int("num_heads", 1);
    let is_wrong = |size: &i64| *size <= 0 || heads <= 0 || size % heads != 0;
    if sizes.iter().any(is_wrong) || sizes.iter().fold(0i64, |sum, size| sum.saturating_add(*size)) != columns {
        let text = format!("{columns} columns of W can't be divided into Q, K and V of {sizes:?} and {heads} heads");
        return Err(RuleError::invalid(text));
    }
    Ok(sizes)
}

impl NodeRules for FusedAttention {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, w) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?);
        let ([batch, length, inputs], [rows, columns]) = (x.as_slice(), w.as_slice()) else {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        };
        if let (Some(inputs), Some(rows)) = (inputs.as_const(), rows.as_const())
            && inputs != rows
        {
            return Err(RuleError::invalid(format!("X has {inputs} channels, W has {rows} rows")));
        }
        cx.expect_vector(2, Some(columns))?;
        let columns = columns.as_const().ok_or(RuleError::UnknownShape)?;
        let [_, _, v] = hidden_sizes(node, columns)?;
        cx.set_shape(0, dtype, vec![batch.clone(), length.clone(), Dim::from(v)]);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if cx.has(4) || cx.has(6) || node.output(1).is_some() {
            return Err(RuleError::unsupported("keys and values of earlier steps are not supported"));
        }
        if node.int("do_rotary", 0) != 0 {
            return Err(RuleError::unsupported("rotary embedding inside of Attention is not supported"));
        }
        if cx.has(3) {
            let mask = cx.separated(3)?;
            mask.axes.iter().for_each(|axis| cx.keep(axis, "is an axis of an attention mask"));
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
        let sizes = hidden_sizes(node, columns as i64)?;
        let Some(space) = cx.single(&w[1]) else {
            if cx.has(ATTENTION_BIAS) {
                couple_attention_bias(cx, ATTENTION_BIAS, &Axis::new())?;
            }
            cx.set_fixed(0)?;
            return Ok(());
        };
        let heads = usize::try_from(node.int("num_heads", 1)).unwrap_or(1);
        let mut start = 0;
        let mut parts = Vec::new();
        for size in sizes {
            let size = usize::try_from(size).unwrap_or(0);
            let part = cx.new_space(size);
            (0..size).for_each(|at| cx.unite(space, start + at, part, at));
            start += size;
            parts.push(cx.digits(part, &[heads, size / heads], None));
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

    fn macs(&self, _node: &Node, cx: &MacsCx<'_>) -> f64 {
        // The projection and, as it is part of the node, the products of activations.
        let (Some([b, l, inputs]), Some([_, columns])) = (cx.input(0), cx.input(1)) else {
            return 0.0;
        };
        let bias = i64::from(cx.input(2).is_some());
        let v = cx.output(0).and_then(<[i64]>::last).copied().unwrap_or(0);
        let q = (columns - v) / 2;
        let tokens = (*b as f64) * (*l as f64);
        tokens * *columns as f64 * (inputs + bias) as f64 + tokens * *l as f64 * (q + v) as f64
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (Some(columns), Some(kept)) = (cx.old_size(1, 1), cx.kept_input(1, 1)) else {
            return Ok(());
        };
        let sizes = hidden_sizes(node, columns)?;
        let heads = node.int("num_heads", 1);
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
        if node.proto.ints("qkv_hidden_sizes").is_some() || left.iter().any(|size| *size != left[0]) {
            cx.set_ints("qkv_hidden_sizes", &left);
        }
        write_scale(node, cx, Some(sizes[0] / heads), Some(left[0] / left_heads.max(1)));
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1)), (2, cx.zeroed(2))];
        cx.emit(&replaced);
        if cx.mask(1).is_none() {
            return Ok(());
        }
        let columns = cx.fact(1).and_then(|fact| fact.shape.as_ref()?.get(1)?.as_const());
        let [q, k, v] = hidden_sizes(node, columns.ok_or(RuleError::UnknownShape)?)?;
        let mask = cx.full_mask(1);
        let mask = cx.reduce("ReduceMax", &mask, &[0]);
        let mask = cx.span(&mask, 1, q + k, q + k + v);
        let mask = cx.unsqueeze(&mask, 0);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if !cx.input(4).is_empty() || !cx.input(6).is_empty() || cx.dy_of(1).is_some() {
            return Err(RuleError::unsupported("keys and values of earlier steps have no gradient"));
        }
        if node.int("do_rotary", 0) != 0 {
            return Err(RuleError::unsupported("a rotary embedding inside of Attention has no gradient"));
        }
        let (x, w) = (cx.shape(0)?, cx.shape(1)?);
        let ([batch, length, inputs], [_, columns]) = (x.as_slice(), w.as_slice()) else {
            return Err(RuleError::UnknownShape);
        };
        let (batch, length, inputs, columns) = (*batch, *length, *inputs, *columns);
        let heads = node.int("num_heads", 1).max(1);
        let sizes = hidden_sizes(node, columns)?;
        let mut projected = cx.op("MatMul", &[&cx.input(0), &cx.input(1)]);
        if !cx.input(2).is_empty() {
            projected = cx.op("Add", &[&projected, &cx.input(2)]);
        }
        let mut start = 0;
        let mut by_head = Vec::new();
        for size in sizes {
            let part = cx.slice(&projected, 2, start, start + size, 1);
            by_head.push(cx.by_head(&part, &[batch, length, size], heads));
            start += size;
        }
        let scale = match node.float("scale", 0.0) {
            0.0 => 1.0 / ((sizes[0] / heads) as f64).sqrt(),
            scale => f64::from(scale),
        };
        let scores = [batch, heads, length, length];
        let added = cx.score_terms(node, MASK, ATTENTION_BIAS, &scores)?;
        let dy = cx.dy()?;
        let dy = cx.by_head(&dy, &[batch, length, sizes[2]], heads);
        let [q, k, v] = by_head.as_slice() else { return Err(RuleError::UnknownShape) };
        let attention = Attention { q: q.clone(), k: k.clone(), v: v.clone(), scale, added };
        let found = cx.through_attention(&attention, &dy);
        cx.give_score_term(ATTENTION_BIAS, &found.added, &scores)?;
        let mut parts = Vec::new();
        for (gradient, size) in [found.q, found.k, found.v].iter().zip(sizes) {
            parts.push(cx.from_heads(gradient, &[batch, length, size]));
        }
        let dprojected = cx.concat(&parts, 2);
        let rows = cx.reshape(&dprojected, &[batch * length, columns]);
        if cx.wants(0) {
            let dx = cx.gemm(&rows, &cx.input(1), false, true);
            let dx = cx.reshape(&dx, &x);
            cx.give(0, dx);
        }
        if cx.wants(1) {
            let x_rows = cx.reshape(&cx.input(0), &[batch * length, inputs]);
            let dw = cx.gemm(&x_rows, &rows, true, false);
            cx.give(1, dw);
        }
        if cx.wants(2) {
            let db = cx.reduce_sum(&rows, &[0], false);
            cx.give(2, db);
        }
        Ok(())
    }
}
