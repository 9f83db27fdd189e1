//! # EyeLike
//! A matrix of the input's shape with ones on a diagonal and zeros elsewhere.
//! Spec: <https://onnx.ai/onnx/operators/onnx__EyeLike.html>. Opsets 9 and later.
//!
//! Coupling: every input is kept.

use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_eyelike() -> &'static [OpType] {
    const { &[onnx("EyeLike")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_eyelike, |node| Ok(Box::new(EyeLike::parse(node))))];

#[derive(Debug)]
struct EyeLike {
    /// The element type; `None`: that of the input.
    dtype: Option<DataType>,
}

impl EyeLike {
    fn parse(node: &Node) -> Self {
        let dtype = node.proto.int("dtype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        Self { dtype }
    }
}

impl Operator for EyeLike {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, self.dtype.unwrap_or(dtype), shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the diagonal of EyeLike follows from the sizes of this value");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing; a plan that removes some of it changes the indices, and verification fails.
        Ok(())
    }
}
