//! # QLinearConcat
//! Joins quantised values along `axis`, each with its own scale and zero point.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, axis_index, microsoft};

fn types_qlinear_concat() -> &'static [OpType] {
    const { &[microsoft("QLinearConcat")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_qlinear_concat, |node| Ok(Box::new(QLinearConcat::parse(node))))];

#[derive(Debug)]
struct QLinearConcat {
    axis: i64,
}

impl QLinearConcat {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 1) }
    }
}

impl Operator for QLinearConcat {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        // The scale and the zero point of the result come first.
        let (dtype, mut shape) = (cx.input(2)?.dtype, cx.shape(2)?);
        let axis = axis_index(self.axis, shape.len())?;
        for slot in (5..cx.input_count()).step_by(3) {
            let other = cx.shape(slot)?;
            if other.len() != shape.len() {
                return Err(RuleError::invalid(format!(
                    "expected all inputs of rank {}, found rank {}",
                    shape.len(),
                    other.len()
                )));
            }
            shape[axis] = &shape[axis] + &other[axis];
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }
}
