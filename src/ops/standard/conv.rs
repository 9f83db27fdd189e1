//! # Conv
//! `Y[n, o, p] = B[o] + sum over i, k of X[n, i, p * stride + k * dilation - pad] * W[o, i, k]`, per group.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Conv.html>. Opsets 1 and later; 1, 2 and 3 spatial axes.
//!
//! Coupling: axis 1 of X is axis 1 of W; axis 0 of W, B and axis 1 of Y are one. With groups, a depthwise convolution
//! loses whole groups; any other loses equally many channels of every group. What a FusedConv adds is one with Y.

pub(in crate::ops) mod gradient;

mod winograd;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout, fixed_axis};
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::macs::{MacsCx, elements};
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft, onnx};

fn types_conv() -> &'static [OpType] {
    const { &[onnx("Conv"), microsoft("FusedConv")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_conv, &Conv)];

struct Conv;

/// What a FusedConv adds before its activation, of the shape of Y.
const SUM: usize = 3;

impl NodeRules for Conv {
    fn sums_products(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        let group = node.int("group", 1);
        let channels = &w[1] * &Dim::from(group);
        if let (Some(found), Some(needed)) = (x[1].as_const(), channels.as_const())
            && found != needed
        {
            let text = format!("expected {needed} input channels (W axis 1 times group {group}), found {found}");
            return Err(RuleError::invalid(text));
        }
        cx.expect_vector(2, Some(&w[0]))?;
        let mut shape = vec![x[0].clone(), w[0].clone()];
        let window = Window::of(node, &w[2..], x.len() - 2)?;
        for axis in 0..x.len() - 2 {
            let size = window.output(axis, &x[axis + 2]);
            shape.push(size.unwrap_or_else(|| cx.fresh()));
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.separated(0)?, cx.separated(1)?);
        let shape = cx.output_shape(0)?;
        for axis in x.axes.iter().skip(2).chain(w.axes.iter().skip(2)) {
            cx.keep(axis, "is a spatial axis of a convolution");
        }
        let group = usize::try_from(node.int("group", 1)).unwrap_or(1).max(1);
        let out = couple_groups(cx, group, &x.axes[1], &w.axes[0], &w.axes[1], false);
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

    fn macs(&self, _node: &Node, cx: &MacsCx<'_>) -> f64 {
        // One multiply-accumulate per output element and weight of one filter; the bias counts as one more.
        let per_output = cx.input(1).map_or(0.0, |w| elements(&w[1..]));
        let bias = if cx.input(2).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (per_output + bias)
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let group = node.int("group", 1);
        if let (true, Some(channels), Some(per_group)) = (group > 1, cx.new_size(0, 1), cx.new_size(1, 1))
            && per_group > 0
            && channels / per_group != group
        {
            cx.set_int("group", channels / per_group);
        }
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let x = cx.zeroed(0);
        cx.emit(&[(0, x)]);
        let rank = cx.rank(0)? as i64;
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
        if let Some(mask) = cx.mask(SUM) {
            out = Some(match out {
                None => mask,
                Some(rows) => cx.add("Mul", &[&mask, &rows], vec![]),
            });
        }
        if let Some(mask) = out {
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let mut dy = cx.dy()?;
        if let Some(activation) = node.proto.string("activation") {
            let parameters = node.proto.attr("activation_params").map(|list| list.floats.clone()).unwrap_or_default();
            dy = cx.through_fused_activation(activation, &parameters, &dy, &cx.output(0))?;
        }
        // What a fused form adds before its activation.
        cx.give(3, dy.clone());
        if node.proto.op_type == "Conv" {
            gradient::forward(node, cx)?;
        }
        gradient::of_conv(node, cx, &dy)
    }
}

/// Couples the channels of a convolution in `group` groups and returns the axis of its output channels. `rows` is the
/// axis of W that is counted over all groups, `columns` the one that is counted within a group; `transposed` where
/// the rows are the input channels.
pub(in crate::ops) fn couple_groups(
    cx: &mut CoupleCx<'_>,
    group: usize,
    x: &Axis,
    rows: &Axis,
    columns: &Axis,
    transposed: bool,
) -> Axis {
    if group == 1 {
        return if transposed {
            cx.tie(x, rows);
            columns.clone()
        } else {
            cx.tie(x, columns);
            rows.clone()
        };
    }
    let (row_count, per_group) = (axis_size(rows).unwrap_or(group), axis_size(columns).unwrap_or(1));
    let rows_per_group = row_count / group;
    if transposed {
        cx.tie(x, rows);
    }
    if per_group > 1 && rows_per_group > 1 {
        // Every group keeps its place and loses equally many rows, and the same columns as all others.
        if let Some(rows) = cx.single(rows) {
            cx.equal_blocks(rows, rows_per_group);
        }
        let whole = if transposed { Axis::new() } else { x.clone() };
        let other = if transposed { cx.new_space(group * per_group) } else { 0 };
        let space = if transposed { Some(other) } else { cx.single(&whole) };
        return match space {
            Some(space) => {
                let digits = cx.digits(space, &[group, per_group], Some(1));
                cx.tie(&digits[1], columns);
                if transposed { cx.whole(space) } else { rows.clone() }
            }
            None => {
                cx.keep(columns, "reads channels that stay");
                rows.clone()
            }
        };
    }
    // Depthwise: whole groups go.
    cx.keep(columns, "is counted within the groups of a depthwise convolution");
    let wide = if transposed { cx.new_space(group * per_group) } else { 0 };
    let row_groups = match cx.single(rows) {
        Some(space) => cx.digits(space, &[group, rows_per_group], Some(0)).swap_remove(0),
        None => {
            return if transposed { cx.whole(wide) } else { rows.clone() };
        }
    };
    if transposed {
        let out_groups = cx.digits(wide, &[group, per_group], Some(0)).swap_remove(0);
        cx.tie(&row_groups, &out_groups);
        return cx.whole(wide);
    }
    match cx.single(x) {
        Some(space) => {
            let x_groups = cx.digits(space, &[group, per_group], Some(0)).swap_remove(0);
            cx.tie(&row_groups, &x_groups);
        }
        None => cx.keep(rows, "belongs to the groups of channels that stay"),
    }
    rows.clone()
}

/// Kernel, stride, dilation and padding along the spatial axes of a convolution or pooling.
#[derive(Debug)]
pub(in crate::ops) struct Window {
    kernel: Vec<Dim>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto_pad: String,
    ceil: bool,
}

impl Window {
    /// Reads the attributes of a node with `count` spatial axes; `kernel` is used where the node names no shape.
    pub(in crate::ops) fn of(node: &Node, kernel: &[Dim], count: usize) -> Result<Self, RuleError> {
        let list = |name: &str, default: i64, len: usize| match node.proto.ints(name) {
            None => Ok(vec![default; len]),
            Some(values) if values.len() == len => Ok(values.to_vec()),
            Some(values) => Err(RuleError::invalid(format!("{name} has {} entries, expected {len}", values.len()))),
        };
        let kernel = match node.proto.ints("kernel_shape") {
            Some(values) => values.iter().copied().map(Dim::from).collect(),
            None => kernel.to_vec(),
        };
        if kernel.len() != count {
            return Err(RuleError::invalid(format!("kernel_shape has {} entries, expected {count}", kernel.len())));
        }
        Ok(Self {
            kernel,
            strides: list("strides", 1, count)?,
            dilations: list("dilations", 1, count)?,
            pads: list("pads", 0, 2 * count)?,
            auto_pad: node.proto.string("auto_pad").unwrap_or("NOTSET").to_owned(),
            ceil: node.int("ceil_mode", 0) != 0,
        })
    }

    /// The size of the output along an axis, `None` where it can't be expressed.
    pub(in crate::ops) fn output(&self, axis: usize, input: &Dim) -> Option<Dim> {
        let stride = Dim::from(self.strides[axis]);
        if self.auto_pad.starts_with("SAME") {
            return input.ceil_div(&stride);
        }
        let one = Dim::from(1);
        let reach = &(&Dim::from(self.dilations[axis]) * &(&self.kernel[axis] - &one)) + &one;
        let pads = match self.auto_pad.as_str() {
            "VALID" => 0,
            _ => self.pads[axis].saturating_add(self.pads[axis + self.strides.len()]),
        };
        let room = &(input + &Dim::from(pads)) - &reach;
        let steps = if self.ceil { room.ceil_div(&stride)? } else { room.floor_div(&stride)? };
        Some(&steps + &one)
    }

    /// The size of the output of a transposed convolution along an axis.
    pub(in crate::ops) fn transposed_output(&self, axis: usize, input: &Dim, output_padding: i64) -> Dim {
        let one = Dim::from(1);
        let stride = Dim::from(self.strides[axis]);
        if self.auto_pad.starts_with("SAME") {
            return input * &stride;
        }
        let reach = &(&Dim::from(self.dilations[axis]) * &(&self.kernel[axis] - &one)) + &one;
        let pads = match self.auto_pad.as_str() {
            "VALID" => 0,
            _ => self.pads[axis].saturating_add(self.pads[axis + self.strides.len()]),
        };
        &(&(&(input - &one) * &stride) + &reach) + &Dim::from(output_padding.saturating_sub(pads))
    }

    /// The offsets of all places in the window, last axis fastest.
    pub(in crate::ops) fn places(&self) -> Result<Vec<Vec<i64>>, RuleError> {
        let mut places = vec![vec![]];
        for size in &self.kernel {
            let size = size.as_const().ok_or(RuleError::UnknownShape)?;
            let longer = |place: &Vec<i64>| (0..size).map(|at| [place.as_slice(), &[at]].concat()).collect::<Vec<_>>();
            places = places.iter().flat_map(longer).collect();
        }
        Ok(places)
    }

    /// Padding before and after an axis of `size` elements that has `count` windows.
    fn static_pads(&self, axis: usize, size: i64, count: i64) -> Result<(i64, i64), RuleError> {
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        if self.auto_pad.starts_with("SAME") {
            let reach = self.dilations[axis] * (kernel - 1) + 1;
            let total = ((count - 1) * self.strides[axis] + reach - size).max(0);
            let less = total / 2;
            return Ok(if self.auto_pad == "SAME_UPPER" { (less, total - less) } else { (total - less, less) });
        }
        match self.auto_pad.as_str() {
            "VALID" => Ok((0, 0)),
            _ => Ok((self.pads[axis], self.pads[axis + self.strides.len()])),
        }
    }

    /// For each of the `count` windows along an axis of `size` elements, which element lies at `place`, if any does.
    pub(super) fn positions(
        &self,
        axis: usize,
        place: i64,
        size: i64,
        count: i64,
    ) -> Result<Vec<Option<i64>>, RuleError> {
        let (before, _) = self.static_pads(axis, size, count)?;
        let at = |window: i64| window * self.strides[axis] + place * self.dilations[axis] - before;
        Ok((0..count).map(at).map(|at| (0..size).contains(&at).then_some(at)).collect())
    }

    /// The sums of all unit vectors of an axis over its windows: `[size, count]`, row-major.
    pub(super) fn sum_rows(&self, axis: usize, size: i64, count: i64) -> Result<Vec<f32>, RuleError> {
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        let mut rows = vec![0.0; usize::try_from(size * count).unwrap_or(0)];
        for place in 0..kernel {
            for (window, at) in self.positions(axis, place, size, count)?.into_iter().enumerate() {
                if let Some(at) = at {
                    rows[(at * count) as usize + window] = 1.0;
                }
            }
        }
        Ok(rows)
    }

    /// The averages of all unit vectors of an axis: `[size, count]`, row-major.
    pub(super) fn average_rows(
        &self,
        axis: usize,
        size: i64,
        count: i64,
        counts_padding: bool,
    ) -> Result<Vec<f32>, RuleError> {
        let (before, after) = self.static_pads(axis, size, count)?;
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        let mut rows = vec![0.0; usize::try_from(size * count).unwrap_or(0)];
        for window in 0..count {
            let at = |place: i64| window * self.strides[axis] + place * self.dilations[axis] - before;
            let inside: Vec<i64> = (0..kernel).map(at).filter(|at| (0..size).contains(at)).collect();
            // What a last window reaches beyond the padding never counts.
            let padded = (0..kernel).map(at).filter(|at| (-before..size + after).contains(at)).count();
            let divisor = if counts_padding { padded } else { inside.len() };
            for at in inside {
                rows[(at * count + window) as usize] = 1.0 / divisor as f32;
            }
        }
        Ok(rows)
    }

    /// The number of elements of the kernel, where static.
    pub(super) fn kernel_elements(&self) -> f64 {
        self.kernel.iter().map(|size| size.as_const().unwrap_or(1) as f64).product()
    }
}
