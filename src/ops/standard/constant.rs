//! # Constant
//! A tensor, number or list that stands in the node itself.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Constant.html>. All opsets.
//!
//! Coupling: none here; every reader of a constant tensor has axes of its own.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, onnx};

fn types_constant() -> &'static [OpType] {
    const { &[onnx("Constant")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_constant, &Constant)];

struct Constant;

impl NodeRules for Constant {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        // The form with a tensor is read where the model's data is at hand.
        let length = |count: usize| vec![Dim::from(count as i64)];
        let fact = if let Some(value) = node.proto.int("value_int") {
            Fact::new(DataType::Int64, vec![]).with_known(Some(Known::Ints(vec![Dim::from(value)])))
        } else if let Some(values) = node.proto.ints("value_ints") {
            Fact::int_vector(values.iter().copied().map(Dim::from).collect())
        } else if let Some(value) = node.proto.float("value_float") {
            Fact::new(DataType::Float, vec![]).with_known(Some(Known::Floats(vec![f64::from(value)])))
        } else if let Some(values) = node.proto.attr("value_floats") {
            let known = values.floats.iter().copied().map(f64::from).collect();
            Fact::new(DataType::Float, length(values.floats.len())).with_known(Some(Known::Floats(known)))
        } else {
            return Err(RuleError::UnknownShape);
        };
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
