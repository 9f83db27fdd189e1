//! The arguments that describe how a network was trained and what it is evaluated on, and their conversion into options
//! of the library.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use onnx_diffprune::data::Array;
use onnx_diffprune::networks::{
    NetworkOptions, PreconditioningLocation, PredictionType, ProcessOptions, RoleNames, ScheduleName, TimeScale,
    UsualSizes,
};
use onnx_diffprune::{Error, GradientSettings};

/// How the network was trained and what it is evaluated on; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DiffusionArgs {
    /// The scheduler_config.json of a diffusers model; replaces the options for the schedule [default: that of the
    /// network's pipeline, if it has one and no option for the schedule is given].
    #[arg(long, value_name = "FILE.json", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scheduler_config: Option<PathBuf>,

    /// The noise schedule [default: linear; flow for flow predictions; karras if the time input is named sigma or
    /// noise].
    #[arg(long, value_enum, help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schedule: Option<ScheduleName>,

    /// beta of the first timestep of the schedule [default: 0.0001; scaled_linear: 0.00085].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) beta_start: Option<f64>,

    /// beta of the last timestep of the schedule [default: 0.02; scaled_linear: 0.012].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) beta_end: Option<f64>,

    /// T, the number of timesteps of the noise schedule in training [default: 1000].
    #[arg(long, value_name = "T", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) train_timesteps: Option<usize>,

    /// Rescale the schedule to zero terminal SNR: the last timestep has no signal.
    #[arg(long, help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) rescale_betas_zero_snr: bool,

    /// The timestep shift of a flow schedule [default: 1].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shift: Option<f64>,

    /// The smallest noise level of a karras schedule [default: 0.002].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sigma_min: Option<f64>,

    /// The largest noise level of a karras schedule [default: 80].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sigma_max: Option<f64>,

    /// The standard deviation of the data, for preconditioning outside the graph [default: 0.5].
    #[arg(long, value_name = "X", help_heading = "Diffusion", conflicts_with = "scheduler_config")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sigma_data: Option<f64>,

    /// Whether the graph of a network with noise levels contains the preconditioning of Karras et al. [default: inside;
    /// outside if the time input is named noise; as in the scheduler configuration, if there is one and the time input
    /// is not named sigma].
    #[arg(long, value_enum, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preconditioning: Option<PreconditioningLocation>,

    /// What the network predicts [default: epsilon; flow for a flow schedule; sample for noise levels].
    #[arg(long, value_enum, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prediction_type: Option<PredictionType>,

    /// What the time input expects [default: step; sigma or c_noise with noise levels; fraction if it is named a ratio;
    /// log_snr if it is named so].
    #[arg(long, value_enum, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) time_input: Option<TimeScale>,

    /// Clip estimates of the clean sample to the sample range [default: as in the scheduler configuration; without one,
    /// true for 1 or 3 channels with a discrete schedule].
    #[arg(long, value_name = "BOOL", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clip_sample: Option<bool>,

    /// Range of the sample values that the network was trained on [default: -1,1].
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample_range: Option<String>,

    /// Name of the input for the noisy sample [default: found by names and shapes].
    #[arg(long, value_name = "NAME", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample_input: Option<String>,

    /// Number of channels of the sample input that hold the noisy sample; the channels after them are conditioning
    /// [default: as many as the prediction has].
    #[arg(long, value_name = "N", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample_channels: Option<i64>,

    /// First channel of the sample input that holds the noisy sample; the channels before it are conditioning, such as
    /// the low-resolution image in SR3 [default: 0].
    #[arg(long, value_name = "N", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample_offset: Option<i64>,

    /// Name of the input for the timestep or noise level [default: found by names and shapes].
    #[arg(long, value_name = "NAME", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timestep_input: Option<String>,

    /// Name of the output with the prediction [default: found by names and shapes].
    #[arg(long, value_name = "NAME", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prediction_output: Option<String>,

    /// Batch size, in samples [default: the batch size that the network fixes, else chosen by the command; finetune: by
    /// the recipe].
    #[arg(long, value_name = "N", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,

    /// The folder of the network's pipeline. Its scheduler and its usual sizes are used unless options set them
    /// [default: found around the network].
    #[arg(long, value_name = "FOLDER", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pipeline: Option<PathBuf>,

    /// A UTF-8 text file with one prompt per line. The text encoders of the pipeline encode them as conditioning:
    /// sample i uses prompt i. Arrays in --inputs take precedence.
    #[arg(long, value_name = "FILE.txt", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompts: Option<PathBuf>,

    /// The sizes at which the network is usually run, according to its pipeline.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) usual_sizes: UsualSizes,
}

/// The clean samples that a network is evaluated on; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DataArgs {
    /// Clean samples: a folder of PNG or JPEG images, a .npy, .npz or .safetensors file, or a folder of such files.
    /// Without it, criteria and refit use samples that the network itself generates.
    #[arg(long, value_name = "PATH", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<PathBuf>,

    /// The data values that correspond to the ends of the sample range [default: 0,255 for images and bytes; floats are
    /// used as they are].
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data_range: Option<String>,
}

/// Parses a range given as LOW,HIGH.
pub(super) fn parse_range(option: &str, text: &str) -> Result<(f64, f64), Error> {
    let form = || Error::usage(format!("{option}: expected LOW,HIGH with LOW below HIGH, found {text:?}"));
    let (low, high) = text.split_once(',').ok_or_else(form)?;
    let (low, high): (f64, f64) = (low.trim().parse().map_err(|_| form())?, high.trim().parse().map_err(|_| form())?);
    if low.is_finite() && high.is_finite() && low < high { Ok((low, high)) } else { Err(form()) }
}

impl DataArgs {
    /// Parses `--data-range`.
    pub(super) fn range(&self) -> Result<Option<(f64, f64)>, Error> {
        self.data_range.as_deref().map(|text| parse_range("--data-range", text)).transpose()
    }
}

impl DiffusionArgs {
    /// Returns the names of inputs and outputs that are given.
    fn role_names(&self) -> RoleNames {
        RoleNames {
            sample: self.sample_input.clone(),
            time: self.timestep_input.clone(),
            prediction: self.prediction_output.clone(),
            sample_channels: self.sample_channels,
            sample_offset: self.sample_offset,
        }
    }

    /// Returns the range of the sample values that the network was trained on.
    fn sample_range(&self) -> Result<(f64, f64), Error> {
        self.sample_range.as_deref().map_or(Ok((-1.0, 1.0)), |text| parse_range("--sample-range", text))
    }

    /// Returns the first given option that sets the schedule. If there is one, no scheduler configuration is searched
    /// for.
    pub(super) fn schedule_option(&self) -> Option<&'static str> {
        let options = [
            ("--scheduler-config", self.scheduler_config.is_some()),
            ("--schedule", self.schedule.is_some()),
            ("--beta-start", self.beta_start.is_some()),
            ("--beta-end", self.beta_end.is_some()),
            ("--train-timesteps", self.train_timesteps.is_some()),
            ("--rescale-betas-zero-snr", self.rescale_betas_zero_snr),
            ("--shift", self.shift.is_some()),
            ("--sigma-min", self.sigma_min.is_some()),
            ("--sigma-max", self.sigma_max.is_some()),
            ("--sigma-data", self.sigma_data.is_some()),
        ];
        options.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option)
    }

    /// Returns the description of the training process for the library.
    fn process_options(&self) -> Result<ProcessOptions, Error> {
        Ok(ProcessOptions {
            scheduler_config: self.scheduler_config.clone(),
            schedule: self.schedule,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            train_timesteps: self.train_timesteps,
            rescale_betas_zero_snr: self.rescale_betas_zero_snr,
            shift: self.shift,
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
            sigma_data: self.sigma_data,
            preconditioning: self.preconditioning,
            prediction_type: self.prediction_type,
            time_input: self.time_input,
            clip_sample: self.clip_sample,
            sample_range: self.sample_range()?,
        })
    }

    /// Returns settings for gradients and refits: this network with its conditioning, on these clean samples.
    pub(super) fn gradient_settings(
        &self,
        data: &DataArgs,
        inputs: Vec<(String, Array)>,
    ) -> Result<GradientSettings, Error> {
        Ok(GradientSettings {
            network: self.network_options(inputs)?,
            data: data.data.clone(),
            data_range: data.range()?,
            ..GradientSettings::default()
        })
    }

    /// Returns the options of the network that is evaluated; `inputs` is its conditioning.
    pub(super) fn network_options(&self, inputs: Vec<(String, Array)>) -> Result<NetworkOptions, Error> {
        Ok(NetworkOptions {
            names: self.role_names(),
            process: self.process_options()?,
            batch: self.batch,
            inputs,
            usual_sizes: self.usual_sizes,
        })
    }
}
