//! # Resize and Upsample
//! Interpolates along axes to other sizes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Resize.html>. Resize 10 and later, Upsample 7 to 9.
//!
//! Coupling: an axis whose size stays passes through; one that is interpolated stays. Sizes that the node lists for
//! all axes are patched.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::attr_string;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_resize() -> &'static [OpType] {
    const { &[onnx("Resize"), onnx("Upsample")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_resize, &Resize)];

struct Resize;

/// The inputs that hold scales and sizes; they moved when Resize 11 inserted the region of interest.
fn slots(node: &Node) -> (usize, Option<usize>) {
    if node.proto.op_type == "Upsample" || node.version < 11 { (1, None) } else { (2, Some(3)) }
}

/// The axes that scales and sizes are listed for.
fn axes(node: &Node, rank: usize) -> Result<Vec<usize>, RuleError> {
    match node.proto.ints("axes") {
        Some(axes) => axes.iter().map(|axis| axis_index(*axis, rank)).collect(),
        None => Ok((0..rank).collect()),
    }
}

/// `floor(size * scale)`; of symbolic sizes for the scales that networks use, whole numbers and their reciprocals.
fn scaled(size: &Dim, scale: f64) -> Option<Dim> {
    if let Some(size) = size.as_const() {
        // In float32, as ONNX and its runtimes do: 10 * 0.7 is 7 there, and less in float64.
        return Some(Dim::from((size as f32 * scale as f32).floor() as i64));
    }
    if scale.fract() == 0.0 && (1.0..1e6).contains(&scale) {
        return Some(size * &Dim::from(scale as i64));
    }
    let inverse = (1.0 / scale).round();
    ((1.0 / scale - inverse).abs() < 1e-6 && inverse >= 1.0)
        .then(|| size.floor_div(&Dim::from(inverse as i64)))
        .flatten()
}

/// Whether the output's sizes are those that the node lists, or the input's times the scales: not so where the sizes
/// are only limits, or where the output shows a region of interest.
fn gives_sizes_as_listed(node: &Node) -> bool {
    node.proto.string("keep_aspect_ratio_policy").is_none_or(|policy| policy == "stretch")
        && node.proto.string("coordinate_transformation_mode") != Some("tf_crop_and_resize")
}

impl NodeRules for Resize {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        let axes = axes(node, shape.len())?;
        if !gives_sizes_as_listed(node) {
            axes.into_iter().for_each(|axis| shape[axis] = cx.fresh());
            cx.set(0, Fact::new(dtype, shape));
            return Ok(());
        }
        let (scales_slot, sizes_slot) = slots(node);
        let sizes = sizes_slot.and_then(|slot| cx.ints(slot)).map(<[Dim]>::to_vec).filter(|sizes| !sizes.is_empty());
        let attribute = node.proto.attr("scales").map(|scales| scales.floats.iter().copied().map(f64::from).collect());
        let scales: Option<Vec<f64>> =
            attribute.or_else(|| cx.floats(scales_slot).map(<[f64]>::to_vec)).filter(|scales| !scales.is_empty());
        for (at, axis) in axes.into_iter().enumerate() {
            let size = match (&sizes, &scales) {
                (Some(sizes), _) => sizes.get(at).cloned(),
                (None, Some(scales)) => scales.get(at).and_then(|scale| scaled(&shape[axis], *scale)),
                // Nothing is interpolated along batch and channels.
                (None, None) if axis < 2 => Some(shape[axis].clone()),
                (None, None) => None,
            };
            shape[axis] = size.unwrap_or_else(|| cx.fresh());
        }
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let input = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let shape = cx.output_shape(0)?;
        let listed = axes(node, shape.len())?;
        let mut result = Vec::new();
        for (at, (old, new)) in input.iter().zip(&shape).enumerate() {
            if !listed.contains(&at) || (old == new && gives_sizes_as_listed(node)) {
                result.push(layout.axes[at].clone());
            } else {
                cx.keep(&layout.axes[at], "is interpolated");
                result.push(fixed_axis(new));
            }
        }
        cx.set(0, Layout { axes: result });
        Ok(())
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axes = axes(node, cx.rank(0))?;
        let Some(slot) = slots(node).1 else {
            return Ok(());
        };
        let Some(old) = cx.old_ints(slot).filter(|sizes| !sizes.is_empty()) else {
            return Ok(());
        };
        let sizes: Vec<Option<i64>> = old
            .iter()
            .zip(&axes)
            .map(|(size, axis)| size.as_const().and_then(|_| cx.new_output_size(0, *axis)))
            .collect();
        cx.set_input_ints(slot, &sizes)
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Channels are masked as a whole, so that the nearest element's mask is the mask.
        let mask = cx.full_mask(0);
        let mut inputs: Vec<String> = node.proto.input.clone();
        inputs[0] = mask;
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut attributes = node.proto.attribute.clone();
        attributes.retain(|attribute| attribute.name != "mode" && attribute.name != "antialias");
        attributes.push(attr_string("mode", "nearest"));
        let mask = cx.add(&node.proto.op_type, &inputs, attributes);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if !gives_sizes_as_listed(node) {
            return Err(RuleError::unsupported("a region of interest or a policy on the aspect ratio has no gradient"));
        }
        let (mut dx, from, to) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let text = |name: &str, default: &'static str| node.proto.string(name).unwrap_or(default).to_owned();
        let mode = text("mode", "nearest");
        let place = text("coordinate_transformation_mode", "half_pixel");
        let rounding = text("nearest_mode", "round_prefer_floor");
        let is_old = node.version < 11;
        let takes_blocks = mode == "nearest"
            && (is_old
                || (place == "asymmetric" && rounding == "floor")
                || (place.ends_with("half_pixel") && !rounding.ends_with("ceil")));
        let whole = |axis: usize| to[axis] % from[axis].max(1) == 0;
        if takes_blocks && from.len() > 2 && from[..2] == to[..2] && (2..from.len()).all(whole) {
            // Every element was repeated over a block, whose gradients add up.
            let blocks: Vec<i64> = (2..from.len()).map(|axis| to[axis] / from[axis]).collect();
            let attributes =
                vec![crate::onnx::attr_ints("kernel_shape", &blocks), crate::onnx::attr_ints("strides", &blocks)];
            let mean = cx.op_with("AveragePool", &[&dx], attributes);
            let sum = cx.scaled(&mean, blocks.iter().product::<i64>() as f64);
            cx.give(0, sum);
            return Ok(());
        }
        let listed = axes(node, from.len())?;
        let (scales_slot, sizes_slot) = slots(node);
        let gives_sizes = sizes_slot.is_some_and(|slot| cx.known_ints(slot).is_some_and(|sizes| !sizes.is_empty()));
        for axis in 0..from.len() {
            let is_resized = from[axis] != to[axis];
            let at = listed.iter().position(|listed| *listed == axis);
            let Some(at) = at.filter(|_| is_resized) else { continue };
            // The operator itself says what it makes of every unit vector: it is linear along each axis.
            let (m, n) = (from[axis], to[axis]);
            let unit = cx.identity(m, &[1, m, 1, m]);
            let mut attributes = node.proto.attribute.clone();
            attributes.retain(|attribute| attribute.name != "axes" && attribute.name != "scales");
            let scale = match node.proto.attr("scales") {
                Some(scales) => scales.floats.get(at).copied(),
                None => cx.known_floats(scales_slot).and_then(|scales| scales.get(at).map(|scale| *scale as f32)),
            };
            let scales = match scale.filter(|_| !gives_sizes) {
                Some(scale) => cx.floats(&[1.0, 1.0, 1.0, scale], &[4]),
                None => String::new(),
            };
            // Opset 11 asks for the region that later ones may omit.
            let region = if node.version < 13 { cx.floats(&[], &[0]) } else { String::new() };
            let no_scales = region.clone();
            let rows = if is_old {
                cx.op_with(&node.proto.op_type, &[&unit, &scales], attributes)
            } else if scales.is_empty() {
                let sizes = cx.ints(&[1, m, 1, n]);
                cx.op_with(&node.proto.op_type, &[&unit, &region, &no_scales, &sizes], attributes)
            } else {
                cx.op_with(&node.proto.op_type, &[&unit, &region, &scales], attributes)
            };
            let rows = cx.reshape(&rows, &[m, n]);
            dx = cx.along_axis(&dx, axis, from.len(), &rows);
        }
        cx.give(0, dx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_scaled_as_runtimes_do() {
        let size = |size: i64, scale: f32| scaled(&Dim::from(size), f64::from(scale)).and_then(|size| size.as_const());
        assert_eq!(size(10, 0.7), Some(7));
        assert_eq!(size(7, 0.5), Some(3));
        assert_eq!(size(3, 2.0), Some(6));
        let h = Dim::symbol("H");
        assert_eq!(scaled(&h, 2.0), Some(&h * &Dim::from(2)));
        assert_eq!(scaled(&(&h * &Dim::from(4)), 0.25), Some(h.clone()));
        assert_eq!(scaled(&h, 1.5), None);
        assert_eq!(scaled(&h, 0.0), None);
    }
}
