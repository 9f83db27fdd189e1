//! The command `apply`: repeats the cut of a plan.

use onnx_diffprune::pipelines::Pipeline;
use onnx_diffprune::plans::{RefitPlan, plan_path};
use onnx_diffprune::{
    Error, GradientSettings, Model, Plan, RefitSettings, Runtime, ScoreOptions, Staged, VerifyOptions,
};
use serde_json::json;

use super::args::{ApplyArgs, Cli};
use super::cut_result::{removed_text, verification_text};
use super::destination::Destination;
use super::ending::{Before, Ending};
use super::printer::Printer;
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, open_runtime_to_fold, run_files};

pub(super) fn run(args: &ApplyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let plan = match Pipeline::is_meant(&args.plan) {
        true => plan_path(&network_of(&args.plan)?),
        false => args.plan.clone(),
    };
    let args = &ApplyArgs { plan, ..args.clone() };
    let to = Destination::of(&args.input, &args.output, None)?;
    to.fill(printer, true, |to, printer| apply(args, to, cli, printer))
}

fn apply(args: &ApplyArgs, to: &Destination, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let progress = printer.progress(4);
    progress.step("reading");
    let model = to.named(Model::open(network_of(&args.input)?)?);
    let fits = args.refit || args.data.data.is_some();
    let surroundings = Surroundings::of(&args.diffusion, model.path(), fits)?;
    progress.pause(|| surroundings.print(printer));
    let diffusion = &surroundings.diffusion;
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", &model);
    let given = [
        ("--inputs", args.inputs.as_deref()),
        ("--scheduler-config", diffusion.scheduler_config.as_deref()),
        ("--prompts", diffusion.prompts.as_deref()),
    ];
    run_files::reads_given(&mut files, &given);
    run_files::reads_data(&mut files, args.data.data.as_deref())?;
    run_files::writes_pruned(files.add_input("PLAN.json", &args.plan), &model, &to.network);
    files.check()?;
    let mut plan = Plan::read(&args.plan)?;
    let (changed, refit) = (plan.changed.take(), plan.refit.take());
    if fits && refit.is_none() {
        return Err(Error::usage("the plan records no refit that could be repeated")
            .in_file(&args.plan)
            .hint("leave out --refit and --data to repeat the cut alone; the command refit fits a pruned network"));
    }
    let runtime = if args.no_verify && !fits { None } else { Some(open_runtime(cli)?) };
    let note = match (&refit, &changed) {
        (Some(_), _) if !fits => Some(
            "the plan records a refit, which is not repeated: the output is the cut before the refit (to repeat it, give \
             --refit with the same --data)",
        ),
        (None, Some(_)) => {
            Some("the plan is of a network whose weights were changed after the cut: the output is the cut before that")
        }
        _ => None,
    };
    progress.pause(|| note.iter().for_each(|note| printer.warning(note)));
    progress.pause(|| printer.notes(&model));
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    if runtime.is_some() {
        analysis.check_memory(&VerifyOptions::default())?;
    }
    let to_fold = open_runtime_to_fold(&analysis, runtime, cli)?;
    let cut = analysis.repeat(&plan, &args.plan, to_fold.as_ref())?;
    progress.step("writing");
    // A plan file exists already. In a folder, the plan is written beside the network, where `verify` looks for it.
    let mut staged = cut.stage(&to.network)?.with_plan(to.is_folder().then(|| plan_path(&to.network)));
    if let (Some(recorded), Some(runtime), true) = (&refit, &runtime, fits) {
        drop(progress);
        return repeat_refit(args, to, &surroundings, printer, &model, recorded, (runtime, staged));
    }
    if let Some(runtime) = &runtime {
        progress.step("verifying");
        staged.check(runtime, &VerifyOptions::default(), &mut |progress| printer.pass(progress))?;
    }
    drop(progress);
    let report = staged.verification().cloned();
    let passed = report.as_ref().is_none_or(|report| report.passed);
    printer.go_on()?;
    let written = match staged.save() {
        Ok(written) => written,
        Err(error) if passed => return Err(error),
        Err(error) => {
            printer.failure(json!({"output": null, "verification": report}), String::new, &error);
            return Err(error);
        }
    };
    printer.result(&json!({"output": to.shown, "removed": written.removed, "verification": report}), || {
        let mut lines: Vec<String> =
            report.as_ref().map(|report| verification_text(report, printer.is_verbose())).into_iter().collect();
        lines.push(format!("wrote {}", to.shown.display()));
        lines.extend(written.removed.iter().map(|path| removed_text(path)));
        lines.join("\n")
    });
    Ok(true)
}

/// Repeats the refit that the plan records.
fn repeat_refit(
    args: &ApplyArgs,
    to: &Destination,
    surroundings: &Surroundings,
    printer: &Printer,
    model: &Model,
    recorded: &RefitPlan,
    (runtime, staged): (&Runtime, Staged),
) -> Result<bool, Error> {
    let inputs = surroundings.inputs(model, args.inputs.as_deref(), Some(runtime))?;
    let options = VerifyOptions { inputs: inputs.clone(), sizes: recorded.sizes.clone(), ..VerifyOptions::default() };
    let gradients = surroundings.diffusion.gradient_settings(&args.data, inputs.unwrap_or_default())?;
    let score = ScoreOptions {
        seed: recorded.seed,
        sizes: recorded.sizes.clone(),
        gradients: GradientSettings {
            draw_sampler: recorded.drawn.map_or(gradients.draw_sampler, |(sampler, _)| sampler),
            draw_steps: recorded.drawn.map(|(_, steps)| steps),
            ..gradients
        },
        ..ScoreOptions::default()
    };
    if recorded.drawn.is_some() == score.gradients.data.is_some() {
        let text = match recorded.drawn.is_some() {
            true => "the refit of the plan used samples that the network generated, but --data is given",
            false => "the refit of the plan used data, but none is given",
        };
        let hint = if recorded.drawn.is_some() { "leave out --data" } else { "give the same samples with --data" };
        return Err(Error::usage(text).in_file(&args.plan).hint(hint));
    }
    let settings = RefitSettings::repeated(recorded)?;
    let ending = Ending {
        printer,
        output: &to.shown,
        plan: None,
        report: None,
        runtime: Some(runtime),
        verify: (!args.no_verify).then_some(&options),
        measures_latency: false,
        refit: Some((&score, &settings)),
        gradients: None,
        around: &surroundings.json,
        before: Before::default(),
        checkpoint: None,
        advice: "leave out --refit and --data to write the cut without a refit",
        sources: Vec::new(),
        draws: Err("the cut is refitted"),
    };
    ending.run(staged)
}
