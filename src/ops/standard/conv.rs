//! # Conv
//! `Y[n, o, p] = B[o] + sum over i, k of X[n, i, p * stride + k * dilation - pad] * W[o, i, k]`, per group.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Conv.html>. Opsets 1 and later; 1, 2 and 3 spatial axes.
//!
//! Coupling: axis 1 of X is axis 1 of W; axis 0 of W, B and axis 1 of Y are one. With groups, a depthwise convolution
//! loses whole groups; any other loses equally many channels of every group. The input that a FusedConv adds has the
//! axes of Y.

pub(in crate::ops) mod gradient;

pub(in crate::ops) mod groups;

mod window;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::linear::{Linear, LinearCx, of_windows};
use crate::operator::lower::{Activation, LowerCx};
use crate::operator::macs::{MacsCx, elements};
use crate::operator::part::{Part, PartCx};
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{OpType, Operator, Quantized, Registration, RuleError, microsoft, onnx};

use groups::couple_groups;
pub(in crate::ops) use window::{Spatial, Window};

fn types_conv() -> &'static [OpType] {
    const { &[onnx("Conv"), microsoft("FusedConv")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_conv, |node| Ok(Box::new(Conv::parse(node)))).summing_products()];

/// A convolution, with the sum and activation of the fused form.
#[derive(Debug)]
struct Conv {
    spatial: Spatial,
    /// The number of groups; 1 if the node states none.
    group: i64,
    /// Whether it is a FusedConv, which may add an input and apply an activation.
    is_fused: bool,
    activation: Option<Activation>,
}

impl Conv {
    fn parse(node: &Node) -> Self {
        let (activation, is_fused) = (Activation::with_list(node), node.proto.op_type == "FusedConv");
        Self { spatial: Spatial::parse(node), group: node.int("group", 1), is_fused, activation }
    }
}

/// The input that a FusedConv adds before its activation, of the shape of Y.
const SUM: usize = 3;

impl Operator for Conv {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let w = cx.shape(1)?;
        // If nothing is known of X, its rank is that of the weight.
        let x = match cx.shape(0) {
            Err(RuleError::UnknownShape) => w.iter().map(|_| cx.fresh()).collect(),
            known => known?,
        };
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        let group = self.group;
        let channels = &w[1] * &Dim::from(group);
        if !cx.equal(&x[1], &channels) {
            let found = &x[1];
            let text = format!("expected {channels} input channels (W axis 1 times group {group}), found {found}");
            return Err(RuleError::invalid(text));
        }
        cx.expect_vector(2, Some(&w[0]))?;
        let mut shape = vec![x[0].clone(), w[0].clone()];
        let window = self.spatial.window(&w[2..], x.len() - 2)?;
        shape.extend(window.outputs(cx, &x[2..]));
        let dtype = cx.optional(0).map_or(cx.input(1)?.dtype, |x| x.dtype);
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let shape = cx.output_shape(0)?;
        let (x, w) = (cx.separated_of_rank(0, shape.len())?, cx.separated(1)?);
        for axis in x.axes.iter().skip(2).chain(w.axes.iter().skip(2)) {
            cx.keep(axis, "the axis is a spatial axis of a convolution");
        }
        let group = usize::try_from(self.group).unwrap_or(1).max(1);
        let out = couple_groups(cx, group, &x.axes[1], &w.axes[0], &w.axes[1]);
        if cx.is_weight(1) {
            cx.produces(&w.axes[0]);
            cx.consumes(&w.axes[1]);
        }
        if cx.has(2) {
            let b = cx.separated(2)?;
            cx.tie(&out, &b.axes[0]);
        }
        let mut axes = vec![x.axes[0].clone(), out];
        axes.extend(shape[2..].iter().map(fixed_axis));
        let mut y = Layout { axes };
        if cx.has(SUM) {
            let z = cx.separated(SUM)?;
            y = cx.tie_broadcast(&[y, z]);
        }
        cx.set(0, y);
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        // One multiply-accumulate per output element and weight of one filter, and one more for the bias.
        let per_output = cx.input(1).map_or(0.0, |w| elements(&w[1..]));
        let bias = if cx.input(2).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (per_output + bias)
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let group = self.group;
        if let (true, Some(channels), Some(per_group)) = (group > 1, cx.new_size(0, 1), cx.new_size(1, 1))
            && per_group > 0
            && channels / per_group != group
        {
            cx.set_int("group", channels / per_group);
        }
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if !self.is_fused {
            return Ok(false);
        }
        let (x, w) = (cx.float(0), cx.float(1));
        let attributes = cx.attributes_without_activation();
        let mut y = cx.add_biased("Conv", [&x, &w], attributes);
        if cx.has(SUM) {
            let z = cx.float(SUM);
            y = cx.add("Add", &[&y, &z], vec![]);
        }
        let y = cx.activated(&y, self.activation.as_ref())?;
        cx.emit(0, &y);
        Ok(true)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let x = cx.zeroed(0);
        cx.emit(&[(0, x)]);
        let rank = cx.output_rank(0)? as i64;
        let mut out = None;
        if let Some(mask) = cx.mask(1) {
            let others: Vec<i64> = (1..rank).collect();
            let rows = cx.reduce("ReduceMax", &mask, &others);
            // [O, 1, 1, ...] to [1, O, 1, ...].
            let mut target = vec![1; rank as usize];
            target[1] = -1;
            let target = cx.ints(&target, &[rank]);
            out = Some(cx.add("Reshape", &[&rows, &target], vec![]));
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
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let dy = cx.dy()?;
        gradient::of_conv(&self.spatial, self.group, cx, &dy)
    }

    fn quantized(&self, _weight_rank: usize) -> Option<Quantized> {
        (!self.is_fused).then_some(Quantized { data: 0, weight: 1, channels: 0, bias: 2 })
    }

    fn linear(&self, cx: &LinearCx<'_>) -> Option<Linear> {
        let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape()?);
        if self.is_fused || cx.weight_of(0, 1) != Some((0, 1)) {
            return None;
        }
        let geometry = gradient::Geometry::of_conv(&self.spatial, self.group, &w[2..], &x[2..], &y[2..]).ok()?;
        let elements = (0..x.len() - 2).map(|axis| geometry.elements(axis, x[axis + 2], y[axis + 2]));
        let group = usize::try_from(self.group).ok()?;
        of_windows(group, [&x, &w, &y], false, elements.collect())
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape(0)?);
        let geometry = gradient::Geometry::of_conv(&self.spatial, self.group, &w[2..], &x[2..], &y[2..]).ok()?;
        (!self.is_fused).then(|| Part::Convolution(geometry.convolution()))
    }
}
