//! # Operators on positions
//! Trilu, CumSum and CumProd: every axis passes through, but the order of positions matters.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Trilu.html>, <https://onnx.ai/onnx/operators/onnx__CumSum.html>.
//!
//! Coupling: the last two axes of a Trilu and the axis that CumSum or CumProd goes along stay; all others pass through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, microsoft, onnx};

fn types_positions() -> &'static [OpType] {
    const { &[onnx("Trilu"), microsoft("Trilu"), onnx("CumSum"), onnx("CumProd")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_positions, &Positions)];

/// The sums of known integers along a vector, as repeat_interleave counts its indices.
fn known_sums(node: &Node, cx: &InferCx<'_>, shape: &[Dim]) -> Option<Known> {
    let is_plain = node.int("exclusive", 0) == 0 && node.int("reverse", 0) == 0;
    if node.proto.op_type != "CumSum" || shape.len() != 1 || !is_plain {
        return None;
    }
    let sums = cx.ints(0)?.iter().scan(Dim::from(0), |sum, value| {
        *sum = &*sum + value;
        Some(sum.clone())
    });
    Some(Known::Ints(sums.collect()))
}

struct Positions;

impl NodeRules for Positions {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let known = known_sums(node, cx, &shape);
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let rank = layout.rank();
        let stay: Vec<usize> = match node.proto.op_type.as_str() {
            "Trilu" => (rank.saturating_sub(2)..rank).collect(),
            _ => {
                let axis = cx.ints(1).and_then(|axis| axis.first()).and_then(Dim::as_const);
                vec![axis_index(axis.ok_or(RuleError::UnknownShape)?, rank)?]
            }
        };
        stay.into_iter().for_each(|axis| cx.keep(&layout.axes[axis], "counts positions"));
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let mut dy = cx.dy()?;
        let is_product = node.proto.op_type == "CumProd";
        if is_product {
            // What holds of sums holds of products by their logarithms: dx = (sum of dy y) / x.
            dy = cx.mul(&dy, &cx.output(0));
        }
        let mut inputs = vec![dy];
        inputs.extend((1..node.inputs.len()).map(|slot| cx.input(slot)));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let dx = if node.proto.op_type == "Trilu" {
            cx.same_op(&inputs)
        } else {
            // Every element is summed into all later ones, so its gradient is the sum of theirs.
            let reverse = 1 - node.int("reverse", 0);
            let exclusive = node.int("exclusive", 0);
            let attributes =
                vec![crate::onnx::attr_int("reverse", reverse), crate::onnx::attr_int("exclusive", exclusive)];
            cx.op_with("CumSum", &inputs, attributes)
        };
        let dx = if is_product { cx.op("Div", &[&dx, &cx.input(0)]) } else { dx };
        cx.give(0, dx);
        Ok(())
    }
}
