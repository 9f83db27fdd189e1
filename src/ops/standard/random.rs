//! # Random numbers
//! RandomNormal, RandomUniform, their Like forms, Bernoulli and Multinomial.
//! Spec: <https://onnx.ai/onnx/operators/onnx__RandomNormalLike.html>, <https://onnx.ai/onnx/operators/onnx__Bernoulli.html>.
//! All opsets.
//!
//! Coupling: every input is kept. Generating fewer numbers would change them all, so that results could not be
//! compared.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{CoupleCx, Folding, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

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

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_random, |node| Ok(Box::new(Random::parse(node)?)))];

#[derive(Debug)]
struct Random {
    /// The element type, if the node states it.
    dtype: Option<DataType>,
    shape: Shape,
}

/// The shape of the generated numbers.
#[derive(Debug)]
enum Shape {
    Given(Vec<i64>),
    /// The shape of the input.
    Like,
    /// This number of samples for every row of the input.
    Samples(i64),
}

impl Random {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let shape = match node.proto.op_type.as_str() {
            "RandomNormal" | "RandomUniform" => {
                let sizes = node.proto.ints("shape").ok_or_else(|| RuleError::invalid("it has no attribute shape"))?;
                Shape::Given(sizes.to_vec())
            }
            "Multinomial" => Shape::Samples(node.int("sample_size", 1)),
            _ => Shape::Like,
        };
        let dtype = node.proto.int("dtype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        Ok(Self { dtype, shape })
    }
}

impl Operator for Random {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = match &self.shape {
            Shape::Given(sizes) => (DataType::Float, sizes.iter().copied().map(Dim::from).collect()),
            Shape::Samples(count) => {
                let batch = cx
                    .shape(0)?
                    .first()
                    .cloned()
                    .ok_or_else(|| RuleError::invalid("X must have rank 2, found a scalar"))?;
                (DataType::Int32, vec![batch, Dim::from(*count)])
            }
            Shape::Like => (cx.input(0)?.dtype, cx.shape(0)?),
        };
        cx.set_shape(0, self.dtype.unwrap_or(dtype), shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Never
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the random numbers depend on the shape of this value");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing.
        Ok(())
    }
}
