//! Slopes of activations that several operators contain.

use crate::operator::RuleError;

use super::GradientCx;

impl GradientCx<'_> {
    /// The gradient by what a fused activation reads, from the gradient `dy` by its result `y`. The parameters are those
    /// of ONNX Runtime's fused operators: alpha (and beta), or the limits of Clip.
    ///
    /// # Errors
    /// An activation that the fused operators do not have.
    pub fn through_fused_activation(
        &mut self,
        name: &str,
        parameters: &[f32],
        dy: &str,
        y: &str,
    ) -> Result<String, RuleError> {
        let (zero, one) = (self.scalar(0.0), self.scalar(1.0));
        let first = |default: f64| parameters.first().map_or(default, |value| f64::from(*value));
        let slope = match name {
            "Relu" => self.where_positive(y, &one, &zero),
            "LeakyRelu" => {
                let leak = self.scalar(first(0.01));
                self.where_positive(y, &one, &leak)
            }
            "Sigmoid" => {
                let rest = self.op("Sub", &[&one, y]);
                self.mul(y, &rest)
            }
            "Tanh" => {
                let square = self.mul(y, y);
                self.op("Sub", &[&one, &square])
            }
            "Clip" | "HardSigmoid" => {
                let is_clip = name == "Clip";
                let last = parameters.get(1).map_or(f64::INFINITY, |value| f64::from(*value));
                let (low, high) = if is_clip { (first(f64::NEG_INFINITY), last) } else { (0.0, 1.0) };
                let (low, high) = (self.scalar(low), self.scalar(high));
                let (above, below) = (self.op("Greater", &[y, &low]), self.op("Less", &[y, &high]));
                let inside = self.op("And", &[&above, &below]);
                let slope = self.scalar(if is_clip { 1.0 } else { first(0.2) });
                self.op("Where", &[&inside, &slope, &zero])
            }
            other => return Err(RuleError::unsupported(format!("a fused {other} has no gradient"))),
        };
        Ok(self.mul(dy, &slope))
    }

    /// The derivative of GELU: `phi(x) + x phi'(x)` with the normal distribution `phi`, or that of its tanh form.
    pub fn gelu_slope(&mut self, x: &str, is_tanh: bool) -> String {
        use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
        let (one, half) = (self.scalar(1.0), self.scalar(0.5));
        let square = self.mul(x, x);
        if is_tanh {
            // y = x / 2 (1 + tanh(u)), u = c (x + a x^3).
            let (c, a) = (FRAC_2_SQRT_PI * FRAC_1_SQRT_2, 0.044_715);
            let cubic = self.scaled(&square, a);
            let inner = self.op("Add", &[&cubic, &one]);
            let inner = self.mul(&inner, x);
            let inner = self.scaled(&inner, c);
            let tanh = self.op("Tanh", &[&inner]);
            let sum = self.op("Add", &[&tanh, &one]);
            let first = self.mul(&sum, &half);
            let of_tanh = self.mul(&tanh, &tanh);
            let of_tanh = self.op("Sub", &[&one, &of_tanh]);
            let of_inner = self.scaled(&square, 3.0 * a);
            let of_inner = self.op("Add", &[&of_inner, &one]);
            let second = self.mul(&of_tanh, &of_inner);
            let second = self.mul(&second, x);
            let second = self.scaled(&second, 0.5 * c);
            return self.op("Add", &[&first, &second]);
        }
        let scaled = self.scaled(x, FRAC_1_SQRT_2);
        let erf = self.op("Erf", &[&scaled]);
        let sum = self.op("Add", &[&erf, &one]);
        let first = self.mul(&sum, &half);
        let exponent = self.scaled(&square, -0.5);
        let bell = self.op("Exp", &[&exponent]);
        let second = self.mul(&bell, x);
        let second = self.scaled(&second, 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
        self.op("Add", &[&first, &second])
    }
}
