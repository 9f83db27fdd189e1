//! # MeanVarianceNormalization
//! `Y = (X - mean) / (deviation + 1e-9)`, moments over `axes`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html>. Opsets 9 and later.
//!
//! Coupling: every axis passes through; a normalisation over channels acts on the kept ones.

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_meanvariancenormalization() -> &'static [OpType] {
    const { &[onnx("MeanVarianceNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::of_node(types_meanvariancenormalization, &MeanVarianceNormalization)];

struct MeanVarianceNormalization;

impl NodeRules for MeanVarianceNormalization {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        axes(node, shape.len())?;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let axes = axes(node, cx.rank(0)?)?;
        // The small term of the specification, added to the deviation, has this square.
        let x = cx.zeroed_float(0);
        let y = cx.norm_of(&x, Some(&mask), &axes, 1e-18, true);
        cx.emit_floats(&[(0, y)]);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axes: Vec<usize> =
            axes(node, shape.len())?.into_iter().filter_map(|axis| usize::try_from(axis).ok()).collect();
        let norm = cx.normalized(&cx.input(0), &shape, &axes, 1e-18, true, Some(cx.output(0)));
        let dx = cx.through_norm(&norm, &dy, &axes);
        cx.give(0, dx);
        Ok(())
    }
}

/// The axes over which moments are taken.
fn axes(node: &Node, rank: usize) -> Result<Vec<i64>, RuleError> {
    let axes = node.proto.ints("axes").unwrap_or(&[0, 2, 3]);
    axes.iter().map(|axis| Ok(axis_index(*axis, rank)? as i64)).collect()
}
