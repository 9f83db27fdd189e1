//! The command `finetune`: trains the weights of a network, pruned or not, on its own graph.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use onnx_diffprune::finetuning::{FinetuneReport, FinetuneSettings, Tuned};
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::reports::{Drawings, TrainingPage, printable, tool_name};
use onnx_diffprune::{Analysis, Cut, Error, Model, Plan, Progress, Runtime, Stage, VerifyOptions};
use serde_json::{Value, json};

use super::args::Cli;
use super::config::parse_sizes;
use super::destination::Destination;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::ending::PICTURES;
use super::finetune_args::TrainingArgs;
use super::invocation::command_line;
use super::printer::{Printer, Watcher};
use super::report_page::{sources, used_in_training};
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, open_runtime_to_fold, run_files, signals};

#[derive(Args, Debug)]
pub(super) struct FinetuneArgs {
    /// The network to train, or the folder of its pipeline.
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// Path of the trained network: a file or, if IN is a folder, a folder that also gets copies of all other files.
    #[arg(value_name = "OUT.onnx")]
    output: PathBuf,
    /// The teacher, whose output the network learns besides the data: the original of a pruned network.
    #[arg(long, value_name = "ORIGINAL.onnx")]
    teacher: Option<PathBuf>,
    /// The plan of the cut. With --teacher, OUT.onnx also gets a plan, by which it is verified against its original
    /// [default: IN.plan.json, if it exists].
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// The folder for checkpoints, metrics and generated samples [default: OUT.finetune].
    #[arg(long, value_name = "FOLDER")]
    run_folder: Option<PathBuf>,
    /// Continue from the last checkpoint in the run folder.
    #[arg(long)]
    resume: bool,
    /// Write a report: one HTML page with samples of the teacher and of the network before and after training, and the
    /// losses.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Do not verify the trained network.
    #[arg(long)]
    no_verify: bool,
    /// Seed of the order of samples, their timesteps and their noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Conditioning of the samples: arrays with the names of the network's inputs; sample i uses row i. Inputs that are
    /// not given are random.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Training => Some("training"),
        Stage::Losses => Some("losses on held-out samples"),
        Stage::Sampling => Some("generating samples"),
        _ => None,
    }
}

pub(super) fn run(
    args: &FinetuneArgs,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let to = Destination::of(&args.input, &args.output, args.report.as_deref())?;
    to.fill(printer, ranks.rank() == 0, |to, printer| finetune(args, to, cli, ranks, printer))
}

fn finetune(
    args: &FinetuneArgs,
    to: &Destination,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let Some(data) = &args.data.data else {
        return Err(Error::usage("--data is missing: training needs clean samples").hint("pass them with --data"));
    };
    let runtime = open_runtime(cli)?;
    let input = network_of(&args.input)?;
    let surroundings = Surroundings::of(&args.diffusion, &input, true)?;
    let diffusion = &surroundings.diffusion;
    surroundings.print(printer);
    let model = to.named(Model::open(&input)?);
    printer.notes(&model);
    let teacher = args.teacher.as_deref().map(|path| Model::open(network_of(path)?).map(|model| to.named(model)));
    let teacher = teacher.transpose()?;
    let folder = args.run_folder.clone().unwrap_or_else(|| to.base.with_extension("finetune"));
    let plan_file = args.plan.clone().or_else(|| Some(plan_path(&input)).filter(|path| path.exists()));
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", &model);
    if let Some(teacher) = &teacher {
        run_files::reads_model(&mut files, "--teacher", teacher);
    }
    if let Some(plan) = &plan_file {
        files.add_input("the plan of IN.onnx", plan);
    }
    let given = [
        ("--inputs", args.inputs.as_deref()),
        ("--scheduler-config", diffusion.scheduler_config.as_deref()),
        ("--prompts", diffusion.prompts.as_deref()),
        ("--empty-conditioning", args.training.empty_conditioning.as_deref()),
    ];
    run_files::reads_given(&mut files, &given);
    run_files::reads_data(&mut files, Some(data))?;
    run_files::writes_pruned(&mut files, &model, &to.network);
    let new_plan = plan_path(&to.network);
    files.add_output("the plan of OUT.onnx", &new_plan);
    if let Some(report) = &to.report {
        files.add_output("--report", report);
    }
    files.check()?;
    let inputs = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?;
    let (training, batch) = (&args.training, args.diffusion.batch);
    let mut settings = training.settings((data, &folder), batch, teacher.is_some(), &**ranks)?;
    settings.network = diffusion.network_options(inputs.clone().unwrap_or_default())?;
    settings.data_range = args.data.range()?;
    if let Some(path) = &args.training.empty_conditioning {
        settings.empty = model.read_inputs(path)?;
    }
    settings.sizes = parse_sizes(&args.size)?;
    (settings.seed, settings.resume, settings.ranks) = (args.seed, args.resume, ranks.clone());
    settings.teacher.clone_from(&teacher);
    let origin = match origin(plan_file.as_deref(), teacher.as_ref(), printer)? {
        None => None,
        Some((original, mut plan, path)) => {
            let original = original.analyse()?;
            let changed = plan.changed.take();
            let to_fold = open_runtime_to_fold(&original, Some(runtime), cli)?;
            Some((original.repeat(&plan, &path, to_fold.as_ref())?, changed))
        }
    };
    settings.cut = origin.as_ref().map(|(cut, _)| cut.clone());
    if to.report.is_some() {
        settings.pictures = training.pictures().unwrap_or(PICTURES);
    }
    let analysis = model.analyse()?;
    let tuned = train(&analysis, &runtime, &settings, printer)?;
    if ranks.rank() > 0 {
        return Ok(true);
    }
    let page = |cut: Option<&Cut>| {
        let path = to.report.clone()?;
        let sources = sources(diffusion, &surroundings.json, &args.data, args.seed);
        let networks = (args.input.as_path(), args.teacher.as_deref());
        let outline = cut.map(Cut::outline);
        let page = TrainingPage {
            title: format!("{} trained", input.file_name().unwrap_or_default().to_string_lossy()),
            tool: tool_name(),
            command: command_line(),
            drawings: Drawings::of_training(&tuned.report),
            report: &tuned.report,
            cut: cut.map(Cut::plan).zip(outline.as_ref()),
            used: used_in_training(networks, sources, &tuned.report),
        };
        Some((path, page.html().into_bytes()))
    };
    let verification = match origin {
        None => {
            let staged = tuned.stage(&to.network)?;
            if !args.no_verify {
                let progress = printer.progress(1);
                progress.step("verifying");
                tuned.check(staged.path(), &runtime)?;
            }
            printer.go_on()?;
            staged.publish(&page(None).into_iter().collect::<Vec<_>>())?;
            Value::Null
        }
        Some((cut, changed)) => {
            let mut staged = tuned.stage_cut(&cut, changed.as_ref(), &to.network)?;
            let mut result = Value::Null;
            if !args.no_verify {
                let progress = printer.progress(1);
                progress.step("verifying");
                let options = VerifyOptions { inputs, sizes: settings.sizes.clone(), ..VerifyOptions::default() };
                let report = staged.check(&runtime, &options, &mut |progress| printer.pass(progress))?;
                result = json!(report);
            }
            if let Some((path, html)) = page(Some(staged.cut())) {
                staged = staged.with_file(path, html);
            }
            printer.go_on()?;
            staged.save()?;
            result
        }
    };
    let json = json!({
        "input": args.input,
        "output": to.shown,
        "pipeline": surroundings.json,
        "folder": folder,
        "training": tuned.report,
        "report": args.report,
        "verification": verification,
    });
    printer.result(&json, || format!("{}\nwrote {}", report_text(&tuned.report), to.shown.display()));
    Ok(true)
}

/// Trains, with progress. After the first signal, training stops and its state is saved.
pub(super) fn train(
    analysis: &Analysis,
    runtime: &Runtime,
    settings: &FinetuneSettings,
    printer: &Printer,
) -> Result<Tuned, Error> {
    signals::defer_first(true);
    let mut watcher = Watcher::new(printer, text_of);
    let tuned = analysis.finetune(runtime, settings, &mut |progress| {
        if let Progress::Evaluated(evaluation) = progress {
            watcher
                .note(&format!("step {}: denoising loss {:.4} on held-out samples", evaluation.step, evaluation.loss));
        }
        if signals::was_received() && !matches!(progress, Progress::Evaluated(_)) {
            return ControlFlow::Break(());
        }
        watcher.see(progress)
    });
    signals::defer_first(false);
    tuned
}

/// Returns the original with the plan of the cut. `None`: one of them is not given.
fn origin(
    plan: Option<&Path>,
    teacher: Option<&Model>,
    printer: &Printer,
) -> Result<Option<(Model, Plan, PathBuf)>, Error> {
    let (Some(path), Some(teacher)) = (plan, teacher) else {
        if plan.is_some() {
            printer.warning(
                "without --teacher, OUT.onnx gets no plan and is not verified against its original, although IN.onnx \
                 has a plan. Pass the original with --teacher ORIGINAL.onnx",
            );
        }
        return Ok(None);
    };
    let plan = Plan::read(path)?;
    teacher.check_plan(&plan, path)?;
    Ok(Some((teacher.clone(), plan, path.to_owned())))
}

/// Describes the training in a few lines.
pub(super) fn report_text(report: &FinetuneReport) -> String {
    let rate = (report.steps * report.batch as u64) as f64 / report.seconds.max(1e-9);
    let mut lines = vec![format!(
        "trained {} weights ({} elements) for {} of {} steps of {} samples in {:.1} s ({rate:.0} samples/s)",
        report.weights, report.elements, report.steps, report.wanted_steps, report.batch, report.seconds
    )];
    lines.push(format!("samples: {}", printable(&report.source)));
    if report.is_stopped {
        lines.push("stopped before the last step; continue with --resume".to_owned());
    }
    if report.skipped_steps > 0 {
        lines.push(format!(
            "{} steps were skipped, as loss or gradients were not finite; a lower learning rate (--lr) may help",
            report.skipped_steps
        ));
    }
    if let (Some(first), Some(best)) =
        (report.evaluations.first(), report.evaluations.iter().find(|evaluation| evaluation.step == report.best_step))
    {
        let teacher = report.teacher.as_ref().map_or_else(String::new, |of| format!(", teacher {:.4}", of.loss));
        lines.push(format!(
            "denoising loss on held-out samples: before {:.4}, after {:.4} (step {}){teacher}",
            first.loss, best.loss, best.step
        ));
    }
    lines.join("\n")
}
