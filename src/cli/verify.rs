//! Checks a pruned file against its original.

use super::args::{Cli, VerifyArgs};
use super::config::{check_sizes, parse_sizes};
use super::cut_result::verification_text;
use super::open_runtime;
use super::printer::{Printer, table};
use super::prune::{plan_path, read_inputs};
use crate::error::Error;
use crate::graph::sizes::sizes_for;
use crate::load::load;
use crate::pipeline::analyse;
use crate::plan::Plan;
use crate::verify::{VerifyOptions, verify};

pub(super) fn run(args: &VerifyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let runtime = open_runtime(cli)?;
    let path = args.plan.clone().unwrap_or_else(|| plan_path(&args.output));
    let progress = printer.progress(3);
    progress.step("reading");
    let plan = Plan::read(&path).map_err(|error| {
        if args.plan.is_none() { error.hint("name the plan of the cut with --plan") } else { error }
    })?;
    let model = load(&args.input)?;
    let pruned = load(&args.output)?;
    let digest = model.digest()?;
    if plan.input_digest != digest {
        let text = format!(
            "the plan is for another file than {}: its input has SHA-256 {}",
            args.input.display(),
            plan.input_digest
        );
        return Err(Error::unreadable(&path, text));
    }
    progress.step("reading the graph");
    let analysis = analyse(&model)?;
    let options = VerifyOptions {
        rtol: args.rtol,
        atol: args.atol,
        seed: args.seed,
        inputs: args.inputs.as_deref().map(read_inputs).transpose()?,
        sizes: parse_sizes(&args.size)?,
    };
    check_sizes(&options.sizes, &sizes_for(&analysis.facts, &options.sizes), &args.input)?;
    let kept = plan.kept_axes(&analysis.graph, &path)?;
    progress.step("verifying");
    let report = verify(&analysis, &kept, &pruned, runtime, &options)?;
    drop(progress);
    printer.result(&report, || {
        let mut rows = Vec::new();
        for (number, run) in report.runs.iter().enumerate() {
            for output in &run.outputs {
                rows.push(vec![
                    format!("run {} {}", number + 1, output.output),
                    format!("{:.2e}", output.absolute),
                    format!("{:.2e}", output.relative),
                    if output.passed { "ok" } else { "WRONG" }.to_owned(),
                ]);
            }
        }
        let errors = table(&["output", "worst absolute error", "relative", "result"], &rows);
        format!("{errors}\n\n{}", verification_text(&report))
    });
    Ok(report.passed)
}
