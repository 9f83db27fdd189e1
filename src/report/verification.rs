//! What a page shows of a verification.

use std::fmt::Write;

use super::Report;
use super::plots::short;
use super::style::{escape, name, table};
use crate::verify::{StandIn, VerifyReport};

/// Whether the cut is proved, as a badge.
pub(super) fn badge(report: &Report<'_>) -> &'static str {
    match report.verification {
        Some(result) if result.passed => "<span class='badge good'>verified</span>",
        Some(_) => "<span class='badge bad'>verification failed</span>",
        None => "<span class='badge none'>not verified</span>",
    }
}

/// The section of a verification.
pub(super) fn section(report: &Report<'_>) -> String {
    let mut section = String::from("<h2>Verification</h2>\n");
    let Some(result) = report.verification else {
        return section + "<p>The pruned file was not compared with the original.</p>\n";
    };
    let _ = writeln!(
        section,
        "<p>The pruned file against the original with every removed channel masked, in ONNX Runtime {}. \
         Allowed relative error: {}.</p>",
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
        let caption = "Nodes for which standard operators stood in, as ONNX Runtime has no kernel for them on the CPU";
        let _ = writeln!(
            section,
            "<details class='long'><summary>Standard operators stood in for {} nodes</summary>{}</details>",
            rows.len(),
            table(caption, &[("node", "name"), ("operator", "")], &rows)
        );
    }
    if let Some(unchanged) = &result.unchanged {
        let _ = writeln!(
            section,
            "<p>Compared without a run: {} nodes are the original's, {} of them with other sizes; {} constants are the \
             original's or their kept part.</p>",
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
                (true, false) if output.moved_by_rounding.is_some() => "different as rounding is, inconclusive",
                (true, false) => "equal, which alone proves nothing",
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
        "<p>Every node on the original's values: {} values, worst relative error {}; {} of them were shown on noise. \
         Nothing is proved of {}.</p>\n",
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
        let columns = [("value", "name"), ("node", "name"), ("why nothing is proved of it", "name")];
        let _ = writeln!(
            text,
            "<details class='long'><summary>Values of which nothing is proved</summary>{}</details>",
            table("Values of which nothing is proved", &columns, &rows)
        );
    }
    text
}
