//! The training steps of a run.

use std::sync::Arc;

use ndarray::ArrayD;

use super::draw::Draws;
use super::objective::Objective;
use super::optimizer::{OptimizerOptions, WeightState};
use super::pass::{StepLoss, TrainingPass};
use super::schedule::Rate;
use super::teaching::Teaching;
use super::update::{At, Update, UpdateKind};
use crate::array::Array;
use crate::collective::Collective;
use crate::diffusion::{Level, Noising};
use crate::error::Error;
use crate::runtime::RuntimeError;

/// Number of consecutive steps without finite gradients after which a run ends.
const MOST_SKIPPED: u64 = 10;

/// Clean samples for one run of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanBatch {
    /// The position of every sample, counted over all steps and ranks.
    pub positions: Vec<u64>,
    /// The samples, one per row.
    pub values: ArrayD<f32>,
    /// The rows of every conditioning input, by its name.
    pub conditioning: Vec<(String, Array)>,
}

/// A source of clean samples.
pub trait CleanSamples {
    /// Returns the samples of the next run: `micro_batch` of them.
    ///
    /// # Errors
    /// The data can't be read.
    fn next(&mut self) -> Result<CleanBatch, Error>;
}

/// The settings of training steps.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// The number of samples in a step, over all ranks.
    pub batch: usize,
    /// The number of samples in a run of the graph, a divisor of a rank's share of the batch.
    pub micro_batch: usize,
    /// The loss that is minimised.
    pub objective: Objective,
    /// The optimizer.
    pub optimizer: OptimizerOptions,
    /// The implementation of the optimizer's step. `None`: the one that suits the device.
    pub update: Option<UpdateKind>,
    /// The learning rate.
    pub rate: Rate,
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The number of the step, counted from 1.
    pub step: u64,
    /// The loss on its samples.
    pub loss: f64,
    /// The global norm of the gradients before clipping.
    pub norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// Whether loss or gradients were not finite, so that the weights remained unchanged.
    pub is_skipped: bool,
}

/// A network in training.
#[derive(Debug)]
pub struct Trainer<'a> {
    pass: TrainingPass,
    teaching: Option<Teaching>,
    noising: Noising<'a>,
    draws: Draws,
    options: StepOptions,
    ranks: Arc<dyn Collective>,
    update: Update,
    step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
}

/// The state of a run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerState {
    /// The number of finished steps.
    pub step: u64,
    /// The number of finished steps that changed nothing.
    pub skipped: u64,
    /// The weights.
    pub weights: Vec<Vec<f32>>,
    /// The optimizer's state of every weight.
    pub states: Vec<WeightState>,
}

/// Returns the inputs of a run of the graph, and its target.
///
/// # Errors
/// The conditioning of an input is missing.
pub(super) fn noisy(
    noising: &Noising<'_>,
    clean: &CleanBatch,
    noise: &ArrayD<f32>,
    levels: &[Level],
) -> Result<Vec<(String, Array)>, Error> {
    let rows = |port: &crate::diffusion::Port| {
        let rows = clean.conditioning.iter().find(|(name, _)| *name == port.name);
        rows.map(|(_, rows)| rows.clone())
            .ok_or_else(|| Error::usage(format!("there is no conditioning for input {:?}", port.name)))
    };
    noising.inputs(&clean.values, noise, levels, &rows)
}

impl<'a> Trainer<'a> {
    /// Creates a run before its first step.
    ///
    /// # Errors
    /// As [`Update::new`].
    pub fn new(
        mut pass: TrainingPass,
        teaching: Option<Teaching>,
        (noising, draws): (Noising<'a>, Draws),
        options: StepOptions,
        ranks: Arc<dyn Collective>,
    ) -> Result<Self, Error> {
        let runs = options.batch / ranks.size() / options.micro_batch;
        let update = Update::new(options.update, &mut pass, &options.optimizer, runs, &ranks)?;
        let (step, skipped) = (0, 0);
        Ok(Self { pass, teaching, noising, draws, options, ranks, update, step, skipped, skipped_in_a_row: 0 })
    }

    /// Returns the number of finished steps.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Returns the number of steps that changed nothing because loss or gradients were not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Describes the device that the run uses.
    pub fn execution(&self) -> String {
        self.pass.execution()
    }

    /// Performs one step.
    ///
    /// # Errors
    /// The data can't be read, the network fails, or this is the tenth consecutive step with a loss or gradients that
    /// are not finite.
    pub fn step(&mut self, data: &mut dyn CleanSamples) -> Result<StepReport, Error> {
        let runs = self.options.batch / self.ranks.size() / self.options.micro_batch;
        let mut loss = 0.0;
        for run in 0..runs {
            let clean = data.next()?;
            loss += self.run(&clean)?.loss / runs as f64;
            self.update.collect(&mut self.pass, run, runs)?;
        }
        let loss = self.mean_loss(loss)?;
        self.step += 1;
        let rate = self.options.rate.at(self.step);
        // Skipped steps do not count for the bias correction of the moments.
        let at = At { step: self.step - self.skipped, rate, advances: loss.is_finite() };
        let norm = self.update.step(&mut self.pass, &self.options.optimizer, at)?;
        let is_skipped = !(loss.is_finite() && norm.is_finite());
        self.skipped += u64::from(is_skipped);
        self.skipped_in_a_row = if is_skipped { self.skipped_in_a_row + 1 } else { 0 };
        if self.skipped_in_a_row >= MOST_SKIPPED {
            let text = format!(
                "loss or gradients are not finite in {MOST_SKIPPED} steps in a row, the last at step {}",
                self.step
            );
            return Err(Error::unmet(text).hint("lower the learning rate (--lr), or train with --precision float32"));
        }
        Ok(StepReport { step: self.step, loss, norm, rate, is_skipped })
    }

    /// Computes loss and gradients for some samples.
    fn run(&mut self, clean: &CleanBatch) -> Result<StepLoss, Error> {
        let positions = &clean.positions;
        let noise = self.draws.noise(positions, clean.values.shape());
        let process = self.noising.process;
        let of = |position: &u64| process.schedule.levels()[self.draws.timestep(*position)];
        let mut levels: Vec<Level> = positions.iter().map(of).collect();
        if !self.noising.has_level_per_sample(positions.len())? {
            levels.truncate(1);
        }
        let mut inputs = noisy(&self.noising, clean, &noise, &levels)?;
        let draws = &self.draws;
        let taught = self.teaching.as_mut().map(|of| of.teach(&mut inputs, clean, draws)).transpose()?;
        if levels.len() == 1 {
            levels.resize(positions.len(), levels[0]);
        }
        let rest = self.options.objective.complete(process, &mut inputs, taught, &levels);
        let mut loss = self.pass.run(&inputs)?;
        loss.loss += rest;
        Ok(loss)
    }

    /// Returns the mean of the loss over all ranks.
    fn mean_loss(&self, loss: f64) -> Result<f64, Error> {
        let mut loss = [loss / self.ranks.size() as f64];
        self.ranks.sum_f64(&mut loss)?;
        Ok(loss[0])
    }

    /// Returns, for each of some flags, whether any rank sets it.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn any_rank<const N: usize>(&self, says: [bool; N]) -> Result<[bool; N], Error> {
        let mut counts = says.map(|says| f64::from(u8::from(says)));
        self.ranks.sum_f64(&mut counts)?;
        Ok(counts.map(|count| count > 0.0))
    }

    /// Returns the weights to write: their moving average, or without one the weights themselves. All ranks must call
    /// it.
    ///
    /// # Errors
    /// A copy from the device fails; a rank has ended.
    pub fn result(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        match self.update.averages(&mut self.pass)? {
            Some(averages) => Ok(averages),
            None => self.pass.weights().map_err(unmet),
        }
    }

    /// Returns the complete state after the last step on the first rank, and `None` on the others. All ranks must call
    /// it.
    ///
    /// # Errors
    /// A copy from the device fails; a rank has ended.
    pub fn state(&mut self) -> Result<Option<TrainerState>, Error> {
        let Some(states) = self.update.states(&mut self.pass)? else { return Ok(None) };
        let weights = self.pass.weights().map_err(unmet)?;
        Ok(Some(TrainerState { step: self.step, skipped: self.skipped, weights, states }))
    }

    /// Continues from a state. Only the first rank passes it; the others pass `None` and receive it. All ranks must
    /// call it.
    ///
    /// # Errors
    /// The state belongs to other weights, a copy to the device fails, or a rank has ended.
    pub fn restore(&mut self, state: Option<TrainerState>) -> Result<(), Error> {
        let fail = |text: String| Error::usage(format!("the checkpoint belongs to another run: {text}"));
        let (weights, _) = self.pass.parts();
        let lengths: Vec<usize> = weights.iter().map(|weight| weight.dims().iter().product()).collect();
        if let Some(state) = &state {
            if state.weights.len() != lengths.len() || state.states.len() != lengths.len() {
                return Err(fail(format!("expected {} weights, found {}", lengths.len(), state.weights.len())));
            }
            let mut pairs = lengths.iter().zip(&state.weights);
            if let Some((length, values)) = pairs.find(|(length, values)| **length != values.len()) {
                return Err(fail(format!("expected a weight of {length} elements, found {}", values.len())));
            }
        }
        let (mut counts, mut values, states) = match state {
            Some(state) => ([state.step as f64, state.skipped as f64], state.weights, Some(state.states)),
            None => ([0.0; 2], vec![Vec::new(); lengths.len()], None),
        };
        if self.ranks.size() > 1 {
            for own in &mut values {
                let mut bytes = bytemuck::cast_slice(own).to_vec();
                self.ranks.broadcast(&mut bytes, 0)?;
                *own = bytemuck::pod_collect_to_vec(&bytes);
            }
            self.ranks.sum_f64(&mut counts)?;
        }
        self.pass.set_weights(&values).map_err(unmet)?;
        self.update.restore(&mut self.pass, states)?;
        (self.step, self.skipped) = (counts[0] as u64, counts[1] as u64);
        Ok(())
    }
}

fn unmet(error: RuntimeError) -> Error {
    Error::unmet(error.to_string())
}
