//! The steps of a run.

use std::sync::Arc;

use ndarray::ArrayD;

use super::draw::Draws;
use super::objective::Objective;
use super::optimizer::{OptimizerOptions, WeightState};
use super::pass::{StepLoss, TrainingPass};
use super::schedule::Rate;
use super::teacher::Teacher;
use super::update::{At, Update, UpdateKind};
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
    /// What makes the optimizer's step; what suits the device where `None`.
    pub update: Option<UpdateKind>,
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
    teacher: Option<Teacher>,
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
    /// Steps that are done.
    pub step: u64,
    /// Those of them that changed nothing.
    pub skipped: u64,
    /// The weights.
    pub weights: Vec<Vec<f32>>,
    /// What the optimizer keeps of every weight.
    pub states: Vec<WeightState>,
}

impl<'a> Trainer<'a> {
    /// A run before its first step.
    ///
    /// # Errors
    /// As [`Update::new`].
    pub fn new(
        mut pass: TrainingPass,
        teacher: Option<Teacher>,
        (noising, draws): (Noising<'a>, Draws),
        options: StepOptions,
        ranks: Arc<dyn Collective>,
    ) -> Result<Self, Error> {
        let runs = options.batch / ranks.size() / options.micro_batch;
        let update = Update::new(options.update, &mut pass, &options.optimizer, runs)?;
        let (step, skipped) = (0, 0);
        Ok(Self { pass, teacher, noising, draws, options, ranks, update, step, skipped, skipped_in_a_row: 0 })
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
            self.update.collect(&mut self.pass, run, runs).map_err(unmet)?;
        }
        let loss = self.reduce(loss)?;
        self.step += 1;
        let rate = self.options.rate.at(self.step);
        // Steps that were skipped do not count for the corrections of the moments.
        let at = At { step: self.step - self.skipped, rate, advances: loss.is_finite() };
        let norm = self.update.step(&mut self.pass, &self.options.optimizer, at).map_err(unmet)?;
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
        let rows = |port: &crate::diffusion::Port| {
            let rows = clean.conditioning.iter().find(|(name, _)| *name == port.name);
            rows.map(|(_, rows)| rows.clone())
                .ok_or_else(|| Error::usage(format!("there is no conditioning for input {:?}", port.name)))
        };
        let mut inputs = self.noising.inputs(&clean.values, &noise, &levels, &rows)?;
        let taught = self.teacher.as_mut().map(|teacher| teacher.predict(&inputs)).transpose()?;
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
        let share = 1.0 / size as f32;
        let lengths: Vec<usize> = {
            let (weights, _) = self.pass.parts();
            weights.iter().map(|weight| weight.dims().iter().product()).collect()
        };
        let mut bucket: Vec<f32> = Vec::with_capacity(BUCKET);
        let mut first = 0;
        for at in 0..lengths.len() {
            let gradient = self.update.gradient(&mut self.pass, at).map_err(unmet)?;
            bucket.extend(gradient.iter().map(|value| share * value));
            if bucket.len() < BUCKET && at + 1 < lengths.len() {
                continue;
            }
            self.ranks.sum(&mut bucket)?;
            let mut sums = bucket.as_slice();
            for (at, length) in lengths.iter().enumerate().take(at + 1).skip(first) {
                let (own, rest) = sums.split_at(*length);
                self.update.set_gradient(&mut self.pass, at, own).map_err(unmet)?;
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

    /// The weights that are written: their moving average, or where none is kept, the weights themselves.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn result(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        match self.update.averages(&mut self.pass).map_err(unmet)? {
            Some(averages) => Ok(averages),
            None => self.pass.weights().map_err(unmet),
        }
    }

    /// The state after the last step.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn state(&mut self) -> Result<TrainerState, Error> {
        let weights = self.pass.weights().map_err(unmet)?;
        let states = self.update.states(&mut self.pass).map_err(unmet)?;
        Ok(TrainerState { step: self.step, skipped: self.skipped, weights, states })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// The state is that of other weights; a copy to the device fails.
    pub fn restore(&mut self, state: TrainerState) -> Result<(), Error> {
        let (weights, _) = self.pass.parts();
        let fail = |text: String| Error::usage(format!("the checkpoint is of another run: {text}"));
        if state.weights.len() != weights.len() || state.states.len() != weights.len() {
            return Err(fail(format!("expected {} weights, found {}", weights.len(), state.weights.len())));
        }
        for (weight, values) in weights.iter().zip(&state.weights) {
            let length: usize = weight.dims().iter().product();
            if length != values.len() {
                return Err(fail(format!("expected a weight of {length} elements, found {}", values.len())));
            }
        }
        self.pass.set_weights(&state.weights).map_err(unmet)?;
        self.update.restore(&mut self.pass, state.states).map_err(unmet)?;
        (self.step, self.skipped) = (state.step, state.skipped);
        Ok(())
    }
}

fn unmet(error: RuntimeError) -> Error {
    Error::unmet(error.to_string())
}
