//! What the page shows of a refit: losses by timestep, samples side by side, and the error of every layer.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::page::escape;
use super::plots::short;
use crate::prune::{RefitLosses, RefitReport};

/// The section of a refit.
pub(super) fn section(refit: &RefitReport) -> String {
    let mut section = format!(
        "<h2>Refit</h2>\n<p>{} of {} layers were fitted by least squares on {} noisy samples over {} timesteps, so that they \
         compute what the original does. <span class='soft'>{}</span></p>\n",
        refit.fitted(),
        refit.layers.len(),
        refit.samples,
        refit.timesteps,
        escape(&refit.source)
    );
    match &refit.losses {
        Some(losses) => section += &loss_table(losses),
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

fn loss_table(losses: &RefitLosses) -> String {
    let [original, cut, refitted] = losses.means();
    let mut text = format!(
        "<p>The denoising loss on {} samples that nothing was fitted to:</p>\n<table><tr><th></th><th class='n'>mean</th>\
         <th class='n'>above the original</th></tr>\n",
        losses.samples
    );
    for (name, mean) in [("original", original), ("cut", cut), ("cut and refitted", refitted)] {
        let above = if name == "original" { String::new() } else { format!("{:+.4}", mean - original) };
        let _ = writeln!(text, "<tr><td>{name}</td><td class='n'>{mean:.4}</td><td class='n'>{above}</td></tr>");
    }
    text += "</table>\n";
    text + &plot(losses)
}

/// The three losses over timesteps, on a logarithmic axis.
fn plot(losses: &RefitLosses) -> String {
    let (width, height, left, bottom, top, right) = (760.0, 260.0, 58.0, 34.0, 22.0, 12.0);
    let curves = [
        ("original", "of-original", &losses.original),
        ("cut", "of-cut", &losses.cut),
        ("cut and refitted", "of-refitted", &losses.refitted),
    ];
    let logarithms = curves.iter().flat_map(|(_, _, curve)| curve.iter()).map(|loss| loss.log10());
    let finite: Vec<f64> = logarithms.filter(|loss| loss.is_finite()).collect();
    let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(low + 1e-3);
    let last = losses.timesteps.iter().copied().fold(0.0, f64::max);
    if finite.is_empty() || last <= 0.0 {
        return String::new();
    }
    let x = |t: f64| left + (width - left - right) * t / last;
    let y = |loss: f64| height - bottom - (height - bottom - top) * (loss.log10() - low) / (high - low);
    let mut svg = format!("<svg viewBox='0 0 {width} {height}' role='img' aria-label='Losses over timesteps'>");
    for step in 0..=4 {
        let loss = 10f64.powf(low + (high - low) * f64::from(step) / 4.0);
        let at = y(loss);
        let _ = write!(svg, "<line class='grid' x1='{left}' x2='{}' y1='{at:.1}' y2='{at:.1}'/>", width - right);
        let _ = write!(svg, "<text x='{}' y='{:.1}' class='end'>{}</text>", left - 6.0, at + 4.0, short(loss));
        let t = last * f64::from(step) / 4.0;
        let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>{}</text>", x(t), height - bottom + 16.0, short(t));
    }
    let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>timestep t</text>", x(last / 2.0), height - 3.0);
    for (at, (name, class, curve)) in curves.into_iter().enumerate() {
        let points = losses.timesteps.iter().zip(curve).filter(|(_, loss)| loss.log10().is_finite());
        let points: String = points.map(|(t, loss)| format!("{:.1},{:.1} ", x(*t), y(*loss))).collect();
        let _ = write!(svg, "<polyline class='line {class}' points='{points}'/>");
        let from = width - right - 130.0 * (3 - at) as f64;
        let _ = write!(svg, "<line class='line {class}' x1='{from}' x2='{}' y1='10' y2='10'/>", from + 20.0);
        let _ = write!(svg, "<text x='{}' y='14'>{name}</text>", from + 26.0);
    }
    svg + "</svg>\n"
}

fn pictures(refit: &RefitReport) -> String {
    let Some(Ok(pngs)) = refit.pictures.as_ref().map(crate::prune::RefitPictures::pngs) else { return String::new() };
    let mut text = String::from("<p>Samples of the three networks from the same noise:</p>\n<div class='samples'>");
    for (name, png) in ["original", "cut", "cut and refitted"].into_iter().zip(pngs) {
        let data = STANDARD.encode(png);
        let _ = write!(text, "<figure><img alt='samples of {name}' src='data:image/png;base64,{data}'>");
        let _ = write!(text, "<figcaption>{name}</figcaption></figure>");
    }
    text + "</div>\n"
}
