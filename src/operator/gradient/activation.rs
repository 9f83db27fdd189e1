//! Derivatives of activations that several operators contain.

use super::GradientCx;

impl GradientCx<'_> {
    /// Computes the derivative of GELU: `phi(x) + x phi'(x)` with the distribution function `phi` of the normal
    /// distribution, or that of the tanh approximation.
    pub fn gelu_derivative(&mut self, x: &str, is_tanh: bool) -> String {
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
