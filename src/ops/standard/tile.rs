//! # Tile
//! Repeats a tensor along its axes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Tile.html>. Opsets 6 and later.
//!
//! Coupling: a repeated axis is a product of the repetitions, which are kept, and its old indices. The repetitions of
//! an axis of one index are kept; in a tensor of indices, the axis is free and loses the same indices as the axis that
//! it meets.

use crate::graph::fact::Fact;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::{Shrinks, axis_size, new_axis_size};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_tile() -> &'static [OpType] {
    const { &[onnx("Tile")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_tile, |_| Ok(Box::new(Tile)))];

#[derive(Debug)]
struct Tile;

impl Operator for Tile {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        let repeats = cx.ints(1).map(<[_]>::to_vec);
        let sizes = match repeats {
            Some(repeats) if repeats.len() == shape.len() => shape.iter().zip(&repeats).map(|(a, b)| a * b).collect(),
            Some(repeats) => {
                return Err(RuleError::invalid(format!(
                    "expected {} repeats, one per axis, found {}",
                    shape.len(),
                    repeats.len()
                )));
            }
            None => shape.iter().map(|_| cx.fresh()).collect(),
        };
        cx.set(0, Fact::new(dtype, sizes));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        let repeats = cx.ints(1).map(<[_]>::to_vec);
        let is_float = cx.output_fact(0).is_some_and(Fact::is_float);
        let mut axes = Vec::new();
        for (at, (axis, size)) in layout.axes.iter().zip(&shape).enumerate() {
            let count = repeats.as_ref().and_then(|repeats| repeats.get(at)?.as_const());
            let times = count.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
            match (times, axis_size(axis)) {
                (Some(1), _) => axes.push(axis.clone()),
                // Positions and sizes, whose number is arbitrary.
                (_, Some(2..)) if axis.iter().all(|piece| piece.space().is_none()) => axes.push(fixed_axis(size)),
                (Some(_), Some(1)) if !is_float => axes.push(cx.repeated_axis(size)),
                (Some(times), Some(len))
                    if len > 1 && new_axis_size(size).is_some_and(|size| Some(size) == times.checked_mul(len)) =>
                {
                    let space = cx.new_space(times * len)?;
                    let digits = cx.digits(space, &[times, len], Shrinks::Only(1));
                    cx.tie(&digits[1], axis);
                    axes.push(cx.whole(space));
                }
                _ => {
                    cx.keep(axis, "the number of times that Tile repeats this axis is not known");
                    axes.push(fixed_axis(size));
                }
            }
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        // An axis of one index is repeated to its new size.
        let is_repeated = |at: usize| cx.old_size(0, at) == Some(1) && cx.output_shrinks(0, at);
        let repeats: Vec<Option<i64>> =
            (0..cx.rank(0)).map(|at| is_repeated(at).then(|| cx.new_output_size(0, at)).flatten()).collect();
        cx.set_input_ints(1, &repeats)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape, tiled) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let mut split = Vec::new();
        let mut axes = Vec::new();
        for (size, whole) in shape.iter().zip(&tiled) {
            axes.push(split.len());
            split.extend([whole / size.max(&1), *size]);
        }
        let dy = cx.reshape(&dy, &split);
        let dx = cx.reduce_sum(&dy, &axes, false);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
