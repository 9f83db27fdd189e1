//! Says how good networks are beside the original that they stem from.

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

/// Samples of every picture of a report.
const PICTURES: usize = 16;

#[derive(Args, Debug)]
pub(super) struct EvaluateArgs {
    /// The networks to evaluate: pruned, refitted or tuned.
    #[arg(value_name = "TUNED.onnx", required = true)]
    networks: Vec<PathBuf>,
    /// The network that they stem from.
    #[arg(long, value_name = "ORIGINAL.onnx")]
    original: PathBuf,
    /// Write a report: one HTML page with figures, losses by timestep, and samples side by side.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Fail (exit code 1) where the mean denoising loss is above the original's by more than this share, such as 5% or 0.05.
    #[arg(long, value_name = "SHARE")]
    max_loss_increase: Option<String>,
    /// Fail (exit code 1) where the mean SSIM to the original's samples is below this.
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    min_ssim: Option<f64>,
    /// Seed of the choice of clean samples, of all noise, and of the subsets of the kernel distance.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Do not measure latency.
    #[arg(long)]
    no_latency: bool,
    /// Where the networks run: cpu, cuda, cuda:1 or tensorrt [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Let the CPU run what the device can't, instead of failing.
    #[arg(long)]
    allow_fallback: bool,
    /// Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension; may be given again.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,

    /// Clean samples of the denoising loss [default: 256, or as many whole batches as the data has].
    #[arg(long, value_name = "N", help_heading = "Denoising loss")]
    count: Option<usize>,
    /// The number of timesteps, spread evenly over the schedule.
    #[arg(long, value_name = "N", default_value_t = 25, help_heading = "Denoising loss")]
    timesteps: usize,

    /// Samples that every network draws from the same noise; none with 0 [default: 2048 with --features, else 256].
    #[arg(long, value_name = "N", help_heading = "Samples")]
    samples: Option<usize>,
    /// The number of evaluations of the network per sample [default: 50; dpm++2m: 20].
    #[arg(long, value_name = "N", help_heading = "Samples")]
    steps: Option<usize>,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddim", help_heading = "Samples")]
    sampler: Sampler,
    /// Which steps of a discrete schedule are visited.
    #[arg(long, value_enum, default_value = "uniform", help_heading = "Samples")]
    skip: Skip,
    /// DDIM's share of the noise that DDPM would add, from 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Samples")]
    eta: f64,

    #[command(flatten)]
    features: FeaturesArgs,
    /// Samples of the data that features are taken of [default: as many as are drawn, or all].
    #[arg(long, value_name = "N", help_heading = "Features", requires = "features")]
    data_samples: Option<usize>,
    /// Random subsets over which the kernel distance is averaged.
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Features")]
    kid_subsets: usize,
    /// Samples in each of them [default: 1000, or as many as there are].
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
            return Err(Error::usage("--min-ssim needs samples, --samples 0 draws none"));
        }
        let max_loss_increase = self.max_loss_increase.as_deref().map(parse_share).transpose()?;
        Ok(EvaluationLimits { max_loss_increase, min_ssim: self.min_ssim })
    }
}

/// A share given as 5% or 0.05.
fn parse_share(text: &str) -> Result<f64, Error> {
    let form = || {
        Error::usage(format!("--max-loss-increase: expected a share such as 5% or 0.05, found {text:?}"))
            .hint("5 without the sign would be 500 %: write 5% or 500%")
    };
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    match text.trim().strip_suffix('%') {
        Some(number_of_hundred) => number(number_of_hundred).map(|number| number / 100.0),
        None => number(text).filter(|number| *number < 1.0),
    }
    .ok_or_else(form)
}

/// What is shown of the stages.
fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Counting => Some("counting operations"),
        Stage::Timing => Some("measuring latency"),
        Stage::Losses => Some("denoising"),
        Stage::Sampling => Some("drawing samples"),
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
        return Err(Error::usage("no data is given")
            .hint("name clean samples, best ones that were not trained on, with --data"));
    };
    let limits = args.limits()?;
    let feature_options = args.features.options()?;
    let original = Model::open(network_of(&args.original)?)?;
    let networks = args.networks.iter().map(|path| Model::open(network_of(path)?)).collect::<Result<Vec<_>, _>>()?;
    let surroundings = Surroundings::of(&args.diffusion, original.path(), true)?;
    let diffusion = &surroundings.diffusion;
    let features = args.features.features.as_ref().map(Model::open).transpose()?;
    // What would fail at the end fails at the start.
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
        files.writes("--report", report);
    }
    files.check()?;
    let runtime = open_runtime(cli)?;
    surroundings.tell(printer);
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
    fn shares_are_read_with_and_without_the_sign() {
        let of = |text: &str| parse_share(text).ok();
        assert_eq!([of("5%"), of("0.05"), of("150 %"), of("0")], [Some(0.05), Some(0.05), Some(1.5), Some(0.0)]);
        for wrong in ["5", "-1%", "", "%", "x", "nan%", "inf"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
