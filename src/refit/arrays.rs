//! Operations of a fit on whole arrays: kept parts, differences, and steps back from a target to a layer's output.

use ndarray::{ArrayD, Axis, IxDyn};

use super::layers::Step;
use crate::array::{Array, ArrayData};

/// Converts an array of float32 to an ndarray. `None`: it has another type.
pub(super) fn floats(array: Array) -> Option<ArrayD<f32>> {
    let ArrayData::F32(values) = array.data else { return None };
    ArrayD::from_shape_vec(IxDyn(&array.dims), values).ok()
}

/// Returns the kept part of an array: the kept indices of every axis. `None`: the axis is kept whole.
pub(super) fn kept_part(array: &ArrayD<f32>, kept: &[Option<Vec<usize>>]) -> ArrayD<f32> {
    let mut part = array.clone();
    for (axis, indices) in kept.iter().enumerate() {
        if let Some(indices) = indices {
            part = part.select(Axis(axis), indices);
        }
    }
    part
}

/// Returns the output that a layer must have for its steps to lead to `target`; `addend` returns the other addends.
/// `None`: shapes do not match.
pub(super) fn back(
    target: ArrayD<f32>,
    steps: &[Step],
    mut addend: impl FnMut(crate::graph::ValueId) -> Option<ArrayD<f32>>,
) -> Option<ArrayD<f32>> {
    let mut at = target;
    for step in steps.iter().rev() {
        match step {
            Step::Add { value } => {
                if let Some(other) = addend(*value) {
                    at -= &other.broadcast(at.raw_dim())?;
                }
            }
            Step::Move { before, perm: None, .. } => {
                at = ArrayD::from_shape_vec(IxDyn(before), at.into_iter().collect()).ok()?;
            }
            Step::Move { perm: Some(perm), .. } => {
                let mut inverse = vec![0; perm.len()];
                perm.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
                at = at.permuted_axes(inverse).as_standard_layout().into_owned();
            }
        }
    }
    Some(at.as_standard_layout().into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_are_reversed() {
        let output = ArrayD::from_shape_vec(IxDyn(&[2, 6]), (0..12).map(|at| at as f32).collect()).unwrap();
        let moved = output.clone().into_shape_with_order(IxDyn(&[2, 2, 3])).unwrap();
        let turned = moved.permuted_axes(vec![2, 0, 1]).as_standard_layout().into_owned();
        let other = ArrayD::from_elem(IxDyn(&[3, 1, 1]), 5.0);
        let target = turned + &other;
        let steps = [
            Step::Move { before: vec![2, 6], perm: None },
            Step::Move { before: vec![2, 2, 3], perm: Some(vec![2, 0, 1]) },
            Step::Add { value: 0 },
        ];
        assert_eq!(back(target, &steps, |_| Some(other.clone())).unwrap(), output);
    }

    #[test]
    fn the_kept_part_has_the_kept_indices() {
        let array = ArrayD::from_shape_vec(IxDyn(&[2, 3]), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let part = kept_part(&array, &[None, Some(vec![0, 2])]);
        assert_eq!(part.into_iter().collect::<Vec<_>>(), [0.0, 2.0, 3.0, 5.0]);
    }
}
