//! The sum of gradients over timesteps, with the loss threshold of Diff-Pruning.
//!
//! For t from small noise to large, `L_t` is the denoising loss at t with fixed `x_0` and noise, and `G = sum over the
//! kept t of dL_t / dW`. A timestep is kept if its loss is at least `threshold` times the largest ("Structural Pruning
//! for Diffusion Models", 2023, equation 8: `L_t / L_max > T`).
//!
//! With several ranks, timesteps are processed in rounds of one timestep per rank. The ranks share the losses of a
//! round before any of them adds its gradient. The threshold therefore keeps the same timesteps as in one process,
//! based on bit-identical losses. Only the grouping of the sums differs: each rank sums its own timesteps.

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

/// The inputs of the loss: the network's inputs and the target at every timestep.
pub trait Denoising {
    /// Returns the timesteps in the order in which they are visited, from small noise to large.
    fn timesteps(&self) -> &[f64];

    /// Returns the number of samples of the batch.
    fn batch(&self) -> usize;

    /// Returns the factor of loss and gradient at the `at`-th timestep: 1 for networks that predict the noise.
    fn weight(&self, _at: usize) -> f64 {
        1.0
    }

    /// Returns all inputs of the gradient graph, including the target, for some samples at the `at`-th timestep.
    ///
    /// # Errors
    /// An input can't be generated.
    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error>;
}

/// Which timesteps the threshold keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ThresholdMode {
    /// All timesteps before the first whose loss is below the threshold times the largest loss so far, as in the
    /// published code.
    #[default]
    Prefix,
    /// Every timestep whose loss is at least the threshold times the largest loss of all, as in the paper's formula.
    Mask,
}

/// The settings of a sum of gradients over timesteps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccumulateOptions {
    /// The threshold T. Zero keeps every timestep.
    pub threshold: f64,
    /// Which timesteps the threshold keeps.
    pub mode: ThresholdMode,
    /// Whether the timestep at which a prefix ends is still added, as in the published `ddpm_prune.py`.
    pub sums_last: bool,
    /// Whether to sum the squares of each timestep's gradients instead (the diagonal of the Fisher matrix).
    pub squared: bool,
    /// Number of samples per run. The batch is divided into runs of this size.
    pub micro_batch: usize,
}

/// The loss at one timestep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The timestep.
    pub t: f64,
    /// `L_t`, the mean over all elements of the batch.
    pub loss: f64,
    /// Whether its gradient is part of the sum.
    pub kept: bool,
}

/// Gradients summed over timesteps.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// The uses of weights to which the sums belong.
    pub uses: Vec<UseGradient>,
    /// `G` of every use, with the shape of the weight.
    pub sums: Vec<Vec<f32>>,
    /// The losses in the order of the timesteps.
    pub curve: Vec<LossPoint>,
    /// Number of timesteps that were visited, including those that were not kept.
    pub visited: usize,
    /// Whether the sum is complete: all timesteps were visited, or the prefix has ended.
    pub complete: bool,
}

impl Accumulated {
    /// Returns empty sums.
    pub fn new(uses: &[UseGradient]) -> Self {
        let sums = vec![Vec::new(); uses.len()];
        Self { uses: uses.to_vec(), sums, curve: Vec::new(), visited: 0, complete: false }
    }

    /// Returns the largest loss so far.
    pub fn largest_loss(&self) -> f64 {
        self.curve.iter().map(|point| point.loss).fold(0.0, f64::max)
    }

    /// Returns the number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.curve.iter().filter(|point| point.kept).count()
    }

    /// Replaces the sums of every rank by the total over all ranks.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn reduce(&mut self, ranks: &dyn Collective) -> Result<(), Error> {
        if ranks.size() == 1 {
            return Ok(());
        }
        // A rank that kept no timestep does not know the lengths.
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

/// The state of a sum after a visited timestep.
#[derive(Debug)]
pub struct Visited<'a> {
    sum: &'a mut Accumulated,
    gradients: &'a mut GradientSum,
    model: &'a Model,
    ranks: &'a dyn Collective,
    /// The total over all ranks, after [`Visited::sum`] was called.
    total: Option<Accumulated>,
}

impl Visited<'_> {
    /// Returns the number of timesteps that were visited.
    pub fn visited(&self) -> usize {
        self.sum.visited
    }

    /// Returns the losses so far.
    pub fn curve(&self) -> &[LossPoint] {
        &self.sum.curve
    }

    /// Returns the number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.sum.kept()
    }

    /// Returns the sum so far. Copies it from the device if it is kept there. Either all ranks call this or none.
    ///
    /// # Errors
    /// The copy fails, or a rank has ended.
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

/// Computes only losses. A gradient graph without wanted weights computes them at the cost of a forward pass. Every
/// rank computes one timestep of each round, and gets the losses of all ranks.
///
/// # Errors
/// A run fails, a loss is not finite, or a rank has ended.
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

/// Sums gradients over timesteps in one process, see [`accumulate_over`].
///
/// # Errors
/// A run fails, or a loss is not finite.
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

/// Sums gradients over timesteps, starting from the state of `sum`. `options` comes with the losses of all timesteps if
/// they are known, as [`ThresholdMode::Mask`] needs. `step` is called after every round of timesteps, one per rank, and
/// may stop the sum on all ranks. If the pass keeps gradients on a device, they are summed there. The sum is copied at
/// the end, and whenever `step` calls [`Visited::sum`].
///
/// At the end, every rank has the losses of all timesteps and the sum of its own timesteps. [`Accumulated::reduce`]
/// adds up the sums.
///
/// # Errors
/// A run fails, a loss is not finite, or a rank has ended.
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
        // Shares the losses of the round once this rank's loss is known. Only then is it known which timesteps are
        // kept.
        let judge = |loss: f64| -> &Result<Judged, Error> {
            judged.get_or_init(|| Ok(rule.judge(&round, rounds.share(&round, loss)?, largest)))
        };
        let keeps = |loss: f64| judge(loss).as_ref().is_ok_and(|judged| judged.keeps(own));
        gradients.begin_step();
        let mut loss = 0.0;
        if !round.contains(&at) || rule.skips(at) {
            // This rank has nothing to compute.
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

/// Divides a batch into runs of at most `size` samples.
fn micro_batches(batch: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.clamp(1, batch.max(1));
    (0..batch).step_by(size).map(move |start| start..(start + size).min(batch))
}

fn checked(pass: &GradientPass, model: &Model, t: f64, loss: f64) -> Result<f64, Error> {
    if loss.is_finite() {
        return Ok(loss);
    }
    let hint = match pass.precision() {
        Precision::Float32 => "check the roles of the inputs, the value range of the data and the noise schedule",
        Precision::Float16 => "activations may be too large for float16; run with --precision float32",
    };
    Err(Error::unmet(format!("the denoising loss at timestep {t} is {loss}")).in_file(model.path()).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_of_a_batch_holds_the_remaining_samples() {
        let ranges: Vec<_> = micro_batches(5, 2).collect();
        assert_eq!(ranges, [0..2, 2..4, 4..5]);
        assert_eq!(micro_batches(3, 8).next(), Some(0..3));
        assert_eq!(micro_batches(3, 8).count(), 1);
    }
}
