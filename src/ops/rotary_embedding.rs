//! # RotaryEmbedding
//! Turns pairs of dimensions of every head by an angle that depends on the position. X is `[B, heads, L, D]` or
//! `[B, L, heads * D]`; the pairs are `(i, i + D / 2)`, or `(2 i, 2 i + 1)` where `interleaved`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>. Opsets 23 and later, and ONNX Runtime's contrib
//! operator.
//!
//! Coupling: heads pass through. Dimensions go in pairs, with their columns of the caches of sines and cosines; where
//! only a part of the dimensions is turned, all stay.

use super::attention::divide;
use crate::couple::CoupleCx;
use crate::couple::layout::Axis;
use crate::couple::space::axis_size;
use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, RuleError, microsoft, onnx};
use crate::rewrite::PatchCx;
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&RotaryEmbedding];

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

impl Operator for RotaryEmbedding {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("RotaryEmbedding"), microsoft("RotaryEmbedding")] }
    }

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
}
