//! Standard output and standard error.
//!
//! Results go to standard output, everything else to standard error. All text of the program is printed here. Control
//! characters are escaped, as names come from files and could otherwise control the terminal.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;

use onnx_diffprune::reports::printable;
use onnx_diffprune::{self as library, Error, Model, Stage};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Format;
use super::junit::{self, Check};
use super::progress::Progress;

/// A callback that receives messages and progress instead of standard error, and may stop the run. `None` asks only
/// whether to continue.
pub(super) type Listener = Rc<RefCell<dyn FnMut(Option<library::Progress<'_>>) -> ControlFlow<()>>>;

/// Prints everything.
pub(super) struct Printer {
    format: Format,
    quiet: bool,
    verbose: bool,
    /// The rank of this process, for messages, unless it is the first. The first rank prints everything, others only
    /// their errors.
    rank: Option<usize>,
    /// Whether an error was printed.
    has_failed: Rc<Cell<bool>>,
    /// Whether a JUnit report was printed.
    has_report: Rc<Cell<bool>>,
    /// Results that are collected instead of printed. `None`: results are printed.
    held: Option<RefCell<Vec<(Value, String)>>>,
    listener: Option<Listener>,
    /// Whether the listener asked to stop.
    is_stopped: Rc<Cell<bool>>,
}

impl Printer {
    pub(super) fn new(format: Format, quiet: bool) -> Self {
        Self {
            format,
            quiet,
            verbose: false,
            rank: None,
            has_failed: Rc::default(),
            has_report: Rc::default(),
            held: None,
            listener: None,
            is_stopped: Rc::default(),
        }
    }

    /// Returns a printer that prints nothing: results are collected, everything else is passed to `listener`.
    #[cfg(feature = "python")]
    pub(super) fn for_listener(listener: Listener) -> Self {
        let listener = Some(listener);
        Self { held: Some(RefCell::default()), listener, ..Self::new(Format::Json, true) }
    }

    /// Passes progress to the listener. `None`: there is no listener, so the caller prints.
    fn notify(&self, progress: library::Progress<'_>) -> Option<ControlFlow<()>> {
        self.ask(Some(progress))
    }

    /// Asks the listener whether to continue. `None`: there is no listener.
    fn ask(&self, progress: Option<library::Progress<'_>>) -> Option<ControlFlow<()>> {
        let listener = self.listener.as_ref()?;
        if (listener.borrow_mut())(progress).is_break() {
            self.is_stopped.set(true);
        }
        Some(if self.is_stopped.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Passes progress that is not printed to the listener. Stops the stage if the listener asked for it.
    pub(super) fn pass(&self, progress: library::Progress<'_>) -> ControlFlow<()> {
        self.notify(progress).unwrap_or(ControlFlow::Continue(()))
    }

    /// Checks that the listener has not asked to stop. Called before outputs are written, which can't be undone.
    ///
    /// # Errors
    /// The listener asked to stop.
    pub(super) fn go_on(&self) -> Result<(), Error> {
        match self.ask(None) {
            Some(ControlFlow::Break(())) => Err(Error::unmet("cancelled").of_kind(library::ErrorKind::Cancelled)),
            _ => Ok(()),
        }
    }

    /// Sets whether lists are printed in full.
    pub(super) fn listing_all(self, verbose: bool) -> Self {
        Self { verbose, ..self }
    }

    /// Returns the printer for this rank.
    pub(super) fn of_rank(self, rank: usize) -> Self {
        match rank {
            0 => self,
            _ => Self { format: Format::Text, quiet: true, rank: Some(rank), ..self },
        }
    }

    /// Whether lists are printed in full.
    pub(super) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Whether results are printed as JSON.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Returns a printer that collects results, to be merged into one, and prints everything else.
    pub(super) fn holding(&self) -> Self {
        let Self { format, quiet, verbose, rank, .. } = *self;
        Self {
            format,
            quiet,
            verbose,
            rank,
            has_failed: self.has_failed.clone(),
            has_report: self.has_report.clone(),
            held: Some(RefCell::default()),
            listener: self.listener.clone(),
            is_stopped: self.is_stopped.clone(),
        }
    }

    /// Returns the collected results.
    pub(super) fn held(&self) -> Vec<(Value, String)> {
        self.held.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// Prints a result: as JSON, or the text that `text` returns.
    pub(super) fn result(&self, json: &impl Serialize, text: impl FnOnce() -> String) {
        if let Some(held) = &self.held {
            held.borrow_mut().push((serde_json::to_value(json).unwrap_or_default(), text()));
            return;
        }
        match self.format {
            Format::Json => self.json(json),
            Format::Text if self.quiet => {}
            Format::Text | Format::Junit => self.raw(&text()),
        }
    }

    /// Prints text to standard output in every format. A closed pipe is not an error.
    pub(super) fn raw(&self, text: &str) {
        if self.listener.is_some() {
            self.result(&text, String::new);
            return;
        }
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", screened(text.trim_end_matches('\n')));
    }

    /// Prints text in another file format to standard output, byte for byte. A closed pipe is not an error.
    pub(super) fn exact(&self, text: &str) {
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }

    /// Whether checks are printed as a JUnit report.
    pub(super) fn is_junit(&self) -> bool {
        self.format == Format::Junit
    }

    /// Prints checks as a JUnit report.
    pub(super) fn checks(&self, checks: &[Check]) {
        self.has_report.set(true);
        self.exact(&junit::document(checks));
    }

    /// Prints JSON to standard output. A closed pipe is not an error.
    fn json(&self, json: &impl Serialize) {
        let text = serde_json::to_string_pretty(json).unwrap_or_default();
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", in_json(&text));
    }

    /// Prints information to standard error before the result.
    pub(super) fn note(&self, text: &str) {
        if self.notify(library::Progress::Note(text)).is_none() && !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{}", screened(text));
        }
    }

    /// Prints warnings for the parts of a model's file that do not follow the ONNX format.
    pub(super) fn notes(&self, model: &Model) {
        model.notes().iter().for_each(|note| self.warning(note));
    }

    /// Prints a warning.
    pub(super) fn warning(&self, text: &str) {
        if self.notify(library::Progress::Warning(text)).is_none() && !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "warning: {}", indented(text));
        }
    }

    /// Prints an error with its causes and its hint, unless [`Printer::failure`] has printed it.
    pub(super) fn error(&self, error: &Error) {
        if self.has_failed.get() {
            return;
        }
        self.failure(json!({}), String::new, error);
    }

    /// Prints the results of a request that failed, with the error; in JSON as one object.
    pub(super) fn failure(&self, mut body: Value, text: impl FnOnce() -> String, error: &Error) {
        self.has_failed.set(true);
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
            if let (Some(held), true) = (&self.held, self.listener.is_some()) {
                held.borrow_mut().push((body, String::new()));
                return;
            }
            self.json(&body);
        } else if self.is_junit() {
            if !self.has_report.get() {
                self.exact(&junit::of_error(error));
            }
        } else if !self.quiet {
            let text = text();
            if !text.is_empty() {
                self.raw(&text);
            }
        }
        let mut out = std::io::stderr().lock();
        let of_rank = self.rank.map(|rank| format!("rank {rank}: ")).unwrap_or_default();
        let _ = writeln!(out, "error: {of_rank}{}", indented(&error.to_string()));
        if let Some(hint) = error.advice() {
            let _ = writeln!(out, "hint: {}", indented(hint));
        }
    }

    /// Returns progress over a number of steps: a bar on a terminal, else lines at intervals; nothing with `--quiet`.
    pub(super) fn progress(&self, steps: u64) -> Progress {
        if self.quiet { Progress::hidden() } else { Progress::new(steps, self.is_json()) }
    }
}

/// Prints progress and messages of the library.
pub(super) struct Watcher<'p> {
    printer: &'p Printer,
    text_of: fn(Stage) -> Option<&'static str>,
    shown: Option<(Stage, Progress)>,
    /// The progress shown before the first stage, while networks are differentiated and loaded.
    waiting: Option<Progress>,
}

impl<'p> Watcher<'p> {
    /// Returns a watcher that shows the stages for which `text_of` returns a text.
    pub(super) fn new(printer: &'p Printer, text_of: fn(Stage) -> Option<&'static str>) -> Self {
        let mut watcher = Self { printer, text_of, shown: None, waiting: None };
        watcher.wait("preparing");
        watcher
    }

    fn wait(&mut self, what: &'static str) {
        let progress = self.printer.progress(1);
        progress.at(0, what);
        self.waiting = Some(progress);
    }

    /// Hides the progress until the next message of the library.
    pub(super) fn rest(&mut self) {
        (self.shown, self.waiting) = (None, None);
    }

    /// Hides the progress while `print` prints.
    fn print(&self, print: impl FnOnce()) {
        match self.waiting.as_ref().or(self.shown.as_ref().map(|(_, progress)| progress)) {
            Some(progress) => progress.pause(print),
            None => print(),
        }
    }

    /// Prints a note above the progress.
    pub(super) fn note(&self, text: &str) {
        self.print(|| self.printer.note(text));
    }

    /// Prints, and never stops the library. With a listener, passes the progress on and returns its answer instead.
    pub(super) fn see(&mut self, progress: library::Progress<'_>) -> ControlFlow<()> {
        if let Some(answer) = self.printer.notify(progress) {
            return answer;
        }
        match progress {
            library::Progress::At { stage, done, total } => self.show(stage, done, total),
            library::Progress::Network(text) if !self.printer.is_json() => self.print(|| self.printer.note(text)),
            library::Progress::Note(text) => self.print(|| self.printer.note(text)),
            library::Progress::Warning(text) => self.print(|| self.printer.warning(text)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, stage: Stage, done: usize, total: usize) {
        let Some(text) = (self.text_of)(stage) else {
            self.rest();
            if stage == Stage::Scoring {
                self.wait("scoring channels");
            }
            return;
        };
        self.waiting = None;
        if self.shown.as_ref().is_none_or(|(before, _)| *before != stage) {
            self.shown = None;
            self.shown = Some((stage, self.printer.progress(total as u64)));
        }
        if let Some((_, progress)) = &self.shown {
            progress.at(done as u64, text);
        }
    }
}

/// Escapes all control characters except line ends.
pub(super) fn screened(text: &str) -> Cow<'_, str> {
    let is_plain = text.lines().all(|line| matches!(printable(line), Cow::Borrowed(_)));
    match is_plain && !text.contains('\r') {
        true => Cow::Borrowed(text),
        false => text.split('\n').map(printable).collect::<Vec<_>>().join("\n").into(),
    }
}

/// Escapes control characters in one message, and indents all lines but the first, so that no name can pass for a
/// message.
fn indented(text: &str) -> String {
    screened(text).replace('\n', "\n  ")
}

/// Escapes control characters in JSON. They occur only within its strings.
fn in_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push(c),
            c if matches!(printable(c.encode_utf8(&mut [0; 4])), Cow::Owned(_)) => {
                safe.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Formats a number with a unit prefix, `35.75 M`.
pub(super) fn human(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(size, _)| value.abs() >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", value / size),
        None => format!("{value:.0}"),
    }
}

/// Formats a number of bytes with a unit, `459.26 kB` or `128 B`.
pub(super) fn bytes_text(bytes: f64) -> String {
    if bytes.abs() < 1e3 { format!("{bytes:.0} B") } else { format!("{}B", human(bytes)) }
}

/// Formats a share in per cent.
pub(super) fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "-".to_owned() }
}

/// Joins words with commas, in lines of at most 100 characters with an indentation of two.
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

/// Formats a table with a header. Columns of numbers are aligned to the right, others to the left.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_names_are_escaped() {
        assert_eq!(screened("a\nb"), "a\nb");
        assert_eq!(screened("a\u{1b}]0;x\u{7}\nb\r"), "a\\u{1b}]0;x\\u{7}\nb\\r");
        assert_eq!(indented("node a\nerror: b"), "node a\n  error: b");
        let rows = [vec!["a\nb".to_owned(), "1".to_owned()]];
        assert!(table(&["name", "count"], &rows).contains("a\\nb"));
    }

    #[test]
    fn escaped_json_is_valid_and_unchanged() {
        let name = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}\nb";
        let text = in_json(&serde_json::to_string_pretty(&serde_json::json!({ "name": name })).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["name"], name);
    }
}
