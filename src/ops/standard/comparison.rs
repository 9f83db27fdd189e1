//! # Elementwise comparisons and logic
//! Equal, Greater, Less, And, Or and their like, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/>. Opsets 7 and later (before, broadcasting was an attribute).
//!
//! Coupling: axes that broadcast against each other are one axis.

use super::binary::known;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_comparison() -> &'static [OpType] {
    const {
        &[
            onnx("Equal"),
            onnx("Greater"),
            onnx("GreaterOrEqual"),
            onnx("Less"),
            onnx("LessOrEqual"),
            onnx("And"),
            onnx("Or"),
            onnx("Xor"),
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_comparison, |node| Ok(Box::new(Comparison::parse(node)?)))];

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Equal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    And,
    Or,
    Xor,
}

impl Comparison {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        Ok(match node.proto.op_type.as_str() {
            "Equal" => Self::Equal,
            "Greater" => Self::Greater,
            "GreaterOrEqual" => Self::GreaterOrEqual,
            "Less" => Self::Less,
            "LessOrEqual" => Self::LessOrEqual,
            "And" => Self::And,
            "Or" => Self::Or,
            "Xor" => Self::Xor,
            other => return Err(RuleError::unsupported(format!("{other} is not one of these operators"))),
        })
    }

    /// One or zero for two integers or booleans, where it is known.
    fn result(self, a: &Dim, b: &Dim) -> Option<Dim> {
        if let Self::Equal = self {
            if a == b {
                return Some(Dim::from(1));
            }
            // A size is never negative, so it differs from the -1 that marks a size to be found out.
            if a.is(-1) || b.is(-1) {
                return Some(Dim::from(0));
            }
        }
        let (a, b) = (a.as_const()?, b.as_const()?);
        let holds = match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::And => a != 0 && b != 0,
            Self::Or => a != 0 || b != 0,
            Self::Xor => (a != 0) != (b != 0),
        };
        Some(Dim::from(i64::from(holds)))
    }
}

impl Operator for Comparison {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let known = known(cx, &shapes, &|a, b| self.result(a, b), &|_, _| None);
        let shape = cx.broadcast(&shapes)?;
        cx.set(0, Fact::new(DataType::Bool, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.broadcast(&[0, 1])?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0, 1])
    }
}
