//! # RotaryEmbedding
//! Turns pairs of dimensions of every head by an angle that depends on the position. X is `[B, heads, L, D]` or
//! `[B, L, heads * D]`; the pairs are `(i, i + D / 2)`, or `(2 i, 2 i + 1)` where `interleaved`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>. Opsets 23 and later, and ONNX Runtime's contrib
//! operator.
//!
//! Coupling: heads pass through. Dimensions go in pairs, with their columns of the caches of sines and cosines; where
//! only a part of the dimensions is turned, all stay.

use super::attention::divide;
use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Axis;
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft, onnx};

fn types_rotaryembedding() -> &'static [OpType] {
    const { &[onnx("RotaryEmbedding"), microsoft("RotaryEmbedding")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_rotaryembedding, &RotaryEmbedding)];

struct RotaryEmbedding;

/// The slots of the caches; the contrib operator has the positions before them.
fn caches(node: &Node) -> [usize; 2] {
    if node.proto.domain == "com.microsoft" { [2, 3] } else { [1, 2] }
}

/// The dimensions of a head of a value whose last axis has `channels`, where its rank is 3; `pairs` columns of a cache.
fn head_dims(node: &Node, channels: i64, pairs: Option<i64>) -> Option<i64> {
    let heads = node.int("num_heads", 0);
    let dims = if heads > 0 { channels / heads } else { pairs?.checked_mul(2)? };
    (dims > 0 && channels % dims == 0).then_some(dims)
}

impl NodeRules for RotaryEmbedding {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if !matches!(shape.len(), 3 | 4) {
            return Err(RuleError::invalid(format!("X must have rank 3 or 4, found {}", shape.len())));
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        let [cos, sin] = caches(node);
        let tables = [cx.separated(cos)?.axes, cx.separated(sin)?.axes];
        let mut columns = Vec::new();
        for mut axes in tables {
            columns.push(axes.pop().ok_or(RuleError::UnknownShape)?);
            axes.iter().for_each(|axis| cx.keep(axis, "counts positions"));
        }
        let dims: Axis = match x.axes.as_slice() {
            [_, _, _, dims] => dims.clone(),
            [_, _, flat] => {
                let channels =
                    axis_size(flat).and_then(|size| i64::try_from(size).ok()).ok_or(RuleError::UnknownShape)?;
                let pairs = axis_size(&columns[0]).and_then(|size| i64::try_from(size).ok());
                let dims = head_dims(node, channels, pairs)
                    .ok_or_else(|| RuleError::invalid(format!("{channels} channels can't be divided among heads")))?;
                divide(cx, flat, channels / dims)?.1
            }
            axes => return Err(RuleError::invalid(format!("X must have rank 3 or 4, found {}", axes.len()))),
        };
        let size = axis_size(&dims).ok_or(RuleError::UnknownShape)?;
        let turned = usize::try_from(node.int("rotary_embedding_dim", 0)).unwrap_or(0);
        let is_whole = (turned == 0 || turned == size) && columns.iter().all(|axis| axis_size(axis) == Some(size / 2));
        match cx.single(&dims) {
            Some(space) if is_whole && size.is_multiple_of(2) => {
                let (sizes, at) = if node.int("interleaved", 0) != 0 { ([size / 2, 2], 0) } else { ([2, size / 2], 1) };
                let mut pairs = cx.digits(space, &sizes, Some(at)).swap_remove(at);
                for axis in &columns {
                    pairs = cx.tie(&pairs, axis);
                }
            }
            _ => {
                for axis in columns.iter().chain([&dims]) {
                    cx.keep(axis, "is turned by a rotary embedding in part");
                }
            }
        }
        cx.set(0, x);
        Ok(())
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let heads = node.int("num_heads", 0);
        let mut dims = cx.new_size(0, 3);
        if cx.rank(0) == 3 && heads > 0 {
            let left = cx.norm_group_count(0, 2, heads).unwrap_or(heads);
            if left != heads {
                cx.set_int("num_heads", left);
            }
            dims = cx.new_size(0, 2).map(|channels| channels / left.max(1));
        }
        let turned = node.int("rotary_embedding_dim", 0);
        let last = cx.rank(caches(node)[0]).saturating_sub(1);
        if let Some(dims) = dims
            && turned != 0
            && turned != dims
            && cx.input_shrinks(caches(node)[0], last)
        {
            cx.set_int("rotary_embedding_dim", dims);
        }
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Kept dimensions are computed from kept ones alone, because pairs go as one.
        cx.elementwise(&[0])
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let [cos, sin] = caches(node);
        let dy = cx.dy()?;
        if cx.wants(cos) || cx.wants(sin) {
            give_caches(node, cx, &dy)?;
        }
        if cx.wants(0) {
            // A turn by the negative angle.
            let mut inputs: Vec<String> = (0..node.inputs.len()).map(|slot| cx.input(slot)).collect();
            inputs[0] = dy;
            inputs[sin] = cx.op("Neg", &[&cx.input(sin)]);
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let dx = cx.same_op(&inputs);
            cx.give(0, dx);
        }
        Ok(())
    }
}

/// The gradients by the caches of cosines and sines: each pair turns `(x, y)` to `(x cos - y sin, x sin + y cos)`.
fn give_caches(node: &Node, cx: &mut GradientCx<'_>, dy: &str) -> Result<(), RuleError> {
    let [cos, sin] = caches(node);
    let (shape, table) = (cx.shape(0)?, cx.shape(cos)?);
    let pairs = *table.last().ok_or(RuleError::UnknownShape)?;
    let (batch, length, heads, dims) = match shape.as_slice() {
        [batch, heads, length, dims] => (*batch, *length, *heads, *dims),
        [batch, length, channels] => {
            let dims = head_dims(node, *channels, Some(pairs)).ok_or(RuleError::UnknownShape)?;
            (*batch, *length, channels / dims, dims)
        }
        _ => return Err(RuleError::UnknownShape),
    };
    let is_interleaved = node.int("interleaved", 0) != 0;
    // The two halves of every pair, [B, L, heads, pairs].
    let halves = |cx: &mut GradientCx<'_>, value: &str| {
        let value = match shape.len() {
            4 => cx.transpose(value, &[0, 2, 1, 3]),
            _ => cx.reshape(value, &[batch, length, heads, dims]),
        };
        if is_interleaved {
            [cx.slice(&value, 3, 0, 2 * pairs, 2), cx.slice(&value, 3, 1, 2 * pairs, 2)]
        } else {
            [cx.slice(&value, 3, 0, pairs, 1), cx.slice(&value, 3, pairs, 2 * pairs, 1)]
        }
    };
    let [a, b] = halves(cx, &cx.input(0));
    let [da, db] = halves(cx, dy);
    for (slot, [first, second], sign) in [(cos, [(&a, &da), (&b, &db)], "Add"), (sin, [(&a, &db), (&b, &da)], "Sub")] {
        if !cx.wants(slot) {
            continue;
        }
        let (first, second) = (cx.mul(first.0, first.1), cx.mul(second.0, second.1));
        let product = cx.op(sign, &[&first, &second]);
        let per_position = cx.reduce_sum(&product, &[2], false);
        let gradient = if table.len() == 3 {
            // A row of its own for every position.
            cx.sum_to(&per_position, &[batch, length, pairs], &table)
        } else {
            let rows = cx.reshape(&per_position, &[batch * length, pairs]);
            let reads = cache_rows(node, cx, [batch, length, table[0]])?;
            cx.gemm(&reads, &rows, true, false)
        };
        cx.give(slot, gradient);
    }
    Ok(())
}

/// Which row of the caches every position reads: `[B * L, rows]`, float32, one where it does.
fn cache_rows(node: &Node, cx: &mut GradientCx<'_>, [batch, length, rows]: [i64; 3]) -> Result<String, RuleError> {
    let slot = if node.proto.domain == "com.microsoft" { 1 } else { 3 };
    let mut positions = cx.input(slot);
    if cx.shape(slot)?.iter().product::<i64>() == 1 && batch * length > 1 {
        // The position of the first token; the others follow.
        let counts: Vec<i64> = (0..batch * length).map(|at| at % length).collect();
        let counts = cx.ints(&counts);
        positions = cx.op("Add", &[&counts, &positions]);
    }
    let positions = cx.reshape(&positions, &[batch * length, 1]);
    let all: Vec<i64> = (0..rows).collect();
    let all = cx.ints(&all);
    let reads = cx.op("Equal", &[&positions, &all]);
    Ok(cx.op_with("Cast", &[&reads], vec![crate::onnx::attr_int("to", crate::onnx::DataType::Float as i64)]))
}
