//! Standard output, standard error and progress.
//!
//! Results go to standard output, everything else to standard error. Progress shows on a terminal only.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use onnx_diffprune::{self as library, Error, Stage};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Format;

/// Where everything is printed.
pub(super) struct Printer {
    format: Format,
    quiet: bool,
}

impl Printer {
    pub(super) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Whether results are printed as JSON.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a result: the JSON form, or the text that `text` makes.
    pub(super) fn result(&self, json: &impl Serialize, text: impl FnOnce() -> String) {
        let out = match self.format {
            Format::Json => serde_json::to_string_pretty(json).unwrap_or_default(),
            Format::Text if self.quiet => return,
            Format::Text => text(),
        };
        self.raw(&out);
    }

    /// Prints text to standard output whatever the format. A closed pipe is no error.
    pub(super) fn raw(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
    }

    /// Prints what a reader may want to know before the result, to standard error.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Prints a warning.
    pub(super) fn warning(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "warning: {text}");
        }
    }

    /// Prints an error, its causes and what to do.
    pub(super) fn error(&self, error: &Error) {
        self.failure(json!({}), String::new, error);
    }

    /// Prints what came of a request that failed, and why it did: in JSON as one object.
    pub(super) fn failure(&self, mut body: Value, text: impl FnOnce() -> String, error: &Error) {
        if self.is_json() {
            let mut causes = Vec::new();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                causes.push(cause.to_string());
                source = cause.source();
            }
            body["error"] = json!(error.to_string());
            body["causes"] = json!(causes);
            body["hint"] = json!(error.advice());
            body["exit_code"] = json!(error.exit_code());
            self.raw(&serde_json::to_string_pretty(&body).unwrap_or_default());
        } else if !self.quiet {
            let text = text();
            if !text.is_empty() {
                self.raw(&text);
            }
        }
        let mut out = std::io::stderr().lock();
        let _ = writeln!(out, "error: {error}");
        if let Some(hint) = error.advice() {
            let _ = writeln!(out, "hint: {hint}");
        }
    }

    /// Progress over a number of steps; invisible in a pipe, under `--quiet` and with JSON output.
    pub(super) fn progress(&self, steps: u64) -> Progress {
        let bar = ProgressBar::new(steps);
        if self.quiet || self.is_json() || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg} {elapsed} (left about {eta})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { bar }
    }
}

/// What the library says while it works, printed.
pub(super) struct Watcher<'p> {
    printer: &'p Printer,
    text_of: fn(Stage) -> Option<&'static str>,
    shown: Option<(Stage, Progress)>,
}

impl<'p> Watcher<'p> {
    /// Shows the stages that `text_of` has a text for.
    pub(super) fn new(printer: &'p Printer, text_of: fn(Stage) -> Option<&'static str>) -> Self {
        Self { printer, text_of, shown: None }
    }

    /// Prints; never stops the library.
    pub(super) fn see(&mut self, progress: library::Progress<'_>) -> ControlFlow<()> {
        match progress {
            library::Progress::At { stage, done, total } => self.show(stage, done, total),
            library::Progress::Network(text) if !self.printer.is_json() => self.printer.note(text),
            library::Progress::Note(text) => self.printer.note(text),
            library::Progress::Warning(text) => self.printer.warning(text),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, stage: Stage, done: usize, total: usize) {
        let Some(text) = (self.text_of)(stage) else {
            self.shown = None;
            return;
        };
        if self.shown.as_ref().is_none_or(|(before, _)| *before != stage) {
            self.shown = None;
            self.shown = Some((stage, self.printer.progress(total as u64)));
        }
        if let Some((_, progress)) = &self.shown {
            progress.at(done as u64, text);
        }
    }
}

/// Progress of a run; disappears when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins the next step.
    pub(super) fn step(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    /// Prints something while the progress is out of the way.
    pub(super) fn pause(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Says that `done` steps are done.
    pub(super) fn at(&self, done: u64, what: &'static str) {
        self.bar.set_message(what);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A number of things with a unit prefix, `35.75 M`.
pub(super) fn human(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(size, _)| value.abs() >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", value / size),
        None => format!("{value:.0}"),
    }
}

/// A share in per cent.
pub(super) fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "-".to_owned() }
}

/// Words in lines of at most 100 characters with an indentation of two.
pub(super) fn wrapped(words: &[String]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let word = if at + 1 < words.len() { format!("{word},") } else { word.clone() };
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 100 => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n")
}

/// A table with a header; numbers are aligned to the right, text to the left.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        let is_number = |row: &Vec<String>| {
            row.get(at).is_none_or(|cell| {
                ["-", "inf", "NaN"].contains(&cell.as_str()) || cell.starts_with(|c: char| c.is_ascii_digit())
            })
        };
        if at > 0 && rows.iter().all(is_number) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
