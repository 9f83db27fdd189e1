//! # Elementwise arithmetic of several inputs
//! Add, Sub, Mul, Div, Pow and their like, with numpy broadcasting.
//! Spec: <https://onnx.ai/onnx/operators/>. Opsets 7 and later (before, broadcasting was an attribute).
//!
//! Coupling: axes that are broadcast against each other are one axis.

use std::borrow::Cow;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known, broadcast_to, static_shape};
use crate::onnx::{DataType, attr_int};
use crate::operator::part::{Part, PartCx};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, broadcast, onnx,
};

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
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_binary, |node| Ok(Box::new(Binary::parse(node)?)))];

#[derive(Debug)]
struct Binary {
    kind: Arithmetic,
    /// The number of inputs.
    inputs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Mod,
    Min,
    Max,
    Mean,
    Sum,
}

impl Binary {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let kind = match node.proto.op_type.as_str() {
            "Add" => Arithmetic::Add,
            "Sub" => Arithmetic::Sub,
            "Mul" => Arithmetic::Mul,
            "Div" => Arithmetic::Div,
            "Pow" => Arithmetic::Pow,
            "Mod" => Arithmetic::Mod,
            "Min" => Arithmetic::Min,
            "Max" => Arithmetic::Max,
            "Mean" => Arithmetic::Mean,
            "Sum" => Arithmetic::Sum,
            other => return Err(RuleError::unsupported(format!("{other} is not an operator of this file"))),
        };
        Ok(Self { kind, inputs: node.inputs.len() })
    }
}

impl Operator for Binary {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let dtype = cx.input(0)?.dtype;
        let of_ints = |a: &Dim, b: &Dim| int_result(self.kind, a, b);
        let of_floats = |a: f64, b: f64| float_result(self.kind, a, b);
        let known = known(cx, &shapes, &of_ints, &of_floats);
        let shape = cx.broadcast(&shapes)?;
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..self.inputs).collect();
        let layout = cx.broadcast(&slots)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..self.inputs).collect();
        cx.elementwise(&slots)
    }

    fn scales(&self, _slot: usize) -> bool {
        self.kind == Arithmetic::Mul
    }

    fn part(&self, _cx: &PartCx<'_>) -> Option<Part> {
        match self.kind {
            Arithmetic::Add => Some(Part::Sum),
            Arithmetic::Mul => Some(Part::Product),
            _ => None,
        }
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        let wanted = cx.wanted(0)?;
        let is_larger = self.kind == Arithmetic::Mul && cx.input(1)?.len() > cx.input(0)?.len();
        let (slot, other) = if is_larger { (1, 0) } else { (0, 1) };
        let (before, by) = (cx.input(slot)?, cx.input(other)?);
        let unfit = || RuleError::unsupported("it broadcasts the weight");
        let by = by.broadcast(wanted.raw_dim()).ok_or_else(unfit)?;
        let mut value = wanted.clone();
        match self.kind {
            // An element multiplied by zero can't be recovered and remains unchanged.
            Arithmetic::Mul if before.shape() == wanted.shape() => {
                ndarray::Zip::from(&mut value).and(&by).and(before).for_each(|value, by, before| {
                    *value = if *by == 0.0 { *before } else { *value / by };
                });
            }
            Arithmetic::Div => value *= &by,
            Arithmetic::Add => value -= &by,
            Arithmetic::Sub => value += &by,
            _ => return Err(RuleError::unsupported("the operator can't be inverted")),
        }
        cx.set_input(slot, value)
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        for slot in (0..self.inputs).filter(|slot| cx.wants(*slot)).collect::<Vec<_>>() {
            let dx = derivative(self.kind, slot, self.inputs, &dy, cx);
            cx.add_broadcast_gradient(slot, &dx)?;
        }
        Ok(())
    }
}

/// Computes the elements of the result if those of both inputs, of these shapes, are known.
pub(super) fn known(
    cx: &InferCx<'_>,
    shapes: &[Vec<Dim>],
    of_ints: &dyn Fn(&Dim, &Dim) -> Option<Dim>,
    of_floats: &dyn Fn(f64, f64) -> Option<f64>,
) -> Option<Known> {
    let [a_shape, b_shape] = shapes else { return None };
    let (a, b) = (cx.optional(0)?.known.as_ref()?, cx.optional(1)?.known.as_ref()?);
    let is_simple = a.len() == 1 || b.len() == 1 || a_shape == b_shape;
    let (mut a, mut b) = (Cow::Borrowed(a), Cow::Borrowed(b));
    if !is_simple {
        let sizes = static_shape(&broadcast(shapes).ok()?)?;
        if sizes.iter().product::<usize>() > KNOWN_LIMIT {
            return None;
        }
        a = Cow::Owned(broadcast_to(&a, &static_shape(a_shape)?, &sizes)?);
        b = Cow::Owned(broadcast_to(&b, &static_shape(b_shape)?, &sizes)?);
    }
    let (a, b) = (a.as_ref(), b.as_ref());
    let count = a.len().max(b.len());
    if a.is_empty() || b.is_empty() {
        return None;
    }
    match (a, b) {
        (Known::Ints(a), Known::Ints(b)) => (0..count)
            .map(|at| of_ints(&a[at % a.len()], &b[at % b.len()]))
            .collect::<Option<Vec<_>>>()
            .map(Known::Ints),
        (Known::Floats(a), Known::Floats(b)) => (0..count)
            .map(|at| of_floats(a[at % a.len()], b[at % b.len()]))
            .collect::<Option<Vec<_>>>()
            .map(Known::Floats),
        _ => None,
    }
}

fn int_result(kind: Arithmetic, a: &Dim, b: &Dim) -> Option<Dim> {
    match kind {
        Arithmetic::Add => Some(a + b),
        Arithmetic::Sub => Some(a - b),
        Arithmetic::Mul => Some(a * b),
        // ONNX divides integers towards zero, which equals the floor if neither is negative.
        Arithmetic::Div => match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) => a.checked_div(b).map(Dim::from),
            (_, Some(b)) if b < 0 => None,
            _ => a.floor_div(b),
        },
        Arithmetic::Mod => a.modulo(b),
        Arithmetic::Min => Some(a.min(b)),
        Arithmetic::Max => Some(a.max(b)),
        Arithmetic::Pow => a.as_const()?.checked_pow(u32::try_from(b.as_const()?).ok()?).map(Dim::from),
        Arithmetic::Mean | Arithmetic::Sum => None,
    }
}

fn float_result(kind: Arithmetic, a: f64, b: f64) -> Option<f64> {
    Some(match kind {
        Arithmetic::Add => a + b,
        Arithmetic::Sub => a - b,
        Arithmetic::Mul => a * b,
        Arithmetic::Div => a / b,
        Arithmetic::Pow => a.powf(b),
        Arithmetic::Min => a.min(b),
        Arithmetic::Max => a.max(b),
        Arithmetic::Mod | Arithmetic::Mean | Arithmetic::Sum => return None,
    })
}

/// Computes the gradient with respect to input `slot` before it is summed over broadcast axes.
fn derivative(kind: Arithmetic, slot: usize, count: usize, dy: &str, cx: &mut GradientCx<'_>) -> String {
    let (a, b) = (cx.input(0), cx.input(1));
    match (kind, slot) {
        (Arithmetic::Add | Arithmetic::Sum, _) | (Arithmetic::Sub, 0) => dy.to_owned(),
        (Arithmetic::Sub, _) => cx.op("Neg", &[dy]),
        (Arithmetic::Mul, _) => {
            let other = if slot == 0 { b } else { a };
            cx.mul(dy, &other)
        }
        (Arithmetic::Div, 0) => cx.op("Div", &[dy, &b]),
        (Arithmetic::Div, _) => {
            // -dy a / b^2 = -dy y / b
            let y = cx.output(0);
            let product = cx.mul(dy, &y);
            let quotient = cx.op("Div", &[&product, &b]);
            cx.op("Neg", &[&quotient])
        }
        (Arithmetic::Pow, 0) => match cx.known_floats(1).as_deref() {
            Some([exponent]) if *exponent == 2.0 => {
                let twice = cx.scaled(&a, 2.0);
                cx.mul(dy, &twice)
            }
            Some([exponent]) => {
                let less = cx.scalar(exponent - 1.0);
                let power = cx.op("Pow", &[&a, &less]);
                let derivative = cx.scaled(&power, *exponent);
                cx.mul(dy, &derivative)
            }
            _ => {
                let b = cx.op_with("Cast", &[&b], vec![attr_int("to", DataType::Float as i64)]);
                let one = cx.scalar(1.0);
                let less = cx.op("Sub", &[&b, &one]);
                let power = cx.op("Pow", &[&a, &less]);
                let derivative = cx.mul(&power, &b);
                cx.mul(dy, &derivative)
            }
        },
        (Arithmetic::Pow, _) => {
            let y = cx.output(0);
            let log = cx.op("Log", &[&a]);
            let derivative = cx.mul(&y, &log);
            cx.mul(dy, &derivative)
        }
        (Arithmetic::Mean, _) => cx.scaled(dy, 1.0 / count as f64),
        (Arithmetic::Max | Arithmetic::Min, _) => {
            // If several inputs are equal to the extreme, they share the gradient equally.
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
        (Arithmetic::Mod, 0) => dy.to_owned(),
        (Arithmetic::Mod, _) => {
            // y = a - b q with an integer q.
            let y = cx.output(0);
            let multiple = cx.op("Sub", &[&y, &a]);
            let derivative = cx.op("Div", &[&multiple, &b]);
            cx.mul(dy, &derivative)
        }
    }
}
