//! The command `evaluate`: compares networks with the original that they were pruned from.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use onnx_diffprune::evaluation::{EvaluateOptions, EvaluationLimits, KernelOptions};
use onnx_diffprune::networks::{Sampler, Skip};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Error, Model, Stage};

use super::args::Cli;
use super::config::parse_sizes;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::evaluate_result::Shown;
use super::features_args::FeaturesArgs;
use super::junit;
use super::printer::{Printer, Watcher};
use super::ranks::device_of_option;
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, run_files};

/// Number of samples of each network in a report.
const PICTURES: usize = 16;

#[derive(Args, Debug)]
pub(super) struct EvaluateArgs {
    /// The networks to evaluate: pruned, refitted or fine-tuned.
    #[arg(value_name = "TUNED.onnx", required = true)]
    networks: Vec<PathBuf>,
    /// The original network, with which they are compared.
    #[arg(long, value_name = "ORIGINAL.onnx")]
    original: PathBuf,
    /// Write a report: one HTML page with figures, losses by timestep, and samples side by side.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Fail (exit code 1) if the mean denoising loss exceeds that of the original by more than this share, such as 5%
    /// or 0.05.
    #[arg(long, value_name = "SHARE")]
    max_loss_increase: Option<String>,
    /// Fail (exit code 1) if the mean SSIM between samples and those of the original is below this value, from -1 to 1.
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    min_ssim: Option<f64>,
    /// Seed of the choice of clean samples, of all noise, and of the subsets for KID.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Do not measure latency.
    #[arg(long)]
    no_latency: bool,
    /// The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long)]
    allow_fallback: bool,
    /// Conditioning: arrays with the names of the network's inputs; sample i uses row i. Inputs that are not given are
    /// random.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,

    /// Number of clean samples for the denoising loss [default: 256, or as many whole batches as the data has].
    #[arg(long, value_name = "N", help_heading = "Denoising loss")]
    count: Option<usize>,
    /// Number of timesteps, spread evenly over the schedule.
    #[arg(long, value_name = "N", default_value_t = 25, help_heading = "Denoising loss")]
    timesteps: usize,

    /// Number of samples that every network generates from the same noise; 0 for none [default: 2048 with --features,
    /// else 256].
    #[arg(long, value_name = "N", help_heading = "Samples")]
    samples: Option<usize>,
    /// Number of network evaluations per sample [default: 50; dpm++2m: 20].
    #[arg(long, value_name = "N", help_heading = "Samples")]
    steps: Option<usize>,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddim", help_heading = "Samples")]
    sampler: Sampler,
    /// Which timesteps of a discrete schedule the sampler uses.
    #[arg(long, value_enum, default_value = "uniform", help_heading = "Samples")]
    skip: Skip,
    /// Stochasticity of DDIM, from 0 (deterministic) to 1 (as much noise as DDPM adds).
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Samples")]
    eta: f64,

    #[command(flatten)]
    features: FeaturesArgs,
    /// Number of data samples to compute features of [default: as many as are generated, or all].
    #[arg(long, value_name = "N", help_heading = "Features", requires = "features")]
    data_samples: Option<usize>,
    /// Number of random subsets over which KID, the kernel distance, is averaged.
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Features")]
    kid_subsets: usize,
    /// Number of samples in each subset for KID [default: 1000, or as many as there are].
    #[arg(long, value_name = "N", help_heading = "Features")]
    kid_subset_size: Option<usize>,

    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

impl EvaluateArgs {
    fn limits(&self) -> Result<EvaluationLimits, Error> {
        if let Some(ssim) = self.min_ssim.filter(|ssim| !(-1.0..=1.0).contains(ssim)) {
            return Err(Error::usage(format!("--min-ssim: expected a number from -1 to 1, found {ssim}")));
        }
        if self.min_ssim.is_some() && self.samples == Some(0) {
            return Err(Error::usage(
                "--min-ssim needs samples, but --samples 0 generates none: leave out one of the two",
            ));
        }
        let max_loss_increase = self.max_loss_increase.as_deref().map(parse_share).transpose()?;
        Ok(EvaluationLimits { max_loss_increase, min_ssim: self.min_ssim })
    }
}

/// Parses a share given as 5% or 0.05.
fn parse_share(text: &str) -> Result<f64, Error> {
    let form = || {
        Error::usage(format!("--max-loss-increase: expected a share such as 5% or 0.05, found {text:?}"))
            .hint("a number without % must be below 1: write 5% or 500%")
    };
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    match text.trim().strip_suffix('%') {
        Some(number_of_hundred) => number(number_of_hundred).map(|number| number / 100.0),
        None => number(text).filter(|number| *number < 1.0),
    }
    .ok_or_else(form)
}

/// Returns the progress text of a stage. `None`: the stage is not shown.
fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Counting => Some("counting MACs"),
        Stage::Timing => Some("measuring latency"),
        Stage::Losses => Some("measuring the denoising loss"),
        Stage::Sampling => Some("generating samples"),
        Stage::Features => Some("computing features"),
        Stage::Distances => Some("computing distances"),
        _ => None,
    }
}

pub(super) fn run(
    args: &EvaluateArgs,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let Some(data) = &args.data.data else {
        return Err(Error::usage("--data is missing: the denoising loss is measured on clean samples")
            .hint("pass clean samples with --data, ideally ones that the network was not trained on"));
    };
    let limits = args.limits()?;
    let feature_options = args.features.options()?;
    let original = Model::open(network_of(&args.original)?)?;
    let networks = args.networks.iter().map(|path| Model::open(network_of(path)?)).collect::<Result<Vec<_>, _>>()?;
    let surroundings = Surroundings::of(&args.diffusion, original.path(), true)?;
    let diffusion = &surroundings.diffusion;
    let features = args.features.features.as_ref().map(Model::open).transpose()?;
    // Conflicts between files are reported before anything is computed.
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "--original", &original);
    networks.iter().for_each(|model| run_files::reads_model(&mut files, "TUNED.onnx", model));
    if let Some(model) = &features {
        run_files::reads_model(&mut files, "--features", model);
    }
    let (inputs, scheduler) = (args.inputs.as_deref(), diffusion.scheduler_config.as_deref());
    run_files::reads_given(
        &mut files,
        &[("--inputs", inputs), ("--scheduler-config", scheduler), ("--prompts", diffusion.prompts.as_deref())],
    );
    run_files::reads_data(&mut files, Some(data))?;
    if let Some(report) = &args.report {
        files.add_output("--report", report);
    }
    files.check()?;
    let runtime = open_runtime(cli)?;
    surroundings.print(printer);
    printer.notes(&original);
    networks.iter().chain(&features).for_each(|model| printer.notes(model));
    let given = surroundings.inputs(&original, inputs, Some(&runtime))?.unwrap_or_default();
    let options = EvaluateOptions {
        network: diffusion.network_options(given)?,
        sizes: parse_sizes(&args.size)?,
        data_range: args.data.range()?,
        count: args.count,
        timesteps: args.timesteps,
        samples: args.samples,
        steps: args.steps,
        sampler: args.sampler,
        skip: args.skip,
        eta: args.eta,
        seed: args.seed,
        features: features.map(|model| (model, feature_options)),
        data_samples: args.data_samples,
        kernel: KernelOptions {
            subsets: args.kid_subsets,
            subset_size: args.kid_subset_size,
            ..KernelOptions::default()
        },
        measures_latency: !args.no_latency,
        pictures: if args.report.is_some() { PICTURES } else { 0 },
        device: device_of_option(args.device.as_deref(), &**ranks)?,
        allow_fallback: args.allow_fallback,
        ranks: ranks.clone(),
        ..EvaluateOptions::on(data)
    };
    let mut watcher = Watcher::new(printer, text_of);
    let evaluation = original.evaluate(&networks, &runtime, &options, &mut |progress| watcher.see(progress))?;
    drop(watcher);
    if ranks.rank() > 0 {
        return Ok(true);
    }
    let failure = evaluation.check(&limits).err();
    let shown = Shown { evaluation: &evaluation, report: args.report.as_deref(), verbose: printer.is_verbose() };
    if let Some(path) = &args.report {
        shown.page(failure.as_ref()).write(path)?;
    }
    if printer.is_junit() {
        let networks: Vec<String> = evaluation.networks.iter().map(|of| of.path.display().to_string()).collect();
        printer.checks(&junit::of_evaluation(&evaluation.checks(&limits), &networks, &shown.text()));
    }
    match failure {
        None if printer.is_junit() => Ok(true),
        None => {
            printer.result(&shown.json(), || shown.text());
            Ok(true)
        }
        Some(error) => {
            printer.failure(shown.json(), || shown.text(), &error);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_with_and_without_a_percent_sign() {
        let of = |text: &str| parse_share(text).ok();
        assert_eq!([of("5%"), of("0.05"), of("150 %"), of("0")], [Some(0.05), Some(0.05), Some(1.5), Some(0.0)]);
        for wrong in ["5", "-1%", "", "%", "x", "nan%", "inf"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
