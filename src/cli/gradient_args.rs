//! The arguments of the gradient criteria, and the run that they ask for.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::args::PruneArgs;
use super::printer::{Printer, Progress};
use crate::array::Array;
use crate::diffusion::{Conditioning, Roles};
use crate::error::Error;
use crate::gradient::Precision;
use crate::gradient::accumulate::ThresholdMode;
use crate::pipeline::{Analysis, GradientInputs, GradientRun, GradientSettings, GradientStep, PruneOptions, gradients};
use crate::report::Losses;
use crate::runtime::{Device, Runtime};
use crate::score::{Published, ScoringMembers};

/// Samples of a batch where nothing is said.
const BATCH: usize = 16;

/// Steps of DDIM where samples are drawn and nothing is said.
const DRAW_STEPS: usize = 50;

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

    /// Steps of DDIM where samples are drawn from the network itself; 1 suits consistency models [default: 50].
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

    /// Let the processor run what the device can't, instead of failing.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) allow_fallback: bool,

    /// Stop once the channels that would go have not changed for three checks, one every ten timesteps.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) adaptive: bool,

    /// Go on from the checkpoint that a killed run left beside the output.
    #[arg(long, help_heading = "Gradients")]
    #[serde(skip)]
    pub(super) resume: bool,
}

/// The default path of the checkpoint: the output's name with `.gradients.npz` for its extension.
fn checkpoint_path(output: &Path) -> PathBuf {
    output.with_extension("gradients.npz")
}

/// Gradients with what they were taken of, for the reports.
pub(super) struct Scored {
    pub(super) run: GradientRun,
    /// What was taken for what, one line each.
    pub(super) lines: Vec<String>,
    pub(super) threshold: f64,
    pub(super) is_thresholded: bool,
}

/// Computes the gradients that the criterion needs; `None` where it needs none.
pub(super) fn run(
    args: &PruneArgs,
    analysis: &Analysis,
    runtime: Option<&Runtime>,
    options: &mut PruneOptions,
    given: Option<&[(String, Array)]>,
    printer: &Printer,
) -> Result<Option<Scored>, Error> {
    if !options.criterion.needs_gradients() {
        return Ok(None);
    }
    let Some(runtime) = runtime else { return Ok(None) };
    let (model, graph, facts) = (&analysis.model, &analysis.graph, &analysis.facts);
    let advice = "the gradient criteria score denoising networks; for others give --criterion magnitude";
    let roles = Roles::recognise(model, graph, facts, &args.diffusion.role_names()).map_err(|error| {
        let own = error.advice().map(|own| format!("{own}; {advice}"));
        error.hint(own.unwrap_or_else(|| advice.to_owned()))
    })?;
    let configured = args.diffusion.process(&roles)?;
    configured.notes.iter().for_each(|note| printer.warning(note));
    let batch = args.diffusion.batch.unwrap_or_else(|| roles.fixed_batch().map_or(BATCH, |fixed| fixed.max(1)));
    // Sizes that the data has are those of the gradients alone: costs and verification keep their own.
    let sizes = roles.sizes_with_arrays(&options.sizes, args.data.data.as_deref(), given.unwrap_or_default())?;
    let sized = PruneOptions { sizes, ..options.clone() };
    let conditioning = Conditioning::new((model, graph, facts), &roles, given, (&sized.sizes, batch), options.seed)
        .map_err(|error| error.in_file(model.path()))?;
    let lines = roles.lines(&configured.process, |name| conditioning.is_given(name));
    if !printer.is_json() {
        printer.note(&format!("{}\nprocess:      {}", lines.join("\n"), configured.process.describe()));
    }
    if args.data.data.is_none() {
        printer.note("data:         none is given (--data); samples are drawn from the network itself by DDIM");
    }
    let of = &args.gradients;
    let threshold = of.threshold.unwrap_or(0.05);
    if !(0.0..1.0).contains(&threshold) {
        return Err(Error::usage(format!(
            "--threshold: expected a share of the largest loss in [0, 1), found {threshold}"
        )));
    }
    let settings = GradientSettings {
        batch,
        micro_batch: of.micro_batch,
        timesteps: of.timesteps,
        threshold,
        mode: of.threshold_mode.unwrap_or_default(),
        device: of.device.as_deref().map(device).transpose()?.unwrap_or_default(),
        allow_fallback: of.allow_fallback,
        precision: of.precision.unwrap_or_default(),
        adaptive: of.adaptive,
        draw_steps: of.draw_steps.unwrap_or(DRAW_STEPS),
        data: args.data.data.clone(),
        ranges: args.data.ranges(&args.diffusion)?,
        checkpoint: args.output.as_deref().filter(|_| !args.dry_run).map(checkpoint_path),
        resume: of.resume,
    };
    if (settings.precision, settings.device) == (Precision::Float16, Device::Cpu) {
        printer
            .warning("on the processor, ONNX Runtime computes float16 in float32: --precision float16 is slower there");
    }
    let mut shown: Option<(GradientStep, Progress)> = None;
    let inputs = GradientInputs { roles: &roles, configured: &configured, conditioning: &conditioning };
    let run = gradients(analysis, runtime, &inputs, &sized, &settings, &mut |step, done, total| {
        if shown.as_ref().is_none_or(|(before, _)| *before != step) {
            shown = None;
            shown = Some((step, printer.progress(total as u64)));
        }
        if let Some((_, progress)) = &shown {
            progress.at(done as u64, text_of(step));
        }
    })?;
    options.image_elements = run.sample_elements as f64;
    let is_thresholded = options.accumulate_options(threshold, settings.mode, 1).threshold > 0.0;
    Ok(Some(Scored { run, lines, threshold, is_thresholded }))
}

fn device(text: &str) -> Result<Device, Error> {
    text.parse().map_err(|error| Error::usage(format!("--device: {error}")))
}

fn text_of(step: GradientStep) -> &'static str {
    match step {
        GradientStep::Sampling => "drawing samples",
        GradientStep::Losses => "losses by timestep",
        GradientStep::Gradients => "gradients by timestep",
    }
}

impl Scored {
    /// One or two lines for the result.
    pub(super) fn text(&self) -> String {
        let run = &self.run;
        let kept = run.sum.kept();
        let mut text = format!(
            "gradients of {} samples over {kept} of {} timesteps in {:.1} s",
            run.batch, run.timesteps, run.seconds
        );
        let last = run.sum.curve.last();
        if self.is_thresholded
            && let Some(point) = last.filter(|point| !point.kept)
        {
            text += &format!(
                "; at t = {} the loss fell below {} times the largest ({:.4} of {:.4})",
                point.t,
                self.threshold,
                point.loss,
                run.sum.largest_loss()
            );
        }
        if run.settled {
            text += "; the selection had settled";
        }
        let scale = run.loss_scale.map(|scale| format!(", {} at a loss scale of {scale}", run.precision));
        format!("{text}\nran on: {}{}\nsamples: {}", run.execution, scale.unwrap_or_default(), run.source)
    }

    /// The losses for a report.
    pub(super) fn losses(&self) -> Losses<'_> {
        let mut lines = self.lines.clone();
        lines.push(format!("samples:      {}", self.run.source));
        let threshold = if self.is_thresholded { self.threshold } else { 0.0 };
        Losses { curve: &self.run.sum.curve, threshold, lines }
    }

    /// The same for machines.
    pub(super) fn json(&self) -> serde_json::Value {
        let run = &self.run;
        serde_json::json!({
            "execution": run.execution,
            "precision": run.precision,
            "loss_scale": run.loss_scale,
            "samples": run.source,
            "batch": run.batch,
            "micro_batch": run.micro_batch,
            "timesteps": run.timesteps,
            "threshold": self.is_thresholded.then_some(self.threshold),
            "kept_timesteps": run.sum.kept(),
            "settled": run.settled,
            "resumed_timesteps": run.resumed,
            "seconds": run.seconds,
            "curve": run.sum.curve,
        })
    }
}
