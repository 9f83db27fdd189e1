//! The steps from noise to a sample.

use ndarray::{ArrayD, Zip};

use super::{SampleOptions, Sampler};
use crate::diffusion::config::VarianceType;
use crate::diffusion::process::Process;
use crate::diffusion::schedule::Level;
use crate::error::Error;

/// In diffusers, trajectories with fewer steps than this end with a first-order step at any final level.
const LOWER_ORDER_FINAL: usize = 15;

/// The coefficients of one step. The next sample is `clean x̂_0 + earlier x̂_0' + noisy x_t + noise ε̂ + fresh z`,
/// where `x̂_0'` is the estimate of the previous step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Step {
    clean: f64,
    earlier: f64,
    noisy: f64,
    noise: f64,
    fresh: f64,
}

/// Returns the rest of the noise variance at `level` if the signal is scaled to `next`: `s² - (a / a')² s'²`. In
/// discrete schedules this is `β` of the step.
fn added_variance(level: &Level, next: &Level) -> f64 {
    (level.noise.powi(2) - (level.signal / next.signal * next.noise).powi(2)).max(0.0)
}

/// Returns the variance of `x'` given `x_t` and `x_0`: `s'² β / s²`, DDPM's `β̃`.
fn posterior_variance(level: &Level, next: &Level) -> f64 {
    next.noise.powi(2) * added_variance(level, next) / level.noise.powi(2)
}

/// Returns half the logarithm of the signal-to-noise ratio, `λ = ln(a / s)`.
fn half_log_snr(level: &Level) -> f64 {
    level.signal.ln() - level.noise.ln()
}

impl Step {
    /// Returns the step from level `at` to the next.
    fn new(options: &SampleOptions, levels: &[Level], at: usize) -> Self {
        let (level, next) = (&levels[at], &levels[at + 1]);
        match options.sampler {
            Sampler::Ddim => Self::ddim(level, next, options.eta),
            Sampler::Ddpm => Self::ddpm(level, next, options.variance),
            Sampler::DpmSolver2M => {
                let steps = levels.len() - 1;
                // A step to no noise is infinitely long in λ.
                let is_first_order = at == 0 || next.noise <= 0.0 || (at + 1 == steps && steps < LOWER_ORDER_FINAL);
                Self::dpm_solver((!is_first_order).then(|| &levels[at - 1]), level, next)
            }
        }
    }

    /// Returns a DDIM step: equations 12 and 16 of Song et al.
    fn ddim(level: &Level, next: &Level, eta: f64) -> Self {
        let variance = eta * eta * posterior_variance(level, next);
        let noise = (next.noise.powi(2) - variance).max(0.0).sqrt();
        Self { clean: next.signal, noise, fresh: variance.sqrt(), ..Self::default() }
    }

    /// Returns a DDPM step: equation 7 of Ho et al.
    fn ddpm(level: &Level, next: &Level, variance: VarianceType) -> Self {
        let added = added_variance(level, next);
        let clean = next.signal * added / level.noise.powi(2);
        let noisy = level.signal / next.signal * next.noise.powi(2) / level.noise.powi(2);
        let fresh = match (next.noise > 0.0, variance) {
            (false, _) => 0.0,
            (true, VarianceType::FixedLarge) => added.sqrt(),
            (true, _) => posterior_variance(level, next).sqrt(),
        };
        Self { clean, noisy, fresh, ..Self::default() }
    }

    /// Returns a DPM-Solver++(2M) step, algorithm 2 of Lu et al. (arXiv:2211.01095): `x' = s'/s x + a' (1 - e^-h) D`
    /// with `D = x̂_0 + h / (2 h₀) (x̂_0 - x̂_0')`, `h = λ' - λ`, and `h₀` the `h` of the previous step. Without an
    /// earlier level, this is its first step.
    fn dpm_solver(earlier: Option<&Level>, level: &Level, next: &Level) -> Self {
        let noisy = next.noise / level.noise;
        // Computes e^-h without logarithms, which are infinite at the ends.
        let clean = next.signal - noisy * level.signal;
        let share = earlier.map_or(0.0, |earlier| {
            let length = half_log_snr(next) - half_log_snr(level);
            0.5 * length / (half_log_snr(level) - half_log_snr(earlier))
        });
        Self { clean: clean * (1.0 + share), earlier: -clean * share, noisy, ..Self::default() }
    }
}

/// The arrays of one step. All have the same shape.
#[derive(Debug)]
pub struct StepInput<'a> {
    /// `x_t`. The step overwrites it with the next sample.
    pub x: &'a mut ArrayD<f32>,
    /// The network's output.
    pub output: &'a ArrayD<f32>,
    /// Standard normal noise.
    pub fresh: &'a ArrayD<f32>,
    /// The variance that the network predicts, for [`VarianceType::LearnedRange`].
    pub variance: Option<&'a ArrayD<f32>>,
}

/// The levels and steps from noise to a sample, and the estimate of the previous step.
#[derive(Clone, Debug)]
pub struct Trajectory<'a> {
    process: &'a Process,
    levels: Vec<Level>,
    steps: Vec<Step>,
    /// The estimate of the clean sample in the previous step.
    earlier: ArrayD<f32>,
}

impl<'a> Trajectory<'a> {
    /// Creates the steps of the sampler over the schedule of the process.
    ///
    /// # Errors
    /// The schedule does not have this number of steps.
    pub fn new(process: &'a Process, options: &SampleOptions) -> Result<Self, Error> {
        let schedule = &process.schedule;
        let mut levels = match options.sampler {
            Sampler::Ddim | Sampler::Ddpm => schedule.sampling_levels(options.steps, options.skip)?,
            Sampler::DpmSolver2M => schedule.multistep_levels(options.steps, options.skip)?,
        };
        if let (Sampler::Ddpm, Some(last)) = (options.sampler, levels.last_mut()) {
            *last = Level::CLEAN;
        }
        Ok(Self::over(process, options, levels))
    }

    /// Creates the steps of the sampler over these levels, which are in the order of decreasing noise.
    pub fn over(process: &'a Process, options: &SampleOptions, levels: Vec<Level>) -> Self {
        let count = levels.len().saturating_sub(1);
        let steps = (0..count).map(|at| Step::new(options, &levels, at)).collect();
        Self { process, levels, steps, earlier: ArrayD::zeros(Vec::new()) }
    }

    /// Returns the number of steps, which is the number of evaluations of the network.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns the level at which step `at` evaluates the network. After the last step: the level at which sampling
    /// ends.
    pub fn level(&self, at: usize) -> &Level {
        &self.levels[at]
    }

    /// Returns whether step `at` adds fresh noise.
    pub fn adds_noise(&self, at: usize) -> bool {
        self.steps[at].fresh > 0.0
    }

    /// Performs step `at` in place. Perform the steps of a batch in order from 0: a step may use the estimate of the
    /// previous one.
    pub fn step(&mut self, at: usize, input: StepInput<'_>) {
        let (step, level, next) = (self.steps[at], &self.levels[at], &self.levels[at + 1]);
        let process = self.process;
        let (p, q) = process.clean_factors(level);
        // ε̂ = (x - a x̂_0) / s, from the estimate before clipping.
        let (from_x, from_output) = ((1.0 - level.signal * p) / level.noise, -level.signal * q / level.noise);
        let (low, high) = process.clip.map_or((f64::NEG_INFINITY, f64::INFINITY), |(a, b)| (a.into(), b.into()));
        if at == 0 || self.earlier.shape() != input.x.shape() {
            self.earlier = ArrayD::zeros(input.x.shape());
        }
        let x = Zip::from(&mut *input.x).and(input.output).and(input.fresh).and(&mut self.earlier);
        x.for_each(|x, output, fresh, earlier| {
            let (noisy, output) = (f64::from(*x), f64::from(*output));
            let clean = (p * noisy + q * output).clamp(low, high);
            let noise = from_x * noisy + from_output * output;
            let next = step.clean * clean
                + step.earlier * f64::from(*earlier)
                + step.noisy * noisy
                + step.noise * noise
                + step.fresh * f64::from(*fresh);
            (*x, *earlier) = (next as f32, clean as f32);
        });
        // The learned variance is between the two fixed ones in the logarithm. The step above applied the smaller one.
        if let Some(variance) = input.variance.filter(|_| step.fresh > 0.0) {
            let (small, large) = (posterior_variance(level, next).max(1e-20).ln(), added_variance(level, next).ln());
            Zip::from(input.x).and(variance).and(input.fresh).for_each(|x, share, fresh| {
                let share = f64::from(share + 1.0) / 2.0;
                let deviation = (0.5 * (share * large + (1.0 - share) * small)).exp();
                *x += ((deviation - step.fresh) * f64::from(*fresh)) as f32;
            });
        }
    }
}
