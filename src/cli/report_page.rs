//! Collects the contents of the page of `--report` for a cut or a training.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use onnx_diffprune::Error;
use onnx_diffprune::finetuning::FinetuneReport;
use onnx_diffprune::reports::{BlockTimes, CutJudgement, Drawings, Outline, RefitReport, Report, tool_name};
use serde_json::Value;

use super::cut_result::Shown;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::gradient_args;
use super::invocation::command_line;

/// The parts of a page besides the cut itself.
#[derive(Debug, Default)]
pub(super) struct PageParts {
    pub(super) outline: Option<Outline>,
    pub(super) times: Option<BlockTimes>,
    pub(super) judged: Option<CutJudgement>,
    /// Why a cut without refit has no samples.
    pub(super) undrawn: Option<String>,
    /// Where process, data and conditioning come from: names and values.
    pub(super) sources: Vec<[String; 2]>,
}

/// Describes where process, data and conditioning come from.
pub(super) fn sources(diffusion: &DiffusionArgs, around: &Value, data: &DataArgs, seed: u64) -> Vec<[String; 2]> {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut add = |name: &str, value: String| rows.push([name.to_owned(), value]);
    if let (Some(folder), Some(component)) = (around["folder"].as_str(), around["component"].as_str()) {
        let class = around["class"].as_str().map_or_else(String::new, |class| format!(" ({class})"));
        add("pipeline", format!("{folder}{class}, {component}"));
    }
    let of_pipeline = around["scheduler_config"].as_str();
    add(
        "noise schedule from",
        match (of_pipeline, &diffusion.scheduler_config, diffusion.schedule_option()) {
            (Some(path), _, _) => format!("{path} of the pipeline"),
            (None, Some(path), _) => path.display().to_string(),
            (None, None, Some(option)) => format!("options ({option})"),
            (None, None, None) => "default options".to_owned(),
        },
    );
    if let Some(path) = &data.data {
        add("data", path.display().to_string());
    }
    if let Some(path) = &diffusion.prompts {
        add("prompts", path.display().to_string());
    }
    add("seed", seed.to_string());
    rows
}

/// Writes the report as a separate file, not together with the network.
pub(super) fn write_report(path: &Path, shown: &Shown<'_>) -> Result<(), Error> {
    page(shown, |report| report.write(path))
}

/// Returns the report as HTML.
pub(super) fn report(shown: &Shown<'_>) -> String {
    page(shown, |report| report.html())
}

fn page<T>(shown: &Shown<'_>, of: impl FnOnce(&Report<'_>) -> T) -> T {
    let (cut, parts) = (shown.cut, shown.page);
    let own = parts.is_none_or(|parts| parts.outline.is_none()).then(|| cut.outline());
    let report = Report {
        title: format!("{} pruned", title(shown)),
        tool: tool_name(),
        command: command_line(),
        costs: shown.cost_rows().into_iter().filter_map(|row| row.try_into().ok()).collect(),
        drawings: drawings(shown),
        plan: cut.plan(),
        outline: parts.and_then(|parts| parts.outline.as_ref()).or(own.as_ref()),
        block_times: parts.and_then(|parts| parts.times.as_ref()),
        ratio: cut.ratio(),
        losses: shown.gradients.map(gradient_args::losses),
        judged: parts.and_then(|parts| parts.judged.as_ref()),
        refit: shown.refit,
        training: shown.training,
        verification: shown.verification,
        warnings: cut.warnings(),
        used: used(shown),
    };
    of(&report)
}

/// Returns the name of the pruned network: the file, or the component of a pipeline.
fn title(shown: &Shown<'_>) -> String {
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    match (shown.around["component"].as_str(), shown.around["folder"].as_str()) {
        (Some(component), Some(folder)) => format!("{component} of {}", name(Path::new(folder))),
        _ => name(shown.cut.model().path()),
    }
}

/// Returns the samples of the networks of a cut, or why there are none.
fn drawings(shown: &Shown<'_>) -> Drawings {
    if let Some(training) = shown.training {
        return Drawings::of_training(training);
    }
    let mut drawings = Drawings::default();
    let judged = shown.page.and_then(|parts| parts.judged.as_ref());
    if let Some(refit) = shown.refit {
        of_refit(refit, &mut drawings);
    } else if let Some(judged) = judged {
        let means = judged.means();
        for (at, name) in ["original", "cut"].into_iter().enumerate() {
            drawings.add(name, (&judged.samples[at], judged.range), means.map(|means| means[at]));
        }
        drawings.lines.push("The cut was not refitted.".to_owned());
    } else {
        let why = shown.page.and_then(|parts| parts.undrawn.clone());
        drawings.lines.push(format!("No samples: {}.", why.unwrap_or_else(|| "no network was written".to_owned())));
    }
    drawings
}

fn of_refit(refit: &RefitReport, drawings: &mut Drawings) {
    let Some(pictures) = &refit.pictures else {
        drawings.lines.push("No samples: the network does not denoise, so it can't generate any.".to_owned());
        return;
    };
    let means = refit.losses.as_ref().map(|losses| losses.means());
    for (at, name) in ["original", "cut", "cut and refitted"].into_iter().enumerate() {
        drawings.add(name, (&pictures.samples[at], pictures.range), means.map(|means| means[at]));
    }
    drawings.loss_name = refit.loss.describe().to_owned();
}

/// Returns the table of what was used: names and values.
fn used(shown: &Shown<'_>) -> Vec<[String; 2]> {
    let cut = shown.cut;
    let judged = shown.page.and_then(|parts| parts.judged.as_ref());
    let mut rows = vec![row("network", cut.model().path().display().to_string())];
    let gradients = shown.gradients;
    let process = [
        gradients.map(|of| of.process.as_str()),
        shown.refit.map(|of| of.process.as_str()),
        judged.map(|of| of.process.as_str()),
        shown.training.map(|of| of.process.as_str()),
    ];
    let process = process.into_iter().flatten().find(|process| !process.is_empty());
    rows.extend(process.map(|process| row("process", process.to_owned())));
    let sources = shown.page.map_or(&[][..], |parts| parts.sources.as_slice());
    rows.extend(sources.iter().filter(|[name, _]| name != "noise schedule from" || process.is_some()).cloned());
    rows.extend(gradients.map(|of| row("samples of the gradients", of.source.clone())));
    rows.extend(shown.refit.map(|of| row("samples of the refit", format!("{}; {}", of.source, of.extent()))));
    let sizes: Vec<String> = cut
        .sizes()
        .iter()
        .filter(|(name, _)| !name.starts_with('?'))
        .map(|(name, size)| format!("{name}={size}"))
        .collect();
    rows.push(row("sizes", if sizes.is_empty() { "fixed by the network".to_owned() } else { sizes.join(", ") }));
    rows.extend(gradients.map(|of| row("ran on", of.execution.trim_start_matches("device ").to_owned())));
    rows.extend(runtime_and_date(shown.verification.map(|of| of.onnxruntime.as_str())));
    rows
}

fn row(name: &str, value: String) -> [String; 2] {
    [name.to_owned(), value]
}

/// Returns rows with the versions and the date of the page.
fn runtime_and_date(runtime: Option<&str>) -> Vec<[String; 2]> {
    let mut rows = vec![row("tool", tool_name())];
    rows.extend(runtime.map(|version| row("ONNX Runtime", version.to_owned())));
    rows.push(row("date", date()));
    rows
}

/// Returns the table of what was used in a training.
pub(super) fn used_in_training(
    (network, teacher): (&Path, Option<&Path>),
    sources: Vec<[String; 2]>,
    report: &FinetuneReport,
) -> Vec<[String; 2]> {
    let mut rows = vec![row("network", network.display().to_string())];
    rows.extend(teacher.map(|path| row("teacher", path.display().to_string())));
    rows.push(row("process", report.process.clone()));
    rows.extend(sources);
    rows.push(row("samples", report.source.clone()));
    rows.push(row("ran on", report.execution.trim_start_matches("device ").to_owned()));
    rows.extend(runtime_and_date(None));
    rows
}

/// Returns the date and time in UTC, or those in `SOURCE_DATE_EPOCH`, which makes the page reproducible.
fn date() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date_of(given.unwrap_or_else(now))
}

/// Formats seconds since 1970 as a date of the Gregorian calendar, `2026-11-26 23:17 UTC`.
fn date_of(seconds: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut days, mut year) = (seconds / 86_400, 1970);
    while year < 9999 && days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while month < 11 && days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year}-{:02}-{:02} {hour:02}:{minute:02} UTC", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(date_of(0), "1970-01-01 00:00 UTC");
        assert_eq!(date_of(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(date_of(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date_of(1_795_735_020), "2026-11-26 23:17 UTC");
    }
}
