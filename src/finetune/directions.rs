//! Directions in which derivatives are compared: the leading directions of the teacher's differences over time.
//!
//! With the teacher's output f and noisy samples `x_t` of one clean sample and one noise, the differences are
//! `f(x_t', t') - f(x_t, t)` for neighbouring timesteps t and t'. Their leading directions are the eigenvectors of
//! `sum d dᵀ` with the largest eigenvalues. Every sample of a run gets one of them at random, determined by its
//! position.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side};
use ndarray::{ArrayD, Axis, Slice};

use super::draw::Draws;
use super::trainer::CleanBatch;
use crate::array::{Array, ArrayData};
use crate::diffusion::{Level, Noising};
use crate::error::Error;

/// Maximum number of directions.
const COUNT: usize = 8;

/// Number of differences over time per sample.
pub(super) const DIFFERENCES: usize = 2;

/// The distance between the two timesteps of a difference: one part in this many of the schedule.
const APART: usize = 20;

/// The distance by which a sample is moved along its direction, divided by the square root of its number of elements:
/// the root mean square of the change.
const STEP: f64 = 0.01;

/// Returns the step length of the finite difference for a sample of this many elements.
pub fn step(elements: usize) -> f32 {
    (STEP * (elements.max(1) as f64).sqrt()) as f32
}

/// Directions of unit length, each with the elements of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    rows: Vec<Vec<f32>>,
}

impl Directions {
    /// Returns the leading directions of differences, which have equal length.
    ///
    /// # Errors
    /// All differences are zero, or some are not finite.
    pub fn leading(differences: &[Vec<f32>]) -> Result<Self, Error> {
        let fail =
            || Error::unmet("--distill-jacobian: the teacher's differences over time are all zero or not finite");
        let width = differences.first().map_or(0, Vec::len);
        let is_finite = |row: &Vec<f32>| row.iter().all(|value| value.is_finite());
        if width == 0 || !differences.iter().all(is_finite) {
            return Err(fail());
        }
        let all = Mat::from_fn(differences.len(), width, |row, at| f64::from(differences[row][at]));
        let mut products = Mat::zeros(all.nrows(), all.nrows());
        matmul(products.as_mut(), Accum::Replace, all.as_ref(), all.transpose(), 1.0, Par::Seq);
        let eigen = products.self_adjoint_eigen(Side::Lower).map_err(|_| fail())?;
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let mut rows = Vec::new();
        // Eigenvalues are in ascending order.
        let largest = values.iter().copied().fold(0.0, f64::max);
        for at in (0..values.nrows()).rev().take(COUNT).take_while(|at| values[*at] > 1e-9 * largest) {
            let mut row: Vec<f64> = (0..width)
                .map(|column| (0..all.nrows()).map(|of| vectors[(of, at)] * all[(of, column)]).sum())
                .collect();
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
            rows.push(row.into_iter().map(|value| value as f32).collect());
        }
        if rows.is_empty() { Err(fail()) } else { Ok(Self { rows }) }
    }

    /// Returns the direction of the sample at a position.
    pub fn of(&self, draws: &Draws, position: u64) -> &[f32] {
        &self.rows[draws.direction(position, self.rows.len())]
    }

    /// Returns the number of elements of a sample.
    pub fn elements(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }
}

/// Returns the noise levels at the ends of a sample's differences. `at` is the index of its timestep in the schedule.
pub(super) fn levels(noising: &Noising<'_>, at: usize) -> Vec<Level> {
    let all = noising.process.schedule.levels();
    let apart = (all.len() / APART).max(1);
    let last = all.len().saturating_sub(1);
    // Maps `at` to the first timestep, so that the last one is within the schedule.
    let free = last.saturating_sub(DIFFERENCES * apart);
    let first = (at * free).checked_div(last).unwrap_or(0);
    (0..=DIFFERENCES).map(|step| all[(first + step * apart).min(last)]).collect()
}

/// The position of the noisy sample within its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SamplePosition {
    /// The name of the input.
    pub input: String,
    /// Axis and offset of the sample. `None`: the input holds nothing besides the sample.
    pub within: Option<(usize, usize)>,
}

impl SamplePosition {
    /// Returns the position for a network with these roles.
    pub fn of(noising: &Noising<'_>) -> Self {
        let within = noising.roles.joined.as_ref().map(|joined| (joined.axis, joined.offset));
        Self { input: noising.roles.sample.name.clone(), within }
    }

    /// Adds `by` times the direction of every row to the sample in its input.
    fn moved(&self, input: &ArrayD<f32>, directions: &ArrayD<f32>, by: f32) -> ArrayD<f32> {
        let mut moved = input.clone();
        let mut sample = match self.within {
            None => moved.view_mut(),
            Some((axis, offset)) => {
                moved.slice_axis_mut(Axis(axis), Slice::from(offset..offset + directions.shape()[axis]))
            }
        };
        sample.scaled_add(by, directions);
        moved
    }

    /// Adds two parts to every input that has a row for each sample: one with the samples moved along their directions,
    /// and one with the samples moved in the opposite direction.
    ///
    /// # Errors
    /// The samples do not fit the directions.
    pub(super) fn stack(
        &self,
        inputs: &mut [(String, Array)],
        clean: &CleanBatch,
        (directions, draws): (&Directions, &Draws),
        batched: &[String],
    ) -> Result<(), Error> {
        let fail = |text: String| Error::unmet(format!("input {:?}: {text}", self.input));
        let by = step(directions.elements());
        let chosen = clean.positions.iter().flat_map(|at| directions.of(draws, *at).iter().copied()).collect();
        let shape = clean.values.raw_dim();
        let directions = ArrayD::from_shape_vec(shape, chosen).map_err(|error| fail(error.to_string()))?;
        for (name, array) in inputs.iter_mut() {
            if *name != self.input {
                if batched.contains(name) {
                    let rows: Vec<usize> = (0..array.dims.first().copied().unwrap_or(0)).collect();
                    *array = array.rows(&rows.repeat(3));
                }
                continue;
            }
            let ArrayData::F32(values) = &array.data else { continue };
            let input = ArrayD::from_shape_vec(array.dims.clone(), values.clone());
            let input = input.map_err(|error| fail(error.to_string()))?;
            let mut all = values.clone();
            for by in [by, -by] {
                all.extend(self.moved(&input, &directions, by));
            }
            array.dims[0] *= 3;
            array.data = ArrayData::F32(all);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetune::draw::TimestepDraw;

    #[test]
    fn the_leading_directions_are_those_of_the_longest_differences() {
        let differences = [vec![3.0, 4.0, 0.0], vec![-6.0, -8.0, 0.0], vec![0.0, 0.0, 0.5], vec![0.0, 0.0, 0.0]];
        let directions = Directions::leading(&differences).unwrap();
        assert_eq!(directions.rows.len(), 2, "{directions:?}");
        let [first, second] = [&directions.rows[0], &directions.rows[1]];
        assert!((first[0] / 0.6 - first[1] / 0.8).abs() < 1e-6 && (first[0].abs() - 0.6).abs() < 1e-6, "{first:?}");
        assert!(Directions::leading(&[]).is_err());
        assert!((second[2].abs() - 1.0).abs() < 1e-6, "{second:?}");
        assert!(Directions::leading(&[vec![0.0; 3]]).is_err() && Directions::leading(&[vec![f32::NAN; 3]]).is_err());
    }

    #[test]
    fn samples_are_moved_both_ways_and_other_inputs_are_repeated() {
        let directions = Directions { rows: vec![vec![1.0, 0.0]] };
        let draws = Draws { seed: 0, timesteps: TimestepDraw::Uniform, steps: 10, batch: 2 };
        let floats =
            |dims: &[usize], values: &[f32]| Array { dims: dims.to_vec(), data: ArrayData::F32(values.to_vec()) };
        let mut inputs = vec![
            ("x".to_owned(), floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("t".to_owned(), floats(&[2], &[7.0, 8.0])),
            ("c".to_owned(), floats(&[1], &[9.0])),
        ];
        let values = ArrayD::zeros(vec![2, 2]);
        let clean = CleanBatch { positions: vec![0, 1], values, conditioning: Vec::new() };
        let place = SamplePosition { input: "x".to_owned(), within: Some((1, 1)) };
        place.stack(&mut inputs, &clean, (&directions, &draws), &["x".to_owned(), "t".to_owned()]).unwrap();
        let by = step(2);
        let moved = |by: f32| [1.0, 2.0 + by, 3.0, 4.0, 5.0 + by, 6.0];
        let expected: Vec<f32> = [moved(0.0), moved(by), moved(-by)].concat();
        assert_eq!(inputs[0].1, floats(&[6, 3], &expected));
        assert_eq!(inputs[1].1, floats(&[6], &[7.0, 8.0, 7.0, 8.0, 7.0, 8.0]));
        assert_eq!(inputs[2].1, floats(&[1], &[9.0]));
    }
}
