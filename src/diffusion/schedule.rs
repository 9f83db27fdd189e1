//! Noise schedules: the scales of signal and noise at every timestep.
//!
//! All families are written as `x_t = a x_0 + s ε` with a signal scale `a` and a noise scale `s`:
//!
//! | family | `a` | `s` |
//! |---|---|---|
//! | discrete (DDPM) | `sqrt(ᾱ_t)` | `sqrt(1 - ᾱ_t)` |
//! | flow | `1 - σ` | `σ`, from 0 to 1 |
//! | sigma (EDM, consistency) | 1 | `σ` |
//!
//! `ᾱ_t` is the product of `1 - β` up to `t`, as in Ho et al. 2020 ("Denoising Diffusion Probabilistic Models").

mod multistep;
mod options;

use crate::error::Error;
use options::linspace;

pub use options::{BetaSchedule, DiscreteOptions, FlowOptions, SigmaOptions, SigmaSpacing, Skip, Spacing};

/// The scales of signal and noise at one timestep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The time on the scale of the training steps, from 0 to about `T`.
    pub t: f64,
    /// The scale of the clean sample, `a`.
    pub signal: f64,
    /// The scale of the noise, `s`.
    pub noise: f64,
}

impl Level {
    /// No noise: the level at which sampling ends.
    pub const CLEAN: Level = Level { t: 0.0, signal: 1.0, noise: 0.0 };

    /// Returns the noise level relative to the signal, `σ = s / a`. Infinite if there is no signal.
    pub fn sigma(&self) -> f64 {
        self.noise / self.signal
    }
}

/// A noise schedule of `T` steps, from little noise at `t = 0` to almost pure noise at `t = T - 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    family: Family,
    levels: Vec<Level>,
}

#[derive(Clone, Debug, PartialEq)]
enum Family {
    Discrete {
        /// The form of the betas and whether they are rescaled to zero SNR. `None`: the betas were given.
        form: Option<(BetaSchedule, bool)>,
        betas: Vec<f64>,
        alphas_cumprod: Vec<f64>,
        /// `None`: every sampler has its default.
        spacing: Option<Spacing>,
        offset: usize,
        last_is_clean: bool,
        /// The minimum `ln(a / s)` at which multistep solvers evaluate the network.
        least_half_log_snr: f64,
    },
    Flow(FlowOptions),
    Sigma(SigmaOptions),
}

/// Maximum number of steps of a schedule. More can only come from a mistake.
const STEP_LIMIT: usize = 1_000_000;

fn check_steps(steps: usize) -> Result<(), Error> {
    match steps {
        2..=STEP_LIMIT => Ok(()),
        _ => Err(Error::usage(format!("noise schedule: expected 2 to {STEP_LIMIT} steps, found {steps}"))),
    }
}

impl NoiseSchedule {
    /// Creates a discrete schedule from its form.
    ///
    /// # Errors
    /// Fewer than 2 steps, or `β` outside (0, 1).
    pub fn discrete(options: &DiscreteOptions) -> Result<Self, Error> {
        let DiscreteOptions { schedule, beta_start, beta_end, steps, zero_terminal_snr } = *options;
        check_steps(steps)?;
        let betas: Vec<f64> = match schedule {
            BetaSchedule::Linear => linspace(beta_start, beta_end, steps).collect(),
            BetaSchedule::ScaledLinear => {
                linspace(beta_start.sqrt(), beta_end.sqrt(), steps).map(|root| root * root).collect()
            }
            BetaSchedule::SquaredcosCapV2 => {
                let alpha_bar =
                    |at: f64| ((at / steps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                (0..steps).map(|t| (1.0 - alpha_bar((t + 1) as f64) / alpha_bar(t as f64)).min(0.999)).collect()
            }
        };
        let mut made = Self::from_betas(if zero_terminal_snr { without_terminal_signal(&betas) } else { betas })?;
        if let Family::Discrete { form, .. } = &mut made.family {
            *form = Some((schedule, zero_terminal_snr));
        }
        Ok(made)
    }

    /// Creates a discrete schedule from the values of `β_t`.
    ///
    /// # Errors
    /// Fewer than 2 steps, or a `β` outside (0, 1). The last `β` may be 1.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self, Error> {
        check_steps(betas.len())?;
        let last = betas.len() - 1;
        if let Some((t, beta)) =
            betas.iter().enumerate().find(|(t, beta)| !(**beta > 0.0 && (**beta < 1.0 || *t == last && **beta <= 1.0)))
        {
            return Err(Error::usage(format!(
                "noise schedule: expected every beta in (0, 1), found {beta} at step {t}"
            )));
        }
        let mut product = 1.0;
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        let levels = alphas_cumprod.iter().enumerate().map(|(t, alpha)| discrete_level(t, *alpha)).collect();
        let family = Family::Discrete {
            form: None,
            betas,
            alphas_cumprod,
            spacing: None,
            offset: 0,
            last_is_clean: true,
            least_half_log_snr: f64::NEG_INFINITY,
        };
        Ok(Self { family, levels })
    }

    /// Sets how sampling chooses timesteps of a discrete schedule. Has no effect on other schedules.
    ///
    /// Without a `spacing`, DDIM and DDPM use [`Spacing::Leading`] and multistep solvers [`Spacing::Linspace`].
    /// `offset` is added to the steps of [`Spacing::Leading`]. If `last_is_clean` is false, DDIM ends at the noise
    /// level of step 0 (diffusers' `set_alpha_to_one: false`).
    #[must_use]
    pub fn with_spacing(mut self, spacing: Option<Spacing>, offset: usize, last_is_clean: bool) -> Self {
        if let Family::Discrete { spacing: s, offset: o, last_is_clean: l, .. } = &mut self.family {
            (*s, *o, *l) = (spacing, offset, last_is_clean);
        }
        self
    }

    /// Sets the minimum `λ = ln(a / s)` of a discrete schedule at which multistep solvers evaluate the network
    /// (diffusers' `lambda_min_clipped`). Has no effect on other schedules.
    #[must_use]
    pub fn with_least_half_log_snr(mut self, least: f64) -> Self {
        if let Family::Discrete { least_half_log_snr, .. } = &mut self.family {
            *least_half_log_snr = least;
        }
        self
    }

    /// Creates a flow schedule: `σ` from `1 / T` to 1, shifted.
    ///
    /// # Errors
    /// Fewer than 2 steps, a shift that is not positive, or a `shift_terminal` outside [0, 1).
    pub fn flow(options: FlowOptions) -> Result<Self, Error> {
        check_steps(options.steps)?;
        if !(options.shift.is_finite() && options.shift > 0.0) {
            return Err(Error::usage(format!("flow schedule: expected a positive shift, found {}", options.shift)));
        }
        if options.shift_terminal.is_some_and(|level| !(0.0..1.0).contains(&level)) {
            return Err(Error::usage("flow schedule: expected a shift_terminal in [0, 1)"));
        }
        let count = options.steps;
        let levels = (1..=count).map(|t| flow_level(options.shifted(t as f64 / count as f64), count)).collect();
        Ok(Self { family: Family::Flow(options), levels })
    }

    /// Creates a schedule of noise levels from `sigma_min` to `sigma_max`.
    ///
    /// # Errors
    /// Fewer than 2 steps, or levels that are not positive and increasing.
    pub fn sigma(options: SigmaOptions) -> Result<Self, Error> {
        check_steps(options.steps)?;
        let SigmaOptions { sigma_min, sigma_max, rho, .. } = options;
        if !(sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite() && rho.is_finite() && rho > 0.0) {
            return Err(Error::usage(format!(
                "sigma schedule: expected 0 < sigma_min < sigma_max and rho > 0, found {sigma_min}, {sigma_max}, {rho}"
            )));
        }
        let mut sigmas = options.descending(options.steps);
        sigmas.reverse();
        let levels = sigmas.into_iter().enumerate().map(|(t, noise)| Level { t: t as f64, signal: 1.0, noise });
        Ok(Self { levels: levels.collect(), family: Family::Sigma(options) })
    }

    /// Returns the number of steps, `T`.
    pub fn step_count(&self) -> usize {
        self.levels.len()
    }

    /// Returns the scales of signal and noise at step `t`, if the schedule has this step.
    pub fn level(&self, t: usize) -> Option<Level> {
        self.levels.get(t).copied()
    }

    /// Returns the levels of all steps, in the order of increasing noise.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Returns the `β_t` of a discrete schedule. Empty for others.
    pub fn betas(&self) -> &[f64] {
        match &self.family {
            Family::Discrete { betas, .. } => betas,
            _ => &[],
        }
    }

    /// Returns the `ᾱ_t` of a discrete schedule. Empty for others.
    pub fn alphas_cumprod(&self) -> &[f64] {
        match &self.family {
            Family::Discrete { alphas_cumprod, .. } => alphas_cumprod,
            _ => &[],
        }
    }

    /// Describes the family and range of the schedule for messages.
    pub fn describe(&self) -> String {
        let count = self.step_count();
        match &self.family {
            Family::Discrete { form, betas, .. } => {
                let (first, last) = (betas.first().copied().unwrap_or(0.0), betas.last().copied().unwrap_or(0.0));
                let (name, rescaled) = match form {
                    Some((form, rescaled)) => (form.name(), *rescaled),
                    None => ("trained_betas", false),
                };
                let rescaled = if rescaled { " rescaled to zero SNR" } else { "" };
                format!("discrete schedule {name}{rescaled}, T = {count}, beta {first:.2e} to {last:.2e}")
            }
            Family::Flow(options) => {
                let terminal = options.shift_terminal.map(|level| format!(", shift_terminal {level}"));
                format!("flow schedule, T = {count}, shift {}{}", options.shift, terminal.unwrap_or_default())
            }
            Family::Sigma(options) => {
                let SigmaOptions { sigma_min, sigma_max, rho, .. } = options;
                let spacing = match options.spacing {
                    SigmaSpacing::Karras => format!("karras, rho {rho}"),
                    SigmaSpacing::Exponential => "exponential".to_owned(),
                };
                format!("noise levels {sigma_min} to {sigma_max} ({spacing}), T = {count}")
            }
        }
    }

    /// Returns whether this is a discrete schedule, given by `β_t`.
    pub fn is_discrete(&self) -> bool {
        matches!(self.family, Family::Discrete { .. })
    }

    /// Returns whether this is a flow schedule.
    pub fn is_flow(&self) -> bool {
        matches!(self.family, Family::Flow(_))
    }

    /// Returns whether this is a schedule of noise levels.
    pub fn is_sigma(&self) -> bool {
        matches!(self.family, Family::Sigma(_))
    }

    /// Checks that the number of sampling steps is positive, and for a discrete schedule not above the number in
    /// training.
    fn check_count(&self, count: usize) -> Result<(), Error> {
        if count == 0 {
            return Err(Error::usage("sampling: expected at least 1 step, found 0").hint("raise --steps"));
        }
        let total = self.step_count();
        if self.is_discrete() && count > total {
            let text = format!("sampling: expected at most {total} steps, the number in training, found {count}");
            return Err(Error::usage(text).hint("lower --steps"));
        }
        Ok(())
    }

    /// Returns the levels that sampling visits, from the most noise to the least, followed by the level at which it
    /// ends.
    ///
    /// For a discrete schedule, quadratic skip may visit fewer than `count` steps: the first ones may coincide. Flow
    /// and sigma schedules have their own spacing and ignore `skip`.
    ///
    /// # Errors
    /// `count` is zero, or above the number of steps of a discrete schedule.
    pub fn sampling_levels(&self, count: usize, skip: Skip) -> Result<Vec<Level>, Error> {
        self.check_count(count)?;
        let mut levels: Vec<Level>;
        match &self.family {
            Family::Discrete { spacing, offset, last_is_clean, .. } => {
                let total = self.step_count();
                let steps = match skip {
                    Skip::Uniform => spaced_steps(spacing.unwrap_or(Spacing::Leading), *offset, total, count),
                    Skip::Quadratic => quadratic_steps(total, count),
                };
                levels = steps.into_iter().rev().map(|t| self.levels[t]).collect();
                levels.push(if *last_is_clean { Level::CLEAN } else { Level { t: 0.0, ..self.levels[0] } });
            }
            Family::Flow(options) => {
                let (first, last) = (self.levels[self.levels.len() - 1].noise, self.levels[0].noise);
                // The shift is applied again to the shifted ends, as in diffusers.
                let mut sigmas: Vec<f64> = linspace(first, last, count).map(|sigma| options.shifted(sigma)).collect();
                if let (Some(terminal), Some(last)) = (options.shift_terminal, sigmas.last().copied()) {
                    let scale = (1.0 - last) / (1.0 - terminal);
                    if scale > 0.0 {
                        sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
                    }
                }
                levels = sigmas.into_iter().map(|sigma| flow_level(sigma, options.steps)).collect();
                levels.push(Level::CLEAN);
            }
            Family::Sigma(options) => {
                let scale = (options.steps - 1) as f64 / (count.max(2) - 1) as f64;
                let sigmas = options.descending(count);
                let t = |at: usize| (options.steps - 1) as f64 - at as f64 * scale;
                levels = sigmas
                    .iter()
                    .enumerate()
                    .map(|(at, noise)| Level { t: t(at), signal: 1.0, noise: *noise })
                    .collect();
                let noise = if options.stop_at_minimum { options.sigma_min } else { 0.0 };
                levels.push(Level { noise, ..Level::CLEAN });
            }
        }
        Ok(levels)
    }
}

fn discrete_level(t: usize, alpha_cumprod: f64) -> Level {
    Level { t: t as f64, signal: alpha_cumprod.sqrt(), noise: (1.0 - alpha_cumprod).sqrt() }
}

fn flow_level(sigma: f64, steps: usize) -> Level {
    Level { t: sigma * steps as f64, signal: 1.0 - sigma, noise: sigma }
}

/// Rounds to a step of the schedule, half to even like NumPy.
fn rounded(value: f64) -> usize {
    value.round_ties_even() as usize
}

/// Returns the steps of diffusers' three spacings, ascending.
fn spaced_steps(spacing: Spacing, offset: usize, total: usize, count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = match spacing {
        Spacing::Leading => (0..count).map(|at| at * (total / count) + offset).collect(),
        Spacing::Trailing => {
            let ratio = total as f64 / count as f64;
            (0..count).rev().map(|at| rounded(total as f64 - at as f64 * ratio).saturating_sub(1)).collect()
        }
        Spacing::Linspace => linspace(0.0, (total - 1) as f64, count).map(rounded).collect(),
    };
    steps.iter_mut().for_each(|t| *t = (*t).min(total - 1));
    steps.dedup();
    steps
}

/// Returns the steps of the DDIM paper's quadratic skip, ascending and without repetition.
fn quadratic_steps(total: usize, count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> =
        linspace(0.0, (total as f64 * 0.8).sqrt(), count).map(|root| ((root * root) as usize).min(total - 1)).collect();
    steps.dedup();
    steps
}

/// Rescales `β_t` so that no signal is left at the last step (Lin et al. 2023, algorithm 1).
fn without_terminal_signal(betas: &[f64]) -> Vec<f64> {
    let mut product = 1.0;
    let roots: Vec<f64> = betas
        .iter()
        .map(|beta| {
            product *= 1.0 - beta;
            f64::sqrt(product)
        })
        .collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let alpha_bar: Vec<f64> = roots.iter().map(|root| ((root - last) * first / (first - last)).powi(2)).collect();
    let mut before = 1.0;
    alpha_bar
        .iter()
        .map(|alpha| {
            let beta = 1.0 - alpha / before;
            before = *alpha;
            beta
        })
        .collect()
}
