//! Reads the `scheduler_config.json` of diffusers.

use std::path::Path;

use serde::Deserialize;

use super::process::{Preconditioning, PredictionType, Process};
use super::schedule::{BetaSchedule, DiscreteOptions, FlowOptions, NoiseSchedule, SigmaOptions, SigmaSpacing, Spacing};
use crate::error::{Error, ErrorKind};
use crate::files::read_text;

/// The keys that are used here. The class determines which of them a file has. An absent key has the default of its
/// class.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    num_train_timesteps: Option<usize>,
    beta_schedule: Option<String>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    trained_betas: Option<Vec<f64>>,
    prediction_type: Option<String>,
    rescale_betas_zero_snr: bool,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    clip_denoised: Option<bool>,
    thresholding: bool,
    set_alpha_to_one: Option<bool>,
    steps_offset: usize,
    lambda_min_clipped: Option<f64>,
    timestep_spacing: Option<Spacing>,
    timestep_type: Option<String>,
    variance_type: Option<String>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    sigma_data: Option<f64>,
    sigma_schedule: Option<SigmaScheduleName>,
    final_sigmas_type: Option<String>,
    rho: Option<f64>,
    shift: Option<f64>,
    flow_shift: Option<f64>,
    use_flow_sigmas: bool,
    use_dynamic_shifting: bool,
    shift_terminal: Option<f64>,
    invert_sigmas: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SigmaScheduleName {
    Karras,
    Exponential,
}

/// The variance of a DDPM step, by diffusers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VarianceType {
    /// The variance of the posterior, `β̃_t`.
    #[default]
    FixedSmall,
    /// `β_t`.
    FixedLarge,
    /// Interpolated between the two in the logarithm, by the second half of the output's channels.
    LearnedRange,
}

/// A process as described by a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfiguredProcess {
    /// The process.
    pub process: Process,
    /// The variance of DDPM steps.
    pub variance: VarianceType,
    /// Warnings about settings of the configuration that have no effect here.
    pub notes: Vec<String>,
}

/// Maximum size of a configuration file in bytes.
const MOST_BYTES: u64 = 1 << 24;

/// Reads a `scheduler_config.json`.
///
/// Schedulers that differ only in their sampling steps share a configuration. The class decides the family: names with
/// `FlowMatch` are flows, `EDM` and `CMStochastic` are noise levels with preconditioning outside the graph, and
/// everything with a `beta_schedule` is discrete.
///
/// # Errors
/// The file can't be read, or it describes a process that this version does not support.
pub fn read_scheduler_config(path: &Path) -> Result<ConfiguredProcess, Error> {
    let text = read_text(path, MOST_BYTES)?;
    parse(&text).map_err(|error| error.in_file(path))
}

/// Parses the text of a configuration.
fn parse(text: &str) -> Result<ConfiguredProcess, Error> {
    let config: SchedulerConfig = serde_json::from_str(&without_infinities(text)).map_err(|error| {
        Error::usage(format!("not a scheduler configuration: {error}"))
            .of_kind(ErrorKind::Unreadable)
            .hint("expected the scheduler_config.json of a diffusers model")
    })?;
    config.process()
}

/// Replaces values that Python writes but JSON does not allow by `null`. diffusers saves
/// `"lambda_min_clipped": -Infinity`, which means no limit.
fn without_infinities(text: &str) -> String {
    let mut text = text.to_owned();
    for value in ["-Infinity", "Infinity", "NaN"] {
        text = text.replace(&format!(": {value}"), ": null");
    }
    text
}

impl SchedulerConfig {
    fn process(&self) -> Result<ConfiguredProcess, Error> {
        let class = self.class_name.as_str();
        if self.invert_sigmas {
            return Err(Error::usage("invert_sigmas (time that runs from noise to sample) is not supported")
                .of_kind(ErrorKind::Unsupported));
        }
        let continuous = self.timestep_type.as_deref() == Some("continuous");
        let mut process = if class.contains("FlowMatch") || self.use_flow_sigmas {
            self.flow()?
        } else if class.starts_with("EDM") || continuous {
            self.edm(if continuous { 1.0 } else { 0.5 })?
        } else if class.starts_with("CMStochastic") {
            self.consistency()?
        } else if self.beta_schedule.is_some() || self.trained_betas.is_some() || class.is_empty() {
            self.discrete()?
        } else {
            return Err(Error::usage(format!("scheduler {class:?} without a beta_schedule is not supported"))
                .of_kind(ErrorKind::Unsupported)
                .hint("describe the process with --schedule and --prediction-type instead"));
        };
        let mut notes = Vec::new();
        // The defaults of the classes. ODE solvers without clipping do not have the key.
        let clips = self
            .clip_sample
            .or(self.clip_denoised)
            .unwrap_or(matches!(class, "" | "DDPMScheduler" | "DDIMScheduler" | "CMStochasticIterativeScheduler"));
        if clips && !process.schedule.is_flow() {
            let range = self.clip_sample_range.unwrap_or(1.0) as f32;
            process.clip = Some((-range, range));
        }
        if self.thresholding {
            notes.push("thresholding is ignored: estimates of the clean sample are clipped instead".to_owned());
            process.clip.get_or_insert((-1.0, 1.0));
        }
        if self.use_dynamic_shifting {
            notes.push("use_dynamic_shifting is ignored: the shift of the noise levels is fixed".to_owned());
        }
        let variance = match self.variance_type.as_deref() {
            None | Some("fixed_small" | "fixed_small_log") => VarianceType::FixedSmall,
            Some("fixed_large" | "fixed_large_log") => VarianceType::FixedLarge,
            Some("learned_range") => VarianceType::LearnedRange,
            Some(other) => {
                return Err(Error::usage(format!(
                    "expected variance_type fixed_small, fixed_large or learned_range, found {other:?}"
                ))
                .of_kind(ErrorKind::Unsupported));
            }
        };
        Ok(ConfiguredProcess { process, variance, notes })
    }

    fn prediction(&self, default: PredictionType) -> Result<PredictionType, Error> {
        match self.prediction_type.as_deref() {
            None => Ok(default),
            Some("epsilon") => Ok(PredictionType::Epsilon),
            Some("sample") => Ok(PredictionType::Sample),
            Some("v_prediction") => Ok(PredictionType::VPrediction),
            Some("flow" | "flow_prediction") => Ok(PredictionType::Flow),
            Some(other) => Err(Error::usage(format!(
                "expected prediction_type epsilon, sample, v_prediction, flow or flow_prediction, found {other:?}"
            ))
            .of_kind(ErrorKind::Unsupported)),
        }
    }

    fn discrete(&self) -> Result<Process, Error> {
        let schedule = match self.beta_schedule.as_deref() {
            None | Some("linear") => BetaSchedule::Linear,
            Some("scaled_linear") => BetaSchedule::ScaledLinear,
            Some("squaredcos_cap_v2") => BetaSchedule::SquaredcosCapV2,
            Some(other) => {
                return Err(Error::usage(format!(
                    "expected beta_schedule linear, scaled_linear or squaredcos_cap_v2, found {other:?}"
                )));
            }
        };
        let defaults = DiscreteOptions::default();
        let schedule = match &self.trained_betas {
            Some(betas) => NoiseSchedule::from_betas(betas.clone())?,
            None => NoiseSchedule::discrete(&DiscreteOptions {
                schedule,
                beta_start: self.beta_start.unwrap_or(defaults.beta_start),
                beta_end: self.beta_end.unwrap_or(defaults.beta_end),
                steps: self.num_train_timesteps.unwrap_or(defaults.steps),
                zero_terminal_snr: self.rescale_betas_zero_snr,
            })?,
        };
        let schedule = schedule
            .with_spacing(self.timestep_spacing, self.steps_offset, self.set_alpha_to_one.unwrap_or(true))
            .with_least_half_log_snr(self.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY));
        Process::new(schedule, self.prediction(PredictionType::Epsilon)?, None)
    }

    fn flow(&self) -> Result<Process, Error> {
        let shift = match self.use_dynamic_shifting {
            true => 1.0,
            false => self.shift.or(self.flow_shift).unwrap_or(1.0),
        };
        let steps = self.num_train_timesteps.unwrap_or(1000);
        let schedule = NoiseSchedule::flow(FlowOptions { shift, shift_terminal: self.shift_terminal, steps })?;
        Process::new(schedule, PredictionType::Flow, None)
    }

    fn sigma_options(&self, steps: usize) -> SigmaOptions {
        let defaults = SigmaOptions::default();
        SigmaOptions {
            sigma_min: self.sigma_min.unwrap_or(defaults.sigma_min),
            sigma_max: self.sigma_max.unwrap_or(defaults.sigma_max),
            rho: self.rho.unwrap_or(defaults.rho),
            steps: self.num_train_timesteps.unwrap_or(steps),
            spacing: match self.sigma_schedule {
                Some(SigmaScheduleName::Exponential) => SigmaSpacing::Exponential,
                _ => SigmaSpacing::Karras,
            },
            stop_at_minimum: self.final_sigmas_type.as_deref() == Some("sigma_min"),
        }
    }

    fn edm(&self, sigma_data: f64) -> Result<Process, Error> {
        let schedule = NoiseSchedule::sigma(self.sigma_options(1000))?;
        let negative = match self.prediction(PredictionType::Epsilon)? {
            PredictionType::Epsilon => false,
            PredictionType::VPrediction => true,
            other => {
                let text = "under preconditioning, expected prediction_type epsilon or v_prediction, found";
                return Err(Error::usage(format!("{text} {:?}", other.name())));
            }
        };
        let scalings = Preconditioning { negative, ..Preconditioning::edm(self.sigma_data.unwrap_or(sigma_data)) };
        Process::new(schedule, PredictionType::Sample, Some(scalings))
    }

    fn consistency(&self) -> Result<Process, Error> {
        let options = self.sigma_options(40);
        let scalings = Preconditioning {
            sigma_data: self.sigma_data.unwrap_or(0.5),
            boundary: Some(options.sigma_min),
            noise_scale: 250.0,
            negative: false,
        };
        Process::new(NoiseSchedule::sigma(options)?, PredictionType::Sample, Some(scalings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_decides_the_family() {
        let process = |text: &str| parse(text).unwrap().process;
        let stable = process(
            r#"{"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "beta_end": 0.012, "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1}"#,
        );
        assert!(stable.schedule.is_discrete() && stable.clip.is_none());
        assert_eq!(stable.prediction, PredictionType::Epsilon);
        let flow = process(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#);
        assert!(flow.schedule.is_flow() && flow.prediction == PredictionType::Flow);
        assert_eq!(flow.schedule.level(999).unwrap().noise, 1.0);
        let edm = process(r#"{"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}"#);
        assert!(edm.schedule.is_sigma() && edm.preconditioning.unwrap().negative);
        assert_eq!(edm.time, TimeScale::CNoise);
        let consistency = process(r#"{"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}"#);
        assert_eq!(consistency.preconditioning.unwrap().boundary, Some(0.002));
        assert_eq!(consistency.clip, Some((-1.0, 1.0)));
    }

    #[test]
    fn unsupported_settings_are_named() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(message(r#"{"beta_schedule": "laplace"}"#).contains("laplace"));
        assert!(message(r#"{"_class_name": "VQDiffusionScheduler"}"#).contains("VQDiffusionScheduler"));
        assert!(message(r#"{"beta_schedule": "linear", "prediction_type": "score"}"#).contains("score"));
        assert!(message("[1, 2]").contains("not a scheduler configuration"));
        let unlimited = parse(r#"{"beta_schedule": "linear", "lambda_min_clipped": -Infinity}"#).unwrap();
        assert_eq!(unlimited.process, parse(r#"{"beta_schedule": "linear"}"#).unwrap().process);
        let zero = r#"{"beta_schedule": "linear", "rescale_betas_zero_snr": true}"#;
        assert!(message(zero).contains("without signal"));
        let noted = parse(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}"#);
        assert!(noted.unwrap().notes[0].contains("use_dynamic_shifting"));
    }

    use crate::diffusion::TimeScale;
}
