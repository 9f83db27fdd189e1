//! # Unique
//! The distinct elements of a value, or slices along an axis, in order.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Unique.html>. Opsets 11 and later, and ONNX Runtime's contrib operator.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::product;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, axis_index, microsoft, onnx};

fn types_unique() -> &'static [OpType] {
    const { &[onnx("Unique"), microsoft("Unique")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_unique, |node| Ok(Box::new(Unique::parse(node))))];

#[derive(Debug)]
struct Unique {
    axis: Option<i64>,
}

impl Unique {
    fn parse(node: &Node) -> Self {
        Self { axis: node.proto.int("axis") }
    }
}

impl Operator for Unique {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let count = cx.fresh();
        let inverse = match self.axis {
            None => {
                let all = product(&shape);
                shape = vec![count.clone()];
                all
            }
            Some(axis) => {
                let axis = axis_index(axis, shape.len())?;
                std::mem::replace(&mut shape[axis], count.clone())
            }
        };
        cx.set_shape(0, dtype, shape);
        cx.set_shape(1, DataType::Int64, vec![count.clone()]);
        cx.set_shape(2, DataType::Int64, vec![inverse]);
        cx.set_shape(3, DataType::Int64, vec![count]);
        Ok(())
    }
}
