//! # Softmax and LogSoftmax
//! `Y = exp(X) / sum(exp(X))` along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Softmax.html>. All opsets; before 13 the input is flattened to a matrix
//! at `axis`.
//!
//! Coupling: every axis passes through; a softmax over channels acts on the kept ones.

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::part::{Part, PartCx};
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, onnx};

fn types_softmax() -> &'static [OpType] {
    const { &[onnx("Softmax"), onnx("LogSoftmax"), onnx("Hardmax")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_softmax, &Softmax)];

struct Softmax;

impl NodeRules for Softmax {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Far below any activation, yet finite in float16, so that a row without kept elements gives no NaN.
            let x = cx.filled(&cx.input(0), &mask, -60_000.0, 0);
            cx.emit(&[(0, x)]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, y, shape) = (cx.dy()?, cx.output(0), cx.shape(0)?);
        let default = if node.version < 13 { 1 } else { -1 };
        let axis = crate::operator::axis_index(node.int("axis", default), shape.len())?;
        // Before opset 13 everything from the axis on is one.
        let axes: Vec<usize> = if node.version < 13 { (axis..shape.len()).collect() } else { vec![axis] };
        let dx = match node.proto.op_type.as_str() {
            "Softmax" => {
                // y (dy - sum(dy y))
                let product = cx.mul(&dy, &y);
                let sum = cx.reduce_sum(&product, &axes, true);
                let difference = cx.op("Sub", &[&dy, &sum]);
                cx.mul(&difference, &y)
            }
            "LogSoftmax" => {
                let sum = cx.reduce_sum(&dy, &axes, true);
                let share = cx.op("Exp", &[&y]);
                let product = cx.mul(&share, &sum);
                cx.op("Sub", &[&dy, &product])
            }
            _ => return Ok(()),
        };
        cx.give(0, dx);
        Ok(())
    }

    fn part(&self, node: &Node, cx: &PartCx<'_>) -> Option<Part> {
        let shape = cx.shape(0)?;
        let default = if node.version < 13 { 1 } else { -1 };
        let axis = crate::operator::axis_index(node.int("axis", default), shape.len()).ok()?;
        let is_last = node.version < 13 || axis + 1 == shape.len();
        let row: i64 = shape[axis..].iter().product();
        (node.proto.op_type == "Softmax" && is_last && row > 0).then_some(Part::Softmax { row })
    }
}
