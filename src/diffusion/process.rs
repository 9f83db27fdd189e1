//! The diffusion process of a network: its noise schedule, what it predicts, and what its inputs expect.
//!
//! Letters as in [`super::schedule`]: `x_t = a x_0 + s ε`, `σ = s / a`.

use ndarray::{ArrayD, Zip};
use serde::{Deserialize, Serialize};

use super::schedule::{Level, NoiseSchedule};
use crate::error::Error;

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "cli", value(rename_all = "snake_case"))]
pub enum PredictionType {
    /// The noise `ε`.
    Epsilon,
    /// The clean sample `x_0`.
    Sample,
    /// `v = a ε - s x_0` (Salimans and Ho 2022).
    VPrediction,
    /// The velocity `ε - x_0` of a straight flow.
    Flow,
}

impl PredictionType {
    /// Returns the name that diffusers uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Sample => "sample",
            Self::VPrediction => "v_prediction",
            Self::Flow => "flow",
        }
    }
}

/// The value that the network's time input expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "cli", value(rename_all = "snake_case"))]
pub enum TimeScale {
    /// The step `t`, from 0 to `T - 1`; for a flow, `σ T`.
    Step,
    /// The step as a fraction of `T`, from 0 to 1.
    Fraction,
    /// The noise level `σ`.
    Sigma,
    /// `ln(σ) / 4`: the input of EDM networks without their preconditioning.
    CNoise,
    /// The signal scale `sqrt(ᾱ)`, which SR3 and WaveGrad call the noise level; 1 where there is no noise.
    SqrtAlphaBar,
    /// `ᾱ`, which Palette calls gamma.
    AlphaBar,
    /// The variance of the noise `1 - ᾱ`.
    NoiseVariance,
    /// The logarithm of the signal-to-noise ratio, `ln(a² / s²)`, as in variational diffusion models, clipped to -20 to
    /// 20.
    LogSnr,
}

impl TimeScale {
    /// Describes the value of the time input for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Step => "the step t",
            Self::Fraction => "the fraction t / T",
            Self::Sigma => "the noise level sigma",
            Self::CNoise => "ln(sigma) / 4",
            Self::SqrtAlphaBar => "the signal scale sqrt(alpha_bar)",
            Self::AlphaBar => "alpha_bar",
            Self::NoiseVariance => "the variance of the noise 1 - alpha_bar",
            Self::LogSnr => "the logarithm of the signal-to-noise ratio",
        }
    }

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Fraction => "fraction",
            Self::Sigma => "sigma",
            Self::CNoise => "c_noise",
            Self::SqrtAlphaBar => "sqrt_alpha_bar",
            Self::AlphaBar => "alpha_bar",
            Self::NoiseVariance => "noise_variance",
            Self::LogSnr => "log_snr",
        }
    }

    /// Returns whether the value needs a schedule with `ᾱ`, that is, a discrete one.
    pub fn needs_alpha_bar(self) -> bool {
        matches!(self, Self::SqrtAlphaBar | Self::AlphaBar | Self::NoiseVariance)
    }
}

/// Preconditioning around a network (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
/// Models") that is not part of the graph: `D(x, σ) = c_skip x + c_out F(c_in x, c_noise)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconditioning {
    /// The standard deviation of the data.
    pub sigma_data: f64,
    /// The minimum noise level, where the boundary condition of consistency models makes `D` the identity. `None`: EDM,
    /// without a boundary condition.
    pub boundary: Option<f64>,
    /// The factor of `ln σ` in `c_noise`: 1/4 for EDM, 250 for consistency models.
    pub noise_scale: f64,
    /// Whether `c_out` is negative (diffusers' `v_prediction`).
    pub negative: bool,
}

impl Preconditioning {
    /// Returns the preconditioning of EDM.
    pub fn edm(sigma_data: f64) -> Self {
        Self { sigma_data, boundary: None, noise_scale: 0.25, negative: false }
    }

    /// Returns `c_in`, the scale of the noisy input.
    pub fn c_in(&self, sigma: f64) -> f64 {
        1.0 / sigma.hypot(self.sigma_data)
    }

    /// Returns `c_skip`, the weight of the noisy sample in the result.
    pub fn c_skip(&self, sigma: f64) -> f64 {
        let data = self.sigma_data * self.sigma_data;
        data / ((sigma - self.boundary.unwrap_or(0.0)).powi(2) + data)
    }

    /// Returns `c_out`, the weight of the network's output in the result.
    pub fn c_out(&self, sigma: f64) -> f64 {
        let c_out = (sigma - self.boundary.unwrap_or(0.0)) * self.sigma_data / sigma.hypot(self.sigma_data);
        if self.negative { -c_out } else { c_out }
    }

    /// Returns `c_noise`, the value of the time input.
    pub fn c_noise(&self, sigma: f64) -> f64 {
        self.noise_scale * sigma.max(1e-44).ln()
    }
}

/// How a network was trained: all that is needed to compute its inputs and targets at any timestep and to sample from
/// it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Signal and noise scales at every step.
    pub schedule: NoiseSchedule,
    /// What the network predicts. Ignored with preconditioning.
    pub prediction: PredictionType,
    /// The value that the time input expects.
    pub time: TimeScale,
    /// Preconditioning that is not part of the graph. `None`: there is none, or the graph contains it.
    pub preconditioning: Option<Preconditioning>,
    /// The range to which sampling clips estimates of the clean sample. `None`: no clipping.
    pub clip: Option<(f32, f32)>,
}

impl Process {
    /// Creates a process with the time input that matches its schedule, and without clipping.
    ///
    /// # Errors
    /// The network predicts the noise, but the schedule leaves no signal at the last step: the clean sample can't be
    /// computed from such an output.
    pub fn new(
        schedule: NoiseSchedule,
        prediction: PredictionType,
        preconditioning: Option<Preconditioning>,
    ) -> Result<Self, Error> {
        let no_signal = schedule.levels().last().is_some_and(|level| level.signal <= 0.0);
        if no_signal && prediction == PredictionType::Epsilon && preconditioning.is_none() {
            return Err(Error::usage(
                "a network that predicts the noise (epsilon) can't use a schedule without signal at its last step",
            )
            .hint("use --prediction-type v_prediction or sample, or a schedule without rescaling to zero SNR"));
        }
        let time = match (&preconditioning, schedule.is_sigma()) {
            (Some(_), _) => TimeScale::CNoise,
            (None, true) => TimeScale::Sigma,
            (None, false) => TimeScale::Step,
        };
        Ok(Self { schedule, prediction, time, preconditioning, clip: None })
    }

    /// Describes schedule, prediction and clipping for messages.
    pub fn describe(&self) -> String {
        let prediction = match self.preconditioning {
            Some(scalings) => {
                let Preconditioning { sigma_data, boundary, noise_scale, negative } = scalings;
                let boundary = boundary.map_or_else(String::new, |sigma| format!(", the identity at {sigma}"));
                let sign = if negative { ", c_out negative" } else { "" };
                let scale =
                    if noise_scale == 0.25 { String::new() } else { format!(", c_noise {noise_scale} ln(sigma)") };
                format!("preconditioned outside the graph (sigma_data {sigma_data}{boundary}{scale}{sign})")
            }
            None => format!("predicts {}", self.prediction.name()),
        };
        let clip = match self.clip {
            Some((low, high)) => format!("clips x_0 to [{low}, {high}]"),
            None => "no clipping".to_owned(),
        };
        format!("{}, {prediction}, {clip}", self.schedule.describe())
    }

    /// Writes the noisy sample `x_t` at a level to `out`. All three arrays have the same shape.
    pub fn add_noise(&self, x0: &ArrayD<f32>, noise: &ArrayD<f32>, level: &Level, out: &mut ArrayD<f32>) {
        let (a, s) = (level.signal as f32, level.noise as f32);
        Zip::from(out).and(x0).and(noise).for_each(|out, x0, noise| *out = a * x0 + s * noise);
    }

    /// Writes the target of the network for the sample from [`Process::add_noise`] to `out`.
    pub fn target(&self, x0: &ArrayD<f32>, noise: &ArrayD<f32>, level: &Level, out: &mut ArrayD<f32>) {
        let (from_x0, from_noise) = match &self.preconditioning {
            // F = (x0 - c_skip (a x0 + s ε)) / c_out
            Some(scalings) => {
                let (skip, scale) = (scalings.c_skip(level.sigma()), nonzero(scalings.c_out(level.sigma())));
                ((1.0 - skip * level.signal) / scale, -skip * level.noise / scale)
            }
            None => match self.prediction {
                PredictionType::Epsilon => (0.0, 1.0),
                PredictionType::Sample => (1.0, 0.0),
                PredictionType::VPrediction => (-level.noise, level.signal),
                PredictionType::Flow => (-1.0, 1.0),
            },
        };
        let (from_x0, from_noise) = (from_x0 as f32, from_noise as f32);
        Zip::from(out).and(x0).and(noise).for_each(|out, x0, noise| *out = from_x0 * x0 + from_noise * noise);
    }

    /// Returns the number for the time input at a level, before it is rounded to the element type of the input.
    pub fn time_value(&self, level: &Level) -> f64 {
        match self.time {
            TimeScale::Step => level.t,
            TimeScale::Fraction => level.t / self.schedule.step_count() as f64,
            TimeScale::Sigma if self.schedule.is_flow() => level.noise,
            TimeScale::Sigma => level.sigma(),
            TimeScale::CNoise => self.preconditioning.unwrap_or(Preconditioning::edm(0.5)).c_noise(level.sigma()),
            TimeScale::SqrtAlphaBar => level.signal,
            TimeScale::AlphaBar => level.signal * level.signal,
            TimeScale::NoiseVariance => level.noise * level.noise,
            TimeScale::LogSnr => (-2.0 * level.sigma().ln()).clamp(-LARGEST_LOG_SNR, LARGEST_LOG_SNR),
        }
    }

    /// Returns the factor by which the noisy sample is scaled before it is fed to the network.
    pub fn input_scale(&self, level: &Level) -> f64 {
        self.preconditioning.map_or(1.0, |scalings| scalings.c_in(level.sigma()))
    }

    /// Returns the weight `λ` that makes the squared error of a noise-level network comparable between levels:
    /// `1 / c_out²` for a network that returns the clean sample (Karras et al. 2022, with `sigma_data` 0.5), else 1.
    pub fn loss_weight(&self, level: &Level) -> f64 {
        let returns_sample = self.prediction == PredictionType::Sample && self.preconditioning.is_none();
        match returns_sample && self.schedule.is_sigma() {
            true => nonzero(Preconditioning::edm(0.5).c_out(level.sigma())).powi(-2),
            false => 1.0,
        }
    }

    /// Returns the factors `(p, q)` of the estimate of the clean sample, `p x_t + q output`.
    pub(super) fn clean_factors(&self, level: &Level) -> (f64, f64) {
        let Level { signal: a, noise: s, .. } = *level;
        if let Some(scalings) = &self.preconditioning {
            return (scalings.c_skip(level.sigma()), scalings.c_out(level.sigma()));
        }
        match self.prediction {
            PredictionType::Epsilon => (1.0 / a, -s / a),
            PredictionType::Sample => (0.0, 1.0),
            // x_t = a x0 + s ε and v = a ε - s x0; a² + s² is 1 in discrete schedules.
            PredictionType::VPrediction => (a / (a * a + s * s), -s / (a * a + s * s)),
            // x_t = a x0 + s ε and u = ε - x0.
            PredictionType::Flow => (1.0 / (a + s), -s / (a + s)),
        }
    }
}

/// Limit of the logarithm of the signal-to-noise ratio, as in Kingma et al. 2021: beyond it there is only signal or
/// only noise.
const LARGEST_LOG_SNR: f64 = 20.0;

/// Returns the value as a divisor: a tiny one instead of zero.
fn nonzero(value: f64) -> f64 {
    if value == 0.0 { f64::MIN_POSITIVE.sqrt() } else { value }
}
