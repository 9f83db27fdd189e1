//! The arguments of the gradient criteria, and how a gradient run is shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use onnx_diffprune::data::Array;
use onnx_diffprune::networks::Sampler;
use onnx_diffprune::options::{Precision, Published, ScoringMembers, ThresholdMode};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::reports::{GradientReport, LossKind, Losses};
use onnx_diffprune::{CutOptions, Error, GradientSettings, ScoreOptions, Stage};
use serde::{Deserialize, Serialize};

use super::args::PruneArgs;
use super::ranks::device_of_option;
use super::refit_args::bytes;

/// How gradients are computed and how they score a channel; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GradientArgs {
    /// Use the timesteps whose loss is at least X times the largest loss: the threshold of the paper [default: 0.05].
    #[arg(long, value_name = "X", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threshold: Option<f64>,

    /// Which timesteps the threshold keeps: all before the first one below it, as in the published code, or every one
    /// above it, as in the formula of the paper [default: prefix].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threshold_mode: Option<ThresholdMode>,

    /// Number of timesteps to evaluate, spread evenly over the schedule [default: all].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timesteps: Option<usize>,

    /// Number of samples in one run of the network; smaller values use less memory for activations [default: the batch
    /// size].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) micro_batch: Option<usize>,

    /// Memory limit for the gradients in bytes, such as 8G. If they need more, the micro-batch is reduced; then the
    /// weights are divided over several passes, each over all timesteps. The scores do not change [default: the free
    /// memory].
    #[arg(long, value_name = "BYTES", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<String>,

    /// Sampler that generates samples with the network itself if no data is given [default: dpm++2m].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draw_sampler: Option<Sampler>,

    /// Number of network evaluations per generated sample; use 1 for consistency models [default: 10, and at most one
    /// more than --timesteps; ddim and ddpm: 50].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draw_steps: Option<usize>,

    /// Which weights of a channel group contribute to its scores [default: all].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) members: Option<ScoringMembers>,

    /// Score exactly as a published implementation does, instead of by the formula of the paper.
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<Published>,

    /// The device to compute gradients on: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu].
    #[arg(long, value_name = "DEVICE", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<String>,

    /// Precision of convolutions and matrix products in the gradients, independent of the precision of the network.
    /// float16 uses loss scaling; it is for devices that are faster in half precision [default: float32].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) precision: Option<Precision>,

    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) allow_fallback: bool,

    /// Stop the gradients early: once the channels to be removed are the same in three consecutive checks, one every
    /// ten timesteps.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) adaptive: bool,

    /// Continue from the checkpoints of gradients and refit that an interrupted run left beside the output.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip)]
    pub(super) resume: bool,
}

/// Returns the default path of the gradient checkpoint: the output path with the extension `.gradients.npz`.
pub(super) fn checkpoint_path(output: &Path) -> PathBuf {
    output.with_extension("gradients.npz")
}

/// Returns the default path of the refit checkpoint: the output path with the extension `.refit.npz`.
pub(super) fn refit_checkpoint_path(output: &Path) -> PathBuf {
    output.with_extension("refit.npz")
}

/// Completes the options of scoring with the settings of the gradients.
pub(super) fn score_options(
    mut options: ScoreOptions,
    args: &PruneArgs,
    (cut, refits): (&CutOptions, bool),
    given: Option<&[(String, Array)]>,
    ranks: &Arc<dyn Collective>,
) -> Result<ScoreOptions, Error> {
    let of = &args.gradients;
    let defaults = options.gradients;
    options.gradients = GradientSettings {
        threshold: defaults.threshold,
        mode: defaults.mode,
        micro_batch: of.micro_batch,
        memory: of.memory.as_deref().map(|text| bytes("--memory", text)).transpose()?,
        timesteps: of.timesteps,
        device: device_of_option(of.device.as_deref(), &**ranks)?,
        allow_fallback: of.allow_fallback,
        precision: of.precision.unwrap_or_default(),
        adaptive: of.adaptive.then(|| cut.clone()),
        draw_sampler: of.draw_sampler.unwrap_or(defaults.draw_sampler),
        draw_steps: of.draw_steps.or(defaults.draw_steps),
        checkpoint: args.base().filter(|_| args.output.is_some() && !args.dry_run).map(checkpoint_path),
        resume: of.resume,
        keeps_checkpoint: refits,
        ranks: ranks.clone(),
        ..args.diffusion.gradient_settings(&args.data, given.unwrap_or_default().to_vec())?
    };
    Ok(options)
}

/// Returns the progress text of a stage of a gradient run. `None`: the stage is not shown.
pub(super) fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Sampling => Some("generating samples"),
        Stage::Losses => Some("losses by timestep"),
        Stage::Gradients => Some("gradients by timestep"),
        Stage::Comparing => Some("comparing channel groups"),
        _ => None,
    }
}

/// Formats a loss: with four decimal places unless it is very large.
fn short(loss: f64) -> String {
    if loss < 1e6 { format!("{loss:.4}") } else { format!("{loss:.3e}") }
}

/// Describes a gradient run in a few lines.
pub(super) fn text(run: &GradientReport) -> String {
    let mut text = match run.loss {
        LossKind::Output => format!(
            "squared gradients of the output on {} samples in {} passes, in {:.1} s",
            run.batch * run.timesteps,
            run.timesteps,
            run.seconds
        ),
        _ => format!(
            "gradients of {} samples over {} of {} timesteps in {:.1} s",
            run.batch,
            run.kept(),
            run.timesteps,
            run.seconds
        ),
    };
    if let Some(threshold) = run.threshold
        && let Some(point) = run.curve.last().filter(|point| !point.kept)
    {
        text += &format!(
            "; at t = {} the loss is below {threshold} times the largest ({} of {})",
            point.t,
            short(point.loss),
            short(run.largest_loss())
        );
    }
    if run.settled {
        text += "; stopped early: the selection no longer changed (--adaptive)";
    }
    let scale = run.loss_scale.map(|scale| format!(", {} at a loss scale of {scale}", run.precision));
    let drawn = run.drawing_seconds.map(|seconds| format!(", in {seconds:.1} s")).unwrap_or_default();
    format!("{text}\nran on: {}{}\nsamples: {}{drawn}", run.execution, scale.unwrap_or_default(), run.source)
}

/// Returns the losses for the HTML report.
pub(super) fn losses(run: &GradientReport) -> Losses<'_> {
    let mut lines = run.network.clone();
    lines.push(format!("process:      {}", run.process));
    lines.push(format!("samples:      {}", run.source));
    // The curve of an output loss is left out: it holds inner products with random directions, which mean nothing to a
    // reader.
    let curve = if run.loss == LossKind::Output { &[] } else { run.curve.as_slice() };
    Losses { curve, threshold: run.threshold.unwrap_or(0.0), lines }
}

/// Returns the gradient run as JSON.
pub(super) fn json(run: &GradientReport) -> serde_json::Value {
    serde_json::json!({
        "network": run.network,
        "process": run.process,
        "loss": run.loss,
        "execution": run.execution,
        "precision": run.precision,
        "loss_scale": run.loss_scale,
        "samples": run.source,
        "batch": run.batch,
        "micro_batch": run.micro_batch,
        "passes": run.passes,
        "memory": run.memory,
        "timesteps": run.timesteps,
        "threshold": run.threshold,
        "kept_timesteps": run.kept(),
        "settled": run.settled,
        "resumed_timesteps": run.resumed,
        "seconds": run.seconds,
        "drawing_seconds": run.drawing_seconds,
        "curve": run.curve,
    })
}
