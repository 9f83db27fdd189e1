//! # Elementwise operators of one input
//! Activations and arithmetic of one value.
//! Spec: <https://onnx.ai/onnx/operators/>. All opsets.
//!
//! Coupling: every axis passes through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::part::{Part, PartCx};
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft, onnx};

fn types_unary() -> &'static [OpType] {
    static TYPES: std::sync::OnceLock<Vec<OpType>> = std::sync::OnceLock::new();
    TYPES.get_or_init(|| {
        let own = [microsoft("QuickGelu")];
        TABLE.iter().map(|(name, _)| onnx(name)).chain(own).collect()
    })
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_unary, &Unary)];

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

impl NodeRules for Unary {
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

    fn takes_angle(&self, node: &Node) -> bool {
        matches!(node.proto.op_type.as_str(), "Sin" | "Cos")
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let dx = match node.proto.op_type.as_str() {
            // Steps are flat wherever they have a slope.
            "Ceil" | "Floor" | "Round" | "Sign" => return Ok(()),
            "Neg" => cx.op("Neg", &[&dy]),
            _ => {
                let slope = slope(node, cx)?;
                cx.mul(&dy, &slope)
            }
        };
        cx.give(0, dx);
        Ok(())
    }

    fn part(&self, node: &Node, _cx: &PartCx<'_>) -> Option<Part> {
        match node.proto.op_type.as_str() {
            "Sigmoid" => Some(Part::Sigmoid),
            "Swish" if node.float("alpha", 1.0) == 1.0 => Some(Part::Silu),
            _ => None,
        }
    }
}

/// The derivative of an activation at every element of its input x, with y its output.
fn slope(node: &Node, cx: &mut GradientCx<'_>) -> Result<String, RuleError> {
    let (x, y) = (cx.input(0), cx.output(0));
    let alpha = |default: f32| f64::from(node.float("alpha", default));
    let one = cx.scalar(1.0);
    let zero = cx.scalar(0.0);
    Ok(match node.proto.op_type.as_str() {
        "Sigmoid" => {
            let rest = cx.op("Sub", &[&one, &y]);
            cx.mul(&y, &rest)
        }
        "Tanh" => {
            let square = cx.mul(&y, &y);
            cx.op("Sub", &[&one, &square])
        }
        "Exp" => y,
        "Sqrt" => {
            let half = cx.scalar(0.5);
            cx.op("Div", &[&half, &y])
        }
        "Reciprocal" => {
            let square = cx.mul(&y, &y);
            cx.op("Neg", &[&square])
        }
        "Log" => cx.op("Reciprocal", &[&x]),
        "Sin" => cx.op("Cos", &[&x]),
        "Cos" => {
            let sine = cx.op("Sin", &[&x]);
            cx.op("Neg", &[&sine])
        }
        "Tan" => {
            let square = cx.mul(&y, &y);
            cx.op("Add", &[&one, &square])
        }
        "Sinh" => cx.op("Cosh", &[&x]),
        "Cosh" => cx.op("Sinh", &[&x]),
        "Asin" | "Acos" => {
            let square = cx.mul(&x, &x);
            let rest = cx.op("Sub", &[&one, &square]);
            let root = cx.op("Sqrt", &[&rest]);
            let slope = cx.op("Reciprocal", &[&root]);
            if node.proto.op_type == "Acos" { cx.op("Neg", &[&slope]) } else { slope }
        }
        "Atan" => {
            let square = cx.mul(&x, &x);
            let sum = cx.op("Add", &[&one, &square]);
            cx.op("Reciprocal", &[&sum])
        }
        "Asinh" | "Acosh" => {
            let square = cx.mul(&x, &x);
            let under = cx.op(if node.proto.op_type == "Asinh" { "Add" } else { "Sub" }, &[&square, &one]);
            let root = cx.op("Sqrt", &[&under]);
            cx.op("Reciprocal", &[&root])
        }
        "Atanh" => {
            let square = cx.mul(&x, &x);
            let rest = cx.op("Sub", &[&one, &square]);
            cx.op("Reciprocal", &[&rest])
        }
        "Erf" => {
            let square = cx.mul(&x, &x);
            let negative = cx.op("Neg", &[&square]);
            let bell = cx.op("Exp", &[&negative]);
            cx.scaled(&bell, std::f64::consts::FRAC_2_SQRT_PI)
        }
        "Abs" => cx.op("Sign", &[&x]),
        "Relu" => cx.where_positive(&x, &one, &zero),
        "LeakyRelu" => {
            let leak = cx.scalar(alpha(0.01));
            cx.where_positive(&x, &one, &leak)
        }
        "ThresholdedRelu" => {
            let threshold = cx.scalar(alpha(1.0));
            let above = cx.op("Greater", &[&x, &threshold]);
            cx.op("Where", &[&above, &one, &zero])
        }
        // y = a (e^(x / a) - 1) below zero.
        "Elu" => {
            let shift = cx.scalar(alpha(1.0));
            let below = cx.op("Add", &[&y, &shift]);
            cx.where_positive(&x, &one, &below)
        }
        "Celu" => {
            let below = cx.scaled(&y, 1.0 / alpha(1.0));
            let below = cx.op("Add", &[&below, &one]);
            cx.where_positive(&x, &one, &below)
        }
        "Selu" => {
            let gamma = f64::from(node.float("gamma", 1.050_701));
            let gamma_name = cx.scalar(gamma);
            let shift = cx.scalar(gamma * alpha(1.673_263_2));
            let below = cx.op("Add", &[&y, &shift]);
            cx.where_positive(&x, &gamma_name, &below)
        }
        "Shrink" => {
            let limit = cx.scalar(f64::from(node.float("lambd", 0.5)));
            let size = cx.op("Abs", &[&x]);
            let above = cx.op("Greater", &[&size, &limit]);
            cx.op("Where", &[&above, &one, &zero])
        }
        "HardSigmoid" => {
            // Flat where it is cut off at 0 and 1.
            let low = cx.op("Greater", &[&y, &zero]);
            let high = cx.op("Less", &[&y, &one]);
            let inside = cx.op("And", &[&low, &high]);
            let slope = cx.scalar(alpha(0.2));
            cx.op("Where", &[&inside, &slope, &zero])
        }
        "HardSwish" => {
            // x max(0, min(1, x / 6 + 1 / 2)): x / 3 + 1 / 2 between -3 and 3.
            let (three, half) = (cx.scalar(3.0), cx.scalar(0.5));
            let third = cx.scaled(&x, 1.0 / 3.0);
            let middle = cx.op("Add", &[&third, &half]);
            let low = cx.op("Neg", &[&three]);
            let is_high = cx.op("Less", &[&three, &x]);
            let is_above = cx.op("Greater", &[&x, &low]);
            let inside = cx.op("Where", &[&is_above, &middle, &zero]);
            cx.op("Where", &[&is_high, &one, &inside])
        }
        "Softplus" => cx.op("Sigmoid", &[&x]),
        "Softsign" => {
            let size = cx.op("Abs", &[&x]);
            let sum = cx.op("Add", &[&one, &size]);
            let square = cx.mul(&sum, &sum);
            cx.op("Reciprocal", &[&square])
        }
        // x tanh(s) with s = softplus(x): tanh(s) + x (1 - tanh(s)^2) sigmoid(x).
        "Mish" => {
            let soft = cx.op("Softplus", &[&x]);
            let tanh = cx.op("Tanh", &[&soft]);
            let square = cx.mul(&tanh, &tanh);
            let rest = cx.op("Sub", &[&one, &square]);
            let sigmoid = cx.op("Sigmoid", &[&x]);
            let rest = cx.mul(&rest, &sigmoid);
            let rest = cx.mul(&rest, &x);
            cx.op("Add", &[&tanh, &rest])
        }
        // x s with s = sigmoid(a x): s + a y (1 - s).
        "Swish" | "QuickGelu" => {
            let alpha = alpha(if node.proto.op_type == "Swish" { 1.0 } else { 1.702 });
            let inner = cx.scaled(&x, alpha);
            let s = cx.op("Sigmoid", &[&inner]);
            let rest = cx.op("Sub", &[&one, &s]);
            let rest = cx.mul(&rest, &y);
            let rest = cx.scaled(&rest, alpha);
            cx.op("Add", &[&s, &rest])
        }
        "Gelu" => {
            let is_tanh = node.proto.string("approximate") == Some("tanh");
            cx.gelu_slope(&x, is_tanh)
        }
        _ => return Err(RuleError::unsupported("it has no derivative")),
    })
}
