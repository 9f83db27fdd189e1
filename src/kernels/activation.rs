//! The sigmoid and SiLU.

/// Computes `1 / (1 + e^-x)` with operations that compilers vectorise. The relative error is below 1e-6.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Computes `e^x`: `2^n` times a polynomial of the remainder, as in Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and then subtracting this constant rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let of_rest = p * r * r + r + 1.0;
    // The low bits of `rounded` hold the integer.
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    of_rest * f32::from_bits(power)
}

/// Computes `x sigmoid(x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Computes the derivative of [`silu`].
#[inline(always)]
pub(super) fn silu_derivative(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// Computes `dx = dy silu'(x)`.
#[inline(always)]
pub(super) fn silu_gradient(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * silu_derivative(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sigmoid_agrees_with_double_precision() {
        for at in -9000..=9000 {
            let x = at as f32 / 100.0;
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(sigmoid(x)) - exact).abs();
            assert!(error <= 1e-6 * exact + 1e-37, "{x}: {} instead of {exact}", sigmoid(x));
        }
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(1e30), sigmoid(-1e30) < 1e-36), (1.0, true));
    }

    #[test]
    fn the_derivative_agrees_with_centred_differences() {
        let exact = |x: f64| x / (1.0 + (-x).exp());
        for at in -100..=100 {
            let x = f64::from(at) / 10.0;
            let difference = (exact(x + 1e-4) - exact(x - 1e-4)) / 2e-4;
            assert!((f64::from(silu_derivative(x as f32)) - difference).abs() < 1e-6, "{x}");
        }
    }
}
