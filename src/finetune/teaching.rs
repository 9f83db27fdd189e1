//! The teacher's contribution to a step: its output, intermediate values, and directional derivatives.

use super::directions::{DIFFERENCES, Directions, SamplePosition, levels, step};
use super::draw::Draws;
use super::features::{Feature, weights_of_rows};
use super::objective::{DERIVATIVES, feature_inputs};
use super::teacher::Teacher;
use super::trainer::{CleanBatch, CleanSamples, noisy};
use crate::array::{Array, ArrayData};
use crate::diffusion::{Level, Noising};
use crate::error::Error;

/// Number of samples for the differences from which the directions are computed.
const SAMPLES: usize = 64;

/// A teacher, and the values that are compared with it.
#[derive(Debug)]
pub struct Teaching {
    teacher: Teacher,
    /// The intermediate values, in the order in which the teacher returns them.
    features: Vec<Feature>,
    derivatives: Option<Derivatives>,
}

/// The settings of the comparison of derivatives.
#[derive(Debug)]
struct Derivatives {
    place: SamplePosition,
    directions: Directions,
    /// The inputs that have a row for every sample.
    batched: Vec<String>,
}

impl Teaching {
    /// Creates the teaching with the teacher's output and these intermediate values.
    pub fn new(teacher: Teacher, features: Vec<Feature>) -> Self {
        Self { teacher, features, derivatives: None }
    }

    /// Adds the comparison of derivatives, in directions computed from the teacher's outputs for some samples. Runs of
    /// the network and of the teacher then have three parts.
    ///
    /// # Errors
    /// The data can't be read, the teacher fails, or its differences over time are all zero or not finite.
    pub fn compare_derivatives(
        mut self,
        (noising, draws): (&Noising<'_>, &Draws),
        data: &mut dyn CleanSamples,
    ) -> Result<Self, Error> {
        let roles = noising.roles;
        let ports = [&roles.sample, &roles.time].into_iter().chain(&roles.conditioning);
        let batched: Vec<String> = ports.filter(|port| roles.is_batched(port)).map(|port| port.name.clone()).collect();
        let mut differences = Vec::new();
        while differences.len() < DIFFERENCES * SAMPLES {
            let clean = data.next()?;
            let length = clean.values.len() / clean.positions.len().max(1);
            let outputs = self.over_time(noising, draws, &clean, &batched)?;
            for pair in outputs.windows(2) {
                let rows = pair[1].chunks(length.max(1)).zip(pair[0].chunks(length.max(1)));
                differences.extend(rows.map(|(after, before)| after.iter().zip(before).map(|(a, b)| a - b).collect()));
            }
        }
        let directions = Directions::leading(&differences)?;
        self.derivatives = Some(Derivatives { place: SamplePosition::of(noising), directions, batched });
        Ok(self)
    }

    /// Returns the teacher's outputs at the ends of the differences over time.
    fn over_time(
        &mut self,
        noising: &Noising<'_>,
        draws: &Draws,
        clean: &CleanBatch,
        batched: &[String],
    ) -> Result<Vec<Vec<f32>>, Error> {
        let noise = draws.noise(&clean.positions, clean.values.shape());
        let of_samples: Vec<Vec<Level>> =
            clean.positions.iter().map(|at| levels(noising, draws.timestep(*at))).collect();
        let is_single = !noising.has_level_per_sample(clean.positions.len())?;
        let mut parts = Vec::with_capacity(DIFFERENCES + 1);
        for at in 0..=DIFFERENCES {
            let mut levels: Vec<Level> = of_samples.iter().map(|levels| levels[at]).collect();
            levels.truncate(if is_single { 1 } else { levels.len() });
            parts.push(noisy(noising, clean, &noise, &levels)?);
        }
        if !is_single {
            // A run has three parts, one for each level.
            let output = self.teacher.predict(&one_after_another(&parts, batched))?.output;
            return Ok(output.chunks((output.len() / 3).max(1)).map(<[f32]>::to_vec).collect());
        }
        let each = parts.into_iter().map(|part| {
            let mut output = self.teacher.predict(&one_after_another(&vec![part; 3], batched))?.output;
            output.truncate(output.len() / 3);
            Ok(output)
        });
        each.collect()
    }

    /// Runs the teacher on the inputs of a run and adds the inputs of the loss terms to them. Returns the teacher's
    /// output for the samples themselves.
    ///
    /// # Errors
    /// The teacher fails.
    pub fn teach(
        &mut self,
        inputs: &mut Vec<(String, Array)>,
        clean: &CleanBatch,
        draws: &Draws,
    ) -> Result<Vec<f32>, Error> {
        let parts = if let Some(derivatives) = &self.derivatives {
            derivatives.place.stack(inputs, clean, (&derivatives.directions, draws), &derivatives.batched)?;
            3
        } else {
            1
        };
        let taught = self.teacher.predict(inputs)?;
        for (at, (feature, array)) in self.features.iter().zip(taught.features).enumerate() {
            let rows = array.dims.first().copied().unwrap_or(0) / parts;
            let target = feature.gathered(array.rows(&(0..rows).collect::<Vec<_>>()));
            let weights = weights_of_rows(&target);
            let [target_name, weights_name] = feature_inputs(at);
            inputs.push((target_name, target.cast(crate::array::ElementType::F32)));
            inputs.push((weights_name, Array { dims: vec![weights.len()], data: ArrayData::F32(weights) }));
        }
        let mut output = taught.output;
        if let Some(derivatives) = &self.derivatives {
            let rows = clean.positions.len();
            let norms = squared_derivatives(&output, rows, step(derivatives.directions.elements()));
            // The derivative is about a hundred times larger where there is little noise, so the loss compares relative
            // differences.
            let weight = |norm: &f32| if *norm > 0.0 { norm.powi(-2) } else { 0.0 };
            let weights = norms.iter().map(weight).collect();
            for (name, values) in DERIVATIVES.into_iter().zip([norms, weights]) {
                inputs.push((name.to_owned(), Array { dims: vec![rows], data: ArrayData::F32(values) }));
            }
            output.truncate(output.len() / 3);
        }
        Ok(output)
    }
}

/// Concatenates the rows of all parts. An input without rows for samples is taken from the first part.
fn one_after_another(parts: &[Vec<(String, Array)>], batched: &[String]) -> Vec<(String, Array)> {
    let Some(first) = parts.first() else { return Vec::new() };
    let joined = |(at, (name, array)): (usize, &(String, Array))| {
        if !batched.contains(name) {
            return (name.clone(), array.clone());
        }
        let values: Vec<f64> = parts.iter().flat_map(|part| part[at].1.to_f64()).collect();
        let mut dims = array.dims.clone();
        dims[0] *= parts.len();
        (name.clone(), Array { dims, data: ArrayData::from_f64(array.element_type(), &values) })
    };
    first.iter().enumerate().map(joined).collect()
}

/// Returns the square of `(y(x + h v) - y(x - h v)) / (2 h)` for every sample, from the second and third of the
/// output's three parts.
fn squared_derivatives(output: &[f32], rows: usize, step: f32) -> Vec<f32> {
    let part = output.len() / 3;
    let length = (part / rows.max(1)).max(1);
    let (above, below) = output[part..].split_at(part);
    let square = |(above, below): (&[f32], &[f32])| {
        let sum: f64 = above.iter().zip(below).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (sum / (2.0 * f64::from(step)).powi(2)) as f32
    };
    above.chunks(length).zip(below.chunks(length)).map(square).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_with_rows_are_concatenated() {
        let part = |value: f32| {
            let array = |values: Vec<f32>| Array { dims: vec![values.len()], data: ArrayData::F32(values) };
            vec![("x".to_owned(), array(vec![value, value + 1.0])), ("c".to_owned(), array(vec![value]))]
        };
        let joined = one_after_another(&[part(1.0), part(5.0)], &["x".to_owned()]);
        assert_eq!(joined[0].1, Array { dims: vec![4], data: ArrayData::F32(vec![1.0, 2.0, 5.0, 6.0]) });
        assert_eq!(joined[1], part(1.0)[1]);
    }

    #[test]
    fn derivatives_are_differences_of_the_second_and_the_third_part() {
        let output = [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(squared_derivatives(&output, 2, 0.5), [1.0, 13.0]);
    }
}
