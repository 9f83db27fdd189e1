//! The optimizer step on the CPU: clipping by the global norm, Adam or AdamW, and the moving average of the weights, in
//! one pass over memory.
//!
//! The results are those of PyTorch's `torch.nn.utils.clip_grad_norm_`, `torch.optim.Adam` and `AdamW`, and of a moving
//! average with the warm-up of diffusers' `EMAModel` (`min(decay, (1 + s) / (10 + s))` at step s).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The optimizer, which determines how weights decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    #[default]
    AdamW,
    /// Adam with weight decay added to the gradient (Kingma and Ba, 2015).
    Adam,
}

/// The settings of the optimizer except for the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerOptions {
    /// The optimizer.
    pub kind: OptimizerKind,
    /// The decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// The number added to the square root of the second moment.
    pub epsilon: f64,
    /// The weight decay.
    pub weight_decay: f64,
    /// Maximum global norm of the gradients: larger gradients are scaled down. `None`: no clipping.
    pub clip: Option<f64>,
    /// Maximum decay of the moving average of the weights. `None`: no moving average.
    pub ema: Option<f64>,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: Some(1.0),
            ema: Some(0.999),
        }
    }
}

/// The optimizer's state for one weight. Each vector has as many elements as the weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightState {
    /// The first moment.
    pub first: Vec<f32>,
    /// The second moment.
    pub second: Vec<f32>,
    /// The moving average. Empty if there is none.
    pub average: Vec<f32>,
}

impl WeightState {
    /// Returns the state before the first step.
    pub fn new(weight: &[f32], options: &OptimizerOptions) -> Self {
        let zeros = vec![0.0; weight.len()];
        let average = if options.ema.is_some() { weight.to_vec() } else { Vec::new() };
        Self { first: zeros.clone(), second: zeros, average }
    }
}

/// Number of elements per task.
const TASK: usize = 1 << 15;

/// Returns the global norm of all gradients, summed in float64. It does not depend on the number of threads.
pub fn norm<'g>(gradients: impl Iterator<Item = &'g [f32]>) -> f64 {
    let chunks: Vec<&[f32]> = gradients.flat_map(|gradient| gradient.chunks(TASK)).collect();
    let sums: Vec<f64> = chunks.par_iter().map(|chunk| squares(chunk)).collect();
    sums.iter().sum::<f64>().sqrt()
}

fn squares(values: &[f32]) -> f64 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut sums = [0.0_f64; 8];
            let (whole, rest) = values.as_chunks::<8>();
            for chunk in whole {
                for (sum, value) in sums.iter_mut().zip(chunk) {
                    *sum += f64::from(*value) * f64::from(*value);
                }
            }
            sums.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
        },
    )
}

/// The factors of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factors {
    pub(super) gradient: f32,
    pub(super) keep: f32,
    pub(super) coupled_decay: f32,
    /// The decay of the second moment, and the weights of the gradient in both moments: 1 minus the decay, computed in
    /// float64 before rounding, as in PyTorch.
    pub(super) second_decay: f32,
    pub(super) shares: (f32, f32),
    pub(super) rate: f32,
    pub(super) root_scale: f32,
    pub(super) epsilon: f32,
    pub(super) average: Option<f32>,
}

impl OptimizerOptions {
    /// Returns the clipping factor for gradients of this norm.
    fn clipping(&self, norm: f64) -> f64 {
        self.clip.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0))
    }

    /// Returns the decay of the moving average at step `step`, counted from 1.
    pub fn average_decay(&self, step: u64) -> Option<f64> {
        let step = step as f64;
        self.ema.map(|most| most.min((1.0 + step) / (10.0 + step)))
    }

    /// Returns the factors of step `step` (counted from 1) for a learning rate and the global `norm` of the gradients.
    pub(super) fn factors(&self, step: u64, rate: f64, norm: f64) -> Factors {
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let correction = |beta: f64| 1.0 - beta.powi(power);
        let (first, second) = (correction(self.betas.0), correction(self.betas.1));
        let is_decoupled = self.kind == OptimizerKind::AdamW;
        Factors {
            gradient: self.clipping(norm) as f32,
            keep: if is_decoupled { (1.0 - rate * self.weight_decay) as f32 } else { 1.0 },
            coupled_decay: if is_decoupled { 0.0 } else { self.weight_decay as f32 },
            second_decay: self.betas.1 as f32,
            shares: ((1.0 - self.betas.0) as f32, (1.0 - self.betas.1) as f32),
            rate: (rate / first) as f32,
            root_scale: (1.0 / second.sqrt()) as f32,
            epsilon: self.epsilon as f32,
            average: self.average_decay(step).map(|decay| (1.0 - decay) as f32),
        }
    }

    /// Performs step `step` (counted from 1) on all weights. `norm` is the global norm of the gradients, for clipping.
    pub fn step(&self, step: u64, rate: f64, norm: f64, weights: &mut [(&mut [f32], &[f32], &mut WeightState)]) {
        let factors = self.factors(step, rate, norm);
        weights.par_iter_mut().for_each(|(weight, gradient, state)| {
            let averages: Vec<&mut [f32]> = match factors.average {
                Some(_) => state.average.chunks_mut(TASK).collect(),
                None => Vec::new(),
            };
            let mut averages = averages.into_iter();
            let parts = weight.chunks_mut(TASK).zip(gradient.chunks(TASK));
            let moments = state.first.chunks_mut(TASK).zip(state.second.chunks_mut(TASK));
            let parts: Vec<_> = parts.zip(moments).map(|(part, moments)| (part, moments, averages.next())).collect();
            parts.into_par_iter().for_each(|((weight, gradient), (first, second), average)| {
                advance(&factors, weight, gradient, (first, second));
                if let (Some(average), Some(share)) = (average, factors.average) {
                    follow(average, weight, share);
                }
            });
        });
    }
}

fn advance(of: &Factors, weight: &mut [f32], gradient: &[f32], (first, second): (&mut [f32], &mut [f32])) {
    let of = *of;
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((weight, gradient), (first, second)) in weight.iter_mut().zip(gradient).zip(moments) {
                let gradient = of.gradient * gradient + of.coupled_decay * *weight;
                *first += of.shares.0 * (gradient - *first);
                *second = of.second_decay * *second + of.shares.1 * (gradient * gradient);
                let root = second.sqrt() * of.root_scale + of.epsilon;
                *weight = of.keep * *weight - of.rate * (*first / root);
            }
        },
    );
}

fn follow(average: &mut [f32], weight: &[f32], share: f32) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (average, weight) in average.iter_mut().zip(weight) {
                *average += share * (weight - *average);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(options: &OptimizerOptions, steps: u64) -> (Vec<f32>, WeightState) {
        let mut weight = vec![1.0_f32, -2.0, 0.5];
        let mut state = WeightState::new(&weight, options);
        for step in 1..=steps {
            let gradient: Vec<f32> = weight.iter().map(|weight| 3.0 * weight).collect();
            let norm = norm([gradient.as_slice()].into_iter());
            options.step(step, 0.1, norm, &mut [(&mut weight, &gradient, &mut state)]);
        }
        (weight, state)
    }

    // The expected numbers are from torch.optim in float64, with the same clipping, decay and average:
    // see `scripts/reference_optimizer.py`.
    #[test]
    fn steps_equal_those_of_pytorch() {
        let adamw = OptimizerOptions { weight_decay: 0.01, ..OptimizerOptions::default() };
        let (weight, state) = run(&adamw, 3);
        assert_close(&weight, [0.697_764_416_5, -1.694_155_825_6, 0.201_839_959_4]);
        assert_close(&state.average, [0.737_837_570_5, -1.734_779_375_2, 0.241_056_500_9]);
        let adam = OptimizerOptions { kind: OptimizerKind::Adam, clip: None, ..adamw };
        let (weight, state) = run(&adam, 3);
        assert_close(&weight, [0.701_586_272_4, -1.700_623_391_8, 0.204_871_251_5]);
        assert_close(&state.average, [0.741_053_458_1, -1.740_330_138_4, 0.243_506_565_0]);
    }

    fn assert_close(found: &[f32], expected: [f64; 3]) {
        let is_close = found.iter().zip(expected).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-6);
        assert!(is_close, "{found:?}, expected {expected:?}");
    }

    #[test]
    fn the_norm_covers_all_gradients() {
        let (long, short) = (vec![0.5_f32; 3 * TASK + 5], [3.0_f32]);
        let expected = (0.25 * long.len() as f64 + 9.0).sqrt();
        assert!((norm([long.as_slice(), &short].into_iter()) - expected).abs() < 1e-9);
    }
}
