//! Repeats the cut of a plan.

use std::ops::ControlFlow;

use onnx_diffprune::{Error, Model, Plan, VerifyOptions};
use serde_json::json;

use super::args::{ApplyArgs, Cli};
use super::cut_result::verification_text;
use super::printer::Printer;
use super::{open_runtime, open_runtime_to_fold};

pub(super) fn run(args: &ApplyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let runtime = if args.no_verify { None } else { Some(open_runtime(cli)?) };
    let progress = printer.progress(4);
    progress.step("reading");
    let mut plan = Plan::read(&args.plan)?;
    if plan.changed.take().is_some() {
        progress.pause(|| {
            printer.warning(
                "the plan is of a file whose weights have changed since; what is written is the cut before that",
            );
        });
    }
    let model = Model::open(&args.input)?;
    model.check_output(&args.output)?;
    progress.pause(|| printer.notes(&model));
    progress.step("coupling channels");
    let analysis = model.analyse()?;
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
    staged.save()?;
    printer.result(&json!({"output": args.output, "verification": report}), || {
        let verified = report.as_ref().map(verification_text).map_or_else(String::new, |text| text + "\n");
        format!("{verified}wrote {}", args.output.display())
    });
    Ok(true)
}
