//! The page of an evaluation: figures, losses by timestep, the trade-off, and samples side by side.

use std::fmt::Write;
use std::path::Path;

use super::page::{escape, head, pictures};
use super::plots::{Curve, colour, curves_over_time, key, trade_off};
use crate::error::Error;
use crate::prune::Evaluation;

/// A table of figures.
#[derive(Clone, Debug)]
pub struct FigureTable {
    /// What it shows.
    pub title: String,
    /// The names of the columns.
    pub header: Vec<String>,
    /// A row for every network, its name first.
    pub rows: Vec<Vec<String>>,
}

/// What the page of an evaluation shows.
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
    /// On what was measured, one line each.
    pub lines: Vec<String>,
    /// Which networks do not reach the limits that were asked for, if limits were and some do not.
    pub failure: Option<String>,
}

impl EvaluationPage<'_> {
    /// Writes the page.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, self.html().as_bytes())
    }

    /// The page.
    pub fn html(&self) -> String {
        let mut page = head(&self.title);
        let _ = writeln!(page, "<p><span class='soft'>{}</span></p>", escape(&self.tool));
        if let Some(failure) = &self.failure {
            let text = escape(failure).replace('\n', "<br>");
            let _ = writeln!(page, "<p><span class='badge bad'>limits not reached</span> {text}</p>");
        }
        for table in &self.tables {
            page += &html_of(table);
        }
        page += &self.plots();
        page += &self.samples();
        let notes: String = self.evaluation.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        if !notes.is_empty() {
            let _ = writeln!(page, "<h2>Notes</h2>\n<ul>{notes}</ul>");
        }
        let _ = writeln!(page, "<h2>Measured on</h2>\n<pre>{}</pre>", escape(&self.lines.join("\n")));
        let _ = writeln!(page, "<h2>Command</h2>\n<pre>{}</pre>", escape(&self.command));
        page + "</body></html>\n"
    }

    fn plots(&self) -> String {
        let names = || key(self.names.iter().map(String::as_str));
        let classes: Vec<String> = (0..self.names.len()).map(colour).collect();
        // The original lies over the others.
        let mut curves: Vec<Curve<'_>> =
            self.evaluation.all().zip(&classes).map(|(of, class)| ("", class.as_str(), of.losses.as_slice())).collect();
        curves.reverse();
        let mut text = format!(
            "<h2>Denoising loss by timestep</h2>\n{}{}\n",
            names(),
            curves_over_time(&self.evaluation.timesteps, &curves)
        );
        if self.evaluation.networks.len() > 1 {
            let points: Vec<(f64, f64)> = self.evaluation.all().map(|of| (of.cost.macs, of.mean_loss)).collect();
            let _ = writeln!(text, "<h2>Loss against operations</h2>\n{}{}", names(), trade_off(&points));
        }
        text
    }

    fn samples(&self) -> String {
        let drawn = self.evaluation.all().zip(&self.names);
        let drawn = drawn.filter_map(|(of, name)| Some((name.as_str(), of.picture.as_deref()?)));
        let drawn: Vec<(&str, &[u8])> = drawn.collect();
        if drawn.is_empty() {
            return String::new();
        }
        format!("<h2>Samples from the same noise</h2>\n{}", pictures(&drawn))
    }
}

fn html_of(table: &FigureTable) -> String {
    let class = |column: usize| if column == 0 { "name" } else { "n" };
    let mut text = format!("<h2>{}</h2>\n<table><tr>", escape(&table.title));
    for (column, name) in table.header.iter().enumerate() {
        let _ = write!(text, "<th class='{}'>{}</th>", class(column), escape(name));
    }
    text += "</tr>\n";
    for row in &table.rows {
        text += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(text, "<td class='{}'>{}</td>", class(column), escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</table>\n"
}
