//! The update in CPU memory, by the fused kernel.

use super::super::optimizer::{OptimizerOptions, WeightState, norm};
use super::super::pass::TrainingPass;
use super::{At, add_run};
use crate::runtime::RuntimeError;

/// The state of the optimizer in CPU memory.
#[derive(Debug)]
pub(super) struct KernelUpdate {
    pub(super) states: Vec<WeightState>,
    /// The sums of the gradients over the runs of a step.
    sums: Vec<Vec<f32>>,
}

impl KernelUpdate {
    pub(super) fn new(pass: &mut TrainingPass, options: &OptimizerOptions) -> Result<Self, RuntimeError> {
        let (weights, _) = pass.parts();
        let states = weights.iter().map(|weight| Ok(WeightState::new(weight.values()?, options)));
        Ok(Self { states: states.collect::<Result<_, RuntimeError>>()?, sums: Vec::new() })
    }

    /// Adds the gradients of run `run` of `runs` to the sums. After the last run, replaces the gradients by their mean
    /// over the runs.
    pub(super) fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), RuntimeError> {
        let (_, gradients) = pass.parts();
        self.sums.resize(gradients.len(), Vec::new());
        let share = 1.0 / runs as f32;
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            let values = gradient.values_mut()?;
            add_run(sum, values, run, share);
            if run + 1 == runs {
                values.copy_from_slice(sum);
            }
        }
        Ok(())
    }

    pub(super) fn step(
        &mut self,
        pass: &mut TrainingPass,
        options: &OptimizerOptions,
        At { step, rate, advances }: At,
    ) -> Result<f64, RuntimeError> {
        let (weights, gradients) = pass.parts();
        let gradients: Vec<&[f32]> = gradients.iter().map(|gradient| gradient.values()).collect::<Result<_, _>>()?;
        let norm = norm(gradients.iter().copied());
        if advances && norm.is_finite() {
            let mut parts = Vec::with_capacity(weights.len());
            for ((weight, gradient), state) in weights.iter_mut().zip(gradients).zip(&mut self.states) {
                parts.push((weight.values_mut()?, gradient, state));
            }
            options.step(step, rate, norm, &mut parts);
        }
        Ok(norm)
    }

    pub(super) fn averages(&self) -> Option<Vec<Vec<f32>>> {
        let is_kept = |state: &WeightState| state.average.len() == state.first.len();
        self.states.iter().all(is_kept).then(|| self.states.iter().map(|state| state.average.clone()).collect())
    }
}
