//! The main job: prune, write, verify, measure.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Cli, PruneArgs};
use super::config::check_sizes;
use super::gradient_args::{self, Scored};
use super::printer::{Printer, human, percent, table};
use super::{open_runtime, open_runtime_to_fold};
use crate::array::Array;
use crate::error::Error;
use crate::load::{Model, load};
use crate::pipeline::{Analysis, Cut, analyse, cut_by, tool_name};
use crate::report::Report;
use crate::runtime::{Latency, Runtime, SessionOptions, interleaved_latency};
use crate::verify::{VerifyOptions, VerifyReport, check_names, input_variants, verify};
use crate::write::stage;

/// Channel groups that stay whole and are listed with their reasons.
const STAYING_SHOWN: usize = 12;

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
    open_runtime_to_fold(&analysis, cli)?;
    drop(progress);
    let scored = gradient_args::run(&args, &analysis, runtime, &mut options, given.as_deref(), printer)?;
    let progress = printer.progress(4);
    progress.step("scoring and selecting");
    let sums = scored.as_ref().map(|scored| &scored.run.sum);
    let mut cut = hashed_beside(&model, || cut_by(&analysis, &options, sums))?;
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
        return Err(Error::unmet(format!(
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
    crate::npz::read(path).map_err(|error| Error::input(path, error.to_string()))
}

/// What went wrong, in one line.
pub(super) fn failure(report: &VerifyReport) -> String {
    if let Some(failure) = &report.failure {
        return failure.clone();
    }
    let errors = report.runs.iter().find(|run| !run.passed()).map_or_else(
        || "the outputs agree, but prove nothing (constant, tiny or not finite)".to_owned(),
        |run| {
            let precision = if run.widened { " in float32" } else { "" };
            format!("the worst relative error is {:.1e}{precision}, allowed {:.1e}", run.worst(), run.rtol)
        },
    );
    match &report.first_difference {
        Some(first) if first.expected_elements != first.found_elements => format!(
            "value {:?} of node {:?} ({}) has {} elements, expected {}",
            first.value, first.node, first.op, first.found_elements, first.expected_elements
        ),
        Some(first) => format!(
            "{errors}; the first value that differs is {:?} of node {:?} ({}), by {:.1e}",
            first.value, first.node, first.op, first.relative
        ),
        None => errors,
    }
}

fn measure(
    analysis: &Analysis<'_>,
    pruned: &Path,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<Vec<Latency>, Error> {
    let fail = |error: crate::runtime::RuntimeError| Error::unmet(error.to_string());
    let (_, inputs) = input_variants(analysis, options)?.into_iter().next().unwrap_or_default();
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

fn output_bytes(staged: Option<(&Path, &Path)>) -> Option<u64> {
    let (output, _) = staged?;
    let data = output.with_file_name(format!("{}.data", output.file_name()?.to_str()?));
    Some(output.metadata().ok()?.len() + data.metadata().map_or(0, |data| data.len()))
}

fn summary(
    analysis: &Analysis<'_>,
    cut: &Cut,
    scored: Option<&Scored>,
    report: Option<&VerifyReport>,
    latencies: Option<&[Latency]>,
    written: Option<(&Path, &Path)>,
) -> serde_json::Value {
    let groups: Vec<_> = cut
        .plan
        .groups
        .iter()
        .map(|group| json!({"name": group.name, "channels": group.channels, "kept": group.kept.len(), "reason": group.reason}))
        .collect();
    json!({
        "input": analysis.model.path(),
        "output": written.map(|(output, _)| output),
        "plan": written.map(|(_, plan)| plan),
        "ratio": cut.ratio,
        "criterion": cut.plan.criterion,
        "sizes": cut.sizes,
        "before": cut.before,
        "after": cut.after,
        "file_bytes": {"before": analysis.model.total_bytes().ok(), "after": output_bytes(written)},
        "latency_ms": latencies.map(|latencies| json!({
            "before": latencies.first().map(|latency| latency.median_ms),
            "after": latencies.get(1).map(|latency| latency.median_ms),
            "runs": latencies.first().map(|latency| latency.run_count),
        })),
        "groups": groups,
        "frozen": cut.rewritten.frozen,
        "warnings": cut.warnings,
        "gradients": scored.map(Scored::json),
        "verification": report,
    })
}

/// Quantities before and after, as the tables show them.
fn cost_rows(
    analysis: &Analysis<'_>,
    cut: &Cut,
    latencies: Option<&[Latency]>,
    written: Option<(&Path, &Path)>,
) -> Vec<Vec<String>> {
    let (before, after) = (&cut.before, &cut.after);
    let count = |name: &str, a: f64, b: f64, unit: &str| {
        vec![name.to_owned(), format!("{}{unit}", human(a)), format!("{}{unit}", human(b)), percent(b, a)]
    };
    let mut rows = vec![
        count("parameters", before.parameters as f64, after.parameters as f64, ""),
        count("MACs", before.macs, after.macs, ""),
        count("MACs between activations", before.attention_macs, after.attention_macs, ""),
        count("activation memory", before.activation_bytes as f64, after.activation_bytes as f64, "B"),
    ];
    rows.retain(|row| row[1] != "0");
    if let (Ok(a), Some(b)) = (analysis.model.total_bytes(), output_bytes(written)) {
        rows.push(count("file", a as f64, b as f64, "B"));
    }
    if let Some([a, b, ..]) = latencies {
        let ms = |latency: &Latency| format!("{:.2} ms", latency.median_ms);
        rows.push(vec!["latency (median)".to_owned(), ms(a), ms(b), percent(b.median_ms, a.median_ms)]);
    }
    rows
}

/// Writes the report that the arguments ask for.
fn write_report(
    path: &Path,
    (analysis, cut): (&Analysis<'_>, &Cut),
    scored: Option<&Scored>,
    verification: Option<&VerifyReport>,
    latencies: Option<&[Latency]>,
    written: Option<(&Path, &Path)>,
) -> Result<(), Error> {
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let quoted = |argument: String| match argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,".contains(c)) {
        true => argument,
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    };
    let costs = cost_rows(analysis, cut, latencies, written);
    let report = Report {
        title: format!("{} pruned", name(analysis.model.path())),
        tool: tool_name(),
        command: std::env::args().map(quoted).collect::<Vec<_>>().join(" "),
        costs: costs.into_iter().filter_map(|row| row.try_into().ok()).collect(),
        plan: &cut.plan,
        ratio: cut.ratio,
        losses: scored.map(Scored::losses),
        verification,
        warnings: &cut.warnings,
    };
    crate::write::write_file(path, report.html().as_bytes())
}

fn text(
    analysis: &Analysis<'_>,
    cut: &Cut,
    scored: Option<&Scored>,
    report: Option<&VerifyReport>,
    latencies: Option<&[Latency]>,
    written: Option<(&Path, &Path)>,
) -> String {
    let rows = cost_rows(analysis, cut, latencies, written);
    let asked = cut.plan.groups.len();
    let pruned = cut.plan.groups.iter().filter(|group| group.kept.len() < group.channels).count();
    // Paragraphs, with an empty line between them.
    let mut parts = vec![format!(
        "{}: {pruned} of {asked} channel groups pruned at ratio {:.3} by {}",
        analysis.model.path().display(),
        cut.ratio,
        cut.plan.criterion
    )];
    let mut costs = table(&["", "before", "after", "kept"], &rows);
    let sizes: Vec<String> = cut
        .sizes
        .iter()
        .filter(|(name, _)| !name.starts_with('?'))
        .map(|(name, size)| format!("{name}={size}"))
        .collect();
    if !sizes.is_empty() {
        costs += &format!("\n(counted at {})", sizes.join(", "));
    }
    parts.push(costs);
    let stay: Vec<String> = cut
        .plan
        .groups
        .iter()
        .filter_map(|group| Some((group, group.reason.as_ref()?)))
        .map(|(group, reason)| {
            let plural = if group.channels == 1 { "" } else { "s" };
            format!("  {}: {} channel{plural}, {reason}", group.name, group.channels)
        })
        .collect();
    if !stay.is_empty() {
        let mut list = format!("channel groups that stay whole ({}):\n", stay.len());
        list += &stay[..stay.len().min(STAYING_SHOWN)].join("\n");
        if stay.len() > STAYING_SHOWN {
            list += &format!("\n  ... and {} more; inspect lists all", stay.len() - STAYING_SHOWN);
        }
        parts.push(list);
    }
    if let Some(scored) = scored {
        parts.push(scored.text());
    }
    let mut end: Vec<String> = report.map(verification_text).into_iter().collect();
    match written {
        Some((output, plan)) => end.push(format!("wrote {} and {}", output.display(), plan.display())),
        None if report.is_none() => end.push("dry run: nothing was written".to_owned()),
        None => {}
    }
    parts.push(end.join("\n"));
    parts.join("\n\n")
}

/// The result of verification in a few lines.
pub(super) fn verification_text(report: &VerifyReport) -> String {
    if !report.passed {
        return format!("verification FAILED: {}", failure(report));
    }
    let mut lines = Vec::new();
    for (widened, precision) in [(false, ""), (true, " computed in float32")] {
        let runs: Vec<_> = report.runs.iter().filter(|run| run.widened == widened).collect();
        let Some(last) = runs.last() else {
            continue;
        };
        let sizes: Vec<String> = runs
            .iter()
            .map(|run| run.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" "))
            .filter(|sizes| !sizes.is_empty())
            .collect();
        let at = if sizes.is_empty() { String::new() } else { format!(" at {}", sizes.join(" and ")) };
        lines.push(format!(
            "verified in ONNX Runtime {}{precision}: worst relative error {:.1e} (allowed {:.0e}) over {} run{}{at}",
            report.onnxruntime,
            runs.iter().map(|run| run.worst()).fold(0.0, f64::max),
            last.rtol,
            runs.len(),
            if runs.len() == 1 { "" } else { "s" },
        ));
    }
    if let Some(values) = &report.values {
        lines.push(format!(
            "outputs that are constant, tiny or not finite prove nothing, so the {} values that the cut touches were \
             compared: {} are equal with a worst relative error of {:.1e}, the others prove nothing either",
            values.compared, values.conclusive, values.worst_relative
        ));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}
