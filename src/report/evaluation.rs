//! The page of an evaluation: figures, losses by timestep, loss against MACs, and samples side by side.

use std::fmt::Write;
use std::path::Path;

use super::page::figures;
use super::plots::{Curve, colour, curves_over_time, key, trade_off};
use super::style::{END, escape, head, list, pictures};
use crate::error::Error;
use crate::prune::Evaluation;

/// A table of figures.
#[derive(Clone, Debug)]
pub struct FigureTable {
    /// The title.
    pub title: String,
    /// The names of the columns.
    pub header: Vec<String>,
    /// A row for every network; the first cell is its name.
    pub rows: Vec<Vec<String>>,
}

/// The contents of the page of an evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationPage<'a> {
    /// The title.
    pub title: String,
    /// Program and version.
    pub tool: String,
    /// The command line, as it can be run again.
    pub command: String,
    /// The evaluation.
    pub evaluation: &'a Evaluation,
    /// The names of the networks, the original first.
    pub names: Vec<String>,
    /// The figures.
    pub tables: Vec<FigureTable>,
    /// The samples, noise and sizes of the measurements, one line each.
    pub lines: Vec<String>,
    /// The networks that do not meet the limits. `None`: all do, or no limits are given.
    pub failure: Option<String>,
}

impl EvaluationPage<'_> {
    /// Writes the page to a file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, self.html().as_bytes())
    }

    /// Returns the page as HTML.
    pub fn html(&self) -> String {
        let mut page = head(&self.title);
        let _ = writeln!(page, "<p class='soft'>{}</p>", escape(&self.tool));
        if let Some(failure) = &self.failure {
            let text = escape(failure).replace('\n', "<br/>");
            let _ = writeln!(page, "<p><span class='badge bad'>limits not met</span> {text}</p>");
        }
        page += &self.samples();
        for FigureTable { title, header, rows } in &self.tables {
            let _ = write!(page, "<h2>{}</h2>\n{}", escape(title), figures(title, header, rows));
        }
        page += &self.plots();
        page += &list("Notes", &self.evaluation.notes);
        let _ = writeln!(page, "<h2>How it was measured</h2>\n<pre>{}</pre>", escape(&self.lines.join("\n")));
        let _ = writeln!(page, "<h2>Command</h2>\n<pre>{}</pre>", escape(&self.command));
        page + END
    }

    fn plots(&self) -> String {
        let names = || key(self.names.iter().map(String::as_str));
        let classes: Vec<String> = (0..self.names.len()).map(colour).collect();
        // The original is drawn last, on top of the others.
        let mut curves: Vec<Curve<'_>> =
            self.evaluation.all().zip(&classes).map(|(of, class)| ("", class.as_str(), of.losses.as_slice())).collect();
        curves.reverse();
        let mut text = format!(
            "<h2>Denoising loss by timestep</h2>\n{}<figure>{}</figure>\n",
            names(),
            curves_over_time(("timestep t", "Losses over timesteps"), &self.evaluation.timesteps, &curves)
        );
        if self.evaluation.networks.len() > 1 {
            let points: Vec<(f64, f64)> = self.evaluation.all().map(|of| (of.cost.macs, of.mean_loss)).collect();
            let _ = writeln!(text, "<h2>Loss against MACs</h2>\n{}<figure>{}</figure>", names(), trade_off(&points));
        }
        text
    }

    fn samples(&self) -> String {
        let first = self.evaluation.original.mean_loss;
        let drawn: Vec<(&str, &[u8], String)> = self
            .evaluation
            .all()
            .zip(&self.names)
            .enumerate()
            .filter_map(|(at, (of, name))| {
                let above = if at > 0 { format!(" ({:+.4})", of.mean_loss - first) } else { String::new() };
                let note = format!("<br/><span class='soft'>denoising loss {:.4}{above}</span>", of.mean_loss);
                Some((name.as_str(), of.picture.as_deref()?, note))
            })
            .collect();
        if drawn.is_empty() {
            return String::new();
        }
        format!("<h2>Samples from the same noise</h2>\n{}", pictures(drawn.into_iter()))
    }
}
