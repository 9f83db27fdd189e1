//! Reports: HTML pages that need nothing else.
//!
//! Of a cut: before and after, losses and samples of the refit, the loss over timesteps with the threshold, the importance of every
//! channel group, kept channels per layer, the result of verification, and the command.

mod evaluation;

mod page;

mod plots;

mod refit;

use std::path::Path;

pub use evaluation::{EvaluationPage, FigureTable};

use crate::error::Error;
use crate::gradient::accumulate::LossPoint;
use crate::plan::Plan;
use crate::prune::RefitReport;
use crate::verify::VerifyReport;

/// What a report shows.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The pruned network's name.
    pub title: String,
    /// Program and version.
    pub tool: String,
    /// The command line, as it can be run again.
    pub command: String,
    /// Quantities before and after: name, before, after, share that is kept.
    pub costs: Vec<[String; 4]>,
    /// The plan of the cut.
    pub plan: &'a Plan,
    /// The channel ratio that was used.
    pub ratio: f64,
    /// Losses over timesteps, where the criterion takes gradients.
    pub losses: Option<Losses<'a>>,
    /// How the weights were fitted, if they were.
    pub refit: Option<&'a RefitReport>,
    /// The result of verification, if it ran.
    pub verification: Option<&'a VerifyReport>,
    /// Things that the user should know.
    pub warnings: &'a [String],
}

/// The loss at every timestep that was visited.
#[derive(Clone, Debug)]
pub struct Losses<'a> {
    /// The losses in the order of the timesteps.
    pub curve: &'a [LossPoint],
    /// Share of the largest loss below which timesteps do not count; zero where all do.
    pub threshold: f64,
    /// What was taken for what, where samples come from, one line each.
    pub lines: Vec<String>,
}

impl Report<'_> {
    /// Writes the page.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, self.html().as_bytes())
    }

    /// The page.
    pub fn html(&self) -> String {
        page::html(self)
    }
}
