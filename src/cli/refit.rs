//! The command `refit`: fits the weights of a network that was pruned before.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Error, GradientSettings, Model, Plan, RefitSettings, ScoreOptions, VerifyOptions};

use super::args::Cli;
use super::config::parse_sizes;
use super::destination::Destination;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::ending::{Before, Ending};
use super::gradient_args::refit_checkpoint_path;
use super::printer::Printer;
use super::ranks::device_of_option;
use super::refit_args::RefitArgs;
use super::report_page::sources;
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, open_runtime_to_fold, run_files};

#[derive(Args, Debug)]
pub(super) struct RefitCommandArgs {
    /// The original network, or the folder of its pipeline.
    #[arg(value_name = "ORIGINAL.onnx")]
    input: PathBuf,
    /// The pruned network, or the folder of its pipeline.
    #[arg(value_name = "PRUNED.onnx")]
    pruned: PathBuf,
    /// Path of the refitted network: a file or, if PRUNED is a folder, a folder that also gets copies of all other
    /// files of PRUNED.
    #[arg(value_name = "OUT.onnx")]
    output: PathBuf,
    /// The plan of the cut [default: PRUNED.plan.json].
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Write a report: one HTML page with samples, losses and the errors of all layers before and after the refit.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Verify neither the pruned network nor the refitted one, and do not measure latency.
    #[arg(long)]
    no_verify: bool,
    /// Do not measure latency.
    #[arg(long)]
    no_latency: bool,
    /// Seed of samples, noise and the inputs of verification.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Inputs for verification and conditioning of the samples: arrays with the names of the network's inputs; sample i
    /// uses row i. Inputs that are not given are random.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    /// The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long)]
    allow_fallback: bool,
    /// Continue from the checkpoint that an interrupted run left beside the output.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    refitting: RefitArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

pub(super) fn run(
    args: &RefitCommandArgs,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let to = Destination::of(&args.pruned, &args.output, args.report.as_deref())?;
    to.fill(printer, ranks.rank() == 0, |to, printer| refit(args, to, cli, ranks, printer))
}

fn refit(
    args: &RefitCommandArgs,
    to: &Destination,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let runtime = open_runtime(cli)?;
    let (input, of_pruned) = (network_of(&args.input)?, network_of(&args.pruned)?);
    let path = args.plan.clone().unwrap_or_else(|| plan_path(&of_pruned));
    let new_plan = plan_path(&to.network);
    let progress = printer.progress(3);
    progress.step("reading");
    let (model, pruned) = (to.named(Model::open(&input)?), to.named(Model::open(&of_pruned)?));
    let surroundings = Surroundings::of(&args.diffusion, &input, true)?;
    progress.pause(|| surroundings.print(printer));
    let diffusion = &surroundings.diffusion;
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "ORIGINAL.onnx", &model);
    run_files::reads_model(&mut files, "PRUNED.onnx", &pruned);
    files.add_input("the plan of PRUNED.onnx", &path);
    let given = [
        ("--inputs", args.inputs.as_deref()),
        ("--scheduler-config", diffusion.scheduler_config.as_deref()),
        ("--prompts", diffusion.prompts.as_deref()),
    ];
    run_files::reads_given(&mut files, &given);
    run_files::reads_data(&mut files, args.data.data.as_deref())?;
    run_files::writes_pruned(&mut files, &model, &to.network);
    files.add_output("the plan of OUT.onnx", &new_plan);
    let checkpoint = refit_checkpoint_path(&to.base);
    files.add_output("the checkpoint of OUT.onnx", &checkpoint);
    if let Some(report) = &args.report {
        files.add_output("--report", report);
    }
    files.check()?;
    let mut plan = Plan::read(&path).map_err(|error| {
        if args.plan.is_none() { error.hint("give the plan of the cut with --plan") } else { error }
    })?;
    model.check_plan(&plan, &path)?;
    progress.pause(|| printer.notes(&model));
    let inputs = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?;
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    let network = diffusion.network_options(inputs.clone().unwrap_or_default())?;
    let options = VerifyOptions {
        seed: args.seed,
        inputs: inputs.clone(),
        sizes: analysis.usual_sizes(&network, &parse_sizes(&args.size)?, args.data.data.as_deref())?,
        ..VerifyOptions::default()
    };
    let is_first = ranks.rank() == 0;
    if !args.no_verify && is_first {
        progress.step("verifying the pruned network");
        let watch = &mut |progress: onnx_diffprune::Progress<'_>| printer.pass(progress);
        let report = analysis.verify(&pruned, (&plan, &path), &runtime, &options, watch)?;
        if let Some(failure) = report.failure_text() {
            let text = format!("{} is not the cut that its plan describes: {failure}", args.pruned.display());
            return Err(Error::verification_failed(text));
        }
    }
    let score = ScoreOptions {
        seed: args.seed,
        sizes: options.sizes.clone(),
        gradients: GradientSettings {
            device: device_of_option(args.device.as_deref(), &**ranks)?,
            allow_fallback: args.allow_fallback,
            ranks: ranks.clone(),
            ..diffusion.gradient_settings(&args.data, inputs.unwrap_or_default())?
        },
        ..ScoreOptions::default()
    };
    let settings = RefitSettings {
        checkpoint: Some(checkpoint.clone()),
        resume: args.resume,
        ..args.refitting.settings(&score.gradients, args.report.is_some())?
    };
    let to_fold = open_runtime_to_fold(&analysis, Some(runtime), cli)?;
    let changed = plan.changed.take();
    plan.refit = None;
    let cut = analysis.repeat(&plan, &path, to_fold.as_ref())?;
    let staged = match &changed {
        Some(changed) => cut.stage_changed(&pruned, changed, &to.network)?,
        None => cut.stage(&to.network)?,
    };
    drop(progress);
    if !is_first {
        return staged.refit(&runtime, &score, &settings, &mut |_| ControlFlow::Continue(())).map(|_| true);
    }
    let ending = Ending {
        printer,
        output: &to.shown,
        plan: Some(&plan_path(&to.shown)),
        report: to.report.as_deref(),
        runtime: Some(&runtime),
        verify: (!args.no_verify).then_some(&options),
        measures_latency: !args.no_latency,
        refit: Some((&score, &settings)),
        gradients: None,
        around: &surroundings.json,
        before: Before::default(),
        checkpoint: None,
        advice: "the pruned network is unchanged",
        sources: sources(&surroundings.diffusion, &surroundings.json, &args.data, score.seed),
        draws: Ok(&score),
    };
    ending.run(staged)
}
