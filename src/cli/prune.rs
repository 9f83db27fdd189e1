//! The main job: prune, write, verify, measure.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Cli, PruneArgs};
use super::config::check_sizes;
use super::cut_result::{failure, summary, text, write_report};
use super::gradient_args;
use super::printer::Printer;
use super::{open_runtime, open_runtime_to_fold};
use crate::array::Array;
use crate::error::Error;
use crate::graph::model::Model;
use crate::inputs::{check_names, input_variants};
use crate::load::load;
use crate::pipeline::{Analysis, analyse, cut_by};
use crate::runtime::{Latency, Runtime, SessionOptions, interleaved_latency};
use crate::verify::{VerifyOptions, verify};
use crate::write::stage;

/// Runs of each network that are timed, at most, and the seconds they may take together.
const LATENCY_RUNS: usize = 30;
const LATENCY_SECONDS: f64 = 6.0;

pub(super) fn run(args: &PruneArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let args = args.with_config()?;
    if args.print_config {
        printer.raw(&args.to_config()?);
        return Ok(true);
    }
    let mut options = args.options()?;
    let input = args.input.as_deref().ok_or_else(|| {
        Error::usage("no input is given").hint("onnx-diffprune IN.onnx OUT.onnx --ratio 0.5; --help shows more")
    })?;
    let output = args.output.as_deref();
    if output.is_none() && !args.dry_run {
        return Err(Error::usage("no output is given").hint("name a file for the pruned network, or pass --dry-run"));
    }
    // What would fail at the end fails at the start.
    let needs_runtime = options.criterion.needs_gradients() || !(args.dry_run || args.no_verify);
    let runtime = if needs_runtime { Some(open_runtime(cli)?) } else { None };
    let given = args.inputs.as_deref().map(read_inputs).transpose()?;
    let progress = printer.progress(3);
    progress.step("reading");
    let model = load(input)?;
    if let Some(output) = output {
        crate::write::check_destination(&model, output)?;
    }
    progress.step("coupling channels");
    let analysis = analyse(&model)?;
    check_names(&model, &analysis.graph, given.as_deref().unwrap_or_default())?;
    let to_fold = open_runtime_to_fold(&analysis, cli)?;
    drop(progress);
    let scored = gradient_args::run(&args, &analysis, runtime, &mut options, given.as_deref(), printer)?;
    let progress = printer.progress(4);
    progress.step("scoring and selecting");
    let sums = scored.as_ref().map(|scored| &scored.run.sum);
    let mut cut = hashed_beside(&model, || cut_by(&analysis, &options, sums, to_fold))?;
    check_sizes(&options.sizes, &cut.sizes, input)?;
    progress.pause(|| cut.warnings.iter().for_each(|warning| printer.warning(warning)));
    let Some(output) = output.filter(|_| !args.dry_run) else {
        drop(progress);
        if let Some(path) = &args.report {
            write_report(path, (&analysis, &cut), scored.as_ref(), None, None, None)?;
        }
        printer.result(&summary(&analysis, &cut, scored.as_ref(), None, None, None), || {
            text(&analysis, &cut, scored.as_ref(), None, None, None)
        });
        return Ok(true);
    };
    progress.step("writing");
    let mut edits = cut.rewritten.edits.clone();
    if options.criterion.needs_gradients() {
        cut.plan.options.insert("run".to_owned(), recorded(&args)?);
    }
    edits.metadata = cut.plan.metadata();
    let staged = stage(&model, &edits, output)?;
    let mut report = None;
    let mut latencies = None;
    if let Some(runtime) = runtime.filter(|_| !args.no_verify) {
        progress.step("verifying");
        let pruned = load(staged.path())?;
        let verify_options = VerifyOptions {
            rtol: args.rtol,
            atol: args.atol.unwrap_or(1e-6),
            seed: options.seed,
            inputs: given.clone(),
            sizes: options.sizes.clone(),
        };
        let kept = cut.plan.kept_axes(&analysis.graph, output)?;
        let result = verify(&analysis, &kept, &pruned, runtime, &verify_options)?;
        if result.passed && !args.no_latency {
            progress.step("measuring latency");
            latencies = measure(&analysis, staged.path(), runtime, &verify_options).ok();
        }
        report = Some(result);
    }
    drop(progress);
    let passed = report.as_ref().is_none_or(|report| report.passed);
    let plan_path = args.plan.clone().unwrap_or_else(|| plan_path(output));
    if passed {
        cut.plan.write(&plan_path)?;
        staged.publish()?;
    }
    let written = passed.then_some((output, plan_path.as_path()));
    if let Some(path) = &args.report {
        let latencies = latencies.as_deref();
        write_report(path, (&analysis, &cut), scored.as_ref(), report.as_ref(), latencies, written)?;
    }
    printer.result(&summary(&analysis, &cut, scored.as_ref(), report.as_ref(), latencies.as_deref(), written), || {
        text(&analysis, &cut, scored.as_ref(), report.as_ref(), latencies.as_deref(), written)
    });
    if let Some(report) = report.filter(|report| !report.passed) {
        return Err(Error::verification_failed(format!(
            "verification failed, {} was not written: {}",
            output.display(),
            failure(&report)
        ))
        .in_file(input));
    }
    Ok(true)
}

/// Computes the digest of the model on a second thread while `work` runs.
fn hashed_beside<T>(model: &Model, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        // A failure shows when the plan asks for the digest again.
        scope.spawn(|| model.digest().is_ok());
        work()
    })
}

/// The default path of the plan: the output's name with `.plan.json` for its extension.
pub(super) fn plan_path(output: &Path) -> PathBuf {
    output.with_extension("plan.json")
}

pub(super) fn read_inputs(path: &Path) -> Result<Vec<(String, Array)>, Error> {
    crate::npz::read(path).map_err(|error| Error::unreadable(path, error.to_string()))
}

fn measure(
    analysis: &Analysis,
    pruned: &Path,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<Vec<Latency>, Error> {
    let fail = |error: crate::runtime::RuntimeError| Error::unmet(error.to_string());
    let (_, inputs) = input_variants(analysis, &options.inputs())?.into_iter().next().unwrap_or_default();
    let options = SessionOptions::default();
    let mut original = runtime.session_from_file(analysis.model.path(), &options).map_err(fail)?;
    let mut pruned = runtime.session_from_file(pruned, &options).map_err(fail)?;
    interleaved_latency(&mut [&mut original, &mut pruned], &[&inputs, &inputs], LATENCY_RUNS, 3, LATENCY_SECONDS)
        .map_err(fail)
}

/// How the gradients of a run were computed, as plan and metadata record it: without paths, which are the user's own
/// business.
fn recorded(args: &PruneArgs) -> Result<serde_json::Value, Error> {
    let mut diffusion = args.diffusion.clone();
    diffusion.scheduler_config = None;
    let record = (serde_json::to_value(&args.gradients), serde_json::to_value(&diffusion));
    match record {
        (Ok(gradients), Ok(diffusion)) => Ok(json!({"gradients": gradients, "diffusion": diffusion})),
        (Err(error), _) | (_, Err(error)) => Err(Error::usage(format!("the options can't be recorded: {error}"))),
    }
}
