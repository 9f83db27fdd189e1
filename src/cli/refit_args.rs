//! The arguments of a refit, and how its result is shown.

use clap::Args;
use onnx_diffprune::options::Weighting;
use onnx_diffprune::reports::{RefitLayer, RefitReport, printable};
use onnx_diffprune::{Error, GradientSettings, RefitSettings, Stage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use onnx_diffprune::ranks::threads_of_rank;

use super::config::pattern;
use super::printer::{percent, table};

/// Number of generated samples of each network in a report.
const PICTURES: usize = 16;

/// Number of layers to list for each reason without `--verbose`.
const NAMES_SHOWN: usize = 3;

/// How weights are fitted after the cut; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RefitArgs {
    /// Number of noisy samples to fit the weights on. If there are fewer clean samples, they are reused with other
    /// noise [default: 512, or fewer if one run takes more than 39 GMACs or 8 MiB of activations].
    #[arg(long, value_name = "N", help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_samples: Option<usize>,

    /// Number of timesteps over which these samples are spread [default: one per chunk of samples, at least 64].
    #[arg(long, value_name = "N", help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_timesteps: Option<usize>,

    /// How samples are weighted by timestep: all equally, or by how strongly an error at the layer changes the output
    /// at that timestep [default: gauss-newton].
    #[arg(long, value_enum, help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_weights: Option<Weighting>,

    /// Memory limit of the refit in bytes, such as 500M or 4G, in addition to the two networks. Data beyond it is
    /// spilled to disk [default: 1.5G].
    #[arg(long, value_name = "BYTES", help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_memory: Option<String>,

    /// Ridge regularisation: the value added to the diagonal of every Gram matrix, relative to the mean of the
    /// diagonal. Larger values keep the fit closer to the old weights [default: 0.001].
    #[arg(long, value_name = "X", help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_ridge: Option<f64>,

    /// Do not refit the layers whose weight or node has a matching name.
    #[arg(long, value_name = "REGEX", help_heading = "Refit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refit_exclude: Option<String>,
}

impl RefitArgs {
    /// Returns the settings of the refit, on the device of the gradients. Samples are generated if a report `shows` them.
    pub(super) fn settings(&self, gradients: &GradientSettings, shows: bool) -> Result<RefitSettings, Error> {
        let mut settings = RefitSettings {
            samples: self.refit_samples,
            timesteps: self.refit_timesteps,
            pictures: if shows { PICTURES } else { 0 },
            ..RefitSettings::default()
        };
        let options = &mut settings.options;
        options.weighting = self.refit_weights.unwrap_or(options.weighting);
        if let Some(text) = &self.refit_memory {
            options.memory = bytes("--refit-memory", text)?;
        }
        if let Some(ridge) = self.refit_ridge {
            if !(ridge.is_finite() && ridge > 0.0) {
                return Err(Error::usage(format!("--refit-ridge: expected a number above 0, found {ridge}")));
            }
            options.ridge = ridge;
        }
        options.exclude = self.refit_exclude.as_deref().map(|text| pattern("--refit-exclude", text)).transpose()?;
        (options.device, options.allow_fallback) = (gradients.device, gradients.allow_fallback);
        options.ranks = gradients.ranks.clone();
        options.threads = threads_of_rank(&*options.ranks);
        Ok(settings)
    }
}

/// Parses a number of bytes with an optional unit: K, M, G or T (decimal) or Ki to Ti (binary), with or without a B.
pub(super) fn bytes(option: &str, text: &str) -> Result<u64, Error> {
    let form = || Error::usage(format!("{option}: expected bytes such as 500M or 1.5G, found {text:?}"));
    let end = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| form())?;
    let unit = unit.trim().trim_end_matches(['B', 'b']).to_ascii_lowercase();
    let power = |base: f64, letter: &str| "kmgt".find(letter).map(|at| base.powi(at as i32 + 1));
    let factor = match (unit.as_str(), unit.strip_suffix('i')) {
        ("", _) => Some(1.0),
        (_, Some(letter)) if letter.len() == 1 => power(1024.0, letter),
        (letter, None) if letter.len() == 1 => power(1000.0, letter),
        _ => None,
    };
    let bytes = number * factor.ok_or_else(form)?;
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err(form()) }
}

/// Returns the progress text of a stage of a refit. `None`: the stage is not shown.
pub(super) fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Sampling => Some("generating samples"),
        Stage::Losses => Some("losses on held-out samples"),
        Stage::Refitting => Some("fitting weights"),
        _ => None,
    }
}

/// Describes the result of a refit in a few lines; if `all` is set, with a table of all layers.
pub(super) fn text(report: &RefitReport, all: bool) -> String {
    let mut lines = vec![format!(
        "refit: {} of {} layers fitted on {} in {:.1} s\nsamples: {}",
        report.fitted(),
        report.layers.len(),
        report.extent(),
        report.seconds,
        printable(&report.source)
    )];
    match &report.losses {
        Some(losses) => {
            let [original, cut, refitted] = losses.means();
            let gain = (cut - refitted) / (cut - original);
            let share = if refitted > cut {
                "; the refit increased the loss: use more samples (--data, --refit-samples), or skip the refit (--no-refit)"
                    .to_owned()
            } else if cut > original && refitted < original {
                " (lower than that of the original)".to_owned()
            } else if gain.is_finite() && cut > original {
                format!(" (the refit removes {:.0} % of the increase)", 100.0 * gain)
            } else {
                String::new()
            };
            lines.push(format!(
                "{} on {} held-out samples: original {original:.4}, cut {cut:.4}, refitted {refitted:.4}{share}",
                report.loss.describe(),
                losses.samples
            ));
        }
        None => lines.push(
            "too few samples to hold some out: the loss after the refit was not measured (use more samples: --data)"
                .to_owned(),
        ),
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {}", printable(note))));
    if all {
        let row = |layer: &RefitLayer| {
            let of = |error: Option<f64>| error.map_or_else(String::new, |error| format!("{error:.2e}"));
            vec![
                printable(&layer.node).into_owned(),
                printable(&layer.weight).into_owned(),
                of(layer.errors.map(|(before, _)| before)),
                of(layer.errors.map(|(_, after)| after)),
                layer.errors.map_or_else(
                    || layer.reason.as_deref().map_or_else(String::new, |reason| printable(reason).into_owned()),
                    |(before, after)| percent(after, before),
                ),
            ]
        };
        let rows: Vec<Vec<String>> = report.layers.iter().map(row).collect();
        lines.push(table(&["layer", "weight", "error before", "after", "share"], &rows));
    } else {
        lines.extend(kept_text(report));
    }
    lines.join("\n")
}

/// Lists the layers that were not fitted, by reason.
fn kept_text(report: &RefitReport) -> Vec<String> {
    let mut by_reason: Vec<(&str, Vec<String>)> = Vec::new();
    for layer in &report.layers {
        let Some(reason) = &layer.reason else { continue };
        let name = printable(&layer.node).into_owned();
        match by_reason.iter_mut().find(|(known, _)| known == reason) {
            Some((_, names)) => names.push(name),
            None => by_reason.push((reason, vec![name])),
        }
    }
    let line = |(reason, names): (&str, Vec<String>)| {
        let shown = names.len().min(NAMES_SHOWN);
        let more = names.len() - shown;
        let more = if more > 0 { format!(" and {more} more (--verbose lists all)") } else { String::new() };
        format!("not fitted, {}: {}{more}", printable(reason), names[..shown].join(", "))
    };
    by_reason.into_iter().map(line).collect()
}

/// Returns the refit as JSON.
pub(super) fn json(report: &RefitReport) -> Value {
    let mut value = json!(report);
    value["fitted"] = json!(report.fitted());
    if let Some(losses) = &report.losses {
        let [original, cut, refitted] = losses.means();
        value["losses"]["mean"] = json!({"original": original, "cut": cut, "refitted": refitted});
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let read = |text: &str| bytes("--refit-memory", text).ok();
        assert_eq!(read("1500"), Some(1500));
        assert_eq!(read("500M"), Some(500_000_000));
        assert_eq!(read("1.5GB"), Some(1_500_000_000));
        assert_eq!(read("2Gi"), Some(2 << 30));
        assert_eq!(read("2 kiB"), Some(2048));
        for wrong in ["", "M", "1X", "-1", "0", "1e400", "nan", "1.2.3G", "5ii"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
