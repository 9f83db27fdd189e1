//! The objective of a training step.
//!
//! With the output y of the network, the target x of its process and the output z of the teacher, the squared loss with
//! distillation is `mean((1 - d) (y - x)^2 + d (y - z)^2)`. Its gradient is that of `mean((y - (1 - d) x - d z)^2)`.
//! The graph therefore has one term, and the rest, which does not depend on the weights, is added to the loss
//! afterwards. The comparisons of intermediate values and of derivatives with the teacher's are separate terms.

use serde::{Deserialize, Serialize};

use crate::array::{Array, ArrayData};
use crate::diffusion::{Level, PredictionType, Process};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::loss::{Distance, LossTerm};

/// The input for the teacher's output, where it is a separate term.
const TEACHER: &str = "__teacher";

/// The input for the weights of the samples.
const WEIGHTS: &str = "__sample_weights";

/// The inputs for the squares of the teacher's directional derivatives, one per sample, and for the weights of the
/// samples in that term.
pub(super) const DERIVATIVES: [&str; 2] = ["__slopes", "__slope_weights"];

/// Returns the names of the inputs for the teacher's value of feature `at` and for the weights of its rows.
pub(super) fn feature_inputs(at: usize) -> [String; 2] {
    [format!("__feature/{at}"), format!("__feature_weights/{at}")]
}

/// The loss of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// The weight of the teacher's output in the loss, from 0 to 1.
    pub distill: f64,
    /// The difference at which the Huber loss changes from quadratic to linear. `None`: quadratic everywhere.
    pub huber: Option<f32>,
    /// The signal-to-noise ratio above which samples are weighted down ("Efficient Diffusion Training via Min-SNR
    /// Weighting Strategy", 2023). `None`: equal weights.
    pub snr_gamma: Option<f64>,
    /// The weight of the intermediate values. Their loss is the mean, over values and samples, of `|y - z|^2 / |z|^2`,
    /// with the value y and the kept part z of the teacher's value.
    pub features: f64,
    /// The weight of the mean over samples of `(|J v|^2 / |J' v|^2 - 1)^2`, with the derivative J of the output with
    /// respect to the noisy sample, the teacher's derivative J', and directions v of unit length. Zero: derivatives are
    /// not compared. "2ndMatch" (2025) has the difference of the squares instead.
    pub jacobian: f64,
}

/// Default weight of the intermediate values.
pub const FEATURES: f64 = 0.1;

impl Default for Objective {
    fn default() -> Self {
        Self { distill: 0.7, huber: None, snr_gamma: None, features: FEATURES, jacobian: 0.0 }
    }
}

impl Objective {
    /// Checks that all numbers are in their ranges.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&self.distill) {
            return Err(Error::usage(format!("--distill: expected a number from 0 to 1, found {}", self.distill)));
        }
        for (name, weight) in [("--distill-features-weight", self.features), ("--distill-jacobian", self.jacobian)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(Error::usage(format!("{name}: expected a finite number of at least 0, found {weight}")));
            }
        }
        if let Some(gamma) = self.snr_gamma.filter(|gamma| !(*gamma > 0.0 && gamma.is_finite())) {
            return Err(Error::usage(format!("--snr-gamma: expected a number above 0, found {gamma}")));
        }
        match self.huber.filter(|delta| !(*delta > 0.0 && delta.is_finite())) {
            Some(delta) => Err(Error::usage(format!("--huber: expected a number above 0, found {delta}"))),
            None => Ok(()),
        }
    }

    /// Returns the number of parts of a run of the graph, each as large as the batch: the samples, and if derivatives
    /// are compared, the samples moved along their directions and in the opposite direction.
    pub fn parts(&self) -> usize {
        if self.jacobian > 0.0 { 3 } else { 1 }
    }

    /// Returns whether the teacher runs at every step: for its output, for intermediate values if there are any, or for
    /// derivatives.
    pub fn needs_teacher(&self, has_features: bool) -> bool {
        self.distill > 0.0 || self.jacobian > 0.0 || has_features
    }

    /// Returns whether the weight of samples depends on their timestep.
    fn is_weighted(&self, process: &Process) -> bool {
        let first = process.schedule.levels().first();
        self.snr_gamma.is_some()
            || process
                .schedule
                .levels()
                .iter()
                .any(|level| first.is_some_and(|first| process.loss_weight(first) != process.loss_weight(level)))
    }

    /// Returns the loss terms of the graph. The first `channels` of the prediction `output` are compared. `features`
    /// are the names of the intermediate values, and `step` is the distance by which samples are moved.
    pub fn terms(
        &self,
        process: &Process,
        (output, channels): (&str, Option<i64>),
        features: &[String],
        step: f32,
    ) -> Vec<LossTerm> {
        let mut terms = self.terms_of_output(process, output, channels);
        let parts = self.parts() as i64;
        for (at, value) in features.iter().enumerate().filter(|_| self.features > 0.0) {
            let [target, weights] = feature_inputs(at);
            let weight = self.features / features.len() as f64;
            let term = LossTerm { target, sample_weights: Some(weights), weight, parts, ..LossTerm::squared(value) };
            terms.push(term);
        }
        if self.jacobian > 0.0 {
            let distance = Distance::SquaredDirectionalDerivative { step };
            let [target, weights] = DERIVATIVES.map(str::to_owned);
            let (sample_weights, weight) = (Some(weights), self.jacobian);
            terms.push(LossTerm { channels, distance, target, sample_weights, weight, ..LossTerm::squared(output) });
        }
        terms
    }

    fn terms_of_output(&self, process: &Process, output: &str, channels: Option<i64>) -> Vec<LossTerm> {
        let sample_weights = self.is_weighted(process).then(|| WEIGHTS.to_owned());
        let parts = self.parts() as i64;
        let term = LossTerm { channels, sample_weights, parts, ..LossTerm::squared(output) };
        let Some(delta) = self.huber else { return vec![term] };
        let distance = Distance::Huber { delta };
        let own = LossTerm { distance, weight: 1.0 - self.distill, ..term.clone() };
        let taught = LossTerm { distance, weight: self.distill, target: TEACHER.to_owned(), ..term };
        [own, taught].into_iter().filter(|term| term.weight > 0.0).collect()
    }

    /// Returns the weight of a sample at a level.
    fn weight(&self, process: &Process, level: &Level) -> f64 {
        let own = process.loss_weight(level);
        let Some(gamma) = self.snr_gamma else { return own };
        let snr = (level.signal / level.noise.max(f64::MIN_POSITIVE)).powi(2);
        let least = snr.min(gamma);
        own * match (process.prediction, process.preconditioning) {
            (PredictionType::Epsilon, None) => least / snr.max(f64::MIN_POSITIVE),
            (PredictionType::VPrediction | PredictionType::Flow, None) => least / (snr + 1.0),
            _ => least,
        }
    }

    /// Completes the inputs of a run: mixes the teacher's output into the target, and adds the weights of the samples,
    /// one per level. Returns the number to add to the loss that the graph returns.
    pub fn complete(
        &self,
        process: &Process,
        inputs: &mut Vec<(String, Array)>,
        teacher: Option<Vec<f32>>,
        levels: &[Level],
    ) -> f64 {
        let weights: Option<Vec<f32>> =
            self.is_weighted(process).then(|| levels.iter().map(|level| self.weight(process, level) as f32).collect());
        let mut rest = 0.0;
        if let Some(teacher) = teacher
            && let Some((_, target)) = inputs.iter_mut().find(|(name, _)| name == TARGET)
        {
            if self.huber.is_some() {
                let taught = Array { dims: target.dims.clone(), data: ArrayData::F32(teacher) };
                if self.distill > 0.0 {
                    inputs.push((TEACHER.to_owned(), taught));
                }
            } else if let ArrayData::F32(values) = &mut target.data {
                rest = self.mix(values, &teacher, weights.as_deref());
            }
        }
        if let Some(weights) = weights {
            inputs.push((WEIGHTS.to_owned(), Array { dims: vec![weights.len()], data: ArrayData::F32(weights) }));
        }
        rest
    }

    /// Replaces the target by the weighted mean of target and teacher. Returns the mean of `d (1 - d) (x - z)^2`, with
    /// the samples weighted.
    fn mix(&self, target: &mut [f32], teacher: &[f32], weights: Option<&[f32]>) -> f64 {
        let share = self.distill as f32;
        let rows = weights.map_or(1, <[f32]>::len).max(1);
        let length = (target.len() / rows).max(1);
        let mut sum = 0.0;
        for (row, (target, teacher)) in target.chunks_mut(length).zip(teacher.chunks(length)).enumerate() {
            let mut squares = 0.0;
            for (target, teacher) in target.iter_mut().zip(teacher) {
                let difference = *teacher - *target;
                squares += f64::from(difference) * f64::from(difference);
                *target += share * difference;
            }
            sum += squares * weights.map_or(1.0, |weights| f64::from(weights[row]));
        }
        self.distill * (1.0 - self.distill) * sum / target.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_term_with_a_mixed_target_equals_the_loss_of_two_terms() {
        let objective = Objective { distill: 0.7, ..Objective::default() };
        let (y, x, z) = ([0.3_f32, -1.0, 2.0, 0.1], [0.5_f32, 0.5, -0.5, 1.0], [0.2_f32, -0.8, 1.0, 0.0]);
        let weights = [2.0_f32, 0.5];
        let weight = |at: usize| f64::from(weights[at / 2]);
        let square = |a: f32, b: f32| f64::from(a - b).powi(2);
        let wanted =
            (0..4).map(|at| weight(at) * (0.3 * square(y[at], x[at]) + 0.7 * square(y[at], z[at]))).sum::<f64>() / 4.0;
        let mut target = x;
        let rest = objective.mix(&mut target, &z, Some(&weights));
        let of_graph = (0..4).map(|at| weight(at) * square(y[at], target[at])).sum::<f64>() / 4.0;
        assert!((of_graph + rest - wanted).abs() < 1e-6, "{of_graph} + {rest}, expected {wanted}");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let wrong = [
            Objective { distill: 1.5, ..Objective::default() },
            Objective { distill: f64::NAN, ..Objective::default() },
            Objective { huber: Some(0.0), ..Objective::default() },
            Objective { snr_gamma: Some(-1.0), ..Objective::default() },
            Objective { features: f64::NAN, ..Objective::default() },
            Objective { jacobian: -0.1, ..Objective::default() },
        ];
        assert!(wrong.iter().all(|objective| objective.check().is_err()));
        assert!(Objective::default().check().is_ok());
    }
}
