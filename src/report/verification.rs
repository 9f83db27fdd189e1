//! The parts of a page about a verification.

use std::fmt::Write;

use super::Report;
use super::plots::short;
use super::style::{escape, name, table};
use crate::verify::{StandIn, VerifyReport};

/// Returns a badge with the result of verification.
pub(super) fn badge(report: &Report<'_>) -> &'static str {
    match report.verification {
        Some(result) if result.passed => "<span class='badge good'>verified</span>",
        Some(_) => "<span class='badge bad'>verification failed</span>",
        None => "<span class='badge none'>not verified</span>",
    }
}

/// Returns the section of a verification.
pub(super) fn section(report: &Report<'_>) -> String {
    let mut section = String::from("<h2>Verification</h2>\n");
    let Some(result) = report.verification else {
        return section + "<p>The pruned file was not verified against the original.</p>\n";
    };
    let _ = writeln!(
        section,
        "<p>The pruned file was compared with the original in which every removed channel is masked, in ONNX \
         Runtime {}. Allowed relative error: {}.</p>",
        escape(&result.onnxruntime),
        short(result.rtol)
    );
    if let Some(failure) = &result.failure {
        let _ = writeln!(section, "<p>{}</p>", escape(failure));
    }
    section += &runs(result);
    if !result.notes.is_empty() {
        let notes: String = result.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        let _ = writeln!(section, "<ul>{notes}</ul>");
    }
    if !result.stand_ins.is_empty() {
        let row = |StandIn { node, op }: &StandIn| vec![name(node), escape(op)];
        let rows: Vec<Vec<String>> = result.stand_ins.iter().map(row).collect();
        let caption =
            "Nodes that were replaced by standard operators in the run, as ONNX Runtime has no CPU kernel for them";
        let _ = writeln!(
            section,
            "<details class='long'><summary>Standard operators replaced {} nodes</summary>{}</details>",
            rows.len(),
            table(caption, &[("node", "name"), ("operator", "")], &rows)
        );
    }
    if let Some(unchanged) = &result.unchanged {
        let _ = writeln!(
            section,
            "<p>Compared without a run: {} nodes equal the original's, {} of them with other sizes; {} constants equal \
             the original's or their kept part.</p>",
            unchanged.nodes, unchanged.edited, unchanged.constants
        );
    }
    section + &values(result)
}

fn runs(result: &VerifyReport) -> String {
    let mut rows = Vec::new();
    for run in &result.runs {
        let sizes: Vec<String> = run.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        for output in &run.outputs {
            let verdict = match (output.passed, output.conclusive) {
                (true, true) => "equal",
                (true, false) if output.moved_by_rounding.is_some() => "differs by no more than rounding, inconclusive",
                (true, false) => "equal, but proves nothing by itself",
                (false, _) => "different",
            };
            rows.push(vec![
                if sizes.is_empty() { "fixed".to_owned() } else { escape(&sizes.join(" ")) },
                escape(&output.output),
                format!("{:.1e}", output.relative),
                verdict.to_owned(),
            ]);
        }
    }
    table("Outputs by run", &[("sizes", "name"), ("output", "name"), ("relative error", "n"), ("result", "")], &rows)
}

fn values(result: &VerifyReport) -> String {
    let Some(values) = &result.values else { return String::new() };
    let mut text = format!(
        "<p>Every node was run on the original's values: {} values compared, worst relative error {}; {} of them on \
         random inputs of their nodes. {} prove nothing.</p>\n",
        values.compared,
        short(values.worst_relative),
        values.opened,
        values.unproven.len()
    );
    if !values.unproven.is_empty() {
        let rows: Vec<Vec<String>> = values
            .unproven
            .iter()
            .map(|of| {
                let node = format!("{} ({})", escape(&of.node), escape(&of.op));
                vec![name(&of.value), node, escape(&of.reason)]
            })
            .collect();
        let columns = [("value", "name"), ("node", "name"), ("why it proves nothing", "name")];
        let _ = writeln!(
            text,
            "<details class='long'><summary>Values that prove nothing</summary>{}</details>",
            table("Values that prove nothing", &columns, &rows)
        );
    }
    text
}
