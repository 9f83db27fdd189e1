//! The sum of gradients over timesteps, with the loss threshold of Diff-Pruning.
//!
//! For t from small noise to large: `L_t` is the denoising loss at t with fixed `x_0` and noise, and
//! `G = sum over the kept t of dL_t / dW`. A timestep is kept while its loss is at least `threshold` times the largest
//! ("Structural Pruning for Diffusion Models", 2023, equation 8: `L_t / L_max > T`).
//!
//! Over several ranks, each takes one timestep of a round of as many timesteps as there are ranks. They share the losses of
//! the round before any of them adds its gradient, so that the threshold keeps what it keeps in one process, by losses of
//! the same bits; only the sums, each of the timesteps of one rank, are grouped differently.

mod rounds;

use std::cell::OnceCell;
use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use crate::array::Array;
use crate::collective::{Alone, Collective};
use crate::error::Error;
use crate::graph::model::Model;

use super::pass::GradientPass;
use super::sum::GradientSum;
use super::{Precision, UseGradient};
pub use rounds::Rounds;
use rounds::{Judged, Rule, shared};

/// What the loss is taken of: the network's inputs and the target at every timestep.
pub trait Denoising {
    /// The timesteps in the order in which they are visited, from small noise to large.
    fn timesteps(&self) -> &[f64];

    /// The number of samples of the batch.
    fn batch(&self) -> usize;

    /// What loss and gradient at the `at`-th timestep are multiplied with; 1 for networks that predict the noise.
    fn weight(&self, _at: usize) -> f64 {
        1.0
    }

    /// All inputs of the gradient graph (the target among them) for some samples at the `at`-th timestep.
    ///
    /// # Errors
    /// An input that can't be made.
    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error>;
}

/// Which timesteps the threshold keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ThresholdMode {
    /// All before the first whose loss falls below the threshold times the largest so far, as the published code does.
    #[default]
    Prefix,
    /// Every one whose loss is not below the threshold times the largest of all, as the paper's formula says.
    Mask,
}

/// How gradients are summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccumulateOptions {
    /// The threshold T; zero keeps every timestep.
    pub threshold: f64,
    /// What the threshold keeps.
    pub mode: ThresholdMode,
    /// Whether the step at which a prefix ends is still summed, as in the published `ddpm_prune.py`.
    pub sums_last: bool,
    /// Whether the squares of the gradients of every timestep are summed instead (the diagonal of the Fisher matrix).
    pub squared: bool,
    /// Samples in one run; the batch is divided into runs of this many.
    pub micro_batch: usize,
}

/// The loss at one timestep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The timestep.
    pub t: f64,
    /// `L_t`, the mean over all elements of the batch.
    pub loss: f64,
    /// Whether its gradient is in the sum.
    pub kept: bool,
}

/// Gradients summed over timesteps.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// What the sums are the gradients by.
    pub uses: Vec<UseGradient>,
    /// `G` of every use, of the weight's own shape.
    pub sums: Vec<Vec<f32>>,
    /// The losses in the order of the timesteps.
    pub curve: Vec<LossPoint>,
    /// The timesteps that were visited, whether kept or not.
    pub visited: usize,
    /// Whether the sum is complete: all timesteps visited, or the prefix at its end.
    pub complete: bool,
}

impl Accumulated {
    /// Nothing summed yet.
    pub fn new(uses: &[UseGradient]) -> Self {
        let sums = vec![Vec::new(); uses.len()];
        Self { uses: uses.to_vec(), sums, curve: Vec::new(), visited: 0, complete: false }
    }

    /// The largest loss so far.
    pub fn largest_loss(&self) -> f64 {
        self.curve.iter().map(|point| point.loss).fold(0.0, f64::max)
    }

    /// The number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.curve.iter().filter(|point| point.kept).count()
    }

    /// Adds the sums of all ranks; each gets the same.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn reduce(&mut self, ranks: &dyn Collective) -> Result<(), Error> {
        if ranks.size() == 1 {
            return Ok(());
        }
        // A rank that kept no timestep knows no lengths.
        let lengths: Vec<f64> = self.sums.iter().map(|values| values.len() as f64).collect();
        let all = shared(ranks, &lengths)?;
        for (at, values) in self.sums.iter_mut().enumerate() {
            let longest = all.iter().map(|lengths| lengths[at]).fold(0.0, f64::max);
            values.resize(longest as usize, 0.0);
            ranks.sum(values)?;
        }
        Ok(())
    }
}

/// A sum at a timestep that was just visited.
#[derive(Debug)]
pub struct Visited<'a> {
    sum: &'a mut Accumulated,
    gradients: &'a mut GradientSum,
    model: &'a Model,
    ranks: &'a dyn Collective,
    /// The sum of all ranks, once it was asked for.
    total: Option<Accumulated>,
}

impl Visited<'_> {
    /// The number of timesteps that were visited.
    pub fn visited(&self) -> usize {
        self.sum.visited
    }

    /// The losses up to here.
    pub fn curve(&self) -> &[LossPoint] {
        &self.sum.curve
    }

    /// The number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.sum.kept()
    }

    /// The sum up to here. If it is on a device, all of it is copied from there. All ranks ask for it, or none.
    ///
    /// # Errors
    /// The copy fails; a rank has ended.
    pub fn sum(&mut self) -> Result<&Accumulated, Error> {
        self.gradients.read(self.model, &mut self.sum.sums)?;
        if self.ranks.size() == 1 {
            return Ok(self.sum);
        }
        let mut total = self.sum.clone();
        total.reduce(self.ranks)?;
        Ok(self.total.insert(total))
    }
}

/// Computes losses alone: a gradient graph without wanted weights gives them at the price of a forward pass. Every rank
/// takes one timestep of each round, and gets the losses of all.
///
/// # Errors
/// A run fails, or a loss is not a number; a rank has ended.
pub fn losses(
    ranks: &dyn Collective,
    pass: &mut GradientPass,
    model: &Model,
    task: &dyn Denoising,
    micro_batch: usize,
    mut step: impl FnMut(usize, f64) -> ControlFlow<()>,
) -> Result<Vec<f64>, Error> {
    let mut losses = Vec::new();
    let rounds = Rounds { ranks, ends_at: None };
    while losses.len() < task.timesteps().len() {
        let round = rounds.next(losses.len(), task.timesteps().len());
        let at = round.start + ranks.rank();
        let mut loss = 0.0;
        if round.contains(&at) {
            for samples in micro_batches(task.batch(), micro_batch) {
                let share = task.weight(at) * samples.len() as f64 / task.batch() as f64;
                let inputs = pass.needed(task.inputs(at, samples)?);
                loss += share * pass.run_each(model, &inputs, |_, _, _| {})?;
            }
        }
        let found = rounds.share(&round, loss)?;
        for (at, loss) in round.zip(found) {
            losses.push(checked(pass, model, task.timesteps()[at], loss)?);
            if step(at, loss).is_break() {
                return Ok(losses);
            }
        }
    }
    Ok(losses)
}

/// Sums gradients over timesteps in one process: [`accumulate_over`] without others.
///
/// # Errors
/// A run fails, or a loss is not a number.
pub fn accumulate(
    pass: &mut GradientPass,
    model: &Model,
    task: &dyn Denoising,
    options: &AccumulateOptions,
    known: Option<&[f64]>,
    sum: &mut Accumulated,
    step: impl FnMut(&mut Visited<'_>) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    accumulate_over(&Rounds { ranks: &Alone, ends_at: None }, pass, model, task, (options, known), sum, step)
}

/// Sums gradients over timesteps, from where `sum` stands. The options come with the losses of all timesteps where there
/// are any, for [`ThresholdMode::Mask`]. `step` is called after every round of timesteps, one for each rank, and may end
/// the sum, on all ranks alike. Where the pass keeps gradients on a device, the sum is made there and copied at the end, or
/// when `step` asks for it.
///
/// At the end every rank has the losses of all timesteps, and the sum of its own: [`Accumulated::reduce`] adds them.
///
/// # Errors
/// A run fails, or a loss is not a number; a rank has ended.
pub fn accumulate_over(
    rounds: &Rounds<'_>,
    pass: &mut GradientPass,
    model: &Model,
    task: &dyn Denoising,
    (options, known): (&AccumulateOptions, Option<&[f64]>),
    sum: &mut Accumulated,
    mut step: impl FnMut(&mut Visited<'_>) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let mut gradients = GradientSum::new(pass, model, &sum.sums)?;
    let rule = Rule::new(options, known);
    let total = task.timesteps().len();
    while sum.visited < total {
        let round = rounds.next(sum.visited, total);
        let at = round.start + rounds.ranks.rank();
        let own = at - round.start;
        let largest = sum.largest_loss();
        let judged = OnceCell::new();
        // Shares the losses of the round, when the own one is known; only then it is known what counts.
        let judge = |loss: f64| -> &Result<Judged, Error> {
            judged.get_or_init(|| Ok(rule.judge(&round, rounds.share(&round, loss)?, largest)))
        };
        let keeps = |loss: f64| judge(loss).as_ref().is_ok_and(|judged| judged.keeps(own));
        gradients.begin_step();
        let mut loss = 0.0;
        if !round.contains(&at) || rule.skips(at) {
            // There is nothing to compute.
        } else if options.micro_batch >= task.batch() {
            let inputs = pass.needed(task.inputs(at, 0..task.batch())?);
            let (share, squared) = (task.weight(at) as f32, options.squared);
            loss = gradients.keep_run(pass, model, &inputs, share, &mut sum.sums, squared, keeps)?;
        } else {
            for samples in micro_batches(task.batch(), options.micro_batch) {
                let share = (task.weight(at) * samples.len() as f64 / task.batch() as f64) as f32;
                let inputs = pass.needed(task.inputs(at, samples)?);
                loss += f64::from(share) * gradients.add_run(pass, model, &inputs, share)?;
            }
            if keeps(loss) {
                gradients.keep_step(model, &mut sum.sums, options.squared)?;
            }
        }
        judge(loss);
        let judged = judged.into_inner().transpose()?.unwrap_or_default();
        for (at, (loss, kept)) in round.zip(&judged.losses) {
            let t = task.timesteps()[at];
            sum.curve.push(LossPoint { t, loss: checked(pass, model, t, *loss)?, kept: *kept });
        }
        sum.visited = sum.curve.len();
        sum.complete |= judged.ends || sum.visited == total;
        let mut visited =
            Visited { sum: &mut *sum, gradients: &mut gradients, model, ranks: rounds.ranks, total: None };
        if step(&mut visited)?.is_break() {
            sum.complete = true;
        }
        if sum.complete {
            break;
        }
    }
    gradients.read(model, &mut sum.sums)
}

/// A batch in runs of at most `size` samples.
fn micro_batches(batch: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.clamp(1, batch.max(1));
    (0..batch).step_by(size).map(move |start| start..(start + size).min(batch))
}

fn checked(pass: &GradientPass, model: &Model, t: f64, loss: f64) -> Result<f64, Error> {
    if loss.is_finite() {
        return Ok(loss);
    }
    let hint = match pass.precision() {
        Precision::Float32 => "check which input was taken for what, the range of the data and the noise schedule",
        Precision::Float16 => "values of the network may be too large for float16: run with --precision float32",
    };
    Err(Error::unmet(format!("the denoising loss at timestep {t} is {loss}")).in_file(model.path()).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_divided_into_whole_runs_and_a_rest() {
        let ranges: Vec<_> = micro_batches(5, 2).collect();
        assert_eq!(ranges, [0..2, 2..4, 4..5]);
        assert_eq!(micro_batches(3, 8).next(), Some(0..3));
        assert_eq!(micro_batches(3, 8).count(), 1);
    }
}
