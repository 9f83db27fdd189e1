//! Gradients of the denoising loss, summed over timesteps.

mod fit;
mod graph;
mod ranks;
mod samples;
mod settling;
mod summation;

use std::path::Path;
use std::time::Instant;

use super::network::{Denoising, Findings};
use super::options::ScoreOptions;
use super::progress::{Progress, Watch, notify};
use super::refit::LossKind;
use crate::analysis::Analysis;
use crate::diffusion::{DenoisingTask, Roles, Samples, noise};
use crate::error::Error;
use crate::gradient::Precision;
use crate::gradient::accumulate::{Accumulated, Denoising as _, LossPoint};
use crate::macs::demand::Demand;
use crate::runtime::{Device, Runtime};
pub(super) use graph::{Differentiated, Interface, channels, differentiated};
pub use ranks::threads;
pub(super) use ranks::{of_first as samples_of_first, share_of_memory};
pub(super) use samples::samples as clean_samples;
pub(super) use summation::{Fed, Summation};

/// Default number of samples in the batch.
const BATCH: usize = 16;

/// Seconds between two checkpoints.
const CHECKPOINT_SECONDS: u64 = 60;

/// How gradients were computed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GradientReport {
    /// The recognised roles of inputs and outputs, one line each.
    pub network: Vec<String>,
    /// How the network was trained, in words.
    pub process: String,
    /// The function that was differentiated: the denoising loss, or the output in random directions.
    pub loss: LossKind,
    /// The source of the samples, in words.
    pub source: String,
    /// Number of samples in the batch.
    pub batch: usize,
    /// Number of samples in one run.
    pub micro_batch: usize,
    /// Number of passes over all timesteps, each for a part of the weights.
    pub passes: usize,
    /// The estimated memory of a pass.
    pub memory: Demand,
    /// Number of timesteps to visit.
    pub timesteps: usize,
    /// Number of elements of one sample.
    pub sample_elements: usize,
    /// Timesteps with a loss below this share of the largest loss are left out. `None`: all timesteps count.
    pub threshold: Option<f64>,
    /// The losses in the order of the timesteps.
    pub curve: Vec<LossPoint>,
    /// Whether [`super::GradientSettings::adaptive`] ended the run.
    pub settled: bool,
    /// Number of timesteps that came from a checkpoint.
    pub resumed: usize,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// The final loss scale in half precision. `None`: the loss was not scaled.
    pub loss_scale: Option<f32>,
    /// The execution provider, in words.
    pub execution: String,
    /// Duration of the gradients in seconds.
    pub seconds: f64,
    /// Duration of generating the samples in seconds. `None`: the samples were given.
    pub drawing_seconds: Option<f64>,
}

impl GradientReport {
    /// Returns the number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.curve.iter().filter(|point| point.kept).count()
    }

    /// Returns the largest loss.
    pub fn largest_loss(&self) -> f64 {
        self.curve.iter().map(|point| point.loss).fold(0.0, f64::max)
    }
}

/// Sums the gradients of the denoising loss. Also returns the clean samples.
///
/// # Errors
/// Fails if the network does not denoise, there is no data, an operator has no gradient, memory is too small, the loss
/// is NaN, or the caller stopped.
pub(super) fn gradients(
    analysis: &Analysis,
    runtime: &Runtime,
    options: &ScoreOptions,
    watch: &mut Watch<'_>,
) -> Result<(Accumulated, GradientReport, Samples), Error> {
    let found = recognise(analysis, options)?;
    let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
    let settings = &options.gradients;
    let batch =
        settings.network.batch.unwrap_or_else(|| network.roles().fixed_batch().map_or(BATCH, |fixed| fixed.max(1)));
    let conditioning = network.conditioning(batch, options.seed)?;
    let lines = network.lines(&conditioning);
    announce(network, &lines, options, watch)?;
    // Sizes that come from the data only apply to gradients, not to costs and verification.
    let sized = ScoreOptions { sizes: network.sizes().clone(), ..options.clone() };
    let roles = network.roles();
    let at = |samples: usize| roles.sizes(&analysis.facts, network.sizes(), samples);
    let interface = Interface {
        prediction: &roles.prediction.name,
        channels: channels(roles).map_err(|error| error.in_file(network.path()))?,
        fixed_batch: roles.fixed_batch(),
        loss: Vec::new(),
        sizes: &at,
    };
    let differentiated = differentiated(analysis, &interface, batch, options)?;
    let (micro_batch, passes, memory) =
        (differentiated.micro_batch, differentiated.parts.len(), differentiated.demand.clone());
    announce_plan(&differentiated, watch)?;
    let started = Instant::now();
    let samples = ranks::of_first(&*settings.ranks, || {
        samples::samples(network, runtime, &conditioning, options, (batch, micro_batch), watch)
    })?;
    let drawing_seconds = settings.data.is_none().then(|| started.elapsed().as_secs_f64());
    conditioning.unpaired(&samples).iter().try_for_each(|text| notify(watch, Progress::Warning(text)))?;
    let dims = samples.values.shape().to_vec();
    let sample_elements = dims.iter().skip(1).product();
    let process = &network.configured().process;
    let task = DenoisingTask::new(
        (process, network.roles(), &conditioning),
        (&analysis.facts, &sized.sizes),
        &samples,
        noise(&dims, samples.len(), options.seed.wrapping_add(1)),
        settings.timesteps,
    )?;
    let fed = Fed {
        process: process.describe(),
        samples: samples.len(),
        sum: samples.values.iter().map(|value| f64::from(*value)).sum(),
        conditioning: conditioning.digest(&samples.numbers)?,
    };
    let summation = Summation { analysis, runtime, options: &sized, task: &task, fed };
    let summed = summation.run(differentiated, sample_elements as f64, watch)?;
    let threshold = options.accumulate_options(1).threshold;
    let report = GradientReport {
        network: lines,
        process: process.describe(),
        loss: LossKind::Denoising,
        source: samples.source.clone(),
        batch: samples.len(),
        micro_batch,
        passes,
        memory,
        timesteps: task.timesteps().len(),
        sample_elements,
        threshold: (threshold > 0.0).then_some(threshold),
        curve: summed.sum.curve.clone(),
        settled: summed.settled,
        resumed: summed.resumed,
        precision: settings.precision,
        loss_scale: summed.loss_scale,
        execution: summed.execution,
        seconds: summed.seconds,
        drawing_seconds,
    };
    Ok((summed.sum, report, samples))
}

/// Reports the memory and the number of passes that are planned.
pub(super) fn announce_plan(of: &Differentiated, watch: &mut Watch<'_>) -> Result<(), Error> {
    let mut text = format!("memory:       {}", of.demand.describe());
    if of.micro_batch < of.wanted {
        text += &format!("; {} samples per run, since memory is too small for {}", of.micro_batch, of.wanted);
    }
    if of.parts.len() > 1 {
        text += &format!("; {} passes, each for a part of the weights", of.parts.len());
    }
    notify(watch, Progress::Note(&text))
}

/// Recognises the roles of the network's inputs, and how it was trained.
pub(super) fn recognise(analysis: &Analysis, options: &ScoreOptions) -> Result<Findings, Error> {
    let known = (&analysis.model, &analysis.graph, &analysis.facts);
    let settings = &options.gradients;
    let advice = "gradients, refit and training need a denoising network; for others, use --criterion magnitude";
    let roles = Roles::recognise(known.0, known.1, known.2, &settings.network.names).map_err(|error| {
        let own = error.advice().map(|own| format!("{own}; {advice}"));
        error.hint(own.unwrap_or_else(|| advice.to_owned()))
    })?;
    Findings::new(roles, known.2, &settings.network, &options.sizes, settings.data.as_deref())
}

/// Reports the recognised roles, and refuses invalid settings.
fn announce(
    network: Denoising<'_>,
    lines: &[String],
    options: &ScoreOptions,
    watch: &mut Watch<'_>,
) -> Result<(), Error> {
    let settings = &options.gradients;
    network.configured().notes.iter().try_for_each(|note| notify(watch, Progress::Warning(note)))?;
    notify(watch, Progress::Network(&network.described(lines)))?;
    announce_checkpoint(settings.checkpoint.as_deref(), settings.resume, watch)?;
    if settings.data.is_none() {
        let sampler = settings.draw_sampler.describe();
        let text = format!("data:         not given (--data); the network generates samples with {sampler}");
        notify(watch, Progress::Note(&text))?;
    }
    let threshold = settings.threshold;
    if !(0.0..1.0).contains(&threshold) {
        return Err(Error::usage(format!(
            "--threshold: expected a share of the largest loss in [0, 1), found {threshold}"
        )));
    }
    if (settings.precision, settings.device) == (Precision::Float16, Device::Cpu) {
        let text =
            "--precision float16 is slower than float32 on the CPU, where ONNX Runtime computes float16 in float32";
        notify(watch, Progress::Warning(text))?;
    }
    Ok(())
}

/// Warns if there is no checkpoint to resume from, or if one exists that is not used.
fn announce_checkpoint(checkpoint: Option<&Path>, resume: bool, watch: &mut Watch<'_>) -> Result<(), Error> {
    match checkpoint {
        Some(path) if resume && !path.exists() => {
            let text =
                format!("--resume: there is no checkpoint {}; the gradients start from the beginning", path.display());
            notify(watch, Progress::Warning(&text))
        }
        Some(path) if !resume && path.exists() => {
            let text = format!(
                "{} is the checkpoint of an interrupted run, which this run replaces; use --resume to continue from it",
                path.display()
            );
            notify(watch, Progress::Warning(&text))
        }
        None if resume => {
            notify(watch, Progress::Warning("--resume has no effect: without an output file there is no checkpoint"))
        }
        _ => Ok(()),
    }
}
