//! # LayerNormalization and RMSNormalization
//! `Y = scale * (X - mean) / sqrt(variance + epsilon) + B`, or `Y = scale * X / sqrt(mean(X^2) + epsilon)`, over the axes
//! from `axis` on.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>, opsets 17 and later; RMSNormalization from 23.
//!
//! Coupling: every axis passes through; scale and B are broadcast to X. A normalisation over channels acts on the kept
//! ones.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::DataType;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::part::{Part, PartCx, RowNorm};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index,
    microsoft, onnx,
};

fn types_layernormalization() -> &'static [OpType] {
    const {
        &[
            onnx("LayerNormalization"),
            onnx("RMSNormalization"),
            // ONNX Runtime registers its own form in the standard domain; older exports have it in ONNX Runtime's
            // domain.
            onnx("SimplifiedLayerNormalization"),
            microsoft("SimplifiedLayerNormalization"),
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_layernormalization, |node| Ok(Box::new(LayerNormalization::parse(node))))];

#[derive(Debug)]
struct LayerNormalization {
    axis: i64,
    epsilon: f32,
    /// Whether the mean is subtracted.
    is_centred: bool,
    /// Whether there is a B.
    has_offset: bool,
    /// Whether the mean or deviation output is used.
    has_moments: bool,
    /// The number of inputs.
    inputs: usize,
}

impl LayerNormalization {
    fn parse(node: &Node) -> Self {
        Self {
            axis: node.int("axis", -1),
            epsilon: node.float("epsilon", 1e-5),
            is_centred: node.proto.op_type == "LayerNormalization",
            has_offset: node.input(2).is_some(),
            has_moments: node.uses_output(1) || node.uses_output(2),
            inputs: node.inputs.len(),
        }
    }
}

impl Operator for LayerNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = axis_index(self.axis, shape.len())?;
        let statistics = shape.iter().enumerate().map(|(at, size)| if at < axis { size.clone() } else { Dim::from(1) });
        let statistics = Fact::new(DataType::Float, statistics.collect());
        cx.set(1, statistics.clone());
        cx.set(2, statistics);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if self.has_moments {
            return Err(RuleError::unsupported("its mean or deviation output is used"));
        }
        let slots: Vec<usize> = (0..self.inputs).collect();
        let layout = cx.broadcast(&slots)?;
        let axis = axis_index(self.axis, layout.rank())?;
        let moments =
            layout.axes.iter().enumerate().map(|(at, size)| if at < axis { size.clone() } else { Axis::new() });
        let moments = Layout { axes: moments.collect() };
        cx.set(1, moments.clone());
        cx.set(2, moments);
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)?;
        let axis = axis_index(self.axis, rank)?;
        let axes: Vec<i64> = (axis..rank).map(|axis| axis as i64).collect();
        let mut y = if self.is_centred {
            cx.normalized(0, &axes, self.epsilon)
        } else {
            cx.root_mean_square(0, &axes, self.epsilon)
        };
        // The parameters have the shape of the normalised axes, so they broadcast as they are.
        for (slot, op_type) in [(1, "Mul"), (2, "Add")] {
            if !cx.input(slot).is_empty() {
                let parameter = cx.zeroed(slot);
                y = cx.add(op_type, &[&y, &parameter], vec![]);
            }
        }
        cx.emit_as(0, &y);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn scales(&self, slot: usize) -> bool {
        slot == 1
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len()).ok()?;
        let row: i64 = shape[axis..].iter().product();
        let has_whole = |slot: usize| cx.shape(slot).is_some_and(|own| own == shape[axis..]);
        let (epsilon, is_centred) = (self.epsilon, self.is_centred);
        let norm = RowNorm { row, groups: 1, inner: 1, epsilon, is_centred, has_silu: false };
        (row > 0 && has_whole(1) && (!self.has_offset || has_whole(2))).then_some(Part::Norm(norm))
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if self.has_moments {
            return Err(RuleError::unsupported("its mean or deviation output is used"));
        }
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axis = axis_index(self.axis, shape.len())?;
        let axes: Vec<usize> = (axis..shape.len()).collect();
        let epsilon = f64::from(self.epsilon);
        let norm = cx.normalized(&cx.input(0), &shape, &axes, epsilon, self.is_centred, None);
        if cx.wants(1) {
            let product = cx.mul(&dy, &norm.y);
            cx.add_broadcast_gradient(1, &product)?;
        }
        if cx.wants(2) {
            cx.add_broadcast_gradient(2, &dy)?;
        }
        if cx.wants(0) {
            let scale = cx.input(1);
            let g = if scale.is_empty() { dy } else { cx.mul(&dy, &scale) };
            let dx = cx.through_norm(&norm, &g, &axes);
            cx.add_gradient(0, dx);
        }
        Ok(())
    }
}
