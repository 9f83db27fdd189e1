//! The page of a cut.

use std::fmt::Write;

use super::blocks::{block_table, groups};
use super::plots::{losses, short};
use super::style::{END, escape, head, list, table, used};
use super::{Drawings, Losses, Report, drawing, refit, training, verification};
use crate::plan::Plan;

pub(super) fn html(report: &Report<'_>) -> String {
    let mut page = head(&report.title);
    let pruned = report.plan.groups.iter().filter(|group| group.kept.len() < group.channels).count();
    let _ = writeln!(
        page,
        "<p>{} {pruned} of {} channel groups pruned at ratio {} by {}. <span class='soft'>{}</span></p>",
        verification::badge(report),
        report.plan.groups.len(),
        short(report.ratio),
        escape(&report.plan.criterion),
        escape(&report.tool)
    );
    page += &samples(&report.drawings);
    page += &costs(&report.costs);
    if let Some(outline) = report.outline {
        let _ = write!(page, "<h2>The network</h2>\n{}", drawing::network(outline));
    }
    match (report.refit, report.judged) {
        (Some(of), _) => page += &refit::losses(of),
        (None, Some(of)) => page += &refit::losses_of_cut(of),
        (None, None) => {}
    }
    if let Some(of) = report.training {
        page += &training::section(of);
    }
    if let Some(of) = &report.losses {
        page += &loss_section(of);
    }
    if let Some(outline) = report.outline {
        page += &block_table(outline, report.block_times);
    }
    page += &groups(report.plan, report.outline);
    if let Some(of) = report.refit {
        page += &refit::section(of);
    }
    page += &verification::section(report);
    page += &list("Warnings", report.warnings);
    page += &what_was_used(&report.used, &report.command, Some(report.plan));
    page + END
}

/// Returns the samples side by side, or a line that says why there are none.
pub(super) fn samples(drawings: &Drawings) -> String {
    let lines: String = drawings.lines.iter().map(|line| format!("<p class='soft'>{}</p>\n", escape(line))).collect();
    if drawings.of.is_empty() {
        return lines;
    }
    let first = drawings.of.first().and_then(|drawing| drawing.loss);
    let of = drawings.of.iter().enumerate().map(|(at, drawing)| {
        let note = drawing.loss.map_or_else(String::new, |loss| {
            let above = first.filter(|_| at > 0).map_or_else(String::new, |first| format!(" ({:+.4})", loss - first));
            format!("<br/><span class='soft'>{} {loss:.4}{above}</span>", escape(&drawings.loss_name))
        });
        (drawing.name.as_str(), drawing.png.as_slice(), note)
    });
    format!("<h2>Samples from the same noise</h2>\n{}{lines}", super::style::pictures(of))
}

/// Returns the costs before and after as tiles.
fn costs(costs: &[[String; 4]]) -> String {
    let mut text = String::from("<dl class='tiles'>\n");
    for [name, before, after, kept] in costs {
        // Sizes are shown below the number that they belong to.
        let (name, at) = name.split_once(" at ").map_or((name.as_str(), None), |(name, at)| (name, Some(at)));
        let at = at.map_or_else(String::new, |at| format!("<dd class='soft small'>at {}</dd>", escape(at)));
        let _ = writeln!(
            text,
            "<div><dt>{}</dt><dd><span class='big'>{}</span><br/><span class='soft'>of {}</span></dd><dd>{}</dd>{at}</div>",
            escape(name),
            escape(after),
            escape(before),
            escape(kept)
        );
    }
    text + "</dl>\n"
}

fn loss_section(of: &Losses<'_>) -> String {
    let kept = of.curve.iter().filter(|point| point.kept).count();
    let mut section = String::from("<h2>How channels are ranked</h2>\n");
    let plot = losses(of.curve, of.threshold);
    if !plot.is_empty() {
        let _ = writeln!(
            section,
            "<p>The denoising loss of the original at {} timesteps. The gradients of {kept} of them are summed (solid \
             line).</p>\n\
             <figure>{plot}</figure>",
            of.curve.len()
        );
    }
    let _ = writeln!(section, "<pre>{}</pre>", escape(&of.lines.join("\n")));
    section
}

/// Returns the table of what was used, the digest of the input, and the command.
pub(super) fn what_was_used(rows: &[[String; 2]], command: &str, plan: Option<&Plan>) -> String {
    let mut text = format!("<h2>What was used</h2>\n{}", used(rows));
    if let Some(plan) = plan {
        let (kind, digest) = (plan.digest_kind().name(), escape(&plan.input_digest));
        let _ = writeln!(text, "<p class='soft'>{kind} of the input: <code>{digest}</code></p>");
    }
    let _ = writeln!(text, "<h2>Command</h2>\n<pre>{}</pre>", escape(command));
    text
}

/// Returns a table of numbers; the first column is a name.
pub(super) fn figures(caption: &str, header: &[String], rows: &[Vec<String>]) -> String {
    let columns: Vec<(&str, &str)> =
        header.iter().enumerate().map(|(at, name)| (name.as_str(), if at == 0 { "name" } else { "n" })).collect();
    let escaped: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    table(caption, &columns, &escaped)
}
