//! # Elementwise comparisons and logic
//! Equal, Greater, Less, And, Or and their like, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/>. Opsets 7 and later (before, broadcasting was an attribute).
//!
//! Coupling: axes that are broadcast against each other are one axis.

use super::binary::known;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
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

/// Floats that differ by more than this share of the larger one, or of one if that is larger, compare the same in
/// every precision.
const APART: f64 = 1e-2;

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
            other => return Err(RuleError::unsupported(format!("{other} is not an operator of this file"))),
        })
    }

    /// Compares two integers or booleans: one or zero; `None` if the result is not known.
    fn result(self, a: &Dim, b: &Dim) -> Option<Dim> {
        if let Self::Equal = self {
            if a == b {
                return Some(Dim::from(1));
            }
            // A size is never negative, so it differs from the -1 that marks a size to be inferred.
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

    /// The same for two floats that clearly differ: known floats were computed in double precision, and the network
    /// may round differently.
    fn result_of_floats(self, a: f64, b: f64) -> Option<f64> {
        let is_apart = (a - b).abs() > APART * a.abs().max(b.abs()).max(1.0);
        let holds = match self {
            Self::Equal => false,
            Self::Greater | Self::GreaterOrEqual => a > b,
            Self::Less | Self::LessOrEqual => a < b,
            Self::And | Self::Or | Self::Xor => return None,
        };
        is_apart.then(|| f64::from(u8::from(holds)))
    }
}

impl Operator for Comparison {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let known = known(cx, &shapes, &|a, b| self.result(a, b), &|a, b| self.result_of_floats(a, b));
        let known = known.map(|known| match known {
            Known::Floats(values) => {
                Known::Ints(values.iter().map(|value| Dim::from(i64::from(*value != 0.0))).collect())
            }
            ints @ Known::Ints(_) => ints,
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_compared_only_if_rounding_can_not_change_the_result() {
        let of = |kind: Comparison, a, b| kind.result_of_floats(a, b);
        assert_eq!(of(Comparison::Greater, 2.5, 1.0), Some(1.0));
        assert_eq!(of(Comparison::Less, 2.5, 1.0), Some(0.0));
        assert_eq!(of(Comparison::LessOrEqual, -1e6, 1e6), Some(1.0));
        assert_eq!(of(Comparison::Equal, 0.0, 1.0), Some(0.0));
        for (a, b) in [(1.0, 1.0), (1000.0, 1001.0), (0.1 + 0.2 - 0.3, 0.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0)] {
            assert_eq!(of(Comparison::Greater, a, b), None, "{a} {b}");
            assert_eq!(of(Comparison::Equal, a, b), None, "{a} {b}");
        }
    }
}
