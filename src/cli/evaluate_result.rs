//! Shows an evaluation: as text, as JSON, and on the page of `--report`.

use std::path::Path;

use onnx_diffprune::Error;
use onnx_diffprune::evaluation::{Distribution, EvaluatedNetwork, Evaluation, FeatureSummary, KernelDistance};
use onnx_diffprune::reports::{EvaluationPage, FigureTable, printable, tool_name};
use serde_json::{Value, json};

use super::invocation::command_line;
use super::printer::{bytes_text, human, percent, table};

/// A column of a table: its name, and the value of a network. `None`: the network has no value.
type Column<'a> = (&'a str, &'a dyn Fn(&EvaluatedNetwork) -> Option<String>);

/// An evaluation and how it is shown.
pub(super) struct Shown<'a> {
    pub(super) evaluation: &'a Evaluation,
    /// The path of the page. `None`: no page is written.
    pub(super) report: Option<&'a Path>,
    /// Whether losses by timestep are printed.
    pub(super) verbose: bool,
}

impl Shown<'_> {
    /// Returns the names of the networks, the original first: their file names, or full paths if file names are equal.
    fn names(&self) -> Vec<String> {
        let short = |network: &EvaluatedNetwork| {
            network.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        };
        let all: Vec<String> = self.evaluation.all().map(short).collect();
        let is_unique = |name: &String| all.iter().filter(|other| *other == name).count() == 1;
        let named = self.evaluation.all().zip(&all);
        named
            .map(|(network, name)| if is_unique(name) { name.clone() } else { network.path.display().to_string() })
            .collect()
    }

    /// Returns a table with a row for every network; a missing value is `-`, and a column without values is left out.
    fn of_networks(&self, title: String, columns: &[Column<'_>]) -> Option<FigureTable> {
        let rows: Vec<Vec<Option<String>>> =
            self.evaluation.all().map(|network| columns.iter().map(|(_, of)| of(network)).collect()).collect();
        // A column in which no network has a value is left out.
        let kept: Vec<usize> = (0..columns.len()).filter(|at| rows.iter().any(|row| row[*at].is_some())).collect();
        let cells = |row: &Vec<Option<String>>| {
            kept.iter().map(|at| row[*at].clone().unwrap_or_else(|| "-".to_owned())).collect()
        };
        let named = |(name, row): (String, &Vec<Option<String>>)| [vec![name], cells(row)].concat();
        let header = kept.iter().map(|at| columns[*at].0.to_owned());
        (!kept.is_empty()).then(|| FigureTable {
            title,
            header: std::iter::once("network".to_owned()).chain(header).collect(),
            rows: self.names().into_iter().zip(&rows).map(named).collect(),
        })
    }

    fn tables(&self) -> Vec<FigureTable> {
        let of = self.evaluation;
        let loss = |network: &EvaluatedNetwork| Some(format!("{:.5}", network.mean_loss));
        let above = |network: &EvaluatedNetwork| network.loss_increase.map(|share| format!("{:+.1} %", 100.0 * share));
        let similar = |network: &EvaluatedNetwork| network.consistency.and_then(|of| of.ssim);
        let ssim = |network: &EvaluatedNetwork| similar(network).map(|of| format!("{:.4}", of.mean));
        let psnr = |network: &EvaluatedNetwork| peak(network);
        let share = |part: f64, whole: f64, text: String| match part == whole {
            true => Some(text),
            false => Some(format!("{text} ({})", percent(part, whole))),
        };
        let (first, whole) = (&of.original, &of.original.cost);
        let macs = |network: &EvaluatedNetwork| share(network.cost.macs, whole.macs, human(network.cost.macs));
        let parameters = |network: &EvaluatedNetwork| {
            let count = network.cost.parameters as f64;
            share(count, whole.parameters as f64, human(count))
        };
        let bytes = |network: &EvaluatedNetwork| Some(bytes_text(network.bytes as f64));
        let latency = |network: &EvaluatedNetwork| {
            let (own, whole) = (network.latency?.median_ms, first.latency?.median_ms);
            let text = format!("{own:.2} ms");
            if std::ptr::eq(network, first) { Some(text) } else { share(own, whole, text) }
        };
        let mut tables = Vec::new();
        tables.extend(self.of_networks(
            "Quality and costs".to_owned(),
            &[
                ("loss", &loss),
                ("increase", &above),
                ("SSIM", &ssim),
                ("PSNR", &psnr),
                ("MACs", &macs),
                ("parameters", &parameters),
                ("file", &bytes),
                ("latency", &latency),
            ],
        ));
        tables.extend(self.quantiles());
        if let Some(features) = &of.features {
            let name = &features.name;
            let fd = |value: Option<f64>| value.map(|value| format!("{value:.4}"));
            let kid = |value: Option<KernelDistance>| {
                let deviation = |of: KernelDistance| format!(" ± {:.6}", of.deviation);
                value.map(|of| format!("{:.6}{}", of.mean, if of.subsets > 1 { deviation(of) } else { String::new() }))
            };
            let (a, b) = (format!("FD ({name}) to original"), format!("KID ({name}) to original"));
            let (c, d) = (format!("FD ({name}) to data"), format!("KID ({name}) to data"));
            tables.extend(self.of_networks(
                format!("Distances between sets of samples, by the features of {name}"),
                &[
                    (&a, &|network| fd(network.distances?.fd_to_original)),
                    (&b, &|network| kid(network.distances?.kid_to_original)),
                    (&c, &|network| fd(network.distances?.fd_to_data)),
                    (&d, &|network| kid(network.distances?.kid_to_data)),
                ],
            ));
        }
        tables
    }

    /// Returns the quantiles of similarity over samples: the rows SSIM and PSNR for every network but the original.
    fn quantiles(&self) -> Option<FigureTable> {
        let mut rows = Vec::new();
        for (network, name) in self.evaluation.networks.iter().zip(self.names().into_iter().skip(1)) {
            let Some(of) = network.consistency else { continue };
            let figures = |of: Distribution| [of.q05, of.q25, of.median, of.q75, of.q95];
            let mut row = |figure: &str, of: Distribution, digits: usize| {
                let cells = figures(of).map(|value| format!("{value:.digits$}"));
                rows.push([&[name.clone(), figure.to_owned()][..], &cells[..]].concat());
            };
            of.ssim.into_iter().for_each(|ssim| row("SSIM", ssim, 4));
            of.psnr.into_iter().for_each(|psnr| row("PSNR in dB", psnr, 2));
            if of.identical > 0 {
                let equal = vec![name.clone(), format!("{} identical samples", of.identical)];
                rows.push([equal, vec![String::new(); 5]].concat());
            }
        }
        let header = ["network", "figure", "5 %", "25 %", "median", "75 %", "95 %"];
        (!rows.is_empty()).then(|| FigureTable {
            title: "Similarity to the original's samples from the same noise, quantiles".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows,
        })
    }

    /// Returns the table of losses by timestep.
    fn losses(&self) -> FigureTable {
        let of = self.evaluation;
        let row = |(at, t): (usize, &f64)| {
            let losses = of.all().map(|network| format!("{:.5}", network.losses.get(at).copied().unwrap_or(f64::NAN)));
            std::iter::once(format!("{t}")).chain(losses).collect()
        };
        FigureTable {
            title: "Denoising loss by timestep".to_owned(),
            header: std::iter::once("t".to_owned()).chain(self.names()).collect(),
            rows: of.timesteps.iter().enumerate().map(row).collect(),
        }
    }

    /// Describes the samples, noise and sizes of the measurements, one line each.
    fn lines(&self) -> Vec<String> {
        let of = self.evaluation;
        let mut lines = vec![format!(
            "loss: {} timesteps, {}; the same noise for all networks",
            of.timesteps.len(),
            printable(&of.loss_source)
        )];
        if let Some(drawing) = &of.drawing {
            let seed = drawing.seed;
            lines.push(format!(
                "samples: {} of every network from the same noise by {} ({} steps, seed {seed}), value range {}",
                drawing.count,
                drawing.sampler.describe(),
                drawing.steps,
                drawing.value_range
            ));
        }
        if let Some(features) = &of.features {
            lines.extend(features_lines(features));
        }
        lines.extend(of.data_source.iter().map(|source| format!("data: {}", printable(source))));
        let sizes: Vec<String> = of
            .sizes
            .iter()
            .filter(|(name, _)| !name.starts_with('?'))
            .map(|(name, size)| format!("{}={size}", printable(name)))
            .collect();
        if !sizes.is_empty() {
            lines.push(format!("costs: at {}", sizes.join(", ")));
        }
        lines
    }

    /// Returns the evaluation as text.
    pub(super) fn text(&self) -> String {
        let mut tables = self.tables();
        if self.verbose {
            tables.push(self.losses());
        }
        let printed = |of: &FigureTable| {
            let header: Vec<&str> = of.header.iter().map(String::as_str).collect();
            format!("{}\n{}", printable(&of.title), table(&header, &of.rows))
        };
        let mut parts: Vec<String> = tables.iter().map(printed).collect();
        let notes = self.evaluation.notes.iter().map(|note| format!("note: {}", printable(note)));
        let report = self.report.map(|path| format!("wrote {}", path.display()));
        parts.push(self.lines().into_iter().chain(notes).chain(report).collect::<Vec<_>>().join("\n"));
        parts.join("\n\n")
    }

    /// Returns the evaluation as JSON.
    pub(super) fn json(&self) -> Value {
        let mut value = json!(self.evaluation);
        value["report"] = json!(self.report);
        value
    }

    /// Returns the page of `--report`.
    pub(super) fn page(&self, failure: Option<&Error>) -> EvaluationPage<'_> {
        let names = self.names();
        EvaluationPage {
            title: format!("{} compared with {}", names.get(1..).unwrap_or_default().join(", "), names[0]),
            tool: tool_name(),
            command: command_line(),
            evaluation: self.evaluation,
            tables: self.tables(),
            lines: [vec![format!("process: {}", self.evaluation.process)], self.lines()].concat(),
            failure: failure.map(ToString::to_string),
            names,
        }
    }
}

/// Returns the mean peak signal-to-noise ratio of a network's samples.
fn peak(network: &EvaluatedNetwork) -> Option<String> {
    let consistency = network.consistency?;
    match consistency.psnr {
        Some(psnr) => Some(format!("{:.2} dB", psnr.mean)),
        None if consistency.identical > 0 => Some("inf".to_owned()),
        None => None,
    }
}

/// Describes the input and the output of the feature network.
fn features_lines(of: &FeatureSummary) -> Vec<String> {
    let list = |values: &[f64]| match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => first.to_string(),
        values => values.iter().map(f64::to_string).collect::<Vec<_>>().join(","),
    };
    let order = if of.channels == 3 { format!(", {:?}", of.order).to_uppercase() } else { String::new() };
    let mut lines = vec![
        format!(
            "features: {} takes input {} as {:?}{order}, resized to {} x {}, pixels from {} to {}, mean {}, std {}",
            printable(&of.name),
            printable(&of.input),
            of.layout,
            of.size.0,
            of.size.1,
            of.range.0,
            of.range.1,
            list(&of.mean),
            list(&of.deviation)
        )
        .replace("Nchw", "NCHW")
        .replace("Nhwc", "NHWC"),
        format!(
            "features: {} from output {}{}",
            of.width,
            printable(&of.output),
            of.pooling.as_ref().map_or_else(String::new, |pooling| format!(", {pooling}"))
        ),
    ];
    lines.extend(of.assumed.iter().map(|assumed| format!("features: assumed: {assumed}")));
    lines
}
