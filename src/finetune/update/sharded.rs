//! The update of several ranks: each makes that of its shard, by the fused kernel in the memory of the CPU.
//!
//! What ranks exchange passes through that memory anyway, so that on devices gradients are copied from there and weights back
//! at every step, and moments and averages stay with the CPU.

use std::sync::Arc;

use super::super::optimizer::{OptimizerOptions, WeightState};
use super::super::pass::TrainingPass;
use super::super::shards::Shards;
use super::{At, add_run, unmet};
use crate::collective::Collective;
use crate::error::Error;
use crate::runtime::{Device, RuntimeError};

/// The state of the optimizer of one rank.
#[derive(Debug)]
pub(super) struct ShardedUpdate {
    ranks: Arc<dyn Collective>,
    shards: Shards,
    /// The sums of the gradients over the runs of a step, where there are several.
    sums: Vec<Vec<f32>>,
    has_averages: bool,
}

fn slices(of: &[Vec<f32>]) -> Vec<&[f32]> {
    of.iter().map(Vec::as_slice).collect()
}

/// The gradients of the last run, in the memory of the CPU.
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

    /// Adds the gradients of run `run` of `runs` to the sums; after the last they are the mean over the runs.
    pub(super) fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), RuntimeError> {
        let share = 1.0 / runs as f32;
        let of = pass.tensors();
        self.sums.resize(of.gradients.len(), Vec::new());
        for (sum, gradient) in self.sums.iter_mut().zip(&*of.gradients) {
            add_run(sum, &of.transfer.read(gradient)?, run, share);
        }
        Ok(())
    }

    /// Called by all ranks. Returns the norm of the mean of their gradients.
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

    /// Called by all ranks, which all get the averages.
    pub(super) fn averages(&self) -> Result<Option<Vec<Vec<f32>>>, Error> {
        self.has_averages.then(|| self.shards.averages(&*self.ranks)).transpose()
    }

    /// The whole state on the first rank. Called by all ranks.
    pub(super) fn states(&self) -> Result<Option<Vec<WeightState>>, Error> {
        self.shards.whole(&*self.ranks)
    }

    /// Goes on from a state, which the first rank has. Called by all ranks.
    pub(super) fn restore(&mut self, states: Option<&[WeightState]>) -> Result<(), Error> {
        self.shards.restore(&*self.ranks, states)
    }
}
