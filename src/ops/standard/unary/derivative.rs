//! The derivatives of functions of one value.

use super::function::Function;
use crate::operator::{GradientCx, RuleError};

/// Computes the derivative of a function at every element of its input x; y is its output.
///
/// # Errors
/// No derivative is implemented.
pub(super) fn of(function: Function, cx: &mut GradientCx<'_>) -> Result<String, RuleError> {
    let (x, y) = (cx.input(0), cx.output(0));
    let one = cx.scalar(1.0);
    let zero = cx.scalar(0.0);
    Ok(match function {
        Function::Sigmoid => {
            let rest = cx.op("Sub", &[&one, &y]);
            cx.mul(&y, &rest)
        }
        Function::Tanh => {
            let square = cx.mul(&y, &y);
            cx.op("Sub", &[&one, &square])
        }
        Function::Exp => y,
        Function::Sqrt => {
            let half = cx.scalar(0.5);
            cx.op("Div", &[&half, &y])
        }
        Function::Reciprocal => {
            let square = cx.mul(&y, &y);
            cx.op("Neg", &[&square])
        }
        Function::Log => cx.op("Reciprocal", &[&x]),
        Function::Sin => cx.op("Cos", &[&x]),
        Function::Cos => {
            let sine = cx.op("Sin", &[&x]);
            cx.op("Neg", &[&sine])
        }
        Function::Tan => {
            let square = cx.mul(&y, &y);
            cx.op("Add", &[&one, &square])
        }
        Function::Sinh => cx.op("Cosh", &[&x]),
        Function::Cosh => cx.op("Sinh", &[&x]),
        Function::Asin | Function::Acos => {
            let square = cx.mul(&x, &x);
            let rest = cx.op("Sub", &[&one, &square]);
            let root = cx.op("Sqrt", &[&rest]);
            let derivative = cx.op("Reciprocal", &[&root]);
            if function == Function::Acos { cx.op("Neg", &[&derivative]) } else { derivative }
        }
        Function::Atan => {
            let square = cx.mul(&x, &x);
            let sum = cx.op("Add", &[&one, &square]);
            cx.op("Reciprocal", &[&sum])
        }
        Function::Asinh | Function::Acosh => {
            let square = cx.mul(&x, &x);
            let under = cx.op(if function == Function::Asinh { "Add" } else { "Sub" }, &[&square, &one]);
            let root = cx.op("Sqrt", &[&under]);
            cx.op("Reciprocal", &[&root])
        }
        Function::Atanh => {
            let square = cx.mul(&x, &x);
            let rest = cx.op("Sub", &[&one, &square]);
            cx.op("Reciprocal", &[&rest])
        }
        Function::Erf => {
            let square = cx.mul(&x, &x);
            let negative = cx.op("Neg", &[&square]);
            let bell = cx.op("Exp", &[&negative]);
            cx.scaled(&bell, std::f64::consts::FRAC_2_SQRT_PI)
        }
        Function::Abs => cx.op("Sign", &[&x]),
        Function::Relu => cx.where_positive(&x, &one, &zero),
        Function::LeakyRelu { alpha } => {
            let leak = cx.scalar(alpha);
            cx.where_positive(&x, &one, &leak)
        }
        Function::ThresholdedRelu { alpha } => {
            let threshold = cx.scalar(alpha);
            let above = cx.op("Greater", &[&x, &threshold]);
            cx.op("Where", &[&above, &one, &zero])
        }
        // y = a (e^(x / a) - 1) below zero.
        Function::Elu { alpha } => {
            let shift = cx.scalar(alpha);
            let below = cx.op("Add", &[&y, &shift]);
            cx.where_positive(&x, &one, &below)
        }
        Function::Celu { alpha } => {
            let below = cx.scaled(&y, 1.0 / alpha);
            let below = cx.op("Add", &[&below, &one]);
            cx.where_positive(&x, &one, &below)
        }
        Function::Selu { alpha, gamma } => {
            let gamma_name = cx.scalar(gamma);
            let shift = cx.scalar(gamma * alpha);
            let below = cx.op("Add", &[&y, &shift]);
            cx.where_positive(&x, &gamma_name, &below)
        }
        Function::Shrink { limit } => {
            let limit = cx.scalar(limit);
            let size = cx.op("Abs", &[&x]);
            let above = cx.op("Greater", &[&size, &limit]);
            cx.op("Where", &[&above, &one, &zero])
        }
        Function::HardSigmoid { alpha } => {
            // The derivative is zero where the function is clipped to 0 or 1.
            let low = cx.op("Greater", &[&y, &zero]);
            let high = cx.op("Less", &[&y, &one]);
            let inside = cx.op("And", &[&low, &high]);
            let derivative = cx.scalar(alpha);
            cx.op("Where", &[&inside, &derivative, &zero])
        }
        Function::HardSwish => {
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
        Function::Softplus => cx.op("Sigmoid", &[&x]),
        Function::Softsign => {
            let size = cx.op("Abs", &[&x]);
            let sum = cx.op("Add", &[&one, &size]);
            let square = cx.mul(&sum, &sum);
            cx.op("Reciprocal", &[&square])
        }
        // x tanh(s) with s = softplus(x): tanh(s) + x (1 - tanh(s)^2) sigmoid(x).
        Function::Mish => {
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
        Function::Swish { alpha } => {
            let inner = cx.scaled(&x, alpha);
            let s = cx.op("Sigmoid", &[&inner]);
            let rest = cx.op("Sub", &[&one, &s]);
            let rest = cx.mul(&rest, &y);
            let rest = cx.scaled(&rest, alpha);
            cx.op("Add", &[&s, &rest])
        }
        Function::Gelu { is_tanh } => cx.gelu_derivative(&x, is_tanh),
        _ => return Err(RuleError::unsupported("the operator has no derivative")),
    })
}
