//! Repeats the cut of a plan.

use serde_json::json;

use super::args::{ApplyArgs, Cli};
use super::cut_result::{failure, verification_text};
use super::printer::Printer;
use super::{open_runtime, open_runtime_to_fold};
use crate::error::Error;
use crate::load::load;
use crate::pipeline::{analyse, apply};
use crate::plan::Plan;
use crate::verify::{VerifyOptions, verify};
use crate::write::stage;

pub(super) fn run(args: &ApplyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let runtime = if args.no_verify { None } else { Some(open_runtime(cli)?) };
    let progress = printer.progress(4);
    progress.step("reading");
    let plan = Plan::read(&args.plan)?;
    let model = load(&args.input)?;
    crate::write::check_destination(&model, &args.output)?;
    progress.step("coupling channels");
    let analysis = analyse(&model)?;
    let to_fold = open_runtime_to_fold(&analysis, cli)?;
    let rewritten = apply(&analysis, &plan, &args.plan, to_fold)?;
    progress.step("writing");
    let mut edits = rewritten.edits;
    edits.metadata = plan.metadata();
    let staged = stage(&model, &edits, &args.output)?;
    let mut report = None;
    if let Some(runtime) = runtime {
        progress.step("verifying");
        let kept = plan.kept_axes(&analysis.graph, &args.plan)?;
        let pruned = load(staged.path())?;
        report = Some(verify(&analysis, &kept, &pruned, runtime, &VerifyOptions::default())?);
    }
    drop(progress);
    if let Some(report) = report.as_ref().filter(|report| !report.passed) {
        let text = format!("verification failed, {} was not written: {}", args.output.display(), failure(report));
        return Err(Error::verification_failed(text).in_file(&args.input));
    }
    staged.publish()?;
    printer.result(&json!({"output": args.output, "verification": report}), || {
        let verified = report.as_ref().map(verification_text).map_or_else(String::new, |text| text + "\n");
        format!("{verified}wrote {}", args.output.display())
    });
    Ok(true)
}
