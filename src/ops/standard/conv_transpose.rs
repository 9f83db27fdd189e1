//! # ConvTranspose
//! The gradient of a convolution with respect to its input, used to upsample. W is `[C, O / group, kernel...]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConvTranspose.html>. All opsets.
//!
//! Coupling: axis 1 of X is axis 0 of W; axis 1 of W (times the groups), B and axis 1 of Y are one.

use super::conv::Spatial;
use super::conv::gradient::{Geometry, of_conv_transpose};
use super::conv::groups::couple_transposed_groups;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::linear::{Linear, LinearCx, of_windows};
use crate::operator::macs::{MacsCx, elements};
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{OpType, Operator, Registration, RuleError, onnx};

fn types_convtranspose() -> &'static [OpType] {
    const { &[onnx("ConvTranspose")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_convtranspose, |node| Ok(Box::new(ConvTranspose::parse(node)))).summing_products()];

/// A transposed convolution.
#[derive(Debug)]
struct ConvTranspose {
    spatial: Spatial,
    /// The number of groups; 1 if the node states none.
    group: i64,
    output_padding: Vec<i64>,
    /// The spatial sizes of the output, if the node states them.
    output_shape: Option<Vec<i64>>,
}

impl ConvTranspose {
    fn parse(node: &Node) -> Self {
        Self {
            spatial: Spatial::parse(node),
            group: node.int("group", 1),
            output_padding: node.proto.ints("output_padding").unwrap_or_default().to_vec(),
            output_shape: node.proto.ints("output_shape").map(<[i64]>::to_vec),
        }
    }
}

impl Operator for ConvTranspose {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        if !cx.equal(&x[1], &w[0]) {
            let (needed, found) = (&w[0], &x[1]);
            return Err(RuleError::invalid(format!("expected {needed} input channels (W axis 0), found {found}")));
        }
        let count = x.len() - 2;
        let window = self.spatial.window(&w[2..], count)?;
        let given = self.output_shape.as_deref().unwrap_or_default();
        let mut shape = vec![x[0].clone(), &w[1] * &Dim::from(self.group)];
        cx.expect_vector(2, Some(&shape[1]))?;
        for axis in 0..count {
            let extra = self.output_padding.get(axis).copied().unwrap_or(0);
            let size = given.get(axis).copied().map(Dim::from);
            shape.push(size.unwrap_or_else(|| window.transposed_output(axis, &x[axis + 2], extra)));
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.separated(0)?, cx.separated(1)?);
        let shape = cx.output_shape(0)?;
        for axis in x.axes.iter().skip(2).chain(w.axes.iter().skip(2)) {
            cx.keep(axis, "the axis is a spatial axis of a convolution");
        }
        let group = usize::try_from(self.group).unwrap_or(1).max(1);
        let out = couple_transposed_groups(cx, group, &x.axes[1], &w.axes[0], &w.axes[1])?;
        if cx.is_weight(1) {
            cx.consumes(&w.axes[0]);
            cx.produces(&w.axes[1]);
            cx.produces(&out);
        }
        if cx.has(2) {
            let b = cx.separated(2)?;
            cx.tie(&out, &b.axes[0]);
        }
        let mut axes = vec![x.axes[0].clone(), out];
        axes.extend(shape[2..].iter().map(fixed_axis));
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        // Every input element is multiplied by every weight of its row once.
        let per_input = cx.input(1).map_or(0.0, |w| elements(&w[1..]));
        let bias = if cx.input(2).is_some() { cx.output_elements(0) } else { 0.0 };
        cx.input(0).map_or(0.0, elements) * per_input + bias
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let group = self.group;
        if let (true, Some(channels), Some(per_group)) = (group > 1, cx.new_output_size(0, 1), cx.new_size(1, 1))
            && per_group > 0
            && channels / per_group != group
        {
            cx.set_int("group", channels / per_group);
        }
        Ok(())
    }

    fn linear(&self, cx: &LinearCx<'_>) -> Option<Linear> {
        let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape()?);
        if cx.weight_of(0, 1) != Some((0, 1)) {
            return None;
        }
        let sizes = (self.output_padding.as_slice(), self.output_shape.is_some());
        let spatial = (&x[2..], &y[2..]);
        let geometry = Geometry::of_transposed(&self.spatial, self.group, &w[2..], sizes, spatial).ok()?;
        let elements = (0..x.len() - 2).map(|axis| geometry.transposed_elements(axis, x[axis + 2], y[axis + 2]));
        let group = usize::try_from(self.group).ok()?;
        of_windows(group, [&x, &w, &y], true, elements.collect())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let x = cx.zeroed(0);
        cx.emit(&[(0, x)]);
        let rank = cx.rank(0)? as i64;
        let group = self.group;
        let mut out = None;
        if let Some(mask) = cx.mask(1) {
            if group == 1 {
                let others: Vec<i64> = (0..rank).filter(|axis| *axis != 1).collect();
                out = Some(cx.reduce("ReduceMax", &mask, &others));
            } else {
                // [C, O / g, ...]: a channel of group i is kept if any of the rows of the group and its column are.
                let kernel: Vec<i64> = (2..rank).collect();
                let flat = if kernel.is_empty() { mask } else { cx.reduce("ReduceMax", &mask, &kernel) };
                let w = cx.input(1);
                let shape = cx.add("Shape", &[&w], vec![]);
                let matrix = cx.span(&shape, 0, 0, 2);
                // Copies the first two sizes and drops the kernel's axes of size one.
                let target = cx.ints(&[0, 0], &[2]);
                let flat = cx.add("Reshape", &[&flat, &target], vec![]);
                let flat = cx.add("Expand", &[&flat, &matrix], vec![]);
                let columns = cx.fact(1).and_then(|fact| fact.shape.as_ref()?.get(1)?.as_const());
                let columns = columns.ok_or(RuleError::UnknownShape)?;
                let target = cx.ints(&[group, -1, columns], &[3]);
                let grouped = cx.add("Reshape", &[&flat, &target], vec![]);
                let kept = cx.reduce("ReduceMax", &grouped, &[1]);
                let mut target = vec![1; rank as usize];
                target[1] = group * columns;
                let target = cx.ints(&target, &[rank]);
                out = Some(cx.add("Reshape", &[&kept, &target], vec![]));
            }
        }
        if let Some(mask) = cx.mask(0) {
            let others: Vec<i64> = (1..rank).collect();
            let batch = cx.reduce("ReduceMax", &mask, &others);
            out = Some(match out {
                None => batch,
                Some(rows) => cx.add("Mul", &[&batch, &rows], vec![]),
            });
        }
        if let Some(mask) = out {
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape(0)?);
        let named = (self.output_padding.as_slice(), self.output_shape.is_some());
        let geometry = Geometry::of_transposed(&self.spatial, self.group, &w[2..], named, (&x[2..], &y[2..]))?;
        of_conv_transpose(cx, &geometry)
    }
}
