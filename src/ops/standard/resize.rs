//! # Resize and Upsample
//! Resizes axes by interpolation.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Resize.html>. Resize 10 and later, Upsample 7 to 9.
//!
//! Coupling: an axis that keeps its size passes through; one that is interpolated is kept. Sizes that the node lists
//! for all axes are patched.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::{AttributeProto, attr_ints, attr_string};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_resize() -> &'static [OpType] {
    const { &[onnx("Resize"), onnx("Upsample")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_resize, |node| Ok(Box::new(Resize::parse(node))))];

#[derive(Debug)]
struct Resize {
    form: Form,
    /// The axes of the scales and sizes; `None`: all.
    axes: Option<Vec<i64>>,
    /// The scales as an attribute; `None` if they are an input.
    scales: Option<Vec<f32>>,
    /// Whether the node repeats every element over a block, if all sizes grow by an integer factor.
    repeats_blocks: bool,
    /// Whether the sizes of the output are those that the node lists, or the sizes of the input times the scales. They
    /// are not if the listed sizes are only limits, or if the output shows a region of interest.
    has_listed_sizes: bool,
    /// All attributes of the node, for nodes with the same interpolation.
    attributes: Vec<AttributeProto>,
    input_count: usize,
}

/// The position of the inputs, which moved when Resize 11 added the region of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Upsample: X and scales.
    Upsample,
    /// Resize 10: X and scales.
    Scales,
    /// Resize 11 and 12: X, a region of interest, scales and sizes; unused ones are empty tensors.
    Region,
    /// Resize 13 and later: the same, but unused inputs may be omitted.
    OptionalRegion,
}

impl Form {
    fn op_type(self) -> &'static str {
        if self == Self::Upsample { "Upsample" } else { "Resize" }
    }

    /// Returns the input that holds the scales.
    fn scales_slot(self) -> usize {
        if self.sizes_slot().is_some() { 2 } else { 1 }
    }

    /// Returns the input that holds the sizes; `None` if there is none.
    fn sizes_slot(self) -> Option<usize> {
        matches!(self, Self::Region | Self::OptionalRegion).then_some(3)
    }
}

impl Resize {
    fn parse(node: &Node) -> Self {
        let form = match node.proto.op_type.as_str() {
            "Upsample" => Form::Upsample,
            _ if node.version < 11 => Form::Scales,
            _ if node.version < 13 => Form::Region,
            _ => Form::OptionalRegion,
        };
        let text = |name: &str, default: &'static str| node.proto.string(name).unwrap_or(default).to_owned();
        let coordinate_mode = text("coordinate_transformation_mode", "half_pixel");
        let rounding = text("nearest_mode", "round_prefer_floor");
        let rounds_down = (coordinate_mode == "asymmetric" && rounding == "floor")
            || (coordinate_mode.ends_with("half_pixel") && !rounding.ends_with("ceil"));
        Self {
            form,
            axes: node.proto.ints("axes").map(<[i64]>::to_vec),
            scales: node.proto.attr("scales").map(|scales| scales.floats.clone()),
            repeats_blocks: text("mode", "nearest") == "nearest" && (form.sizes_slot().is_none() || rounds_down),
            has_listed_sizes: text("keep_aspect_ratio_policy", "stretch") == "stretch"
                && coordinate_mode != "tf_crop_and_resize",
            attributes: node.proto.attribute.clone(),
            input_count: node.proto.input.len(),
        }
    }

    /// Returns the axes of the scales and sizes, in an input of rank `rank`.
    fn listed(&self, rank: usize) -> Result<Vec<usize>, RuleError> {
        match &self.axes {
            Some(axes) => axes.iter().map(|axis| axis_index(*axis, rank)).collect(),
            None => Ok((0..rank).collect()),
        }
    }

    /// Returns the attributes except those named.
    fn attributes_without(&self, names: [&str; 2]) -> Vec<AttributeProto> {
        self.attributes.iter().filter(|attribute| !names.contains(&attribute.name.as_str())).cloned().collect()
    }
}

/// Computes `floor(size * scale)`; for symbolic sizes only with integer scales and their reciprocals, which networks
/// use.
fn scaled(size: &Dim, scale: f64) -> Option<Dim> {
    if let Some(size) = size.as_const() {
        // In float32, as ONNX and its runtimes do: 10 * 0.7 is 7 there, but less in float64.
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

impl Operator for Resize {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        let axes = self.listed(shape.len())?;
        if !self.has_listed_sizes {
            axes.into_iter().for_each(|axis| shape[axis] = cx.fresh());
            cx.set(0, Fact::new(dtype, shape));
            return Ok(());
        }
        let sizes = self
            .form
            .sizes_slot()
            .and_then(|slot| cx.ints(slot))
            .map(<[Dim]>::to_vec)
            .filter(|sizes| !sizes.is_empty());
        let attribute = self.scales.as_ref().map(|scales| scales.iter().copied().map(f64::from).collect());
        let input = || cx.floats(self.form.scales_slot()).map(<[f64]>::to_vec);
        let scales: Option<Vec<f64>> = attribute.or_else(input).filter(|scales| !scales.is_empty());
        for (at, axis) in axes.into_iter().enumerate() {
            let size = match (&sizes, &scales) {
                (Some(sizes), _) => sizes.get(at).cloned(),
                (None, Some(scales)) => scales.get(at).and_then(|scale| scaled(&shape[axis], *scale)),
                // Batch and channels are not interpolated.
                (None, None) if axis < 2 => Some(shape[axis].clone()),
                (None, None) => None,
            };
            shape[axis] = size.unwrap_or_else(|| cx.fresh());
        }
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let input = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let shape = cx.output_shape(0)?;
        let listed = self.listed(shape.len())?;
        let mut result = Vec::new();
        for (at, (old, new)) in input.iter().zip(&shape).enumerate() {
            if !listed.contains(&at) || (old == new && self.has_listed_sizes) {
                result.push(layout.axes[at].clone());
            } else {
                cx.keep(&layout.axes[at], "Resize or Upsample interpolates along this axis");
                result.push(fixed_axis(new));
            }
        }
        cx.set(0, Layout { axes: result });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axes = self.listed(cx.rank(0))?;
        let Some(slot) = self.form.sizes_slot() else {
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

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Channels are masked whole, so the mask of the nearest element is the mask.
        let mask = cx.full_mask(0);
        let others: Vec<String> = (1..self.input_count).map(|slot| cx.input(slot)).collect();
        let inputs: Vec<&str> = [mask.as_str()].into_iter().chain(others.iter().map(String::as_str)).collect();
        let mut attributes = self.attributes_without(["mode", "antialias"]);
        attributes.push(attr_string("mode", "nearest"));
        let mask = cx.add(self.form.op_type(), &inputs, attributes);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if !self.has_listed_sizes {
            return Err(RuleError::unsupported(
                "no gradient is implemented for a region of interest or an aspect ratio policy",
            ));
        }
        let (mut dx, from, to) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let whole = |axis: usize| to[axis] % from[axis].max(1) == 0;
        if self.repeats_blocks && from.len() > 2 && from[..2] == to[..2] && (2..from.len()).all(whole) {
            // Every element was repeated over a block: the gradients of the block add up.
            let blocks: Vec<i64> = (2..from.len()).map(|axis| to[axis] / from[axis]).collect();
            let attributes = vec![attr_ints("kernel_shape", &blocks), attr_ints("strides", &blocks)];
            let mean = cx.op_with("AveragePool", &[&dx], attributes);
            let sum = cx.scaled(&mean, blocks.iter().product::<i64>() as f64);
            cx.add_gradient(0, sum);
            return Ok(());
        }
        let listed = self.listed(from.len())?;
        let sizes = self.form.sizes_slot().and_then(|slot| cx.known_ints(slot));
        let has_sizes = sizes.is_some_and(|sizes| !sizes.is_empty());
        for axis in 0..from.len() {
            let is_resized = from[axis] != to[axis];
            let at = listed.iter().position(|listed| *listed == axis);
            let Some(at) = at.filter(|_| is_resized) else { continue };
            // The operator is linear along each axis, so its result for every unit vector states its effect.
            let (m, n) = (from[axis], to[axis]);
            let unit = cx.identity(m, &[1, m, 1, m]);
            let attributes = self.attributes_without(["axes", "scales"]);
            let scale = match &self.scales {
                Some(scales) => scales.get(at).copied(),
                None => {
                    let scales = cx.known_floats(self.form.scales_slot());
                    scales.and_then(|scales| scales.get(at).map(|scale| *scale as f32))
                }
            };
            let scales = match scale.filter(|_| !has_sizes) {
                Some(scale) => cx.floats(&[1.0, 1.0, 1.0, scale], &[4]),
                None => String::new(),
            };
            let op_type = self.form.op_type();
            let unused = if self.form == Form::Region { cx.floats(&[], &[0]) } else { String::new() };
            let rows = if self.form.sizes_slot().is_none() {
                cx.op_with(op_type, &[&unit, &scales], attributes)
            } else if scales.is_empty() {
                let sizes = cx.ints(&[1, m, 1, n]);
                cx.op_with(op_type, &[&unit, &unused, &unused, &sizes], attributes)
            } else {
                cx.op_with(op_type, &[&unit, &unused, &scales], attributes)
            };
            let rows = cx.reshape(&rows, &[m, n]);
            dx = cx.along_axis(&dx, axis, from.len(), &rows);
        }
        cx.add_gradient(0, dx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_scaled_in_float32_as_runtimes_do() {
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
