//! Functions of one value, with their parameters, and the operators that compute them.

use crate::graph::Node;
use crate::operator::{OpType, RuleError, microsoft, onnx};

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    Abs,
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atanh,
    BitwiseNot,
    Ceil,
    /// `max(0, x) + min(0, alpha (exp(x / alpha) - 1))`.
    Celu {
        alpha: f64,
    },
    Cos,
    Cosh,
    /// `alpha (exp(x) - 1)` below zero, else x.
    Elu {
        alpha: f64,
    },
    Erf,
    Exp,
    Floor,
    /// `x Phi(x)` with Phi the distribution function of the normal distribution, or its tanh approximation.
    Gelu {
        is_tanh: bool,
    },
    /// `max(0, min(1, alpha x + beta))`.
    HardSigmoid {
        alpha: f64,
    },
    HardSwish,
    IsInf,
    IsNaN,
    /// `alpha x` below zero, else x.
    LeakyRelu {
        alpha: f64,
    },
    Log,
    Mish,
    Neg,
    Not,
    Reciprocal,
    Relu,
    Round,
    /// `gamma alpha (exp(x) - 1)` below zero, else `gamma x`.
    Selu {
        alpha: f64,
        gamma: f64,
    },
    /// Zero where |x| is at most `limit`, else shifted towards zero by a bias.
    Shrink {
        limit: f64,
    },
    Sigmoid,
    Sign,
    Sin,
    Sinh,
    Softplus,
    Softsign,
    Sqrt,
    /// `x sigmoid(alpha x)`.
    Swish {
        alpha: f64,
    },
    Tan,
    Tanh,
    /// x above alpha, else zero.
    ThresholdedRelu {
        alpha: f64,
    },
}

/// The function that reads a node.
type Parse = fn(&Node) -> Function;

/// All operators with the function that a node of each computes.
pub(super) const TABLE: &[(OpType, Parse)] = &[
    (onnx("Abs"), |_| Function::Abs),
    (onnx("Acos"), |_| Function::Acos),
    (onnx("Acosh"), |_| Function::Acosh),
    (onnx("Asin"), |_| Function::Asin),
    (onnx("Asinh"), |_| Function::Asinh),
    (onnx("Atan"), |_| Function::Atan),
    (onnx("Atanh"), |_| Function::Atanh),
    (onnx("BitwiseNot"), |_| Function::BitwiseNot),
    (onnx("Ceil"), |_| Function::Ceil),
    (onnx("Celu"), |node| Function::Celu { alpha: alpha(node, 1.0) }),
    (onnx("Cos"), |_| Function::Cos),
    (onnx("Cosh"), |_| Function::Cosh),
    (onnx("Elu"), |node| Function::Elu { alpha: alpha(node, 1.0) }),
    (onnx("Erf"), |_| Function::Erf),
    (onnx("Exp"), |_| Function::Exp),
    (onnx("Floor"), |_| Function::Floor),
    (onnx("Gelu"), |node| Function::Gelu { is_tanh: node.proto.string("approximate") == Some("tanh") }),
    (onnx("HardSigmoid"), |node| Function::HardSigmoid { alpha: alpha(node, 0.2) }),
    (onnx("HardSwish"), |_| Function::HardSwish),
    (onnx("IsInf"), |_| Function::IsInf),
    (onnx("IsNaN"), |_| Function::IsNaN),
    (onnx("LeakyRelu"), |node| Function::LeakyRelu { alpha: alpha(node, 0.01) }),
    (onnx("Log"), |_| Function::Log),
    (onnx("Mish"), |_| Function::Mish),
    (onnx("Neg"), |_| Function::Neg),
    (onnx("Not"), |_| Function::Not),
    (onnx("Reciprocal"), |_| Function::Reciprocal),
    (onnx("Relu"), |_| Function::Relu),
    (onnx("Round"), |_| Function::Round),
    (onnx("Selu"), |node| Function::Selu {
        alpha: alpha(node, 1.673_263_2),
        gamma: f64::from(node.float("gamma", 1.050_701)),
    }),
    (onnx("Shrink"), |node| Function::Shrink { limit: f64::from(node.float("lambd", 0.5)) }),
    (onnx("Sigmoid"), |_| Function::Sigmoid),
    (onnx("Sign"), |_| Function::Sign),
    (onnx("Sin"), |_| Function::Sin),
    (onnx("Sinh"), |_| Function::Sinh),
    (onnx("Softplus"), |_| Function::Softplus),
    (onnx("Softsign"), |_| Function::Softsign),
    (onnx("Sqrt"), |_| Function::Sqrt),
    (onnx("Swish"), |node| Function::Swish { alpha: alpha(node, 1.0) }),
    (onnx("Tan"), |_| Function::Tan),
    (onnx("Tanh"), |_| Function::Tanh),
    (onnx("ThresholdedRelu"), |node| Function::ThresholdedRelu { alpha: alpha(node, 1.0) }),
    (microsoft("QuickGelu"), |node| Function::Swish { alpha: alpha(node, 1.702) }),
];

fn alpha(node: &Node, default: f32) -> f64 {
    f64::from(node.float("alpha", default))
}

impl Function {
    pub(super) fn parse(node: &Node) -> Result<Self, RuleError> {
        let (_, parse) = TABLE
            .iter()
            .find(|(op_type, _)| op_type.name == node.proto.op_type)
            .ok_or_else(|| RuleError::unsupported("this version does not know the function"))?;
        Ok(parse(node))
    }

    /// Whether the result is boolean instead of the input's type.
    pub(super) fn is_boolean(self) -> bool {
        matches!(self, Self::IsInf | Self::IsNaN)
    }

    /// Returns the function for a known float; `None` for most, which shape arithmetic never needs.
    pub(super) fn of_floats(self) -> Option<fn(f64) -> f64> {
        Some(match self {
            Self::Abs => f64::abs,
            Self::Ceil => f64::ceil,
            Self::Exp => f64::exp,
            Self::Floor => f64::floor,
            Self::Log => f64::ln,
            Self::Neg => |x| -x,
            Self::Reciprocal => |x| 1.0 / x,
            Self::Relu => |x| x.max(0.0),
            Self::Round => f64::round_ties_even,
            Self::Sqrt => f64::sqrt,
            _ => return None,
        })
    }
}
