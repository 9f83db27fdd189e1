//! What the page shows of a refit: losses by timestep, samples side by side, and the error of every layer.

use std::fmt::Write;

use super::page::{self, escape};
use super::plots::{Curve, curves_over_time, short};
use crate::prune::{RefitLosses, RefitReport};

/// The section of a refit.
pub(super) fn section(refit: &RefitReport) -> String {
    let mut section = format!(
        "<h2>Refit</h2>\n<p>{} of {} layers were fitted by least squares on {}, so that they \
         compute what the original does. <span class='soft'>{}</span></p>\n",
        refit.fitted(),
        refit.layers.len(),
        refit.extent(),
        escape(&refit.source)
    );
    match &refit.losses {
        Some(losses) => section += &loss_table(losses, refit.loss.describe()),
        None => section += "<p>There were too few samples to hold some out: the losses were not measured.</p>\n",
    }
    for note in &refit.notes {
        let _ = writeln!(section, "<p>{}</p>", escape(note));
    }
    section += &pictures(refit);
    section += "<details><summary>Errors by layer: what is left of the original's values, as a share of their squares\
                </summary>\n<table><tr><th>layer</th><th>weight</th><th class='n'>before</th><th class='n'>after</th>\
                <th></th></tr>\n";
    for layer in &refit.layers {
        let of = |error: Option<f64>| error.map_or_else(String::new, short);
        let _ = writeln!(
            section,
            "<tr><td class='name'>{}</td><td class='name'>{}</td><td class='n'>{}</td><td class='n'>{}</td><td>{}</td></tr>",
            escape(&layer.node),
            escape(&layer.weight),
            of(layer.errors.map(|(before, _)| before)),
            of(layer.errors.map(|(_, after)| after)),
            escape(layer.reason.as_deref().unwrap_or_default())
        );
    }
    section + "</table></details>\n"
}

fn loss_table(losses: &RefitLosses, judged_by: &str) -> String {
    let [original, cut, refitted] = losses.means();
    let mut text = format!(
        "<p>The {judged_by} on {} samples that nothing was fitted to:</p>\n<table><tr><th></th><th class='n'>mean</th>\
         <th class='n'>above the original</th></tr>\n",
        losses.samples
    );
    for (name, mean) in [("original", original), ("cut", cut), ("cut and refitted", refitted)] {
        let above = if name == "original" { String::new() } else { format!("{:+.4}", mean - original) };
        let _ = writeln!(text, "<tr><td>{name}</td><td class='n'>{mean:.4}</td><td class='n'>{above}</td></tr>");
    }
    text += "</table>\n";
    // A curve takes two points.
    if losses.timesteps.len() > 1 { text + &plot(losses) } else { text }
}

/// The three losses over timesteps.
fn plot(losses: &RefitLosses) -> String {
    let curves: [Curve<'_>; 3] = [
        ("original", "of-original", &losses.original),
        ("cut", "of-cut", &losses.cut),
        ("cut and refitted", "of-refitted", &losses.refitted),
    ];
    curves_over_time(&losses.timesteps, &curves) + "\n"
}

fn pictures(refit: &RefitReport) -> String {
    let Some(Ok(pngs)) = refit.pictures.as_ref().map(crate::prune::RefitPictures::pngs) else { return String::new() };
    let names = ["original", "cut", "cut and refitted"];
    let pictures: Vec<(&str, &[u8])> = names.into_iter().zip(pngs.iter().map(Vec::as_slice)).collect();
    format!("<p>Samples of the three networks from the same noise:</p>\n{}", page::pictures(&pictures))
}
