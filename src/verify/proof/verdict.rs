//! The verdict on a value from the numbers of its comparison.

use std::collections::HashMap;

use crate::array::Array;
use crate::kernels::proof::{Measured, sizes_of};
use crate::verify::compare;

/// Maximum difference at which agreement proves something, relative to the range of a value.
pub(super) const CONCLUSIVE: f64 = 1e-3;

/// The result of one run for one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Agrees {
        relative: f64,
        is_conclusive: bool,
    },
    Differs {
        relative: f64,
    },
    /// Its size follows from other sizes, and is smaller than the original's.
    Shrunk,
    OtherSize {
        expected: usize,
        found: usize,
    },
}

/// Judges the measurement of one value with a close tolerance.
pub(super) fn verdict(measured: &Measured, shrinks: bool, tolerance: f64) -> Verdict {
    if measured.expected != measured.found {
        if shrinks && measured.found < measured.expected {
            return Verdict::Shrunk;
        }
        return Verdict::OtherSize { expected: measured.expected as usize, found: measured.found as usize };
    }
    let difference = difference(measured);
    if !difference.is_within(tolerance, 0.0) {
        return Verdict::Differs { relative: difference.relative() };
    }
    Verdict::Agrees { relative: difference.relative(), is_conclusive: difference.is_conclusive(CONCLUSIVE) }
}

pub(super) fn difference(measured: &Measured) -> compare::Difference {
    let Measured { absolute, lowest, highest, not_finite, expected, .. } = *measured;
    let not_finite = not_finite as usize;
    if lowest > highest {
        return compare::Difference { absolute, scale: 0.0, spread: 0.0, not_finite };
    }
    let scale = lowest.abs().max(highest.abs());
    let spread = if expected == 1.0 { scale } else { highest - lowest };
    compare::Difference { absolute, scale, spread, not_finite }
}

/// Returns the measurement that a run computed for an output.
pub(super) fn measured(outputs: &HashMap<&str, &Array>, name: &str) -> Option<Measured> {
    Measured::from_numbers(&outputs.get(name)?.to_f64())
}

/// Returns the sizes of a value in both networks that a run computed for an output.
pub(super) fn measured_sizes(outputs: &HashMap<&str, &Array>, name: &str) -> Option<(Vec<i64>, Vec<i64>)> {
    sizes_of(&outputs.get(name)?.to_f64())
}

pub(super) fn by_name(outputs: &[(String, Array)]) -> HashMap<&str, &Array> {
    outputs.iter().map(|(name, array)| (name.as_str(), array)).collect()
}
