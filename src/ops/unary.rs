//! # Elementwise operators of one input
//! Activations and arithmetic of one value.
//! Spec: <https://onnx.ai/onnx/operators/>. All opsets.
//!
//! Coupling: every axis passes through.

use crate::couple::CoupleCx;
use crate::dim::Dim;
use crate::fact::{Fact, Known};
use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, RuleError, microsoft, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Unary];

struct Unary;

/// What a unary operator does to a known float; for most, shape arithmetic never needs it.
type Float = Option<fn(f64) -> f64>;

const TABLE: &[(&str, Float)] = &[
    ("Abs", Some(f64::abs)),
    ("Acos", None),
    ("Acosh", None),
    ("Asin", None),
    ("Asinh", None),
    ("Atan", None),
    ("Atanh", None),
    ("BitwiseNot", None),
    ("Ceil", Some(f64::ceil)),
    ("Celu", None),
    ("Cos", None),
    ("Cosh", None),
    ("Elu", None),
    ("Erf", None),
    ("Exp", Some(f64::exp)),
    ("Floor", Some(f64::floor)),
    ("Gelu", None),
    ("HardSigmoid", None),
    ("HardSwish", None),
    ("IsInf", None),
    ("IsNaN", None),
    ("LeakyRelu", None),
    ("Log", Some(f64::ln)),
    ("Mish", None),
    ("Neg", Some(|x| -x)),
    ("Not", None),
    ("Reciprocal", Some(|x| 1.0 / x)),
    ("Relu", Some(|x| x.max(0.0))),
    ("Round", Some(f64::round_ties_even)),
    ("Selu", None),
    ("Shrink", None),
    ("Sigmoid", None),
    ("Sign", None),
    ("Sin", None),
    ("Sinh", None),
    ("Softplus", None),
    ("Softsign", None),
    ("Sqrt", Some(f64::sqrt)),
    ("Swish", None),
    ("Tan", None),
    ("Tanh", None),
    ("ThresholdedRelu", None),
];

impl Operator for Unary {
    fn op_types(&self) -> &'static [OpType] {
        static TYPES: std::sync::OnceLock<Vec<OpType>> = std::sync::OnceLock::new();
        TYPES.get_or_init(|| {
            let own = [microsoft("QuickGelu")];
            TABLE.iter().map(|(name, _)| onnx(name)).chain(own).collect()
        })
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let op_type = node.proto.op_type.as_str();
        let input = cx.input(0)?;
        let dtype = if matches!(op_type, "IsInf" | "IsNaN") { DataType::Bool } else { input.dtype };
        let known = match &input.known {
            Some(Known::Floats(values)) => TABLE
                .iter()
                .find(|(name, _)| *name == op_type)
                .and_then(|(_, of)| *of)
                .map(|of| Known::Floats(values.iter().copied().map(of).collect())),
            Some(Known::Ints(values)) => match op_type {
                "Neg" => Some(values.iter().map(|value| &Dim::from(0) - value).collect()),
                "Not" => values.iter().map(|v| Some(Dim::from(i64::from(v.as_const()? == 0)))).collect(),
                _ => None,
            }
            .map(Known::Ints),
            None => None,
        };
        let fact = Fact { dtype, shape: input.shape.clone(), known: None }.with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }
}
