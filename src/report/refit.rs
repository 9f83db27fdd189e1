//! The parts of the page about a refit: losses by timestep, and the error of every layer.

use std::fmt::Write;

use super::plots::{Curve, curves_over_time, short};
use super::style::{escape, name, table};
use crate::prune::{CutJudgement, RefitLosses, RefitReport};
use crate::refit::RefitLayer;

/// Returns the section of the losses.
pub(super) fn losses(refit: &RefitReport) -> String {
    let Some(losses) = &refit.losses else {
        return "<h2>Loss by timestep</h2>\n<p>The losses were not measured: there were too few samples to hold some \
                out.</p>\n"
            .to_owned();
    };
    format!("<h2>Loss by timestep</h2>\n{}", loss_table(losses, refit.loss.describe()))
}

/// Returns the section of the losses of a cut without refit.
pub(super) fn losses_of_cut(of: &CutJudgement) -> String {
    let (Some([original, cut]), Some(source)) = (of.means(), &of.source) else { return String::new() };
    let rows = [("original", original, String::new()), ("cut", cut, format!("{:+.4}", cut - original))]
        .map(|(name, mean, above)| vec![name.to_owned(), format!("{mean:.4}"), above]);
    let columns = [("network", "name"), ("mean", "n"), ("above the original", "n")];
    let text = table("The denoising loss on clean samples", &columns, &rows);
    let timesteps: Vec<f64> = of.losses[0].iter().map(|(t, _)| *t).collect();
    let losses = of.losses.each_ref().map(|losses| losses.iter().map(|(_, loss)| *loss).collect::<Vec<f64>>());
    let curves: [Curve<'_>; 2] = [("original", "of-original", &losses[0]), ("cut", "of-cut", &losses[1])];
    let plot = curves_over_time(("timestep t", "Losses over timesteps"), &timesteps, &curves);
    format!("<h2>Loss by timestep</h2>\n<figure>{plot}</figure>\n{text}<p class='soft'>{}</p>\n", escape(source))
}

/// Returns the section of a refit.
pub(super) fn section(refit: &RefitReport) -> String {
    let mut section = format!(
        "<h2>Refit</h2>\n<p>{} of {} layers were fitted by least squares on {}, to reproduce the \
         outputs of the original's layers. <span class='soft'>{}</span></p>\n",
        refit.fitted(),
        refit.layers.len(),
        refit.extent(),
        escape(&refit.source)
    );
    for note in &refit.notes {
        let _ = writeln!(section, "<p>{}</p>", escape(note));
    }
    let of = |error: Option<f64>| error.map_or_else(String::new, short);
    let row = |layer: &RefitLayer| {
        vec![
            name(&layer.node),
            name(&layer.weight),
            of(layer.errors.map(|(before, _)| before)),
            of(layer.errors.map(|(_, after)| after)),
            escape(layer.reason.as_deref().unwrap_or_default()),
        ]
    };
    let rows: Vec<Vec<String>> = refit.layers.iter().map(row).collect();
    let columns = [("layer", "name"), ("weight", "name"), ("before", "n"), ("after", "n"), ("not fitted, because", "")];
    let caption =
        "Squared error of each layer's output before and after the refit, relative to the original's output squared";
    section
        + &format!(
            "<details class='long'><summary>Errors by layer</summary>\n{}</details>\n",
            table(caption, &columns, &rows)
        )
}

fn loss_table(losses: &RefitLosses, judged_by: &str) -> String {
    let [original, cut, refitted] = losses.means();
    let named = [("original", original), ("cut", cut), ("cut and refitted", refitted)];
    let rows = named.map(|(name, mean)| {
        let above = if name == "original" { String::new() } else { format!("{:+.4}", mean - original) };
        vec![name.to_owned(), format!("{mean:.4}"), above]
    });
    let columns = [("network", "name"), ("mean", "n"), ("above the original", "n")];
    let caption = format!("The {judged_by} on {} held-out samples", losses.samples);
    let text = table(&caption, &columns, &rows);
    // A curve needs two points.
    if losses.timesteps.len() > 1 { plot(losses) + &text } else { text }
}

/// Plots the losses of the three networks by timestep.
fn plot(losses: &RefitLosses) -> String {
    let curves: [Curve<'_>; 3] = [
        ("original", "of-original", &losses.original),
        ("cut", "of-cut", &losses.cut),
        ("cut and refitted", "of-refitted", &losses.refitted),
    ];
    format!(
        "<figure>{}</figure>\n",
        curves_over_time(("timestep t", "Losses over timesteps"), &losses.timesteps, &curves)
    )
}
