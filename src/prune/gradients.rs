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
use super::progress::{Progress, Watch, tell};
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

/// Samples of a batch where nothing is said.
const BATCH: usize = 16;

/// Seconds between two checkpoints.
const CHECKPOINT_SECONDS: u64 = 60;

/// How gradients came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GradientReport {
    /// What was taken for what in the network, one line each.
    pub network: Vec<String>,
    /// How the network was trained, in words.
    pub process: String,
    /// What the gradients are of: the denoising loss, or the output in random directions.
    pub loss: LossKind,
    /// Where the samples come from, in words.
    pub source: String,
    /// Samples of the batch.
    pub batch: usize,
    /// Samples in one run.
    pub micro_batch: usize,
    /// Passes over all timesteps, each for a part of the weights.
    pub passes: usize,
    /// What a pass needs of memory, as it was estimated before the first.
    pub memory: Demand,
    /// Timesteps that were to be visited.
    pub timesteps: usize,
    /// Elements of one sample.
    pub sample_elements: usize,
    /// Share of the largest loss below which timesteps do not count; `None` where all do.
    pub threshold: Option<f64>,
    /// The losses in the order of the timesteps.
    pub curve: Vec<LossPoint>,
    /// Whether [`super::GradientSettings::adaptive`] ended the run.
    pub settled: bool,
    /// Timesteps that came from a checkpoint.
    pub resumed: usize,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// What the loss was multiplied by at the end, in half precision.
    pub loss_scale: Option<f32>,
    /// What ran the gradients, in words.
    pub execution: String,
    /// Seconds that the gradients took.
    pub seconds: f64,
    /// Seconds that drawing the samples took; `None` where they were given.
    pub drawing_seconds: Option<f64>,
}

impl GradientReport {
    /// The number of timesteps in the sum.
    pub fn kept(&self) -> usize {
        self.curve.iter().filter(|point| point.kept).count()
    }

    /// The largest loss.
    pub fn largest_loss(&self) -> f64 {
        self.curve.iter().map(|point| point.loss).fold(0.0, f64::max)
    }
}

/// Sums the gradients of the denoising loss; also gives the clean samples on which that was done.
///
/// # Errors
/// A network that does not denoise, no data, an operator without a gradient, too little memory, a loss that is not a
/// number; the caller stopped.
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
    // Sizes that the data has are those of the gradients alone: costs and verification keep their own.
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
    conditioning.unpaired(&samples).iter().try_for_each(|text| tell(watch, Progress::Warning(text)))?;
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

/// Says what will be done with how much memory.
pub(super) fn announce_plan(of: &Differentiated, watch: &mut Watch<'_>) -> Result<(), Error> {
    let mut text = format!("memory:       {}", of.demand.describe());
    if of.micro_batch < of.wanted {
        text += &format!("; {} samples a run, for {} there is too little", of.micro_batch, of.wanted);
    }
    if of.parts.len() > 1 {
        text += &format!("; {} passes, each for a part of the weights", of.parts.len());
    }
    tell(watch, Progress::Note(&text))
}

/// What the network's inputs stand for, and how it was trained.
pub(super) fn recognise(analysis: &Analysis, options: &ScoreOptions) -> Result<Findings, Error> {
    let known = (&analysis.model, &analysis.graph, &analysis.facts);
    let settings = &options.gradients;
    let advice = "the gradient criteria score denoising networks; for others give --criterion magnitude";
    let roles = Roles::recognise(known.0, known.1, known.2, &settings.network.names).map_err(|error| {
        let own = error.advice().map(|own| format!("{own}; {advice}"));
        error.hint(own.unwrap_or_else(|| advice.to_owned()))
    })?;
    Findings::new(roles, known.2, &settings.network, &options.sizes, settings.data.as_deref())
}

/// Says what was taken for what, and refuses settings that make no sense.
fn announce(
    network: Denoising<'_>,
    lines: &[String],
    options: &ScoreOptions,
    watch: &mut Watch<'_>,
) -> Result<(), Error> {
    let settings = &options.gradients;
    network.configured().notes.iter().try_for_each(|note| tell(watch, Progress::Warning(note)))?;
    tell(watch, Progress::Network(&network.described(lines)))?;
    announce_checkpoint(settings.checkpoint.as_deref(), settings.resume, watch)?;
    if settings.data.is_none() {
        let sampler = settings.draw_sampler.describe();
        let text =
            format!("data:         none is given (--data); samples are drawn from the network itself by {sampler}");
        tell(watch, Progress::Note(&text))?;
    }
    let threshold = settings.threshold;
    if !(0.0..1.0).contains(&threshold) {
        return Err(Error::usage(format!(
            "--threshold: expected a share of the largest loss in [0, 1), found {threshold}"
        )));
    }
    if (settings.precision, settings.device) == (Precision::Float16, Device::Cpu) {
        let text = "on the CPU, ONNX Runtime computes float16 in float32: --precision float16 is slower there";
        tell(watch, Progress::Warning(text))?;
    }
    Ok(())
}

/// Says so where there is no checkpoint to go on from, or one that is not asked for.
fn announce_checkpoint(checkpoint: Option<&Path>, resume: bool, watch: &mut Watch<'_>) -> Result<(), Error> {
    match checkpoint {
        Some(path) if resume && !path.exists() => {
            let text = format!("--resume: there is no checkpoint {}; the gradients start anew", path.display());
            tell(watch, Progress::Warning(&text))
        }
        Some(path) if !resume && path.exists() => {
            let text = format!(
                "{} is the checkpoint of a run that was stopped; --resume goes on from it, this run replaces it",
                path.display()
            );
            tell(watch, Progress::Warning(&text))
        }
        None if resume => {
            tell(watch, Progress::Warning("--resume has no effect: without an output there is no checkpoint"))
        }
        _ => Ok(()),
    }
}
