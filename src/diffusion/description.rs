//! The options with which a user describes how a network was trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::{ConfiguredProcess, VarianceType, read_scheduler_config};
use super::process::{Preconditioning, PredictionType, Process, TimeScale};
use super::roles::Roles;
use super::schedule::{BetaSchedule, DiscreteOptions, FlowOptions, NoiseSchedule, SigmaOptions};
use crate::error::Error;

/// Noise schedules by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum ScheduleName {
    /// beta grows linearly (DDPM).
    Linear,
    /// The square root of beta grows linearly (latent diffusion, Stable Diffusion).
    ScaledLinear,
    /// Squared cosine (improved diffusion).
    #[serde(rename = "squaredcos_cap_v2")]
    #[cfg_attr(feature = "cli", value(name = "squaredcos_cap_v2"))]
    SquaredcosCapV2,
    /// Straight line from sample to noise (flow matching).
    Flow,
    /// Noise levels with the spacing of Karras et al. (EDM, consistency models).
    Karras,
}

/// Where the preconditioning of Karras et al. is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PreconditioningLocation {
    /// In the graph: it takes the noisy sample and sigma, and returns the clean sample.
    Inside,
    /// Around the graph: it takes the scaled sample and ln(sigma) / 4.
    Outside,
}

impl ScheduleName {
    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::ScaledLinear => "scaled_linear",
            Self::SquaredcosCapV2 => "squaredcos_cap_v2",
            Self::Flow => "flow",
            Self::Karras => "karras",
        }
    }
}

/// How a network was trained. Options that are not set have defaults, some of which depend on the network.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessOptions {
    /// The `scheduler_config.json` of a diffusers model, instead of the options for the schedule. `None`: the options
    /// apply.
    pub scheduler_config: Option<PathBuf>,
    /// The noise schedule. `None`: karras if the time input is named sigma or noise, flow for flow predictions, else
    /// linear.
    pub schedule: Option<ScheduleName>,
    /// beta of the first step. `None`: 0.0001, or 0.00085 for scaled_linear.
    pub beta_start: Option<f64>,
    /// beta of the last step. `None`: 0.02, or 0.012 for scaled_linear.
    pub beta_end: Option<f64>,
    /// The number of timesteps in training. `None`: 1000.
    pub train_timesteps: Option<usize>,
    /// Whether to rescale the schedule so that the last step has no signal.
    pub rescale_betas_zero_snr: bool,
    /// The shift of a flow schedule. `None`: 1.
    pub shift: Option<f64>,
    /// The minimum noise level of a karras schedule. `None`: 0.002.
    pub sigma_min: Option<f64>,
    /// The maximum noise level of a karras schedule. `None`: 80.
    pub sigma_max: Option<f64>,
    /// The standard deviation of the data, for preconditioning outside the graph. `None`: 0.5.
    pub sigma_data: Option<f64>,
    /// Where the preconditioning of a network with noise levels is applied. `None`: as the scheduler configuration
    /// describes it, if there is one and the time input is not named sigma; else outside if the time input is named
    /// noise, else inside.
    pub preconditioning: Option<PreconditioningLocation>,
    /// What the network predicts. `None`: flow for a flow schedule, sample for noise levels, else epsilon.
    pub prediction_type: Option<PredictionType>,
    /// The value that the time input expects. `None`: sigma or c_noise with noise levels, fraction or log_snr if the
    /// time input is named so, else step.
    pub time_input: Option<TimeScale>,
    /// Whether to clip estimates of the clean sample to the sample range. `None`: as in the scheduler configuration;
    /// without one, only for 1 or 3 channels with a discrete schedule.
    pub clip_sample: Option<bool>,
    /// The minimum and maximum value of the samples that the network was trained on. Default: -1 and 1.
    pub sample_range: (f64, f64),
}

impl Default for ProcessOptions {
    fn default() -> Self {
        Self {
            scheduler_config: None,
            schedule: None,
            beta_start: None,
            beta_end: None,
            train_timesteps: None,
            rescale_betas_zero_snr: false,
            shift: None,
            sigma_min: None,
            sigma_max: None,
            sigma_data: None,
            preconditioning: None,
            prediction_type: None,
            time_input: None,
            clip_sample: None,
            sample_range: (-1.0, 1.0),
        }
    }
}

impl ProcessOptions {
    /// Returns the process, from a scheduler configuration or from the options. Settings that are missing follow from
    /// the names of the network's inputs.
    ///
    /// # Errors
    /// The configuration can't be read, or options contradict each other or the network.
    pub fn configure(&self, roles: &Roles) -> Result<ConfiguredProcess, Error> {
        let mut configured = match &self.scheduler_config {
            Some(path) => {
                self.refuse_schedule_options()?;
                self.with_overrides(read_scheduler_config(path)?, roles)?
            }
            None => self.described(roles)?,
        };
        let process = &mut configured.process;
        let words = roles.time.name.to_lowercase();
        if let Some(scale) = self.time_input {
            process.time = scale;
        } else if process.preconditioning.is_none() && roles.takes_sigma() {
            process.time = TimeScale::Sigma;
        } else if process.schedule.is_discrete() && (words.contains("ratio") || words.contains("fraction")) {
            process.time = TimeScale::Fraction;
        } else if process.preconditioning.is_none() && (words.contains("logsnr") || words.contains("log_snr")) {
            process.time = TimeScale::LogSnr;
        }
        if process.time.needs_alpha_bar() && !process.schedule.is_discrete() {
            let text =
                format!("--time-input {}: {} has no alpha_bar", process.time.name(), process.schedule.describe());
            return Err(Error::usage(text).hint("use a discrete schedule, such as --schedule linear"));
        }
        if process.time != TimeScale::Step && !roles.time.element_type.is_float() {
            let text = format!("can't feed {} to the integer input {}", process.time.describe(), roles.time.describe());
            return Err(Error::usage(text).hint("use --time-input step, or choose another input with --timestep-input"));
        }
        let is_level = words.contains("noise") || words.contains("gamma") || words.contains("alpha");
        if self.time_input.is_none()
            && process.time == TimeScale::Step
            && is_level
            && roles.time.element_type.is_float()
        {
            configured.notes.push(format!(
                "input {:?} has the name of a noise level, but is fed the step t. If the network expects another \
                 value, choose it with --time-input: networks like SR3 take sqrt_alpha_bar",
                roles.time.name
            ));
        }
        let process = &mut configured.process;
        let (low, high) = self.sample_range;
        let range = Some((low as f32, high as f32));
        match self.clip_sample {
            Some(true) => process.clip = range,
            Some(false) => process.clip = None,
            None if self.scheduler_config.is_some() => {}
            None => {
                let is_image = roles.sample.shape.len() == 4
                    && roles.sample.shape.get(1).is_some_and(|channels| channels.is(1) || channels.is(3));
                process.clip = range.filter(|_| is_image && process.schedule.is_discrete());
            }
        }
        Ok(configured)
    }

    /// Applies the options that override a scheduler configuration.
    fn with_overrides(&self, mut configured: ConfiguredProcess, roles: &Roles) -> Result<ConfiguredProcess, Error> {
        let process = &configured.process;
        // A graph that takes sigma scales its input itself. Scheduler configurations do not record this.
        let inside = self.preconditioning == Some(PreconditioningLocation::Inside)
            || self.preconditioning.is_none() && roles.takes_sigma();
        if self.preconditioning == Some(PreconditioningLocation::Outside) && process.preconditioning.is_none() {
            return Err(Error::usage(
                "--preconditioning outside: the scheduler configuration has no noise levels to precondition with",
            )
            .hint("leave it out, or use --schedule karras instead of --scheduler-config"));
        }
        if process.preconditioning.is_some() && !inside {
            if self.prediction_type.is_some() {
                return Err(Error::usage("--prediction-type has no effect with preconditioning outside the graph")
                    .hint("leave it out, or use --preconditioning inside"));
            }
            return Ok(configured);
        }
        if process.preconditioning.is_some() {
            let note = "the graph takes sigma as input: its preconditioning is assumed to be inside the graph. If it is \
                        not, use --preconditioning outside";
            configured.notes.push(note.to_owned());
        }
        let process = configured.process;
        let prediction = self.prediction_type.unwrap_or(process.prediction);
        let clip = process.clip;
        configured.process = Process { clip, ..Process::new(process.schedule, prediction, None)? };
        Ok(configured)
    }

    fn described(&self, roles: &Roles) -> Result<ConfiguredProcess, Error> {
        // With a time input that needs alpha_bar the schedule is discrete, whatever the name of the input.
        let is_discrete = self.time_input.is_some_and(TimeScale::needs_alpha_bar);
        let by_name = self.preconditioning.is_none()
            && !is_discrete
            && self.prediction_type.is_none()
            && self.schedule.is_none_or(|name| name == ScheduleName::Karras)
            && roles.takes_c_noise();
        let outside = self.preconditioning == Some(PreconditioningLocation::Outside) || by_name;
        let name = self.schedule.unwrap_or(if outside || roles.takes_sigma() && !is_discrete {
            ScheduleName::Karras
        } else if self.prediction_type == Some(PredictionType::Flow) {
            ScheduleName::Flow
        } else {
            ScheduleName::Linear
        });
        self.refuse_options_of_others(name)?;
        let steps = self.train_timesteps.unwrap_or(1000);
        let discrete = |schedule, (start, end): (f64, f64)| {
            NoiseSchedule::discrete(&DiscreteOptions {
                schedule,
                beta_start: self.beta_start.unwrap_or(start),
                beta_end: self.beta_end.unwrap_or(end),
                steps,
                zero_terminal_snr: self.rescale_betas_zero_snr,
            })
        };
        let (schedule, prediction) = match name {
            ScheduleName::Linear => (discrete(BetaSchedule::Linear, (1e-4, 0.02))?, PredictionType::Epsilon),
            ScheduleName::ScaledLinear => {
                (discrete(BetaSchedule::ScaledLinear, (0.00085, 0.012))?, PredictionType::Epsilon)
            }
            ScheduleName::SquaredcosCapV2 => {
                (discrete(BetaSchedule::SquaredcosCapV2, (1e-4, 0.02))?, PredictionType::Epsilon)
            }
            ScheduleName::Flow => {
                let options = FlowOptions { shift: self.shift.unwrap_or(1.0), steps, ..FlowOptions::default() };
                (NoiseSchedule::flow(options)?, PredictionType::Flow)
            }
            ScheduleName::Karras => {
                let defaults = SigmaOptions::default();
                let options = SigmaOptions {
                    sigma_min: self.sigma_min.unwrap_or(defaults.sigma_min),
                    sigma_max: self.sigma_max.unwrap_or(defaults.sigma_max),
                    steps,
                    ..defaults
                };
                (NoiseSchedule::sigma(options)?, PredictionType::Sample)
            }
        };
        let scalings = outside.then(|| Preconditioning::edm(self.sigma_data.unwrap_or(0.5)));
        let process = Process::new(schedule, self.prediction_type.unwrap_or(prediction), scalings)?;
        Ok(ConfiguredProcess { process, variance: VarianceType::FixedSmall, notes: Vec::new() })
    }

    /// Returns the options for the schedule: whether each is given, and the schedules that use it.
    fn schedule_options(&self) -> [(&'static str, bool, &'static [ScheduleName]); 9] {
        use ScheduleName::{Flow, Karras, Linear, ScaledLinear, SquaredcosCapV2};
        let all: &[ScheduleName] = &[Linear, ScaledLinear, SquaredcosCapV2, Flow, Karras];
        let discrete: &[ScheduleName] = &[Linear, ScaledLinear, SquaredcosCapV2];
        [
            ("--schedule", self.schedule.is_some(), all),
            ("--train-timesteps", self.train_timesteps.is_some(), all),
            ("--beta-start", self.beta_start.is_some(), &[Linear, ScaledLinear]),
            ("--beta-end", self.beta_end.is_some(), &[Linear, ScaledLinear]),
            ("--rescale-betas-zero-snr", self.rescale_betas_zero_snr, discrete),
            ("--shift", self.shift.is_some(), &[Flow]),
            ("--sigma-min", self.sigma_min.is_some(), &[Karras]),
            ("--sigma-max", self.sigma_max.is_some(), &[Karras]),
            ("--sigma-data", self.sigma_data.is_some(), &[Karras]),
        ]
    }

    /// Refuses schedule options next to a scheduler configuration. The command line does so itself; configuration files
    /// do not.
    fn refuse_schedule_options(&self) -> Result<(), Error> {
        match self.schedule_options().into_iter().find(|(_, given, _)| *given) {
            Some((option, ..)) => Err(Error::usage(format!("{option} can't be used with --scheduler-config"))),
            None => Ok(()),
        }
    }

    fn refuse_options_of_others(&self, schedule: ScheduleName) -> Result<(), Error> {
        let unused = |(_, given, known): &(_, bool, &[ScheduleName])| *given && !known.contains(&schedule);
        if self.preconditioning == Some(PreconditioningLocation::Outside) && schedule != ScheduleName::Karras {
            return Err(Error::usage("--preconditioning outside needs --schedule karras"));
        }
        match self.schedule_options().into_iter().find(unused) {
            Some((option, ..)) => {
                let text = format!("{option} has no effect with the noise schedule {}", schedule.name());
                Err(Error::usage(text).hint("leave it out"))
            }
            None => Ok(()),
        }
    }
}
