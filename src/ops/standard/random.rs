//! # Random numbers
//! RandomNormal, RandomUniform, their Like forms, Bernoulli and Multinomial.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RandomNormalLike.html>, <https://onnx.ai/onnx/operators/onnx__Bernoulli.html>.
//! All opsets.
//!
//! Coupling: every input stays. Fewer numbers drawn would be other numbers, which could not be compared.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, onnx};

fn types_random() -> &'static [OpType] {
    const {
        &[
            onnx("RandomNormal"),
            onnx("RandomUniform"),
            onnx("RandomNormalLike"),
            onnx("RandomUniformLike"),
            onnx("Bernoulli"),
            onnx("Multinomial"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_random, &Random)];

struct Random;

impl NodeRules for Random {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let named = node.proto.int("dtype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        let (dtype, shape) = match node.proto.op_type.as_str() {
            "RandomNormal" | "RandomUniform" => {
                let sizes = node.proto.ints("shape").ok_or_else(|| RuleError::invalid("it has no shape"))?;
                (DataType::Float, sizes.iter().copied().map(Dim::from).collect())
            }
            "Multinomial" => {
                let batch = cx.shape(0)?.first().cloned().ok_or_else(|| RuleError::invalid("X must have rank 2"))?;
                (DataType::Int32, vec![batch, Dim::from(node.int("sample_size", 1))])
            }
            _ => (cx.input(0)?.dtype, cx.shape(0)?),
        };
        cx.set_shape(0, named.unwrap_or(dtype), shape);
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Never
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("gives the shape of random numbers");
        cx.set_fixed(0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // What is read has lost nothing.
        Ok(())
    }
}
