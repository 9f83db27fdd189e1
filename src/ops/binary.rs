//! # Elementwise operators of several inputs
//! Add, Sub, Mul, Div, Pow and their like, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/>. Opsets 7 and later (before, broadcasting was an attribute).
//!
//! Coupling: axes that broadcast against each other are one axis.

use crate::couple::CoupleCx;
use crate::dim::Dim;
use crate::fact::{Fact, Known};
use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, RuleError, broadcast, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Binary];

struct Binary;

const COMPARISONS: &[&str] = &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"];

impl Operator for Binary {
    fn op_types(&self) -> &'static [OpType] {
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
}

/// The elements of the result where those of both inputs are known and one is a scalar or both have one shape.
fn known(op_type: &str, cx: &InferCx<'_>, shapes: &[Vec<Dim>]) -> Option<Known> {
    let (a, b) = (cx.optional(0)?.known.as_ref()?, cx.optional(1)?.known.as_ref()?);
    if a.len() != b.len() && a.len() != 1 && b.len() != 1 {
        return None;
    }
    if a.len() == b.len() && a.len() != 1 && shapes[0] != shapes[1] {
        return None;
    }
    let count = a.len().max(b.len());
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
