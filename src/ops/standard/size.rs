//! # Size
//! The number of elements of a tensor.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Size.html>. All opsets.
//!
//! Coupling: none; the number is updated when the network runs.

use crate::graph::dim::product;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_size() -> &'static [OpType] {
    const { &[onnx("Size")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_size, |_| Ok(Box::new(Size)))];

#[derive(Debug)]
struct Size;

impl Operator for Size {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let count = product(&cx.shape(0)?);
        cx.set(0, Fact::new(DataType::Int64, vec![]).with_known(Some(Known::Ints(vec![count]))));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reads_sizes_alone(&self) -> bool {
        true
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
