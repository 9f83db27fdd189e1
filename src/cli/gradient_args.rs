//! The arguments of the gradient criteria, and the run that they ask for.

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

/// How gradients are computed and what they make of a channel; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GradientArgs {
    /// Timesteps count while their loss is at least X times the largest: the paper's threshold [default: 0.05].
    #[arg(long, value_name = "X", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threshold: Option<f64>,

    /// Which timesteps the threshold keeps: all before the first below it, as published, or every one above it, as in
    /// the paper's formula [default: prefix].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threshold_mode: Option<ThresholdMode>,

    /// The number of timesteps that are visited, spread evenly over the schedule [default: all].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timesteps: Option<usize>,

    /// Samples in one run; bounds the memory of activations [default: the batch].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) micro_batch: Option<usize>,

    /// Bytes that the gradients may take, such as 8G [default: what is free]. Where they need more, runs have fewer samples,
    /// and then the weights are divided over several passes, each over all timesteps; the scores stay.
    #[arg(long, value_name = "BYTES", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<String>,

    /// How samples are drawn from the network itself where there is no data [default: dpm++2m].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draw_sampler: Option<Sampler>,

    /// Evaluations of the network for a sample that is drawn from it; 1 suits consistency models [default: 10, and at most
    /// one more than --timesteps; ddim and ddpm: 50].
    #[arg(long, value_name = "N", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draw_steps: Option<usize>,

    /// Which weights of a channel group score [default: all].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) members: Option<ScoringMembers>,

    /// Score exactly as a published implementation does instead of by the paper's formula.
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<Published>,

    /// Where gradients are computed: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu].
    #[arg(long, value_name = "DEVICE", help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<String>,

    /// The precision of convolutions and matrix products in the gradients, whatever that of the network; float16 is for
    /// devices that are faster in it and scales the loss [default: float32].
    #[arg(long, value_enum, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) precision: Option<Precision>,

    /// Let the CPU run what the device can't, instead of failing.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) allow_fallback: bool,

    /// Stop once the channels that would go have not changed for three checks, one every ten timesteps.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) adaptive: bool,

    /// Go on from the checkpoints of gradients and refit that a killed run left beside the output.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip)]
    pub(super) resume: bool,
}

/// The default path of the checkpoint: the output's name with `.gradients.npz` for its extension.
pub(super) fn checkpoint_path(output: &Path) -> PathBuf {
    output.with_extension("gradients.npz")
}

/// The default path of the checkpoint of a refit: the output's name with `.refit.npz` for its extension.
pub(super) fn refit_checkpoint_path(output: &Path) -> PathBuf {
    output.with_extension("refit.npz")
}

/// The options of scoring, with what the gradients are taken of and how.
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

/// What is shown of the stages of a gradient run.
pub(super) fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Sampling => Some("drawing samples"),
        Stage::Losses => Some("losses by timestep"),
        Stage::Gradients => Some("gradients by timestep"),
        Stage::Comparing => Some("comparing groups"),
        _ => None,
    }
}

/// One or two lines for the result.
pub(super) fn text(run: &GradientReport) -> String {
    let mut text = match run.loss {
        LossKind::Output => format!(
            "squared gradients of the output on {} samples, in {} passes, in {:.1} s",
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
            "; at t = {} the loss fell below {threshold} times the largest ({:.4} of {:.4})",
            point.t,
            point.loss,
            run.largest_loss()
        );
    }
    if run.settled {
        text += "; the selection had settled";
    }
    let scale = run.loss_scale.map(|scale| format!(", {} at a loss scale of {scale}", run.precision));
    let drawn = run.drawing_seconds.map(|seconds| format!(", in {seconds:.1} s")).unwrap_or_default();
    format!("{text}\nran on: {}{}\nsamples: {}{drawn}", run.execution, scale.unwrap_or_default(), run.source)
}

/// The losses for a report.
pub(super) fn losses(run: &GradientReport) -> Losses<'_> {
    let mut lines = run.network.clone();
    lines.push(format!("process:      {}", run.process));
    lines.push(format!("samples:      {}", run.source));
    // Inner products with random directions say nothing.
    let curve = if run.loss == LossKind::Output { &[] } else { run.curve.as_slice() };
    Losses { curve, threshold: run.threshold.unwrap_or(0.0), lines }
}

/// The same for machines.
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
