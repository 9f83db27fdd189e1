//! The timestep and noise of every sample of a run, determined by its global position. They do not depend on earlier
//! positions, nor on the number of processes that share the work.

use ndarray::{ArrayD, Axis};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

/// The distribution of timesteps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum TimestepDraw {
    /// Independent, all timesteps equally likely.
    #[default]
    Uniform,
    /// In pairs t and T - 1 - t, as in the published code of DDIM and Diff-Pruning.
    Antithetic,
    /// One timestep from each of N equal parts of the schedule, where N is the batch size.
    Stratified,
}

/// The settings that determine timestep and noise of every position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draws {
    /// The seed of the run.
    pub seed: u64,
    /// The distribution of timesteps.
    pub timesteps: TimestepDraw,
    /// The number of timesteps in the schedule.
    pub steps: usize,
    /// The number of samples in an optimizer step.
    pub batch: usize,
}

/// The streams of random numbers of a position.
const OF_TIME: u64 = 0x5851_f42d_4c95_7f2d;
const OF_NOISE: u64 = 0x1405_7b7e_f767_814f;
const OF_DIRECTION: u64 = 0x2545_f491_4f6c_dd1d;

impl Draws {
    fn random(&self, position: u64, stream: u64) -> Pcg64Mcg {
        // The finaliser of SplitMix64 spreads neighbouring positions over all seeds.
        let mut mixed = (self.seed ^ stream).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Pcg64Mcg::seed_from_u64(mixed ^ (mixed >> 31))
    }

    /// Returns the index in the schedule of the timestep of a position.
    pub fn timestep(&self, position: u64) -> usize {
        let steps = self.steps.max(1);
        let uniform = |position: u64| self.random(position, OF_TIME).random_range(0..steps);
        match self.timesteps {
            TimestepDraw::Uniform => uniform(position),
            TimestepDraw::Antithetic if position.is_multiple_of(2) => uniform(position),
            TimestepDraw::Antithetic => steps - 1 - uniform(position - 1),
            TimestepDraw::Stratified => {
                let batch = self.batch.max(1) as u64;
                let within: f64 = self.random(position, OF_TIME).random();
                let share = ((position % batch) as f64 + within) / batch as f64;
                ((share * steps as f64) as usize).min(steps - 1)
            }
        }
    }

    /// Returns the index of the direction of a position, below `count`, which is at least one.
    pub fn direction(&self, position: u64, count: usize) -> usize {
        self.random(position, OF_DIRECTION).random_range(0..count.max(1))
    }

    /// Returns normally distributed noise for the samples at these positions. `dims` is the shape, with the number of
    /// positions first.
    pub fn noise(&self, positions: &[u64], dims: &[usize]) -> ArrayD<f32> {
        let mut noise = ArrayD::zeros(dims);
        for (mut row, position) in noise.axis_iter_mut(Axis(0)).zip(positions) {
            let mut random = self.random(*position, OF_NOISE);
            row.iter_mut().for_each(|value| *value = StandardNormal.sample(&mut random));
        }
        noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(timesteps: TimestepDraw) -> Draws {
        Draws { seed: 3, timesteps, steps: 1000, batch: 32 }
    }

    #[test]
    fn timesteps_cover_the_schedule_for_every_distribution() {
        for kind in [TimestepDraw::Uniform, TimestepDraw::Antithetic, TimestepDraw::Stratified] {
            let drawn: Vec<usize> = (0..3200).map(|position| draws(kind).timestep(position)).collect();
            let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
            assert!((mean - 499.5).abs() < 20.0, "{kind:?}: {mean}");
            assert!(drawn.iter().all(|step| *step < 1000));
        }
        let pairs = draws(TimestepDraw::Antithetic);
        assert!((0..100).all(|at| pairs.timestep(2 * at) + pairs.timestep(2 * at + 1) == 999));
        let parts = draws(TimestepDraw::Stratified);
        // The border of a part may be within a timestep.
        let is_in_part = |at: u64| {
            let (step, at) = (parts.timestep(64 + at) as f64, at as f64);
            (step + 1.0) * 0.032 > at && step * 0.032 < at + 1.0
        };
        assert!((0..32).all(is_in_part));
    }

    #[test]
    fn a_position_has_the_same_noise_in_any_batch() {
        let all = draws(TimestepDraw::Uniform).noise(&[4, 5, 6], &[3, 8]);
        let one = draws(TimestepDraw::Uniform).noise(&[5], &[1, 8]);
        assert_eq!(all.index_axis(Axis(0), 1), one.index_axis(Axis(0), 0));
        let many = draws(TimestepDraw::Uniform).noise(&(0..500).collect::<Vec<_>>(), &[500, 20]);
        let (mean, square) = (many.mean().unwrap(), many.mapv(|value| value * value).mean().unwrap());
        assert!(mean.abs() < 0.05 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }
}
