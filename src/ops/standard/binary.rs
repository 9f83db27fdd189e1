//! # Elementwise operators of several inputs
//! Add, Sub, Mul, Div, Pow and their like, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/>. Opsets 7 and later (before, broadcasting was an attribute).
//!
//! Coupling: axes that broadcast against each other are one axis.

use std::borrow::Cow;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known, broadcast_to, static_shape};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::part::{Part, PartCx};
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, broadcast, onnx};

fn types_binary() -> &'static [OpType] {
    const {
        &[
            onnx("Add"),
            onnx("Sub"),
            onnx("Mul"),
            onnx("Div"),
            onnx("Pow"),
            onnx("Mod"),
            onnx("Min"),
            onnx("Max"),
            onnx("Mean"),
            onnx("Sum"),
            onnx("Equal"),
            onnx("Greater"),
            onnx("GreaterOrEqual"),
            onnx("Less"),
            onnx("LessOrEqual"),
            onnx("And"),
            onnx("Or"),
            onnx("Xor"),
            onnx("BitShift"),
            onnx("BitwiseAnd"),
            onnx("BitwiseOr"),
            onnx("BitwiseXor"),
            onnx("SwiGLU"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_binary, &Binary)];

struct Binary;

const COMPARISONS: &[&str] = &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"];

impl NodeRules for Binary {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let op_type = node.proto.op_type.as_str();
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let dtype = if COMPARISONS.contains(&op_type) { DataType::Bool } else { cx.input(0)?.dtype };
        let known = if shapes.len() == 2 { known(op_type, cx, &shapes) } else { None };
        cx.set(0, Fact::new(dtype, broadcast(&shapes)?).with_known(known));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        let layout = cx.broadcast(&slots)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        cx.elementwise(&slots)
    }

    fn scales(&self, node: &Node, _slot: usize) -> bool {
        node.proto.op_type == "Mul"
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let op_type = node.proto.op_type.as_str();
        let count = node.inputs.len();
        for slot in (0..count).filter(|slot| cx.wants(*slot)).collect::<Vec<_>>() {
            let dx = derivative(op_type, slot, count, &dy, cx)?;
            cx.give_broadcast(slot, &dx)?;
        }
        Ok(())
    }

    fn part(&self, node: &Node, _cx: &PartCx<'_>) -> Option<Part> {
        match node.proto.op_type.as_str() {
            "Add" => Some(Part::Sum),
            "Mul" => Some(Part::Product),
            _ => None,
        }
    }
}

/// The elements of the result where those of both inputs are known.
fn known(op_type: &str, cx: &InferCx<'_>, shapes: &[Vec<Dim>]) -> Option<Known> {
    let (a, b) = (cx.optional(0)?.known.as_ref()?, cx.optional(1)?.known.as_ref()?);
    let is_simple = a.len() == 1 || b.len() == 1 || shapes[0] == shapes[1];
    let (mut a, mut b) = (Cow::Borrowed(a), Cow::Borrowed(b));
    if !is_simple {
        let sizes = static_shape(&broadcast(shapes).ok()?)?;
        if sizes.iter().product::<usize>() > KNOWN_LIMIT {
            return None;
        }
        a = Cow::Owned(broadcast_to(&a, &static_shape(&shapes[0])?, &sizes)?);
        b = Cow::Owned(broadcast_to(&b, &static_shape(&shapes[1])?, &sizes)?);
    }
    let (a, b) = (a.as_ref(), b.as_ref());
    let count = a.len().max(b.len());
    if a.is_empty() || b.is_empty() {
        return None;
    }
    match (a, b) {
        (Known::Ints(a), Known::Ints(b)) => (0..count)
            .map(|at| int_result(op_type, &a[at % a.len()], &b[at % b.len()]))
            .collect::<Option<Vec<_>>>()
            .map(Known::Ints),
        (Known::Floats(a), Known::Floats(b)) => (0..count)
            .map(|at| float_result(op_type, a[at % a.len()], b[at % b.len()]))
            .collect::<Option<Vec<_>>>()
            .map(Known::Floats),
        _ => None,
    }
}

fn int_result(op_type: &str, a: &Dim, b: &Dim) -> Option<Dim> {
    let compare = |holds: &dyn Fn(i64, i64) -> bool| Some(Dim::from(i64::from(holds(a.as_const()?, b.as_const()?))));
    match op_type {
        "Add" => Some(a + b),
        "Sub" => Some(a - b),
        "Mul" => Some(a * b),
        // ONNX divides integers towards zero, which is the floor where neither is negative.
        "Div" => match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) => a.checked_div(b).map(Dim::from),
            (_, Some(b)) if b < 0 => None,
            _ => a.floor_div(b),
        },
        "Mod" => a.modulo(b),
        "Min" => Some(a.min(b)),
        "Max" => Some(a.max(b)),
        "Pow" => a.as_const()?.checked_pow(u32::try_from(b.as_const()?).ok()?).map(Dim::from),
        "Equal" if a == b => Some(Dim::from(1)),
        // A size is never negative, so it differs from the -1 that marks a size to be found out.
        "Equal" if a.is(-1) || b.is(-1) => Some(Dim::from(0)),
        "Equal" => compare(&|a, b| a == b),
        "Greater" => compare(&|a, b| a > b),
        "GreaterOrEqual" => compare(&|a, b| a >= b),
        "Less" => compare(&|a, b| a < b),
        "LessOrEqual" => compare(&|a, b| a <= b),
        "And" => compare(&|a, b| a != 0 && b != 0),
        "Or" => compare(&|a, b| a != 0 || b != 0),
        "Xor" => compare(&|a, b| (a != 0) != (b != 0)),
        _ => None,
    }
}

fn float_result(op_type: &str, a: f64, b: f64) -> Option<f64> {
    Some(match op_type {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => a / b,
        "Pow" => a.powf(b),
        "Min" => a.min(b),
        "Max" => a.max(b),
        _ => return None,
    })
}

/// The gradient by input `slot` before it is summed over broadcast axes.
fn derivative(
    op_type: &str,
    slot: usize,
    count: usize,
    dy: &str,
    cx: &mut GradientCx<'_>,
) -> Result<String, RuleError> {
    let (a, b) = (cx.input(0), cx.input(1));
    Ok(match (op_type, slot) {
        ("Add" | "Sum", _) | ("Sub", 0) => dy.to_owned(),
        ("Sub", _) => cx.op("Neg", &[dy]),
        ("Mul", _) => {
            let other = if slot == 0 { b } else { a };
            cx.mul(dy, &other)
        }
        ("Div", 0) => cx.op("Div", &[dy, &b]),
        ("Div", _) => {
            // -dy a / b^2 = -dy y / b
            let y = cx.output(0);
            let product = cx.mul(dy, &y);
            let quotient = cx.op("Div", &[&product, &b]);
            cx.op("Neg", &[&quotient])
        }
        ("Pow", 0) => match cx.known_floats(1).as_deref() {
            Some([exponent]) if *exponent == 2.0 => {
                let twice = cx.scaled(&a, 2.0);
                cx.mul(dy, &twice)
            }
            Some([exponent]) => {
                let less = cx.scalar(exponent - 1.0);
                let power = cx.op("Pow", &[&a, &less]);
                let slope = cx.scaled(&power, *exponent);
                cx.mul(dy, &slope)
            }
            _ => {
                let b = cx.op_with("Cast", &[&b], vec![crate::onnx::attr_int("to", DataType::Float as i64)]);
                let one = cx.scalar(1.0);
                let less = cx.op("Sub", &[&b, &one]);
                let power = cx.op("Pow", &[&a, &less]);
                let slope = cx.mul(&power, &b);
                cx.mul(dy, &slope)
            }
        },
        ("Pow", _) => {
            let y = cx.output(0);
            let log = cx.op("Log", &[&a]);
            let slope = cx.mul(&y, &log);
            cx.mul(dy, &slope)
        }
        ("Mean", _) => cx.scaled(dy, 1.0 / count as f64),
        ("Max" | "Min", _) => {
            // Where several inputs reach the extreme, they share the gradient.
            let y = cx.output(0);
            let mut hits = Vec::new();
            for other in 0..count {
                let input = cx.input(other);
                hits.push(cx.equal(&input, &y));
            }
            let all: Vec<&str> = hits.iter().map(String::as_str).collect();
            let total = cx.op("Sum", &all);
            let share = cx.op("Div", &[&hits[slot], &total]);
            cx.mul(dy, &share)
        }
        ("Mod", 0) => dy.to_owned(),
        ("Mod", _) => {
            // y = a - b q with a whole number q.
            let y = cx.output(0);
            let multiple = cx.op("Sub", &[&y, &a]);
            let slope = cx.op("Div", &[&multiple, &b]);
            cx.mul(dy, &slope)
        }
        _ => return Err(RuleError::unsupported("this input has no gradient")),
    })
}
