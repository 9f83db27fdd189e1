//! The update with several ranks: each rank updates its shard with the fused kernel in CPU memory.
//!
//! Ranks exchange data through CPU memory anyway. With other devices, gradients are therefore copied to the CPU and
//! weights back at every step, and moments and averages remain in CPU memory.

use std::sync::Arc;

use super::super::optimizer::{OptimizerOptions, WeightState};
use super::super::pass::TrainingPass;
use super::super::shards::Shards;
use super::{At, add_run, unmet};
use crate::collective::Collective;
use crate::error::Error;
use crate::runtime::{Device, RuntimeError};

/// The state of the optimizer on one rank.
#[derive(Debug)]
pub(super) struct ShardedUpdate {
    ranks: Arc<dyn Collective>,
    shards: Shards,
    /// The sums of the gradients over the runs of a step. Empty if a step has one run.
    sums: Vec<Vec<f32>>,
    has_averages: bool,
}

fn slices(of: &[Vec<f32>]) -> Vec<&[f32]> {
    of.iter().map(Vec::as_slice).collect()
}

/// Returns the gradients of the last run in CPU memory.
fn gradients(pass: &mut TrainingPass) -> Result<Vec<Vec<f32>>, RuntimeError> {
    let of = pass.tensors();
    of.gradients.iter().map(|gradient| of.transfer.read(gradient)).collect()
}

impl ShardedUpdate {
    pub(super) fn new(
        pass: &mut TrainingPass,
        options: &OptimizerOptions,
        ranks: Arc<dyn Collective>,
    ) -> Result<Self, RuntimeError> {
        let shards = Shards::new(&*ranks, &slices(&pass.weights()?), options);
        Ok(Self { ranks, shards, sums: Vec::new(), has_averages: options.ema.is_some() })
    }

    /// Adds the gradients of run `run` of `runs` to the sums. After the last run they hold the mean over the runs.
    pub(super) fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), RuntimeError> {
        let share = 1.0 / runs as f32;
        let of = pass.tensors();
        self.sums.resize(of.gradients.len(), Vec::new());
        for (sum, gradient) in self.sums.iter_mut().zip(&*of.gradients) {
            add_run(sum, &of.transfer.read(gradient)?, run, share);
        }
        Ok(())
    }

    /// Performs a step. All ranks must call it. Returns the norm of the mean of their gradients.
    pub(super) fn step(
        &mut self,
        pass: &mut TrainingPass,
        options: &OptimizerOptions,
        At { step, rate, advances }: At,
    ) -> Result<f64, Error> {
        let share = 1.0 / self.ranks.size() as f32;
        let norm = if !self.sums.is_empty() {
            self.shards.reduce(&*self.ranks, &slices(&self.sums), share)?
        } else if pass.device() == Device::Cpu {
            let (_, gradients) = pass.parts();
            let gradients = gradients.iter().map(|gradient| gradient.values()).collect::<Result<Vec<_>, _>>();
            self.shards.reduce(&*self.ranks, &gradients.map_err(unmet)?, share)?
        } else {
            self.shards.reduce(&*self.ranks, &slices(&gradients(pass).map_err(unmet)?), share)?
        };
        if !(advances && norm.is_finite()) {
            return Ok(norm);
        }
        let at = (step, rate, norm);
        if pass.device() == Device::Cpu {
            let (weights, _) = pass.parts();
            let weights = weights.iter_mut().map(|weight| weight.values_mut()).collect::<Result<Vec<_>, _>>();
            self.shards.advance(&*self.ranks, options, at, &mut weights.map_err(unmet)?)?;
        } else {
            let mut weights = pass.weights().map_err(unmet)?;
            let mut parts: Vec<&mut [f32]> = weights.iter_mut().map(Vec::as_mut_slice).collect();
            self.shards.advance(&*self.ranks, options, at, &mut parts)?;
            pass.set_weights(&weights).map_err(unmet)?;
        }
        Ok(norm)
    }

    /// Returns the averages on all ranks. All ranks must call it.
    pub(super) fn averages(&self) -> Result<Option<Vec<Vec<f32>>>, Error> {
        self.has_averages.then(|| self.shards.averages(&*self.ranks)).transpose()
    }

    /// Returns the complete state on the first rank. All ranks must call it.
    pub(super) fn states(&self) -> Result<Option<Vec<WeightState>>, Error> {
        self.shards.whole(&*self.ranks)
    }

    /// Continues from a state, which only the first rank passes. All ranks must call it.
    pub(super) fn restore(&mut self, states: Option<&[WeightState]>) -> Result<(), Error> {
        self.shards.restore(&*self.ranks, states)
    }
}
