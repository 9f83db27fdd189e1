//! The page around the plots.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::plots::{importance, kept_bar, losses, short};
use super::{Losses, Report, refit};
use crate::plan::GroupPlan;
use crate::verify::StandIn;

const STYLE: &str = "
:root { --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #ffffff; --panel: #f5f7fa;
  --kept: #1f7a8c; --gone: #d1603d; --good: #2f7d4f; --bad: #b3261e;
  --n0: var(--good); --n1: var(--kept); --n2: var(--gone); --n3: #7b5ea7; --n4: #a67c00; --n5: #c2477f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #343c48; --paper: #14181e;
  --panel: #1c222b; --kept: #4fb3c7; --gone: #e58a6a; --good: #6cc08b; --bad: #f2877f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--panel); padding: .75rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .75rem .35rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: middle; } th { color: var(--soft); font-weight: 500; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: var(--paper); font-weight: 600; }
.good { background: var(--good); } .bad { background: var(--bad); } .none { background: var(--soft); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; }
.group { background: var(--panel); border-radius: 6px; padding: .6rem .75rem; min-width: 0; }
.group h3 { font: 500 12px/1.35 ui-monospace, monospace; margin: 0 0 .4rem; overflow-wrap: anywhere; min-height: 2.7em; }
.group p { font-size: 12.5px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .grid { stroke: var(--line); }
.line { fill: none; stroke-width: 2; } .line.kept { stroke: var(--kept); } .line.dropped { stroke: var(--soft);
  stroke-width: 1.2; stroke-dasharray: 3 3; } circle.kept { fill: var(--kept); }
.threshold { stroke: var(--gone); stroke-dasharray: 6 4; }
.bar { fill: none; } .bar.kept { stroke: var(--kept); } .bar.gone { stroke: var(--gone); }
.track { background: var(--gone); height: 12px; border-radius: 2px; overflow: hidden; min-width: 2px; }
.fill { background: var(--kept); height: 100%; } .wide { width: 45%; } .name { overflow-wrap: anywhere; }
.of-original { stroke: var(--good); } .of-cut { stroke: var(--gone); } .of-refitted { stroke: var(--kept); }
.samples { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 200px; min-width: 0; }
.samples img { width: 100%; image-rendering: pixelated; } figcaption { color: var(--soft); font-size: 13px; }
summary { cursor: pointer; margin: .75rem 0; }
.n0 { stroke: var(--n0); } .n1 { stroke: var(--n1); } .n2 { stroke: var(--n2); } .n3 { stroke: var(--n3); }
.n4 { stroke: var(--n4); } .n5 { stroke: var(--n5); }
circle.n0 { fill: var(--n0); } circle.n1 { fill: var(--n1); } circle.n2 { fill: var(--n2); } circle.n3 { fill: var(--n3); }
circle.n4 { fill: var(--n4); } circle.n5 { fill: var(--n5); }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
";

/// Text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\'' => safe.push_str("&#39;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

/// The beginning of a page, with its title.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width, initial-scale=1'><title>{0}</title><style>{STYLE}</style>\
         </head><body>\n<h1>{0}</h1>\n",
        escape(title)
    )
}

/// Samples of networks side by side: names, and PNG files.
pub(super) fn pictures(of: &[(&str, &[u8])]) -> String {
    let mut text = String::from("<div class='samples'>");
    for (name, png) in of {
        let (name, data) = (escape(name), STANDARD.encode(png));
        let _ = write!(text, "<figure><img alt='samples of {name}' src='data:image/png;base64,{data}'>");
        let _ = write!(text, "<figcaption>{name}</figcaption></figure>");
    }
    text + "</div>\n"
}

pub(super) fn html(report: &Report<'_>) -> String {
    let mut page = head(&report.title);
    let pruned = report.plan.groups.iter().filter(|group| group.kept.len() < group.channels).count();
    let _ = writeln!(
        page,
        "<p>{} {pruned} of {} channel groups pruned at ratio {} by {}. <span class='soft'>{}</span></p>",
        badge(report),
        report.plan.groups.len(),
        short(report.ratio),
        escape(&report.plan.criterion),
        escape(&report.tool)
    );
    page += "<h2>Before and after</h2>\n<table><tr><th></th><th class='n'>before</th><th class='n'>after</th>\
             <th class='n'>kept</th></tr>\n";
    for [name, before, after, kept] in &report.costs {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class='n'>{}</td><td class='n'>{}</td><td class='n'>{}</td></tr>",
            escape(name),
            escape(before),
            escape(after),
            escape(kept)
        );
    }
    page += "</table>\n";
    if let Some(of) = report.refit {
        page += &refit::section(of);
    }
    page += &verification(report);
    if let Some(of) = &report.losses {
        page += &loss_section(of);
    }
    page += &layers(&report.plan.groups);
    page += &groups(&report.plan.groups);
    if !report.warnings.is_empty() {
        page += "<h2>Warnings</h2>\n<ul>";
        for warning in report.warnings {
            let _ = write!(page, "<li>{}</li>", escape(warning));
        }
        page += "</ul>\n";
    }
    let _ = write!(page, "<h2>Command</h2>\n<pre>{}</pre>\n", escape(&report.command));
    let (kind, digest) = (report.plan.digest_kind().name(), escape(&report.plan.input_digest));
    let _ = writeln!(page, "<p class='soft'>{kind} of the input: <code>{digest}</code></p>");
    page + "</body></html>\n"
}

fn badge(report: &Report<'_>) -> &'static str {
    match report.verification {
        Some(result) if result.passed => "<span class='badge good'>verified</span>",
        Some(_) => "<span class='badge bad'>verification failed</span>",
        None => "<span class='badge none'>not verified</span>",
    }
}

fn verification(report: &Report<'_>) -> String {
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
    section += "<table><tr><th>sizes</th><th>output</th><th class='n'>relative error</th><th>result</th></tr>\n";
    for run in &result.runs {
        let sizes: Vec<String> = run.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        for output in &run.outputs {
            let _ = writeln!(
                section,
                "<tr><td>{}</td><td class='name'>{}</td><td class='n'>{:.1e}</td><td>{}</td></tr>",
                if sizes.is_empty() { "fixed".to_owned() } else { escape(&sizes.join(" ")) },
                escape(&output.output),
                output.relative,
                match (output.passed, output.conclusive) {
                    (true, true) => "equal",
                    (true, false) if output.moved_by_rounding.is_some() => "different as rounding is, inconclusive",
                    (true, false) => "equal, which alone proves nothing",
                    (false, _) => "different",
                }
            );
        }
    }
    section += "</table>\n";
    if !result.notes.is_empty() {
        let notes: Vec<String> = result.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        let _ = writeln!(section, "<ul>{}</ul>", notes.join(""));
    }
    if !result.stand_ins.is_empty() {
        section += "<p>Nodes for which standard operators stood in, as ONNX Runtime has no kernel for them on the \
                    processor:</p>\n<table><tr><th>node</th><th>operator</th></tr>\n";
        for StandIn { node, op } in &result.stand_ins {
            let _ = writeln!(section, "<tr><td class='name'>{}</td><td>{}</td></tr>", escape(node), escape(op));
        }
        section += "</table>\n";
    }
    if let Some(unchanged) = &result.unchanged {
        let _ = writeln!(
            section,
            "<p>Compared without a run: {} nodes are the original's, {} of them with other sizes; {} constants are the \
             original's or their kept part.</p>",
            unchanged.nodes, unchanged.edited, unchanged.constants
        );
    }
    if let Some(values) = &result.values {
        let _ = writeln!(
            section,
            "<p>Every node on the original's values: {} values, worst relative error {}; {} of them were shown on noise. \
             Nothing is proved of {}.</p>",
            values.compared,
            short(values.worst_relative),
            values.opened,
            values.unproven.len()
        );
        if !values.unproven.is_empty() {
            section += "<table><tr><th>value</th><th>node</th><th>why nothing is proved of it</th></tr>\n";
            for value in &values.unproven {
                let _ = writeln!(
                    section,
                    "<tr><td class='name'>{}</td><td class='name'>{} ({})</td><td>{}</td></tr>",
                    escape(&value.value),
                    escape(&value.node),
                    escape(&value.op),
                    escape(&value.reason)
                );
            }
            section += "</table>\n";
        }
    }
    section
}

fn loss_section(of: &Losses<'_>) -> String {
    let kept = of.curve.iter().filter(|point| point.kept).count();
    let mut section = format!(
        "<h2>Loss over timesteps</h2>\n<p>The denoising loss at {} timesteps; the gradients of {kept} of them are summed \
         (solid line).</p>\n{}\n",
        of.curve.len(),
        losses(of.curve, of.threshold)
    );
    let _ = writeln!(section, "<pre>{}</pre>", escape(&of.lines.join("\n")));
    section
}

fn layers(groups: &[GroupPlan]) -> String {
    let widest = groups.iter().map(|group| group.channels).max().unwrap_or(1);
    let mut section = String::from(
        "<h2>Kept channels</h2>\n<p class='key soft'><i style='background:var(--kept)'></i>kept\
         <i style='background:var(--gone)'></i>removed</p>\n\
         <table><tr><th>channel group</th><th class='n'>kept</th><th class='wide'></th></tr>\n",
    );
    for group in groups {
        let reason = group.reason.as_ref().filter(|_| group.kept.len() == group.channels);
        let reason =
            reason.map_or_else(String::new, |reason| format!("<br><span class='soft'>{}</span>", escape(reason)));
        let _ = writeln!(
            section,
            "<tr><td class='name'>{}{reason}</td><td class='n'>{} of {}</td><td class='wide'>{}</td></tr>",
            escape(&group.name),
            group.kept.len(),
            group.channels,
            kept_bar(group.kept.len(), group.channels, widest)
        );
    }
    section + "</table>\n"
}

fn groups(groups: &[GroupPlan]) -> String {
    let ranked: Vec<&GroupPlan> = groups.iter().filter(|group| !group.scores.is_empty()).collect();
    if ranked.is_empty() {
        return String::new();
    }
    let mut section = String::from(
        "<h2>Importance</h2>\n<p class='soft'>Channels of every group from the most to the least important, each group \
         on its own scale. Where norm groups keep their number, the same number goes from each of them, so that a \
         removed channel may stand before a kept one.</p>\n<div class='groups'>\n",
    );
    for group in ranked {
        let mut is_kept = vec![false; group.channels];
        for channel in &group.kept {
            if let Some(kept) = is_kept.get_mut(*channel) {
                *kept = true;
            }
        }
        let by = group.criterion.as_ref().map_or_else(String::new, |criterion| format!(", ranked by {criterion}"));
        let largest = group.scores.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            section,
            "<div class='group'><h3>{}</h3>{}<p class='soft'>{} of {} kept, largest {}{}</p></div>",
            escape(&group.name),
            importance(&group.scores, &|channel| is_kept.get(channel).copied().unwrap_or(true)),
            group.kept.len(),
            group.channels,
            short(largest),
            escape(&by)
        );
    }
    section + "</div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escape("<b> & 'x' \"y\""), "&lt;b&gt; &amp; &#39;x&#39; &quot;y&quot;");
    }
}
