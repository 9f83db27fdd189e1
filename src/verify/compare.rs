//! The difference of two arrays, and whether their agreement proves anything.

use crate::array::Array;

/// The difference between found and expected elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Difference {
    /// Largest absolute difference of finite elements; infinite if only one of two elements is finite.
    pub(super) absolute: f64,
    /// Largest magnitude of the finite expected elements.
    pub(super) scale: f64,
    /// Range of the finite expected elements; the magnitude if there is only one element.
    pub(super) spread: f64,
    /// Number of elements that are the same infinity, or NaN, on both sides.
    pub(super) not_finite: usize,
}

impl Difference {
    /// The difference of arrays of different shapes.
    pub(super) const OF_SHAPE: Self = Self { absolute: f64::INFINITY, scale: 0.0, spread: 0.0, not_finite: 0 };

    /// Computes the difference of two lists of the same length.
    pub(super) fn of(expected: &[f64], found: &[f64]) -> Self {
        let (mut absolute, mut lowest, mut highest, mut not_finite) = (0.0f64, f64::INFINITY, f64::NEG_INFINITY, 0);
        for (a, b) in expected.iter().zip(found) {
            if a.is_finite() && b.is_finite() {
                (lowest, highest) = (lowest.min(*a), highest.max(*a));
                absolute = absolute.max((a - b).abs());
            } else if a == b || (a.is_nan() && b.is_nan()) {
                not_finite += 1;
            } else {
                absolute = f64::INFINITY;
            }
        }
        if lowest > highest {
            return Self { absolute, scale: 0.0, spread: 0.0, not_finite };
        }
        let scale = lowest.abs().max(highest.abs());
        let spread = if expected.len() == 1 { scale } else { highest - lowest };
        Self { absolute, scale, spread, not_finite }
    }

    /// Computes the difference of an output. It is infinite for an output that is missing or of another shape.
    pub(super) fn of_output(expected: &Array, found: Option<&Array>) -> Self {
        match found {
            Some(found) if found.dims == expected.dims => Self::of(&expected.to_f64(), &found.to_f64()),
            _ => Self::OF_SHAPE,
        }
    }

    /// Returns the largest difference divided by the largest magnitude.
    pub(super) fn relative(&self) -> f64 {
        if self.absolute == 0.0 { 0.0 } else { self.absolute / self.scale.max(f64::MIN_POSITIVE) }
    }

    /// Whether no element differs by more than the tolerances allow.
    pub(super) fn is_within(&self, rtol: f64, atol: f64) -> bool {
        self.absolute <= atol + rtol * self.scale
    }

    /// Whether agreement proves anything. Equal numbers, such as zeros, prove nothing: they agree whatever channel they are
    /// from. Tiny numbers may agree by the absolute tolerance alone, and numbers far from zero by their common part.
    /// NaN and infinity prove nothing either.
    pub(super) fn is_conclusive(&self, rtol: f64) -> bool {
        self.not_finite == 0 && self.spread > 0.0 && self.absolute <= rtol * self.spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_of_constant_tiny_or_infinite_numbers_is_not_conclusive() {
        let compare = |expected: &[f64], found: &[f64]| {
            let difference = Difference::of(expected, found);
            (difference.is_within(1e-4, 1e-6), difference.is_conclusive(1e-4))
        };
        assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.00005]), (true, true));
        assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.1]), (false, false));
        assert_eq!(compare(&[0.0, 0.0], &[0.0, 0.0]), (true, false));
        assert_eq!(compare(&[0.5, 0.5], &[0.5, 0.5]), (true, false));
        assert_eq!(compare(&[0.5], &[0.5]), (true, true));
        assert_eq!(compare(&[100.0, 100.01], &[100.01, 100.0]), (true, false), "only the common part agrees");
        assert_eq!(compare(&[1e-8, 2e-8], &[2e-8, 1e-8]), (true, false), "within the absolute tolerance");
        assert_eq!(compare(&[1e-8, 2e-8], &[1e-8, 2e-8]), (true, true), "equal numbers, however small");
        assert_eq!(compare(&[f64::NAN, 1.0], &[f64::NAN, 1.0]), (true, false));
        assert_eq!(compare(&[f64::INFINITY], &[f64::INFINITY]), (true, false));
        assert_eq!(compare(&[f64::NAN, 1.0], &[0.0, 1.0]), (false, false));
        assert_eq!(compare(&[f64::INFINITY], &[f64::NEG_INFINITY]), (false, false));
    }
}
