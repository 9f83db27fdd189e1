//! The main job: prune, write, verify, measure.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Cli, PruneArgs};
use super::config::check_sizes;
use super::open_runtime;
use super::printer::{Printer, human, percent, table};
use crate::array::Array;
use crate::error::Error;
use crate::load::{Model, load};
use crate::pipeline::{Analysis, Cut, analyse, cut};
use crate::runtime::{Latency, Runtime, SessionOptions, interleaved_latency};
use crate::verify::{VerifyOptions, VerifyReport, draw_inputs, size_variants, verify};
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
    let options = args.options()?;
    let input = args.input.as_deref().ok_or_else(|| {
        Error::usage("no input is given").hint("onnx-diffprune IN.onnx OUT.onnx --ratio 0.5; --help shows more")
    })?;
    let output = args.output.as_deref();
    if output.is_none() && !args.dry_run {
        return Err(Error::usage("no output is given").hint("name a file for the pruned network, or pass --dry-run"));
    }
    // What would fail at the end fails at the start.
    let runtime = if args.dry_run || args.no_verify { None } else { Some(open_runtime(cli)?) };
    let given = args.inputs.as_deref().map(read_inputs).transpose()?;
    let progress = printer.progress(6);
    progress.step("reading");
    let model = load(input)?;
    if let Some(output) = output {
        crate::write::check_destination(&model, output)?;
    }
    progress.step("coupling channels");
    let analysis = analyse(&model)?;
    progress.step("scoring and selecting");
    let cut = hashed_beside(&model, || cut(&analysis, &options))?;
    check_sizes(&options.sizes, &cut.sizes, input)?;
    progress.pause(|| cut.warnings.iter().for_each(|warning| printer.warning(warning)));
    let Some(output) = output.filter(|_| !args.dry_run) else {
        drop(progress);
        printer.result(&summary(&analysis, &cut, None, None, None), || text(&analysis, &cut, None, None, None));
        return Ok(true);
    };
    progress.step("writing");
    let mut edits = cut.rewritten.edits.clone();
    edits.metadata = cut.plan.metadata();
    let staged = stage(&model, &edits, output)?;
    let mut report = None;
    let mut latencies = None;
    if let Some(runtime) = runtime {
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
    report.iter().flat_map(VerifyReport::warnings).for_each(|warning| printer.warning(&warning));
    let passed = report.as_ref().is_none_or(|report| report.passed);
    let plan_path = args.plan.clone().unwrap_or_else(|| plan_path(output));
    if passed {
        cut.plan.write(&plan_path)?;
        staged.publish()?;
    }
    let written = passed.then_some((output, plan_path.as_path()));
    printer.result(&summary(&analysis, &cut, report.as_ref(), latencies.as_deref(), written), || {
        text(&analysis, &cut, report.as_ref(), latencies.as_deref(), written)
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
    let worst = report.worst();
    match &report.first_difference {
        Some(first) if first.expected_elements != first.found_elements => format!(
            "value {:?} of node {:?} ({}) has {} elements, expected {}",
            first.value, first.node, first.op, first.found_elements, first.expected_elements
        ),
        Some(first) => format!(
            "the worst relative error is {worst:.1e}, allowed {:.1e}; the first value that differs is {:?} of node {:?} ({}), by {:.1e}",
            report.rtol, first.value, first.node, first.op, first.relative
        ),
        None => format!("the worst relative error is {worst:.1e}, allowed {:.1e}", report.rtol),
    }
}

fn measure(
    analysis: &Analysis<'_>,
    pruned: &Path,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<Vec<Latency>, Error> {
    let fail = |error: crate::runtime::RuntimeError| Error::unmet(error.to_string());
    let inputs = match &options.inputs {
        Some(inputs) => inputs.clone(),
        None => {
            let sizes = size_variants(analysis, &options.sizes).into_iter().next().unwrap_or_default();
            draw_inputs(analysis, &sizes, options.seed)?
        }
    };
    let options = SessionOptions::default();
    let mut original = runtime.session_from_file(analysis.model.path(), &options).map_err(fail)?;
    let mut pruned = runtime.session_from_file(pruned, &options).map_err(fail)?;
    interleaved_latency(&mut [&mut original, &mut pruned], &[&inputs, &inputs], LATENCY_RUNS, 3, LATENCY_SECONDS)
        .map_err(fail)
}

fn output_bytes(staged: Option<(&Path, &Path)>) -> Option<u64> {
    let (output, _) = staged?;
    let data = output.with_file_name(format!("{}.data", output.file_name()?.to_str()?));
    Some(output.metadata().ok()?.len() + data.metadata().map_or(0, |data| data.len()))
}

fn summary(
    analysis: &Analysis<'_>,
    cut: &Cut,
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
        "verification": report,
    })
}

fn text(
    analysis: &Analysis<'_>,
    cut: &Cut,
    report: Option<&VerifyReport>,
    latencies: Option<&[Latency]>,
    written: Option<(&Path, &Path)>,
) -> String {
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
    let mut end: Vec<String> = report.map(verification_text).into_iter().collect();
    match written {
        Some((output, plan)) => end.push(format!("wrote {} and {}", output.display(), plan.display())),
        None if report.is_none() => end.push("dry run: nothing was written".to_owned()),
        None => {}
    }
    parts.push(end.join("\n"));
    parts.join("\n\n")
}

/// The result of verification in one or two lines.
pub(super) fn verification_text(report: &VerifyReport) -> String {
    if !report.passed {
        return format!("verification FAILED: {}", failure(report));
    }
    let sizes = |run: &crate::verify::RunReport| {
        run.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
    };
    let runs: Vec<String> = report.runs.iter().map(sizes).filter(|sizes| !sizes.is_empty()).collect();
    let at = if runs.is_empty() { String::new() } else { format!(" at {}", runs.join(" and ")) };
    format!(
        "verified in ONNX Runtime {}: worst relative error {:.1e} (allowed {:.0e}) over {} run{}{at}",
        report.onnxruntime,
        report.worst(),
        report.rtol,
        report.runs.len(),
        if report.runs.len() == 1 { "" } else { "s" },
    )
}
