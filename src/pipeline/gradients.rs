//! The stage between coupling and importance: gradients of the denoising loss, summed over timesteps.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::{Analysis, PruneOptions, selection};
use crate::diffusion::{
    Conditioning, ConfiguredProcess, Denoiser, DenoisingTask, Ranges, Roles, SampleOptions, Sampler, Samples, Skip,
    noise,
};
use crate::error::Error;
use crate::gradient::accumulate::{Accumulated, Denoising, ThresholdMode, Visited, accumulate, losses};
use crate::gradient::checkpoint::Checkpoint;
use crate::gradient::pass::{GradientPass, PassOptions};
use crate::gradient::{GradientGraph, GradientOptions, Precision};
use crate::runtime::{Device, Runtime, SessionOptions};
use crate::select::Removed;

/// How gradients are computed.
#[derive(Clone, Debug)]
pub struct GradientSettings {
    /// Samples of the batch.
    pub batch: usize,
    /// Samples in one run; the whole batch where `None`.
    pub micro_batch: Option<usize>,
    /// Timesteps that are visited, spread evenly over the schedule; all where `None`.
    pub timesteps: Option<usize>,
    /// Share of the largest loss below which timesteps do not count.
    pub threshold: f64,
    /// What the threshold keeps.
    pub mode: ThresholdMode,
    /// Where the gradients are computed.
    pub device: Device,
    /// Whether the processor may run what the device can't.
    pub allow_fallback: bool,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// Stop once the channels that would go have been the same for [`ADAPTIVE_CHECKS`] checks in a row.
    pub adaptive: bool,
    /// Steps of DDIM where samples are drawn.
    pub draw_steps: usize,
    /// Clean samples; drawn from the network itself where `None`.
    pub data: Option<PathBuf>,
    /// What the values of the data mean.
    pub ranges: Ranges,
    /// Where the sums are saved from time to time.
    pub checkpoint: Option<PathBuf>,
    /// Whether to go on from the checkpoint.
    pub resume: bool,
}

/// The adaptive rule: the selection is made anew every this many timesteps ...
pub const ADAPTIVE_EVERY: usize = 10;
/// ... and the run ends when it has not changed for this many checks.
pub const ADAPTIVE_CHECKS: usize = 3;

/// Seconds between two checkpoints.
const CHECKPOINT_SECONDS: u64 = 60;

/// What a run is doing, for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientStep {
    /// Drawing samples.
    Sampling,
    /// Losses alone.
    Losses,
    /// Losses and gradients.
    Gradients,
}

/// Gradients and how they came about.
#[derive(Clone, Debug)]
pub struct GradientRun {
    /// The sums.
    pub sum: Accumulated,
    /// Where the samples come from, in words.
    pub source: String,
    /// Samples of the batch.
    pub batch: usize,
    /// Samples in one run.
    pub micro_batch: usize,
    /// Timesteps that were to be visited.
    pub timesteps: usize,
    /// Elements of one sample.
    pub sample_elements: usize,
    /// Whether the adaptive rule ended the run.
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
}

/// What is known of the network before its gradients are computed.
pub struct GradientInputs<'a> {
    /// What its inputs and outputs stand for.
    pub roles: &'a Roles,
    /// How it was trained.
    pub configured: &'a ConfiguredProcess,
    /// Values of the other inputs.
    pub conditioning: &'a Conditioning,
}

/// Sums the gradients of the denoising loss.
///
/// # Errors
/// No data, an operator without a gradient, too little memory, a loss that is not a number.
pub fn gradients(
    analysis: &Analysis,
    runtime: &Runtime,
    inputs: &GradientInputs<'_>,
    options: &PruneOptions,
    settings: &GradientSettings,
    progress: &mut dyn FnMut(GradientStep, usize, usize),
) -> Result<GradientRun, Error> {
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let (roles, process) = (inputs.roles, &inputs.configured.process);
    let micro_batch = micro_batch(roles, settings).map_err(in_file)?;
    let channels = channels(roles).map_err(in_file)?;
    let sizes = roles.sizes(&analysis.facts, &options.sizes, micro_batch);
    let graph_options = GradientOptions {
        sizes,
        prediction: Some(roles.prediction.name.clone()),
        channels,
        wanted: analysis.prunable_weights(),
        precision: settings.precision,
    };
    let graph = GradientGraph::build_for(analysis, &graph_options, settings.device)?;
    check_memory(analysis, &graph, micro_batch)?;
    let samples = samples(analysis, runtime, inputs, options, settings, micro_batch, progress)?;
    let dims = samples.values.shape().to_vec();
    let noise = noise(&dims, samples.len(), options.seed.wrapping_add(1));
    let task = DenoisingTask::new(
        (process, roles, inputs.conditioning),
        (&analysis.facts, &options.sizes),
        &samples,
        noise,
        settings.timesteps,
    )?;
    let total = task.timesteps().len();
    let how = options.accumulate_options(settings.threshold, settings.mode, micro_batch);
    let pass_options =
        PassOptions { device: settings.device, allow_fallback: settings.allow_fallback, ..PassOptions::default() };
    let known = if how.mode == ThresholdMode::Mask && how.threshold > 0.0 {
        let forward = GradientGraph::build(analysis, &GradientOptions { wanted: Vec::new(), ..graph_options })?;
        let mut pass = GradientPass::with_options(runtime, &forward, &analysis.model, &pass_options)?;
        let step = |at: usize, _: f64| {
            progress(GradientStep::Losses, at + 1, total);
            ControlFlow::Continue(())
        };
        Some(losses(&mut pass, &analysis.model, &task, micro_batch, step)?)
    } else {
        None
    };
    let mut pass = GradientPass::with_options(runtime, &graph, &analysis.model, &pass_options)?;
    // The session has a copy of all weights.
    drop(graph);
    let execution = pass.execution().to_string();
    let mut sum = Accumulated::new(pass.uses());
    let checkpoint = settings
        .checkpoint
        .as_ref()
        .map(|path| Checkpoint::new(path, &fingerprint(analysis, process, settings, options, &samples)?))
        .transpose()?;
    if let (true, Some(checkpoint)) = (settings.resume, &checkpoint) {
        checkpoint.load(&mut sum)?;
    }
    let resumed = sum.visited;
    let started = Instant::now();
    let mut saved = Instant::now();
    let mut settled = false;
    let mut last: Option<Vec<Removed>> = None;
    let mut unchanged = 0;
    if !sum.complete {
        let step = |visited: &mut Visited<'_>| {
            progress(GradientStep::Gradients, visited.visited(), total);
            if let Some(checkpoint) = &checkpoint
                && saved.elapsed().as_secs() >= CHECKPOINT_SECONDS
            {
                checkpoint.save(visited.sum()?)?;
                saved = Instant::now();
            }
            if settings.adaptive && visited.kept() > 0 && visited.visited().is_multiple_of(ADAPTIVE_EVERY) {
                let found = selection(analysis, options, visited.sum()?, Some(runtime))?;
                unchanged = if last.as_ref() == Some(&found) { unchanged + 1 } else { 0 };
                last = Some(found);
                if unchanged == ADAPTIVE_CHECKS {
                    settled = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        };
        accumulate(&mut pass, &analysis.model, &task, &how, known.as_deref(), &mut sum, step)?;
    }
    if let Some(checkpoint) = &checkpoint {
        checkpoint.remove();
    }
    Ok(GradientRun {
        sum,
        source: samples.source.clone(),
        batch: samples.len(),
        micro_batch,
        timesteps: total,
        sample_elements: dims.iter().skip(1).product(),
        settled,
        resumed,
        precision: settings.precision,
        loss_scale: pass.loss_scale(),
        execution,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The samples of one run: at most what is asked for, and a divisor of the batch, since the graph has fixed sizes.
fn micro_batch(roles: &Roles, settings: &GradientSettings) -> Result<usize, Error> {
    if settings.batch == 0 || settings.micro_batch == Some(0) {
        return Err(Error::usage("--batch and --micro-batch: expected at least 1, found 0"));
    }
    if let Some(fixed) = roles.fixed_batch() {
        return match settings.batch.is_multiple_of(fixed) {
            true => Ok(fixed),
            false => Err(Error::usage(format!(
                "--batch: expected a multiple of {fixed}, the batch that the network fixes, found {}",
                settings.batch
            ))),
        };
    }
    let most = settings.micro_batch.unwrap_or(settings.batch).min(settings.batch);
    Ok((1..=most).rev().find(|size| settings.batch.is_multiple_of(*size)).unwrap_or(1))
}

/// Channels of the prediction that the loss compares; all where the network predicts no variance.
fn channels(roles: &Roles) -> Result<Option<i64>, Error> {
    match roles.variance_axis {
        None => Ok(None),
        Some(1) => {
            let channels = roles.sample.shape.get(1).and_then(crate::graph::dim::Dim::as_const);
            channels.map(Some).ok_or_else(|| Error::unmet("the number of channels of the sample is not known"))
        }
        Some(axis) => {
            Err(Error::unsupported(format!("a variance along axis {axis} of the prediction is not supported"))
                .hint("score with --criterion magnitude"))
        }
    }
}

/// Refuses a run that would need more memory than there is.
fn check_memory(analysis: &Analysis, graph: &GradientGraph, micro_batch: usize) -> Result<(), Error> {
    let weights = analysis.model.total_bytes()?;
    // Weights, those that are folded into other forms, gradients of one run, and the sums.
    let needed = graph.activation_bytes + 4 * weights;
    let Some(available) = crate::runtime::available_memory() else { return Ok(()) };
    if needed <= available {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let hint = if micro_batch > 1 {
        format!("a smaller --micro-batch than {micro_batch} needs less")
    } else {
        "--criterion magnitude needs no gradients".to_owned()
    };
    Err(Error::unmet(format!(
        "gradients at {micro_batch} samples a run need about {:.1} GiB, {:.1} GiB are free",
        gigabytes(needed),
        gigabytes(available)
    ))
    .in_file(analysis.model.path())
    .hint(hint))
}

fn samples(
    analysis: &Analysis,
    runtime: &Runtime,
    inputs: &GradientInputs<'_>,
    options: &PruneOptions,
    settings: &GradientSettings,
    micro_batch: usize,
    progress: &mut dyn FnMut(GradientStep, usize, usize),
) -> Result<Samples, Error> {
    let roles = inputs.roles;
    let sizes = roles.sizes(&analysis.facts, &options.sizes, micro_batch);
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let dims = roles.sample.dims(&sizes).map_err(in_file)?;
    if let Some(path) = &settings.data {
        return Samples::load(path, (&roles.sample.name, &dims), &settings.ranges, settings.batch, options.seed);
    }
    let session = runtime
        .session_from_file(analysis.model.path(), &SessionOptions::default())
        .map_err(|error| Error::invalid(analysis.model.path(), error.to_string()).caused_by(error))?;
    let mut denoiser = Denoiser::new(session, roles, &analysis.facts, &options.sizes, micro_batch).map_err(in_file)?;
    let process = &inputs.configured.process;
    let sampling = SampleOptions {
        steps: settings.draw_steps.clamp(1, process.schedule.step_count()),
        sampler: Sampler::Ddim,
        eta: 0.0,
        skip: Skip::Uniform,
        variance: inputs.configured.variance,
        count: settings.batch,
        seed: options.seed,
    };
    let samples = Samples::from_network(&mut denoiser, process, inputs.conditioning, &sampling, &mut |done, total| {
        progress(GradientStep::Sampling, done, total);
    })
    .map_err(in_file)?;
    if samples.values.iter().any(|value| !value.is_finite()) {
        return Err(in_file(
            Error::unmet("the samples that the network draws hold values that are not finite")
                .hint("give --data, or check --prediction-type, --schedule and --time-input"),
        ));
    }
    Ok(samples)
}

/// What must be equal for a checkpoint to be continued.
fn fingerprint(
    analysis: &Analysis,
    process: &crate::diffusion::Process,
    settings: &GradientSettings,
    options: &PruneOptions,
    samples: &Samples,
) -> Result<String, Error> {
    let sum: f64 = samples.values.iter().map(|value| f64::from(*value)).sum();
    let how = options.accumulate_options(settings.threshold, settings.mode, 1);
    Ok(format!(
        "{} {} {} {:?} {:?} {:?} {} {} {} {} {sum:e}",
        analysis.model.digest()?,
        process.describe(),
        settings.batch,
        settings.timesteps,
        how.threshold,
        how.mode,
        how.squared,
        how.sums_last,
        options.seed,
        settings.precision,
    ))
}
