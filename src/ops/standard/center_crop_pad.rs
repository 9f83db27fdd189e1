//! # CenterCropPad
//! Crops or pads axes around their centres to given sizes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__CenterCropPad.html>. Opsets 18 and later.
//!
//! Coupling: axes that are not named pass through, as do named ones that keep their size; the others are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::layout::{Axis, Layout, fixed_axis};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_centercroppad() -> &'static [OpType] {
    const { &[onnx("CenterCropPad")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_centercroppad, |node| Ok(Box::new(CenterCropPad::parse(node))))];

#[derive(Debug)]
struct CenterCropPad {
    /// The axes to crop or pad; `None`: all.
    axes: Option<Vec<i64>>,
}

impl CenterCropPad {
    fn parse(node: &Node) -> Self {
        Self { axes: node.proto.ints("axes").map(<[i64]>::to_vec) }
    }

    /// Returns the axes to which the sizes belong, in order.
    fn axes(&self, rank: usize) -> Result<Vec<usize>, RuleError> {
        match &self.axes {
            Some(axes) => axes.iter().map(|axis| axis_index(*axis, rank)).collect(),
            None => Ok((0..rank).collect()),
        }
    }
}

impl Operator for CenterCropPad {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axes = self.axes(shape.len())?;
        let sizes = cx.ints(1).map(<[Dim]>::to_vec);
        if let Some(sizes) = sizes.as_ref().filter(|sizes| sizes.len() != axes.len()) {
            return Err(RuleError::invalid(format!(
                "expected {} sizes, one per axis, found {}",
                axes.len(),
                sizes.len()
            )));
        }
        for (at, axis) in axes.into_iter().enumerate() {
            shape[axis] = sizes.as_ref().map_or_else(|| cx.fresh(), |sizes| sizes[at].clone());
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut y = cx.separated(0)?;
        let (old, new) = (cx.fact(0).and_then(|fact| fact.shape.clone()), cx.output_shape(0)?);
        let old = old.ok_or(RuleError::UnknownShape)?;
        for axis in self.axes(y.rank())? {
            if old[axis] != new[axis] {
                let cropped: Axis = std::mem::replace(&mut y.axes[axis], fixed_axis(&new[axis]));
                cx.keep(&cropped, "CenterCropPad crops or pads this axis");
            }
        }
        cx.set(0, Layout { axes: y.axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axes = self.axes(cx.rank(0))?;
        let sizes: Vec<Option<i64>> = axes
            .into_iter()
            .map(|axis| if cx.output_shrinks(0, axis) { cx.new_output_size(0, axis) } else { None })
            .collect();
        cx.set_input_ints(1, &sizes)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Axes that are cropped or padded lose nothing, so their masks are of size one or all ones.
            let (old, new) = (cx.fact(0).and_then(|fact| fact.shape.clone()), cx.output_shape(0)?);
            let old = old.ok_or(RuleError::UnknownShape)?;
            let changed = old.iter().zip(&new).enumerate().filter(|(_, (old, new))| old != new);
            let changed: Vec<i64> = changed.map(|(axis, _)| axis as i64).collect();
            let mask = if changed.is_empty() { mask } else { cx.reduce("ReduceMax", &mask, &changed) };
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (mut dx, from, to) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let mut before = vec![0; from.len()];
        let mut after = vec![0; from.len()];
        for axis in self.axes(from.len())? {
            // The number of elements removed or added before the centre is rounded down.
            let less = (from[axis] - to[axis]).abs() / 2;
            if from[axis] < to[axis] {
                dx = cx.slice(&dx, axis, less, less + from[axis], 1);
            } else {
                before[axis] = less;
                after[axis] = from[axis] - to[axis] - less;
            }
        }
        let dx = cx.pad(&dx, &before, &after);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
