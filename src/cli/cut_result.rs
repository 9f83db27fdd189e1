//! Shows a cut and its verification: as text, as JSON, and on the page of `--report`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use onnx_diffprune::finetuning::FinetuneReport;
use onnx_diffprune::plans::GroupPlan;
use onnx_diffprune::reports::ValuesReport;
use onnx_diffprune::reports::{
    CutLatency, GradientReport, Latency, OutputError, RefitReport, RunReport, StandIn, printable,
};
use onnx_diffprune::{Cut, VerifyReport};
use serde_json::json;

use super::printer::{bytes_text, human, percent, table};
use super::report_page::PageParts;
use super::{finetune, gradient_args, refit_args};

/// Number of reasons for keeping channel groups whole to list, and of groups to name for each.
const REASONS_SHOWN: usize = 12;
const NAMES_SHOWN: usize = 2;

/// A cut with the results of the stages that have run.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) cut: &'a Cut,
    pub(super) gradients: Option<&'a GradientReport>,
    pub(super) refit: Option<&'a RefitReport>,
    pub(super) training: Option<&'a FinetuneReport>,
    /// The verification of the cut before its weights were fitted.
    pub(super) cut_verification: Option<&'a VerifyReport>,
    pub(super) verification: Option<&'a VerifyReport>,
    /// The latencies of original and pruned network.
    pub(super) latencies: Option<&'a CutLatency>,
    /// The paths of the pruned file and its plan. `None`: nothing was written.
    pub(super) written: Option<(&'a Path, Option<&'a Path>)>,
    /// Bytes of the pruned file with its external data.
    pub(super) bytes: Option<u64>,
    /// Whether lists are printed in full.
    pub(super) verbose: bool,
    /// External data files that only the replaced file named, and that were removed with it.
    pub(super) removed: &'a [PathBuf],
    /// The pipeline that the network belongs to, as JSON; null if there is none.
    pub(super) around: &'a serde_json::Value,
    /// The parts of the HTML page besides the cut.
    pub(super) page: Option<&'a PageParts>,
}

impl<'a> Shown<'a> {
    pub(super) fn new(cut: &'a Cut) -> Self {
        Self {
            cut,
            gradients: None,
            refit: None,
            training: None,
            cut_verification: None,
            verification: None,
            latencies: None,
            written: None,
            bytes: None,
            verbose: false,
            removed: &[],
            around: &serde_json::Value::Null,
            page: None,
        }
    }

    /// Returns the cut as JSON.
    pub(super) fn summary(&self) -> serde_json::Value {
        let (cut, latencies) = (self.cut, self.latencies);
        let model = cut.model();
        let groups: Vec<_> = cut
            .plan()
            .groups
            .iter()
            .map(|group| {
                let kept = group.kept.len();
                let mut entry =
                    json!({"name": group.name, "channels": group.channels, "kept": kept, "reason": group.reason});
                if let Some(criterion) = &group.criterion {
                    entry["criterion"] = json!(criterion);
                }
                entry
            })
            .collect();
        json!({
            "input": model.path(),
            "output": self.written.map(|(output, _)| output),
            "plan": self.written.and_then(|(_, plan)| plan),
            "removed": self.removed,
            "pipeline": self.around,
            "ratio": cut.ratio(),
            "criterion": cut.plan().criterion,
            "sizes": cut.sizes(),
            "before": cut.before(),
            "after": cut.after(),
            "file_bytes": {"before": model.total_bytes().ok(), "after": self.bytes},
            "latency_ms": latencies.map(|latencies| json!({
                "before": latencies.networks.first().map(|latency| latency.median_ms),
                "after": latencies.networks.get(1).map(|latency| latency.median_ms),
                "runs": latencies.networks.first().map(|latency| latency.run_count),
                "sizes": latencies.sizes,
            })),
            "groups": groups,
            "frozen": cut.frozen(),
            "unfused": cut.unfused(),
            "warnings": cut.warnings(),
            "gradients": self.gradients.map(gradient_args::json),
            "refit": self.refit.map(refit_args::json),
            "training": self.training,
            "cut_verification": self.cut_verification,
            "verification": self.verification,
        })
    }

    /// Returns the rows of the cost table: name, value before, value after, share that is kept.
    pub(super) fn cost_rows(&self) -> Vec<Vec<String>> {
        let (before, after) = (self.cut.before(), self.cut.after());
        let row = |name: &str, a: f64, b: f64, text: fn(f64) -> String| {
            vec![name.to_owned(), text(a), text(b), percent(b, a)]
        };
        let mut rows = vec![
            row("parameters", before.parameters as f64, after.parameters as f64, human),
            row("MACs", before.macs, after.macs, human),
            row("MACs between activations", before.attention_macs, after.attention_macs, human),
            row("activation memory", before.activation_bytes as f64, after.activation_bytes as f64, bytes_text),
        ];
        rows.retain(|row| row[1] != "0");
        if let (Ok(a), Some(b)) = (self.cut.model().total_bytes(), self.bytes) {
            rows.push(row("file", a as f64, b as f64, bytes_text));
        }
        if let Some(latencies) = self.latencies
            && let [a, b, ..] = latencies.networks.as_slice()
        {
            let ms = |latency: &Latency| format!("{:.2} ms", latency.median_ms);
            // Latency depends on sizes. Sizes above 1 are shown, so that no reader takes a latency at small default
            // sizes for that of the deployment.
            let sizes = latencies.sizes.iter().filter(|(name, size)| **size > 1 && !name.starts_with('?'));
            let sizes: Vec<String> = sizes.map(|(name, size)| format!("{name}={size}")).collect();
            let at = if sizes.is_empty() { String::new() } else { format!(" at {}", sizes.join(", ")) };
            rows.push(vec![format!("latency (median){at}"), ms(a), ms(b), percent(b.median_ms, a.median_ms)]);
        }
        rows
    }

    /// Returns the cut as text.
    pub(super) fn text(&self) -> String {
        let cut = self.cut;
        let rows = self.cost_rows();
        let asked = cut.plan().groups.len();
        let pruned = cut.plan().groups.iter().filter(|group| group.kept.len() < group.channels).count();
        // Paragraphs, with an empty line between them.
        let mut parts = vec![format!(
            "{}: {pruned} of {asked} channel groups pruned at ratio {:.3} by {}",
            cut.model().path().display(),
            cut.ratio(),
            cut.plan().criterion
        )];
        let mut costs = table(&["", "before", "after", "kept"], &rows);
        let sizes: Vec<String> = cut
            .sizes()
            .iter()
            .filter(|(name, _)| !name.starts_with('?'))
            .map(|(name, size)| format!("{}={size}", printable(name)))
            .collect();
        if !sizes.is_empty() {
            costs += &format!("\n(counted at {})", sizes.join(", "));
        }
        parts.push(costs);
        parts.extend(kept_groups_text(&cut.plan().groups));
        if let Some(gradients) = self.gradients {
            parts.push(gradient_args::text(gradients));
        }
        if let Some(refit) = self.refit {
            parts.push(refit_args::text(refit, self.verbose));
        }
        parts.extend(self.training.map(finetune::report_text));
        let mut end: Vec<String> =
            self.verification.map(|report| verification_text(report, self.verbose)).into_iter().collect();
        match self.written {
            Some((output, Some(plan))) => end.push(format!("wrote {} and {}", output.display(), plan.display())),
            Some((output, None)) => end.push(format!("wrote {}", output.display())),
            None if self.verification.is_none() => end.push("dry run: nothing was written".to_owned()),
            None => {}
        }
        end.extend(self.removed.iter().map(|path| removed_text(path)));
        parts.push(end.join("\n"));
        parts.join("\n\n")
    }
}

/// Reports that an external data file was removed with the file that named it.
pub(super) fn removed_text(path: &Path) -> String {
    format!("removed {}: only the replaced file used it", path.display())
}

/// Lists the channel groups that keep all channels, by reason.
fn kept_groups_text(groups: &[GroupPlan]) -> Option<String> {
    let mut by_reason: Vec<(&str, Vec<String>)> = Vec::new();
    let mut count = 0;
    for group in groups {
        let Some(reason) = &group.reason else { continue };
        // The reason ends with the node, which differs between groups.
        let reason = reason.rsplit_once(" (node ").map_or(reason.as_str(), |(text, _)| text);
        let plural = if group.channels == 1 { "" } else { "s" };
        let name = format!("{} ({} channel{plural})", printable(&group.name), group.channels);
        match by_reason.iter_mut().find(|(text, _)| *text == reason) {
            Some((_, names)) => names.push(name),
            None => by_reason.push((reason, vec![name])),
        }
        count += 1;
    }
    if by_reason.is_empty() {
        return None;
    }
    let mut text = format!("channel groups that keep all channels ({count}; inspect lists all):");
    for (reason, names) in by_reason.iter().take(REASONS_SHOWN) {
        text += &format!("\n  {}: {}", printable(reason), names[..names.len().min(NAMES_SHOWN)].join(", "));
        if names.len() > NAMES_SHOWN {
            text += &format!(" and {} more", names.len() - NAMES_SHOWN);
        }
    }
    if by_reason.len() > REASONS_SHOWN {
        text += &format!("\n  ... and {} other reasons", by_reason.len() - REASONS_SHOWN);
    }
    Some(text)
}

/// Describes the worst errors of runs that passed, each with its tolerance. Outputs too small for the relative
/// tolerance are held to the absolute one.
fn errors_text(runs: &[&RunReport], rtol: f64, atol: f64) -> String {
    let outputs = || runs.iter().flat_map(|run| &run.outputs).filter(|output| output.moved_by_rounding.is_none());
    let worst = |errors: &mut dyn Iterator<Item = f64>| errors.reduce(f64::max);
    let relative = worst(&mut outputs().map(|output| output.relative).filter(|error| *error <= rtol));
    let absolute = worst(&mut outputs().filter(|output| output.relative > rtol).map(|output| output.absolute));
    let texts = [
        relative.map(|error| format!("worst relative error {error:.1e} (allowed {rtol:.0e})")),
        absolute.map(|error| format!("worst absolute error of tiny outputs {error:.1e} (allowed {atol:.0e})")),
    ];
    texts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Describes the comparison of single values.
fn values_text(values: &ValuesReport, all: bool) -> String {
    let mut text = format!(
        "every node run by itself on values of the original: {} outputs compared, worst relative error {:.1e}",
        values.compared, values.worst_relative
    );
    if values.opened > 0 {
        text += &format!("; for {} of them, the node ran on random inputs", values.opened);
    }
    let unproven = values.unproven.len();
    if unproven > 0 {
        text += &format!(
            "\n{unproven} of them can't show an error: they are constant, not finite, or of a size that follows from \
             others"
        );
        if all {
            for value in &values.unproven {
                text += &format!("\n  {:?} of node {:?} ({}): {}", value.value, value.node, value.op, value.reason);
            }
        } else {
            text += "; --verbose lists them";
        }
    }
    text
}

/// Names the outputs whose agreement proves nothing in some run.
fn open_outputs_text(runs: &[RunReport]) -> Option<String> {
    // A note of the report names the outputs that differ by no more than rounding.
    let is_open = |output: &&OutputError| !output.conclusive && output.moved_by_rounding.is_none();
    let open = runs.iter().flat_map(|run| &run.outputs).filter(is_open);
    let open: BTreeSet<String> = open.map(|output| printable(&output.output).into_owned()).collect();
    let names: Vec<String> = open.into_iter().collect();
    match names.as_slice() {
        [] => None,
        [name] => {
            Some(format!("output {name} by itself can't show an error: its values are constant, tiny or not finite"))
        }
        names => {
            let names = names.join(", ");
            let why = "their values are constant, tiny or not finite";
            Some(format!("outputs {names} by themselves can't show an error: {why}"))
        }
    }
}

/// Number of nodes to name for each operator without `--verbose`.
const STAND_INS_SHOWN: usize = 3;

/// Names the nodes that were replaced by standard operators, by operator.
fn stand_ins_text(nodes: &[StandIn], all: bool) -> Option<String> {
    let mut by_op: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    nodes.iter().for_each(|node| by_op.entry(&node.op).or_default().push(printable(&node.node).into_owned()));
    let of_op = |(op, names): (&str, Vec<String>)| {
        let shown = if all { names.len() } else { names.len().min(STAND_INS_SHOWN) };
        let more = names.len() - shown;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} ({}{more})", printable(op), names[..shown].join(", "))
    };
    let listed: Vec<String> = by_op.into_iter().map(of_op).collect();
    (!listed.is_empty()).then(|| {
        format!(
            "{} nodes ran as standard operators, since ONNX Runtime has no CPU kernel for them: {}",
            nodes.len(),
            listed.join(", ")
        )
    })
}

/// Describes the result of verification in a few lines; if `all` is set, with all values that prove nothing.
pub(super) fn verification_text(report: &VerifyReport, all: bool) -> String {
    if let Some(failure) = report.failure_text() {
        let notes = report.notes.iter().map(|note| format!("note: {note}"));
        let lines: Vec<String> = std::iter::once(format!("verification FAILED: {failure}")).chain(notes).collect();
        return lines.join("\n");
    }
    let mut lines = Vec::new();
    let forms = [
        ((false, false, false), ""),
        ((true, false, false), " computed in float32"),
        ((false, true, false), " without rounding of activations"),
        ((true, true, false), " computed in float32 without rounding of activations"),
        ((false, false, true), " in the converted form"),
    ];
    for (form, precision) in forms {
        let is_it = |run: &&RunReport| (run.widened, run.unrounded, run.converted) == form;
        let runs: Vec<_> = report.runs.iter().filter(is_it).collect();
        let Some(last) = runs.last() else {
            continue;
        };
        let sizes: Vec<String> = runs
            .iter()
            .map(|run| {
                run.sizes.iter().map(|(name, size)| format!("{}={size}", printable(name))).collect::<Vec<_>>().join(" ")
            })
            .filter(|sizes| !sizes.is_empty())
            .collect();
        let at = if sizes.is_empty() { String::new() } else { format!(" at {}", sizes.join(" and ")) };
        lines.push(format!(
            "verified in ONNX Runtime {}{precision}: {} over {} run{}{at}",
            report.onnxruntime,
            errors_text(&runs, last.rtol, report.atol),
            runs.len(),
            if runs.len() == 1 { "" } else { "s" },
        ));
    }
    lines.extend(open_outputs_text(&report.runs));
    lines.extend(stand_ins_text(&report.stand_ins, all));
    if let Some(unchanged) = &report.unchanged {
        lines.push(format!(
            "compared without a run: {} nodes equal those of the original ({} of them with other sizes), {} constants \
             equal those of the original or their kept channels",
            unchanged.nodes, unchanged.edited, unchanged.constants
        ));
    }
    if let Some(values) = &report.values {
        lines.push(values_text(values, all));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use onnx_diffprune::Sizes;

    use super::*;

    fn run(errors: &[(f64, f64)]) -> RunReport {
        let output = |(relative, absolute): &(f64, f64)| OutputError {
            output: "y".to_owned(),
            absolute: *absolute,
            relative: *relative,
            not_finite: 0,
            passed: true,
            conclusive: true,
            moved_by_rounding: None,
        };
        RunReport {
            sizes: Sizes::new(),
            widened: false,
            unrounded: false,
            converted: false,
            rtol: 1e-4,
            outputs: errors.iter().map(output).collect(),
        }
    }

    #[test]
    fn outputs_that_prove_nothing_are_named() {
        let mut open = run(&[(1.0, 5e-8)]);
        assert_eq!(open_outputs_text(&[open.clone()]), None);
        open.outputs[0].conclusive = false;
        let text = open_outputs_text(&[run(&[(0.0, 0.0)]), open]).unwrap_or_default();
        assert_eq!(text, "output y by itself can't show an error: its values are constant, tiny or not finite");
    }

    #[test]
    fn stand_ins_are_named_by_operator() {
        let node = |node: usize, op: &str| StandIn { node: format!("n{node}"), op: op.to_owned() };
        let mut nodes: Vec<StandIn> = (0..5).map(|at| node(at, "m.GroupNorm")).collect();
        nodes.push(node(9, "m.BiasAdd"));
        let text = |all: bool| stand_ins_text(&nodes, all).unwrap_or_default();
        assert!(text(false).ends_with("m.BiasAdd (n9), m.GroupNorm (n0, n1, n2 and 2 more)"), "{}", text(false));
        assert!(text(false).starts_with("6 nodes"), "{}", text(false));
        assert!(text(true).ends_with("m.GroupNorm (n0, n1, n2, n3, n4)"), "{}", text(true));
        assert_eq!(stand_ins_text(&[], true), None);
    }

    #[test]
    fn no_error_is_shown_with_a_tolerance_that_it_exceeds() {
        let text = |errors: &[(f64, f64)]| errors_text(&[&run(errors)], 1e-4, 1e-6);
        assert_eq!(text(&[(2e-7, 1e-7), (3e-6, 1e-5)]), "worst relative error 3.0e-6 (allowed 1e-4)");
        assert_eq!(text(&[(1.0, 5e-8)]), "worst absolute error of tiny outputs 5.0e-8 (allowed 1e-6)");
        let both = text(&[(2e-7, 1e-7), (1.0, 5e-8)]);
        assert!(
            both.contains("relative error 2.0e-7 (allowed 1e-4), worst absolute") && !both.contains("1.0e0"),
            "{both}"
        );
    }
}
