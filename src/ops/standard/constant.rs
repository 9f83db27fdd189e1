//! # Constant
//! A tensor, number or list stored in the node itself.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Constant.html>. All opsets.
//!
//! Coupling: none here; every use of a constant tensor has its own axes.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_constant() -> &'static [OpType] {
    const { &[onnx("Constant")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_constant, |node| Ok(Box::new(Constant::parse(node))))];

/// The value of the node; a tensor is read elsewhere, where the model's data is available.
#[derive(Debug)]
enum Constant {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Floats(Vec<f32>),
    Other,
}

impl Constant {
    fn parse(node: &Node) -> Self {
        if let Some(value) = node.proto.int("value_int") {
            Self::Int(value)
        } else if let Some(values) = node.proto.ints("value_ints") {
            Self::Ints(values.to_vec())
        } else if let Some(value) = node.proto.float("value_float") {
            Self::Float(value)
        } else if let Some(values) = node.proto.attr("value_floats") {
            Self::Floats(values.floats.clone())
        } else {
            Self::Other
        }
    }
}

impl Operator for Constant {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let fact = match self {
            Self::Int(value) => {
                Fact::new(DataType::Int64, vec![]).with_known(Some(Known::Ints(vec![Dim::from(*value)])))
            }
            Self::Ints(values) => Fact::int_vector(values.iter().copied().map(Dim::from).collect()),
            Self::Float(value) => {
                Fact::new(DataType::Float, vec![]).with_known(Some(Known::Floats(vec![f64::from(*value)])))
            }
            Self::Floats(values) => {
                let known = values.iter().copied().map(f64::from).collect();
                let length = Dim::from(values.len() as i64);
                Fact::new(DataType::Float, vec![length]).with_known(Some(Known::Floats(known)))
            }
            Self::Other => return Err(RuleError::UnknownShape),
        };
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
