//! # LayerNormalization and RMSNormalization
//! `Y = scale * (X - mean) / sqrt(variance + epsilon) + B`, or `Y = scale * X / sqrt(mean(X^2) + epsilon)`, over the axes
//! from `axis` on.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>, opsets 17 and later; RMSNormalization from 23.
//!
//! Coupling: every axis passes through; scale and B broadcast to X. A normalisation over channels acts on the kept
//! ones.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::part::{Part, PartCx, RowNorm};
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, axis_index, microsoft, onnx};

fn types_layernormalization() -> &'static [OpType] {
    const {
        &[
            onnx("LayerNormalization"),
            onnx("RMSNormalization"),
            // ONNX Runtime registers its form in the standard domain, older exports in its own.
            onnx("SimplifiedLayerNormalization"),
            microsoft("SimplifiedLayerNormalization"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_layernormalization, &LayerNormalization)];

struct LayerNormalization;

/// Whether the mean is subtracted.
fn is_centred(node: &Node) -> bool {
    node.proto.op_type == "LayerNormalization"
}

impl NodeRules for LayerNormalization {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = axis_index(node.int("axis", -1), shape.len())?;
        let statistics = shape.iter().enumerate().map(|(at, size)| if at < axis { size.clone() } else { Dim::from(1) });
        let statistics = Fact::new(crate::onnx::DataType::Float, statistics.collect());
        cx.set(1, statistics.clone());
        cx.set(2, statistics);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if node.output(1).is_some() || node.output(2).is_some() {
            return Err(RuleError::unsupported("its mean or deviation is read"));
        }
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        let layout = cx.broadcast(&slots)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)?;
        let axis = axis_index(node.int("axis", -1), rank)?;
        let axes: Vec<i64> = (axis..rank).map(|axis| axis as i64).collect();
        let epsilon = node.float("epsilon", 1e-5);
        let mut y =
            if is_centred(node) { cx.normalized(0, &axes, epsilon) } else { cx.root_mean_square(0, &axes, epsilon) };
        // The parameters have the shape of the normalised axes, so that they broadcast by themselves.
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

    fn scales(&self, _node: &Node, slot: usize) -> bool {
        slot == 1
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axis = axis_index(node.int("axis", -1), shape.len())?;
        let axes: Vec<usize> = (axis..shape.len()).collect();
        let epsilon = f64::from(node.float("epsilon", 1e-5));
        let norm = cx.normalized(&cx.input(0), &shape, &axes, epsilon, is_centred(node), None);
        if cx.wants(1) {
            let product = cx.mul(&dy, &norm.y);
            cx.give_broadcast(1, &product)?;
        }
        if cx.wants(2) {
            cx.give_broadcast(2, &dy)?;
        }
        if cx.wants(0) {
            let scale = cx.input(1);
            let g = if scale.is_empty() { dy } else { cx.mul(&dy, &scale) };
            let dx = cx.through_norm(&norm, &g, &axes);
            cx.give(0, dx);
        }
        Ok(())
    }

    fn part(&self, node: &Node, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let axis = axis_index(node.int("axis", -1), shape.len()).ok()?;
        let row: i64 = shape[axis..].iter().product();
        let has_whole = |slot: usize| cx.shape(slot).is_some_and(|own| own == shape[axis..]);
        let epsilon = node.float("epsilon", 1e-5);
        let norm = RowNorm { row, groups: 1, inner: 1, epsilon, is_centred: is_centred(node), has_silu: false };
        (row > 0 && has_whole(1) && (!cx.has(2) || has_whole(2))).then_some(Part::Norm(norm))
    }
}
