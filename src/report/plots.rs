//! Plots as inline SVG. Classes in the style sheet of the page set the colours.

use std::fmt::Write;

use super::style::escape;
use crate::gradient::accumulate::LossPoint;

/// Formats a number with few digits.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// Plots the loss by timestep, with kept and dropped timesteps and the threshold between them.
pub(super) fn losses(curve: &[LossPoint], threshold: f64) -> String {
    let (width, height, left, bottom, top, right) = (520.0, 230.0, 58.0, 34.0, 12.0, 12.0);
    let last = curve.iter().map(|point| point.t).fold(0.0, f64::max);
    let largest = curve.iter().map(|point| point.loss).fold(0.0, f64::max);
    if curve.is_empty() || largest <= 0.0 {
        return String::new();
    }
    let x = |t: f64| left + (width - left - right) * if last > 0.0 { t / last } else { 0.5 };
    let y = |loss: f64| height - bottom - (height - bottom - top) * loss / largest;
    let mut svg =
        format!("<svg class='plot' viewBox='0 0 {width} {height}' role='img' aria-label='Loss over timesteps'>");
    for step in 0..=4 {
        let loss = largest * f64::from(step) / 4.0;
        let at = y(loss);
        let _ = write!(svg, "<line class='grid' x1='{left}' x2='{}' y1='{at:.1}' y2='{at:.1}'/>", width - right);
        let _ = write!(svg, "<text x='{}' y='{:.1}' class='end'>{}</text>", left - 6.0, at + 4.0, short(loss));
        let t = last * f64::from(step) / 4.0;
        let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>{}</text>", x(t), height - bottom + 16.0, t.round());
    }
    let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>timestep t</text>", x(last / 2.0), height - 3.0);
    let polyline = |points: &[LossPoint]| -> String {
        points.iter().map(|point| format!("{:.1},{:.1} ", x(point.t), y(point.loss))).collect()
    };
    let _ = write!(svg, "<polyline class='dropped line' points='{}'/>", polyline(curve));
    // Runs of kept timesteps are drawn on top of the whole curve.
    for run in curve.chunk_by(|a, b| a.kept == b.kept).filter(|run| run[0].kept) {
        let _ = write!(svg, "<polyline class='kept line' points='{}'/>", polyline(run));
        if let [one] = run {
            let _ = write!(svg, "<circle class='kept' cx='{:.1}' cy='{:.1}' r='2.5'/>", x(one.t), y(one.loss));
        }
    }
    if threshold > 0.0 {
        let at = y(threshold * largest);
        let end = width - right;
        let _ = write!(svg, "<line class='threshold' x1='{left}' x2='{end}' y1='{at:.1}' y2='{at:.1}'/>");
        // The legend is in the upper right corner, which a falling curve leaves free.
        let (from, to, high) = (end - 218.0, end - 190.0, top + 8.0);
        let _ = write!(svg, "<line class='threshold' x1='{from}' x2='{to}' y1='{high}' y2='{high}'/>");
        let text = format!("threshold: {threshold} of the largest loss");
        let _ = write!(svg, "<text x='{end}' y='{}' class='end'>{text}</text>", high + 4.0);
    }
    svg + "</svg>"
}

/// A curve: its name, the class that sets its colour, and its values.
pub(super) type Curve<'a> = (&'a str, &'a str, &'a [f64]);

/// Number of colours for networks on a page.
const COLOURS: usize = 6;

/// Returns the colour class of a network. The colours repeat after the last one.
pub(super) fn colour(at: usize) -> String {
    format!("n{}", at % COLOURS)
}

/// Returns the legend: the colour of every network.
pub(super) fn key<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let entry = |(at, name): (usize, &str)| format!("<i style='background:var(--{})'></i>{}", colour(at), escape(name));
    format!("<p class='key soft'>{}</p>\n", names.enumerate().map(entry).collect::<String>())
}

/// Formats a position on an axis of steps: whole numbers without decimals.
fn place(t: f64) -> String {
    if t.fract() == 0.0 { format!("{t:.0}") } else { short(t) }
}

/// Plots losses by timestep or step on a logarithmic axis. `axis` is the label of the horizontal axis and the
/// description of the plot. Up to three curves can have names in the plot.
pub(super) fn curves_over_time(axis: (&str, &str), timesteps: &[f64], curves: &[Curve<'_>]) -> String {
    let (width, height, left, bottom, top, right) = (520.0, 230.0, 58.0, 34.0, 22.0, 12.0);
    let logarithms = curves.iter().flat_map(|(_, _, curve)| curve.iter()).map(|loss| loss.log10());
    let finite: Vec<f64> = logarithms.filter(|loss| loss.is_finite()).collect();
    let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(low + 1e-3);
    let last = timesteps.iter().copied().fold(0.0, f64::max);
    if finite.is_empty() || last <= 0.0 {
        return String::new();
    }
    let x = |t: f64| left + (width - left - right) * t / last;
    let y = |loss: f64| height - bottom - (height - bottom - top) * (loss.log10() - low) / (high - low);
    let mut svg = format!("<svg class='plot' viewBox='0 0 {width} {height}' role='img' aria-label='{}'>", axis.1);
    for step in 0..=4 {
        let loss = 10f64.powf(low + (high - low) * f64::from(step) / 4.0);
        let at = y(loss);
        let _ = write!(svg, "<line class='grid' x1='{left}' x2='{}' y1='{at:.1}' y2='{at:.1}'/>", width - right);
        let _ = write!(svg, "<text x='{}' y='{:.1}' class='end'>{}</text>", left - 6.0, at + 4.0, short(loss));
        let t = last * f64::from(step) / 4.0;
        let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>{}</text>", x(t), height - bottom + 16.0, place(t));
    }
    let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>{}</text>", x(last / 2.0), height - 3.0, axis.0);
    for (at, (name, class, curve)) in curves.iter().enumerate() {
        let points = timesteps.iter().zip(*curve).filter(|(_, loss)| loss.log10().is_finite());
        let points: String = points.map(|(t, loss)| format!("{:.1},{:.1} ", x(*t), y(*loss))).collect();
        let _ = write!(svg, "<polyline class='line {class}' points='{points}'/>");
        if !name.is_empty() {
            let from = width - right - 130.0 * (curves.len() - at) as f64;
            let _ = write!(svg, "<line class='line {class}' x1='{from}' x2='{}' y1='10' y2='10'/>", from + 20.0);
            let _ = write!(svg, "<text x='{}' y='14'>{}</text>", from + 26.0, escape(name));
        }
    }
    svg + "</svg>"
}

/// Plots the losses of networks against their MACs, as shares of those of the first network.
pub(super) fn trade_off(points: &[(f64, f64)]) -> String {
    let (width, height, left, bottom, top, right) = (520.0, 230.0, 58.0, 34.0, 12.0, 24.0);
    let Some((whole, _)) = points.first().copied().filter(|(macs, _)| *macs > 0.0) else { return String::new() };
    let finite = || points.iter().map(|(_, loss)| *loss).filter(|loss| loss.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return String::new();
    }
    let margin = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-9);
    let (low, high) = (low - margin, high + margin);
    let most = points.iter().map(|(macs, _)| macs / whole).fold(1.0, f64::max);
    let x = |share: f64| left + (width - left - right) * share / most;
    let y = |loss: f64| height - bottom - (height - bottom - top) * (loss - low) / (high - low);
    let mut svg =
        format!("<svg class='plot' viewBox='0 0 {width} {height}' role='img' aria-label='Loss against MACs'>");
    for step in 0..=4 {
        let loss = low + (high - low) * f64::from(step) / 4.0;
        let at = y(loss);
        let _ = write!(svg, "<line class='grid' x1='{left}' x2='{}' y1='{at:.1}' y2='{at:.1}'/>", width - right);
        let _ = write!(svg, "<text x='{}' y='{:.1}' class='end'>{}</text>", left - 6.0, at + 4.0, short(loss));
        let share = most * f64::from(step) / 4.0;
        let text = format!("{:.0} %", 100.0 * share);
        let _ = write!(svg, "<text x='{:.1}' y='{}' class='middle'>{text}</text>", x(share), height - bottom + 16.0);
    }
    let middle = x(most / 2.0);
    let _ =
        write!(svg, "<text x='{middle:.1}' y='{}' class='middle'>MACs, relative to the original</text>", height - 3.0);
    for (at, (macs, loss)) in points.iter().enumerate().filter(|(_, (_, loss))| loss.is_finite()) {
        let _ = write!(svg, "<circle class='{}' cx='{:.1}' cy='{:.1}' r='5'/>", colour(at), x(macs / whole), y(*loss));
    }
    svg + "</svg>"
}

/// Plots the scores of a group in descending order, with kept and removed channels. If there are more than `bars`
/// channels, only every n-th is shown.
pub(super) fn importance(scores: &[f64], bars: usize, is_kept: &dyn Fn(usize) -> bool) -> String {
    let (width, height) = (200.0, 56.0);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let largest = order.first().map_or(0.0, |first| scores[*first]);
    let every = order.len().div_ceil(bars).max(1);
    let shown: Vec<usize> = order.into_iter().step_by(every).collect();
    let step = width / shown.len().max(1) as f64;
    let path = |wanted: bool| -> String {
        let mut path = String::new();
        for (at, channel) in shown.iter().enumerate().filter(|(_, channel)| is_kept(**channel) == wanted) {
            let share = if largest > 0.0 { (scores[*channel] / largest).clamp(0.0, 1.0) } else { 0.0 };
            let size = 1.0 + (height - 3.0) * share;
            let _ = write!(path, "M{:.1} {height}v-{size:.1}", (at as f64 + 0.5) * step);
        }
        path
    };
    let stroke = (step * 0.8).clamp(0.6, 9.0);
    format!(
        "<svg viewBox='0 0 {width} {height}' role='img' aria-label='Importance of the channels'>\
         <path class='kept bar' stroke-width='{stroke:.1}' d='{}'/><path class='gone bar' stroke-width='{stroke:.1}' d='{}'/></svg>",
        path(true),
        path(false)
    )
}

/// Returns a bar of kept and removed channels; its width is proportional to the number of channels.
pub(super) fn kept_bar(kept: usize, channels: usize, widest: usize) -> String {
    let width = 100.0 * channels as f64 / widest.max(1) as f64;
    let inner = 100.0 * kept as f64 / channels.max(1) as f64;
    format!("<div class='track' style='width:{width:.1}%'><div class='fill' style='width:{inner:.1}%'></div></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_is_a_bar_of_its_fate() {
        let svg = importance(&[3.0, 1.0, 2.0], 192, &|channel| channel != 1);
        let (kept, gone) = svg.split_once("gone").unwrap_or_default();
        assert_eq!((kept.matches('M').count(), gone.matches('M').count()), (2, 1));
        // The lowest score is the last.
        assert!(gone.contains("M166.7"), "{svg}");
    }

    #[test]
    fn losses_show_the_threshold_only_where_there_is_one() {
        let curve = [LossPoint { t: 0.0, loss: 1.0, kept: true }, LossPoint { t: 10.0, loss: 0.01, kept: false }];
        assert!(losses(&curve, 0.05).contains("class='threshold'"));
        assert!(!losses(&curve, 0.0).contains("class='threshold'"));
        assert!(losses(&[], 0.05).is_empty());
    }

    #[test]
    fn nan_is_not_plotted() {
        let svg = curves_over_time(
            ("timestep t", "losses"),
            &[0.0, 10.0],
            &[("", "n0", &[1.0, f64::NAN]), ("", "n1", &[0.1, 0.2])],
        );
        assert!(svg.matches("<polyline").count() == 2 && !svg.contains("NaN"), "{svg}");
        assert!(curves_over_time(("timestep t", "losses"), &[0.0, 10.0], &[("", "n0", &[f64::NAN; 2])]).is_empty());
        let svg = trade_off(&[(100.0, 0.05), (50.0, 0.06), (25.0, f64::NAN)]);
        assert!(svg.matches("<circle").count() == 2 && !svg.contains("NaN"), "{svg}");
        assert!(trade_off(&[(0.0, 1.0)]).is_empty() && trade_off(&[(1.0, f64::NAN)]).is_empty());
    }
}
