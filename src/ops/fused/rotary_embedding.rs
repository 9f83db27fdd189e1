//! # RotaryEmbedding
//! Rotates pairs of dimensions of every head by an angle that depends on the position. X is `[B, heads, L, D]` or `[B,
//! L, heads * D]`; the pairs are `(i, i + D / 2)`, or `(2 i, 2 i + 1)` if `interleaved`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>. Opsets 23 and later, and ONNX Runtime's contrib
//! operator.
//!
//! Coupling: heads pass through. Dimensions are removed in pairs, together with their columns of the sine and cosine
//! caches; if only a part of the dimensions is rotated, all are kept.

use super::attention::divide;
use crate::graph::Node;
use crate::onnx::attr_int;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Axis;
use crate::operator::couple::space::{Shrinks, axis_size};
use crate::operator::infer::InferCx;
use crate::operator::lower::LowerCx;
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_standard() -> &'static [OpType] {
    const { &[onnx("RotaryEmbedding")] }
}

fn types_contrib() -> &'static [OpType] {
    const { &[microsoft("RotaryEmbedding")] }
}

pub(super) static RULES: &[Registration] = &[
    Registration::new(types_standard, |node| RotaryEmbedding::parse(node, [3, 1, 2])),
    Registration::new(types_contrib, |node| RotaryEmbedding::parse(node, [1, 2, 3])),
];

#[derive(Debug)]
struct RotaryEmbedding {
    /// The number of heads of a value of rank 3; 0 if not given.
    heads: i64,
    /// The number of dimensions of a head that are rotated; 0: all.
    turned: i64,
    is_interleaved: bool,
    /// The inputs of positions and caches.
    positions: usize,
    cos: usize,
    sin: usize,
    /// The factor of the result.
    scale: f32,
}

impl RotaryEmbedding {
    fn parse(node: &Node, [positions, cos, sin]: [usize; 3]) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self {
            heads: node.int("num_heads", 0),
            turned: node.int("rotary_embedding_dim", 0),
            is_interleaved: node.int("interleaved", 0) != 0,
            positions,
            cos,
            sin,
            scale: node.float("scale", 1.0),
        }))
    }

    /// Returns the dimensions of a head of a rank 3 value whose last axis has `channels`; `pairs` is the number of
    /// columns of a cache.
    fn head_dims(&self, channels: i64, pairs: Option<i64>) -> Option<i64> {
        let dims = if self.heads > 0 { channels / self.heads } else { pairs?.checked_mul(2)? };
        (dims > 0 && channels % dims == 0).then_some(dims)
    }

    /// Returns the rows of a cache, one per position: `[B or 1, L, 1, pairs]`.
    fn rows(&self, cx: &mut LowerCx<'_>, slot: usize) -> Result<String, RuleError> {
        let cache = cx.float(slot);
        let rows = if cx.has(self.positions) {
            let mut positions = cx.input(self.positions);
            if cx.rank(self.positions)? < 2 {
                // The input is the position of the first token; the others follow.
                let x = cx.input(0);
                let counts = cx.positions(&x, if cx.rank(0)? == 4 { 2 } else { 1 })?;
                let counts = cx.unsqueezed(&counts, &[0]);
                positions = cx.add("Add", &[&counts, &positions], vec![]);
            }
            cx.add("Gather", &[&cache, &positions], vec![attr_int("axis", 0)])
        } else {
            cache
        };
        Ok(cx.unsqueezed(&rows, &[2]))
    }
}

impl Operator for RotaryEmbedding {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if !matches!(shape.len(), 3 | 4) {
            return Err(RuleError::invalid(format!("X must have rank 3 or 4, found {}", shape.len())));
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        let tables = [cx.separated(self.cos)?.axes, cx.separated(self.sin)?.axes];
        let mut columns = Vec::new();
        for mut axes in tables {
            columns.push(axes.pop().ok_or(RuleError::UnknownShape)?);
            axes.iter().for_each(|axis| cx.keep(axis, "the axis holds the positions of a rotary embedding"));
        }
        let dims: Axis = match x.axes.as_slice() {
            [_, _, _, dims] => dims.clone(),
            [_, _, flat] => {
                let channels =
                    axis_size(flat).and_then(|size| i64::try_from(size).ok()).ok_or(RuleError::UnknownShape)?;
                let pairs = axis_size(&columns[0]).and_then(|size| i64::try_from(size).ok());
                let dims = self
                    .head_dims(channels, pairs)
                    .ok_or_else(|| RuleError::invalid(format!("{channels} channels can't be divided into heads")))?;
                divide(cx, flat, channels / dims)?.1
            }
            axes => return Err(RuleError::invalid(format!("X must have rank 3 or 4, found {}", axes.len()))),
        };
        let size = axis_size(&dims).ok_or(RuleError::UnknownShape)?;
        let turned = usize::try_from(self.turned).unwrap_or(0);
        let is_whole = (turned == 0 || turned == size) && columns.iter().all(|axis| axis_size(axis) == Some(size / 2));
        match cx.single(&dims) {
            Some(space) if is_whole && size.is_multiple_of(2) => {
                let (sizes, at) = if self.is_interleaved { ([size / 2, 2], 0) } else { ([2, size / 2], 1) };
                let mut pairs = cx.digits(space, &sizes, Shrinks::Only(at)).swap_remove(at);
                for axis in &columns {
                    pairs = cx.tie(&pairs, axis);
                }
            }
            _ => {
                for axis in columns.iter().chain([&dims]) {
                    cx.keep(axis, "RotaryEmbedding rotates only a part of these dimensions");
                }
            }
        }
        cx.set(0, x);
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let heads = self.heads;
        let mut dims = cx.new_size(0, 3);
        if cx.rank(0) == 3 && heads > 0 {
            let left = cx.norm_group_count(0, 2, heads).unwrap_or(heads);
            if left != heads {
                cx.set_int("num_heads", left);
            }
            dims = cx.new_size(0, 2).map(|channels| channels / left.max(1));
        }
        let turned = self.turned;
        let last = cx.rank(self.cos).saturating_sub(1);
        if let Some(dims) = dims
            && turned != 0
            && turned != dims
            && cx.input_shrinks(self.cos, last)
        {
            cx.set_int("rotary_embedding_dim", dims);
        }
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if self.scale != 1.0 {
            return Err(RuleError::unsupported(format!("a scale of {} can't be lowered", self.scale)));
        }
        let pairs = cx.size(self.cos, None)?;
        let channels = cx.size(0, None)?;
        let is_flat = cx.rank(0)? == 3;
        let dims =
            if is_flat { self.head_dims(channels, Some(pairs)).ok_or(RuleError::UnknownShape)? } else { channels };
        let x = cx.float(0);
        // [B, L, heads, D]
        let x =
            if is_flat { cx.reshaped(&x, &[0, 0, channels / dims, dims]) } else { cx.transposed(&x, &[0, 2, 1, 3]) };
        let [first, second] = if self.is_interleaved {
            [cx.strided(&x, 3, (0, 2 * pairs), 2), cx.strided(&x, 3, (1, 2 * pairs), 2)]
        } else {
            [cx.span(&x, 3, 0, pairs), cx.span(&x, 3, pairs, 2 * pairs)]
        };
        let (cos, sin) = (self.rows(cx, self.cos)?, self.rows(cx, self.sin)?);
        let mut turned = |a: (&str, &str), op_type: &str, b: (&str, &str)| {
            let (a, b) = (cx.add("Mul", &[a.0, a.1], vec![]), cx.add("Mul", &[b.0, b.1], vec![]));
            cx.add(op_type, &[&a, &b], vec![])
        };
        let mut halves =
            [turned((&first, &cos), "Sub", (&second, &sin)), turned((&first, &sin), "Add", (&second, &cos))];
        if self.is_interleaved {
            halves = halves.map(|half| cx.unsqueezed(&half, &[4]));
        }
        let mut y = cx.joined(&[&halves[0], &halves[1]], if self.is_interleaved { 4 } else { 3 });
        if self.is_interleaved {
            y = cx.reshaped(&y, &[0, 0, 0, 2 * pairs]);
        }
        if 2 * pairs < dims {
            let rest = cx.span(&x, 3, 2 * pairs, dims);
            y = cx.joined(&[&y, &rest], 3);
        }
        y = if is_flat { cx.reshaped(&y, &[0, 0, channels]) } else { cx.transposed(&y, &[0, 2, 1, 3]) };
        cx.emit(0, &y);
        Ok(true)
    }
}
