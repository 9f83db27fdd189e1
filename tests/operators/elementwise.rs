//! Elementwise operators.

use onnx_diffprune::onnx::{AttributeProto, attr_float, attr_int, attr_string};

use super::around::{Around::Conv, Around::StaticConv, CHANNELS};
use super::{Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    activations_have_gradients,
    step_functions_have_zero_gradients,
    operands_have_gradients,
    selections_have_gradients,
];

const C: i64 = CHANNELS;

/// Computes `(tanh(v) * factor) + shift`, whose elements are within the domain of an operator.
fn within(n: &mut Builder, v: &str, factor: f32, shift: f32) -> String {
    let (factor, shift) = (n.float(factor), n.float(shift));
    let v = n.op("Tanh", &[v], &[]);
    let v = n.op("Mul", &[&v, &factor], &[]);
    n.op("Add", &[&v, &shift], &[])
}

#[test]
fn activations_have_gradients() {
    let plain = |op: &'static str, opsets: &[i64]| activation(op, opsets, &[], None);
    for op in ["Abs", "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Neg", "Softplus", "Softsign"] {
        plain(op, &[9, 13]);
    }
    for op in ["Sin", "Cos", "Sinh", "Cosh", "Atan", "Asinh", "Elu", "Selu", "LeakyRelu", "HardSigmoid"] {
        plain(op, &[9, 13]);
    }
    for op in ["ThresholdedRelu", "Celu"] {
        plain(op, &[12]);
    }
    plain("HardSwish", &[14]);
    plain("Mish", &[18]);
    plain("Gelu", &[20]);
    plain("Swish", &[24]);
    for op in ["Asin", "Acos", "Atanh", "Tan"] {
        activation(op, &[9], &[], Some((0.8, 0.0)));
    }
    for op in ["Log", "Sqrt", "Reciprocal", "Acosh"] {
        activation(op, &[9, 13], &[], Some((0.8, 2.0)));
    }
    let alpha = attr_float("alpha", 0.3);
    for op in ["Elu", "Celu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu"] {
        activation(op, &[13], std::slice::from_ref(&alpha), None);
    }
    activation("Selu", &[13], &[alpha.clone(), attr_float("gamma", 1.5)], None);
    activation("HardSigmoid", &[13], &[alpha, attr_float("beta", 0.1)], None);
    activation("Shrink", &[9], &[attr_float("lambd", 0.4), attr_float("bias", 0.4)], None);
    activation("Gelu", &[20], &[attr_string("approximate", "tanh")], None);
    for op in ["QuickGelu", "Gelu"] {
        check(op, Conv, &[13], Removed, |n, v| (n.fused(op, &[v], &[], 1).remove(0), Some(C)));
    }
}

fn activation(op: &str, opsets: &[i64], attributes: &[AttributeProto], domain: Option<(f32, f32)>) {
    check(op, Conv, opsets, Removed, |n, v| {
        let x = match domain {
            Some((factor, shift)) => within(n, v, factor, shift),
            None => v.to_owned(),
        };
        (n.op(op, &[&x], attributes), Some(C))
    });
}

/// All elements lie between two steps, because the loss has no derivative at a step.
#[test]
fn step_functions_have_zero_gradients() {
    for (op, middle) in [("Ceil", 0.5), ("Floor", 0.5), ("Round", 0.0), ("Sign", 0.5)] {
        check(op, Conv, &[11, 13], Removed, |n, v| {
            let x = within(n, v, 0.4, middle);
            let step = n.op(op, &[&x], &[]);
            (n.op("Add", &[v, &step], &[]), Some(C))
        });
    }
}

#[test]
fn operands_have_gradients() {
    for op in ["Add", "Sub", "Mul", "Div", "Pow"] {
        check(&format!("{op} of a row"), Conv, &[9, 13], Removed, |n, v| {
            let (v, row) = (within(n, v, 0.8, 2.0), n.weight(&[C, 1, 1]));
            let row = within(n, &row, 0.8, 2.0);
            (n.op(op, &[&v, &row], &[]), Some(C))
        });
        check(&format!("{op} from a row"), Conv, &[9, 13], Removed, |n, v| {
            let (v, row) = (within(n, v, 0.8, 2.0), n.weight(&[1, C, 1, 1]));
            let row = within(n, &row, 0.8, 2.0);
            (n.op(op, &[&row, &v], &[]), Some(C))
        });
        check(&format!("{op} of a scalar"), Conv, &[9, 13], Removed, |n, v| {
            let (v, scalar) = (within(n, v, 0.8, 2.0), n.weight(&[1]));
            let scalar = within(n, &scalar, 0.8, 2.0);
            (n.op(op, &[&v, &scalar], &[]), Some(C))
        });
        check(&format!("{op} of the same value"), Conv, &[13], Removed, |n, v| {
            let v = within(n, v, 0.8, 2.0);
            (n.op(op, &[&v, &v], &[]), Some(C))
        });
    }
    for exponent in [0.5, 2.0, 3.0, -1.0] {
        check("Pow of a constant", Conv, &[9, 13], Removed, |n, v| {
            let (v, exponent) = (within(n, v, 0.8, 2.0), n.float(exponent));
            (n.op("Pow", &[&v, &exponent], &[]), Some(C))
        });
    }
    check("Mod", Conv, &[10, 13], Removed, |n, v| {
        let (v, row) = (within(n, v, 0.8, 2.5), n.weight(&[C, 1, 1]));
        let row = within(n, &row, 0.1, 1.0);
        (n.op("Mod", &[&v, &row], &[attr_int("fmod", 1)]), Some(C))
    });
}

#[test]
fn selections_have_gradients() {
    for op in ["Min", "Max", "Mean", "Sum"] {
        for count in 1..=3 {
            check(op, Conv, &[9, 13], Removed, |n, v| {
                let mut operands = vec![v.to_owned()];
                operands.extend((1..count).map(|_| n.weight(&[C, 1, 1])));
                let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
                (n.op(op, &operands, &[]), Some(C))
            });
        }
    }
    check("Where of a given condition", StaticConv, &[9, 16], Removed, |n, v| {
        let (zero, row, other) =
            (n.float(0.0), n.floats(&[1.0, -1.0, 1.0, -1.0, 1.0, 1.0], &[6]), n.weight(&[C, 4, 1]));
        let condition = n.op("Greater", &[&row, &zero], &[]);
        (n.op("Where", &[&condition, v, &other], &[]), Some(C))
    });
    check("PRelu", Conv, &[9, 16], Removed, |n, v| {
        let slope = n.weight(&[C, 1, 1]);
        (n.op("PRelu", &[v, &slope], &[]), Some(C))
    });
    check("Clip by attributes", Conv, &[9], Removed, |n, v| {
        (n.op("Clip", &[v], &[attr_float("min", -0.4), attr_float("max", 0.6)]), Some(C))
    });
    check("Clip from below", Conv, &[13], Removed, |n, v| {
        let low = n.float(-0.3);
        (n.op("Clip", &[v, &low], &[]), Some(C))
    });
    check("Clip from above", Conv, &[13], Removed, |n, v| {
        let high = n.float(0.3);
        (n.op("Clip", &[v, "", &high], &[]), Some(C))
    });
}
