//! The steps of a run.

use std::sync::Arc;

use ndarray::ArrayD;

use super::draw::Draws;
use super::objective::Objective;
use super::optimizer::{OptimizerOptions, WeightState, norm};
use super::pass::{StepLoss, TrainingPass};
use super::schedule::Rate;
use super::shards::Shards;
use super::teacher::Teacher;
use crate::array::Array;
use crate::collective::Collective;
use crate::diffusion::{Level, Noising};
use crate::error::Error;
use crate::runtime::RuntimeError;

/// Steps in a row without finite gradients after which a run ends.
const MOST_SKIPPED: u64 = 10;

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
    teacher: Option<Teacher>,
    noising: Noising<'a>,
    draws: Draws,
    options: StepOptions,
    ranks: Arc<dyn Collective>,
    /// What the optimizer keeps: whole, or of several ranks in shards.
    states: Vec<WeightState>,
    shards: Option<Shards>,
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

impl<'a> Trainer<'a> {
    /// A run before its first step.
    ///
    /// # Errors
    /// The weights are in another memory.
    pub fn new(
        mut pass: TrainingPass,
        teacher: Option<Teacher>,
        (noising, draws): (Noising<'a>, Draws),
        options: StepOptions,
        ranks: Arc<dyn Collective>,
    ) -> Result<Self, Error> {
        let (weights, _) = pass.parts();
        let weights = weights.iter().map(|weight| weight.values()).collect::<Result<Vec<_>, _>>();
        let weights: Vec<&[f32]> = weights.map_err(unmet)?;
        let shards = (ranks.size() > 1).then(|| Shards::new(&*ranks, &weights, &options.optimizer));
        let states = match &shards {
            Some(_) => Vec::new(),
            None => weights.iter().map(|weight| WeightState::new(weight, &options.optimizer)).collect(),
        };
        let (sums, step, skipped) = (Vec::new(), 0, 0);
        Ok(Self {
            pass,
            teacher,
            noising,
            draws,
            options,
            ranks,
            states,
            shards,
            sums,
            step,
            skipped,
            skipped_in_a_row: 0,
        })
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
                self.add_gradients(run, runs).map_err(unmet)?;
            }
        }
        let loss = self.mean_loss(loss)?;
        self.step += 1;
        let rate = self.options.rate.at(self.step);
        let norm = self.advance(loss, rate)?;
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

    /// The mean of the loss over all ranks.
    fn mean_loss(&self, loss: f64) -> Result<f64, Error> {
        let mut loss = [loss / self.ranks.size() as f64];
        self.ranks.sum_f64(&mut loss)?;
        Ok(loss[0])
    }

    /// Which of these things any rank says.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn any_says<const N: usize>(&self, says: [bool; N]) -> Result<[bool; N], Error> {
        let mut counts = says.map(|says| f64::from(u8::from(says)));
        self.ranks.sum_f64(&mut counts)?;
        Ok(counts.map(|count| count > 0.0))
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
    fn advance(&mut self, loss: f64, rate: f64) -> Result<f64, Error> {
        let (weights, gradients) = self.pass.parts();
        let gradients = gradients.iter().map(|gradient| gradient.values()).collect::<Result<Vec<_>, _>>();
        let gradients: Vec<&[f32]> = gradients.map_err(unmet)?;
        let norm = match &mut self.shards {
            Some(shards) => shards.reduce(&*self.ranks, &gradients, 1.0 / self.ranks.size() as f32)?,
            None => norm(gradients.iter().copied()),
        };
        if !(loss.is_finite() && norm.is_finite()) {
            return Ok(norm);
        }
        // Steps that were skipped do not count for the corrections of the moments.
        let step = self.step - self.skipped;
        let optimizer = &self.options.optimizer;
        let weights = weights.iter_mut().map(|weight| weight.values_mut()).collect::<Result<Vec<_>, _>>();
        let mut weights: Vec<&mut [f32]> = weights.map_err(unmet)?;
        if let Some(shards) = &mut self.shards {
            shards.advance(&*self.ranks, optimizer, (step, rate, norm), &mut weights)?;
            return Ok(norm);
        }
        let parts = weights.into_iter().zip(gradients).zip(&mut self.states);
        let mut parts: Vec<_> = parts.map(|((weight, gradient), state)| (weight, gradient, state)).collect();
        optimizer.step(step, rate, norm, &mut parts);
        Ok(norm)
    }

    fn weights(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        let (weights, _) = self.pass.parts();
        weights.iter().map(|weight| Ok(weight.values()?.to_vec())).collect::<Result<_, RuntimeError>>().map_err(unmet)
    }

    /// The weights that are written: their moving average, or where none is kept, the weights themselves. Called by all
    /// ranks.
    ///
    /// # Errors
    /// They are in another memory; a rank has ended.
    pub fn result(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        match (&self.shards, self.options.optimizer.ema) {
            (_, None) => self.weights(),
            (Some(shards), _) => shards.averages(&*self.ranks),
            (None, _) => Ok(self.states.iter().map(|state| state.average.clone()).collect()),
        }
    }

    /// The state after the last step, whole, on the first rank; `None` on others. Called by all ranks.
    ///
    /// # Errors
    /// The weights are in another memory; a rank has ended.
    pub fn state(&mut self) -> Result<Option<TrainerState>, Error> {
        let states = match &self.shards {
            Some(shards) => shards.whole(&*self.ranks)?,
            None => Some(self.states.clone()),
        };
        let Some(states) = states else { return Ok(None) };
        Ok(Some(TrainerState { step: self.step, skipped: self.skipped, weights: self.weights()?, states }))
    }

    /// Goes on from a state, which the first rank has; the others give `None`, and get it from there. Called by all ranks.
    ///
    /// # Errors
    /// The state is that of other weights; a rank has ended.
    pub fn restore(&mut self, state: Option<TrainerState>) -> Result<(), Error> {
        let fail = |text: String| Error::usage(format!("the checkpoint is of another run: {text}"));
        let (weights, _) = self.pass.parts();
        if let Some(state) = &state
            && (state.weights.len() != weights.len() || state.states.len() != weights.len())
        {
            return Err(fail(format!("expected {} weights, found {}", weights.len(), state.weights.len())));
        }
        for (at, weight) in weights.iter_mut().enumerate() {
            let weight = weight.values_mut().map_err(unmet)?;
            let own = state.as_ref().map(|state| &state.weights[at]);
            if let Some(values) = own.filter(|values| values.len() != weight.len()) {
                return Err(fail(format!("expected a weight of {} elements, found {}", weight.len(), values.len())));
            }
            let mut bytes: Vec<u8> = own.map(|values| bytemuck::cast_slice(values).to_vec()).unwrap_or_default();
            self.ranks.broadcast(&mut bytes, 0)?;
            weight.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        }
        let mut counts = state.as_ref().map_or([0.0; 2], |state| [state.step as f64, state.skipped as f64]);
        self.ranks.sum_f64(&mut counts)?;
        (self.step, self.skipped) = (counts[0] as u64, counts[1] as u64);
        match &mut self.shards {
            Some(shards) => shards.restore(&*self.ranks, state.as_ref().map(|state| state.states.as_slice())),
            None => {
                self.states = state.map(|state| state.states).unwrap_or_default();
                Ok(())
            }
        }
    }
}

fn unmet(error: RuntimeError) -> Error {
    Error::unmet(error.to_string())
}
