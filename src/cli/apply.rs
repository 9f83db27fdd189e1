//! Repeats the cut of a plan.

use std::ops::ControlFlow;

use onnx_diffprune::{Error, Model, Plan, VerifyOptions};
use serde_json::json;

use super::args::{ApplyArgs, Cli};
use super::cut_result::{removed_text, verification_text};
use super::printer::Printer;
use super::{open_runtime, open_runtime_to_fold, run_files};

pub(super) fn run(args: &ApplyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let progress = printer.progress(4);
    progress.step("reading");
    let model = Model::open(&args.input)?;
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", &model);
    run_files::writes_pruned(files.reads("PLAN.json", &args.plan), &args.output);
    files.check()?;
    let runtime = if args.no_verify { None } else { Some(open_runtime(cli)?) };
    let mut plan = Plan::read(&args.plan)?;
    if plan.changed.take().is_some() {
        progress.pause(|| {
            printer.warning(
                "the plan is of a file whose weights have changed since; what is written is the cut before that",
            );
        });
    }
    progress.pause(|| printer.notes(&model));
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    if runtime.is_some() {
        analysis.check_memory(&VerifyOptions::default())?;
    }
    let to_fold = open_runtime_to_fold(&analysis, runtime, cli)?;
    let cut = analysis.repeat(&plan, &args.plan, to_fold.as_ref())?;
    progress.step("writing");
    let mut staged = cut.stage(&args.output)?.with_plan(None);
    if let Some(runtime) = runtime {
        progress.step("verifying");
        staged.check(&runtime, &VerifyOptions::default(), &mut |_| ControlFlow::Continue(()))?;
    }
    drop(progress);
    let report = staged.verification().cloned();
    let passed = report.as_ref().is_none_or(|report| report.passed);
    let written = match staged.save() {
        Ok(written) => written,
        Err(error) if passed => return Err(error),
        Err(error) => {
            printer.failure(json!({"output": null, "verification": report}), String::new, &error);
            return Ok(false);
        }
    };
    printer.result(&json!({"output": args.output, "removed": written.removed, "verification": report}), || {
        let mut lines: Vec<String> =
            report.as_ref().map(|report| verification_text(report, printer.is_verbose())).into_iter().collect();
        lines.push(format!("wrote {}", args.output.display()));
        lines.extend(written.removed.iter().map(|path| removed_text(path)));
        lines.join("\n")
    });
    Ok(true)
}
