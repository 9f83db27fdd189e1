//! The settings of noise schedules and of how sampling chooses steps from them.

use serde::{Deserialize, Serialize};

/// The form of the `β_t` of a discrete schedule, by diffusers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "cli", value(rename_all = "snake_case"))]
pub enum BetaSchedule {
    /// `β` grows linearly (DDPM).
    #[default]
    Linear,
    /// The square root of `β` grows linearly (latent diffusion).
    ScaledLinear,
    /// `ᾱ` follows a squared cosine (Nichol and Dhariwal 2021), `β` at most 0.999.
    #[serde(rename = "squaredcos_cap_v2")]
    #[cfg_attr(feature = "cli", value(name = "squaredcos_cap_v2"))]
    SquaredcosCapV2,
}

impl BetaSchedule {
    /// Returns the name that diffusers uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::ScaledLinear => "scaled_linear",
            Self::SquaredcosCapV2 => "squaredcos_cap_v2",
        }
    }
}

/// The default choice of sampling steps among the `T` steps, by diffusers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of `T / steps`, from 0 up.
    #[default]
    Leading,
    /// Multiples of `T / steps`, from `T` down.
    Trailing,
    /// Evenly spaced from 0 to `T - 1`.
    Linspace,
}

/// The choice of sampling steps among the `T` steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Skip {
    /// Evenly spaced steps.
    #[default]
    Uniform,
    /// Steps that are denser where there is little noise, up to 0.8 `T`, as in the DDIM paper.
    Quadratic,
}

/// The settings of a discrete schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscreteOptions {
    /// The form of the `β_t`.
    pub schedule: BetaSchedule,
    /// `β` of the first step.
    pub beta_start: f64,
    /// `β` of the last step.
    pub beta_end: f64,
    /// The number of steps, `T`.
    pub steps: usize,
    /// Whether the schedule is rescaled so that the last step has no signal (Lin et al. 2023).
    pub zero_terminal_snr: bool,
}

impl Default for DiscreteOptions {
    fn default() -> Self {
        let schedule = BetaSchedule::Linear;
        Self { schedule, beta_start: 1e-4, beta_end: 0.02, steps: 1000, zero_terminal_snr: false }
    }
}

/// The spacing of noise levels between the maximum and the minimum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Evenly spaced in `σ^(1/ρ)` (Karras et al. 2022).
    #[default]
    Karras,
    /// Evenly spaced in `log σ`.
    Exponential,
}

/// The settings of a schedule of noise levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigmaOptions {
    /// The minimum noise level.
    pub sigma_min: f64,
    /// The maximum noise level.
    pub sigma_max: f64,
    /// The exponent `ρ` of Karras et al.
    pub rho: f64,
    /// The number of steps, `T`.
    pub steps: usize,
    /// The spacing of the levels.
    pub spacing: SigmaSpacing,
    /// Whether sampling stops at `sigma_min` instead of 0.
    pub stop_at_minimum: bool,
}

impl Default for SigmaOptions {
    fn default() -> Self {
        let spacing = SigmaSpacing::Karras;
        Self { sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, steps: 1000, spacing, stop_at_minimum: false }
    }
}

/// The settings of a flow schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowOptions {
    /// The shift of noise levels towards more noise: `σ' = shift σ / (1 + (shift - 1) σ)`.
    pub shift: f64,
    /// The level to which the last sampling step is stretched. `None`: levels are not stretched.
    pub shift_terminal: Option<f64>,
    /// The number of steps, `T`.
    pub steps: usize,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self { shift: 1.0, shift_terminal: None, steps: 1000 }
    }
}

impl FlowOptions {
    pub(super) fn shifted(&self, sigma: f64) -> f64 {
        self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
    }
}

impl SigmaOptions {
    /// Returns `count` noise levels from the maximum to the minimum.
    pub(super) fn descending(&self, count: usize) -> Vec<f64> {
        let Self { sigma_min, sigma_max, rho, .. } = *self;
        match self.spacing {
            SigmaSpacing::Karras => linspace(sigma_max.powf(1.0 / rho), sigma_min.powf(1.0 / rho), count)
                .map(|root| root.powf(rho))
                .collect(),
            SigmaSpacing::Exponential => linspace(sigma_max.ln(), sigma_min.ln(), count).map(f64::exp).collect(),
        }
    }
}

/// Returns `count` evenly spaced values from `first` to `last`.
pub(super) fn linspace(
    first: f64,
    last: f64,
    count: usize,
) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator {
    let gap = if count > 1 { (last - first) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(move |at| first + gap * at as f64)
}
