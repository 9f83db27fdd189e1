//! The steps of a run.

use std::sync::Arc;

use ndarray::ArrayD;

use super::draw::Draws;
use super::objective::Objective;
use super::optimizer::{OptimizerOptions, WeightState, norm};
use super::pass::{StepLoss, TrainingPass};
use super::schedule::Rate;
use super::teaching::Teaching;
use crate::array::Array;
use crate::collective::Collective;
use crate::diffusion::{Level, Noising};
use crate::error::Error;
use crate::runtime::RuntimeError;

/// Steps in a row without finite gradients after which a run ends.
const MOST_SKIPPED: u64 = 10;

/// Elements that are summed over ranks at once, about.
const BUCKET: usize = 1 << 22;

/// Clean samples for one run of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanBatch {
    /// The position of every sample: its number over all steps and ranks.
    pub positions: Vec<u64>,
    /// The samples, one per row.
    pub values: ArrayD<f32>,
    /// The rows of every conditioning input, by its name.
    pub conditioning: Vec<(String, Array)>,
}

/// What clean samples come from.
pub trait CleanSamples {
    /// The samples of the next run: `micro_batch` of them.
    ///
    /// # Errors
    /// Data that can't be read.
    fn next(&mut self) -> Result<CleanBatch, Error>;
}

/// How steps are made.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// Samples of a step, over all ranks.
    pub batch: usize,
    /// Samples of a run of the graph, a divisor of a rank's share of the batch.
    pub micro_batch: usize,
    /// What is minimised.
    pub objective: Objective,
    /// The optimizer.
    pub optimizer: OptimizerOptions,
    /// The learning rate.
    pub rate: Rate,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// The loss on its samples.
    pub loss: f64,
    /// The norm of all gradients together, before it was clipped.
    pub norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// Whether loss or gradients were not finite, so that the weights stay.
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
    states: Vec<WeightState>,
    /// The gradients of the runs of a step but the last.
    sums: Vec<Vec<f32>>,
    step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
}

/// The state of a run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerState {
    /// Steps that are done.
    pub step: u64,
    /// Those of them that changed nothing.
    pub skipped: u64,
    /// The weights.
    pub weights: Vec<Vec<f32>>,
    /// What the optimizer keeps of every weight.
    pub states: Vec<WeightState>,
}

/// The inputs of a run of the graph, and its target.
///
/// # Errors
/// Conditioning that is not given.
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
    /// A run before its first step.
    ///
    /// # Errors
    /// The weights are in another memory.
    pub fn new(
        mut pass: TrainingPass,
        teaching: Option<Teaching>,
        (noising, draws): (Noising<'a>, Draws),
        options: StepOptions,
        ranks: Arc<dyn Collective>,
    ) -> Result<Self, Error> {
        let (weights, _) = pass.parts();
        let states = weights
            .iter()
            .map(|weight| Ok(WeightState::new(weight.values()?, &options.optimizer)))
            .collect::<Result<_, RuntimeError>>()
            .map_err(|error| Error::unmet(error.to_string()))?;
        let (sums, step, skipped) = (Vec::new(), 0, 0);
        Ok(Self { pass, teaching, noising, draws, options, ranks, states, sums, step, skipped, skipped_in_a_row: 0 })
    }

    /// Steps that are done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Steps that changed nothing, since loss or gradients were not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Where it runs, in words.
    pub fn execution(&self) -> String {
        self.pass.execution()
    }

    /// Makes one step.
    ///
    /// # Errors
    /// Data that can't be read, a network that fails, or the tenth step in a row whose loss or gradients are not finite.
    pub fn step(&mut self, data: &mut dyn CleanSamples) -> Result<StepReport, Error> {
        let runs = self.options.batch / self.ranks.size() / self.options.micro_batch;
        let mut loss = 0.0;
        for run in 0..runs {
            let clean = data.next()?;
            loss += self.run(&clean)?.loss / runs as f64;
            if runs > 1 {
                self.add_gradients(run, runs).map_err(|error| Error::unmet(error.to_string()))?;
            }
        }
        let loss = self.reduce(loss)?;
        self.step += 1;
        let rate = self.options.rate.at(self.step);
        let norm = self.advance(loss, rate).map_err(|error| Error::unmet(error.to_string()))?;
        let is_skipped = !(loss.is_finite() && norm.is_finite());
        self.skipped += u64::from(is_skipped);
        self.skipped_in_a_row = if is_skipped { self.skipped_in_a_row + 1 } else { 0 };
        if self.skipped_in_a_row >= MOST_SKIPPED {
            let text = format!(
                "loss or gradients of {MOST_SKIPPED} steps in a row are not finite, the last at step {}",
                self.step
            );
            return Err(Error::unmet(text).hint("lower the learning rate (--lr), or train with --precision float32"));
        }
        Ok(StepReport { step: self.step, loss, norm, rate, is_skipped })
    }

    /// Loss and gradients on some samples.
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

    /// The mean of the loss over all ranks; the gradients become their mean, the same on every rank.
    fn reduce(&mut self, loss: f64) -> Result<f64, Error> {
        let size = self.ranks.size();
        if size == 1 {
            return Ok(loss);
        }
        let (_, gradients) = self.pass.parts();
        let share = 1.0 / size as f32;
        let unmet = |error: RuntimeError| Error::unmet(error.to_string());
        let mut bucket: Vec<f32> = Vec::with_capacity(BUCKET);
        let mut first = 0;
        for at in 0..gradients.len() {
            bucket.extend(gradients[at].values().map_err(unmet)?.iter().map(|value| share * value));
            if bucket.len() < BUCKET && at + 1 < gradients.len() {
                continue;
            }
            self.ranks.sum(&mut bucket)?;
            let mut sums = bucket.as_slice();
            for gradient in &mut gradients[first..=at] {
                let values = gradient.values_mut().map_err(unmet)?;
                let (own, rest) = sums.split_at(values.len());
                values.copy_from_slice(own);
                sums = rest;
            }
            bucket.clear();
            first = at + 1;
        }
        let mut loss = [loss / size as f64];
        self.ranks.sum_f64(&mut loss)?;
        Ok(loss[0])
    }

    /// Whether a rank says so.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn any_says(&self, says: bool) -> Result<bool, Error> {
        let mut count = [f64::from(u8::from(says))];
        self.ranks.sum_f64(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Adds the gradients of run `run` of `runs` to the sums; after the last they are the mean over the runs, in the place of
    /// the gradients.
    fn add_gradients(&mut self, run: usize, runs: usize) -> Result<(), RuntimeError> {
        let (_, gradients) = self.pass.parts();
        self.sums.resize(gradients.len(), Vec::new());
        let share = 1.0 / runs as f32;
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            let values = gradient.values_mut()?;
            if run == 0 {
                sum.clear();
                sum.extend(values.iter().map(|value| share * value));
            } else {
                sum.iter_mut().zip(values.iter()).for_each(|(sum, value)| *sum += share * value);
            }
            if run + 1 == runs {
                values.copy_from_slice(sum);
            }
        }
        Ok(())
    }

    /// Moves the weights along the gradients if they are finite. Returns their norm.
    fn advance(&mut self, loss: f64, rate: f64) -> Result<f64, RuntimeError> {
        let (weights, gradients) = self.pass.parts();
        let gradients: Vec<&[f32]> = gradients.iter().map(|gradient| gradient.values()).collect::<Result<_, _>>()?;
        let norm = norm(gradients.iter().copied());
        if loss.is_finite() && norm.is_finite() {
            let mut parts = Vec::with_capacity(weights.len());
            for ((weight, gradient), state) in weights.iter_mut().zip(gradients).zip(&mut self.states) {
                parts.push((weight.values_mut()?, gradient, state));
            }
            // Steps that were skipped do not count for the corrections of the moments.
            self.options.optimizer.step(self.step - self.skipped, rate, norm, &mut parts);
        }
        Ok(norm)
    }

    /// The weights that are written: their moving average, or where none is kept, the weights themselves.
    ///
    /// # Errors
    /// They are in another memory.
    pub fn result(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        if self.options.optimizer.ema.is_some() {
            return Ok(self.states.iter().map(|state| state.average.clone()).collect());
        }
        let (weights, _) = self.pass.parts();
        let weights = weights.iter().map(|weight| Ok(weight.values()?.to_vec())).collect::<Result<_, RuntimeError>>();
        weights.map_err(|error| Error::unmet(error.to_string()))
    }

    /// The state after the last step.
    ///
    /// # Errors
    /// The weights are in another memory.
    pub fn state(&mut self) -> Result<TrainerState, Error> {
        let (weights, _) = self.pass.parts();
        let weights = weights.iter().map(|weight| Ok(weight.values()?.to_vec())).collect::<Result<_, RuntimeError>>();
        let weights = weights.map_err(|error| Error::unmet(error.to_string()))?;
        Ok(TrainerState { step: self.step, skipped: self.skipped, weights, states: self.states.clone() })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// The state is that of other weights.
    pub fn restore(&mut self, state: TrainerState) -> Result<(), Error> {
        let (weights, _) = self.pass.parts();
        let fail = |text: String| Error::usage(format!("the checkpoint is of another run: {text}"));
        if state.weights.len() != weights.len() || state.states.len() != weights.len() {
            return Err(fail(format!("expected {} weights, found {}", weights.len(), state.weights.len())));
        }
        for (weight, values) in weights.iter_mut().zip(&state.weights) {
            let weight = weight.values_mut().map_err(|error| Error::unmet(error.to_string()))?;
            if weight.len() != values.len() {
                return Err(fail(format!("expected a weight of {} elements, found {}", weight.len(), values.len())));
            }
            weight.copy_from_slice(values);
        }
        (self.states, self.step, self.skipped) = (state.states, state.step, state.skipped);
        Ok(())
    }
}
