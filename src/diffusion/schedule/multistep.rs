//! The levels that DPM-Solver++ visits, chosen as in diffusers' DPMSolverMultistepScheduler and
//! EDMDPMSolverMultistepScheduler.

use super::options::{FlowOptions, Skip, Spacing, linspace};
use super::{Family, Level, NoiseSchedule, flow_level, quadratic_steps, rounded};
use crate::error::Error;

/// The `ᾱ` that replaces zero, 2^-24: the solver divides by the signal scale.
const LEAST_ALPHA_BAR: f64 = 1.0 / 16_777_216.0;

impl NoiseSchedule {
    /// Returns the levels that a multistep solver visits, from the most noise to the least, followed by the level at
    /// which it ends.
    ///
    /// Evenly spaced steps of a discrete schedule differ from those of [`NoiseSchedule::sampling_levels`]: the last
    /// step is a full stride from the end. A schedule without a spacing uses [`Spacing::Linspace`]. Flow schedules
    /// follow diffusers' `use_flow_sigmas`, with times truncated to whole steps.
    /// # Errors
    /// As [`NoiseSchedule::sampling_levels`].
    pub fn multistep_levels(&self, count: usize, skip: Skip) -> Result<Vec<Level>, Error> {
        self.check_count(count)?;
        let mut levels: Vec<Level> = match &self.family {
            Family::Discrete { spacing, offset, least_half_log_snr, .. } => {
                // ᾱ decreases, so the steps with enough signal come first.
                let least = *least_half_log_snr;
                let total = self.levels.iter().filter(|level| -level.sigma().ln() >= least).count().max(1);
                let steps = match skip {
                    Skip::Uniform => steps(spacing.unwrap_or(Spacing::Linspace), *offset, total, count),
                    Skip::Quadratic => quadratic_steps(total, count),
                };
                steps.into_iter().rev().map(|t| with_signal(self.levels[t])).collect()
            }
            Family::Flow(options) => flow_levels(options, count),
            Family::Sigma(_) => return self.sampling_levels(count, skip),
        };
        levels.push(Level::CLEAN);
        Ok(levels)
    }
}

/// Returns the level, or one with almost no signal if it has none.
fn with_signal(level: Level) -> Level {
    match level.signal > 0.0 {
        true => level,
        false => Level { signal: LEAST_ALPHA_BAR.sqrt(), noise: (1.0 - LEAST_ALPHA_BAR).sqrt(), ..level },
    }
}

/// Returns levels with `count` values of `σ` from `1 - 1 / T` down, evenly spaced and shifted.
fn flow_levels(options: &FlowOptions, count: usize) -> Vec<Level> {
    let signals = linspace(1.0, 1.0 / options.steps as f64, count + 1);
    let levels = signals.skip(1).map(|signal| flow_level(options.shifted(1.0 - signal), options.steps));
    levels.rev().map(|level| Level { t: level.t.trunc(), ..level }).collect()
}

/// Returns the steps of the scheduler's three spacings, ascending, within the first `total` steps.
fn steps(spacing: Spacing, offset: usize, total: usize, count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = match spacing {
        Spacing::Leading => {
            let stride = (total / (count + 1)).max(1);
            (1..=count).map(|at| at * stride + offset).collect()
        }
        Spacing::Trailing => {
            let stride = total as f64 / count as f64;
            (0..count).rev().map(|at| rounded(total as f64 - at as f64 * stride).saturating_sub(1)).collect()
        }
        Spacing::Linspace => linspace(0.0, (total - 1) as f64, count + 1).skip(1).map(rounded).collect(),
    };
    steps.iter_mut().for_each(|t| *t = (*t).min(total - 1));
    steps.dedup();
    steps
}
