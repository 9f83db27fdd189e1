//! Checks a pruned file against its original.

use std::ops::ControlFlow;

use onnx_diffprune::plans::plan_path;
use onnx_diffprune::{Error, Model, Plan, Progress, VerifyOptions};

use super::args::{Cli, VerifyArgs};
use super::config::parse_sizes;
use super::cut_result::verification_text;
use super::open_runtime;
use super::printer::{Printer, table};
use super::surroundings::network_of;

pub(super) fn run(args: &VerifyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let runtime = open_runtime(cli)?;
    let (input, output) = (network_of(&args.input)?, network_of(&args.output)?);
    let path = args.plan.clone().unwrap_or_else(|| plan_path(&output));
    let progress = printer.progress(3);
    progress.step("reading");
    let plan = Plan::read(&path).map_err(|error| {
        if args.plan.is_none() { error.hint("name the plan of the cut with --plan") } else { error }
    })?;
    let model = Model::open(&input)?;
    let pruned = Model::open(&output)?;
    model.check_plan(&plan, &path)?;
    progress.pause(|| printer.notes(&model));
    progress.step("reading the graph");
    let analysis = model.analyse()?;
    let options = VerifyOptions {
        rtol: args.rtol,
        atol: args.atol,
        seed: args.seed,
        inputs: args.inputs.as_deref().map(|path| model.read_inputs(path)).transpose()?,
        sizes: parse_sizes(&args.size)?,
    };
    progress.step("verifying");
    let unwatched = &mut |_: Progress<'_>| ControlFlow::Continue(());
    let report = analysis.verify(&pruned, (&plan, &path), &runtime, &options, unwatched)?;
    drop(progress);
    printer.result(&report, || {
        let mut rows = Vec::new();
        for (number, run) in report.runs.iter().enumerate() {
            for output in &run.outputs {
                rows.push(vec![
                    format!("run {} {}", number + 1, output.output),
                    format!("{:.2e}", output.absolute),
                    format!("{:.2e}", output.relative),
                    match (output.passed, output.moved_by_rounding) {
                        (true, None) => "ok",
                        (true, Some(_)) => "inconclusive",
                        (false, _) => "WRONG",
                    }
                    .to_owned(),
                ]);
            }
        }
        let errors = table(&["output", "worst absolute error", "relative", "result"], &rows);
        format!("{errors}\n\n{}", verification_text(&report, printer.is_verbose()))
    });
    Ok(report.passed)
}
