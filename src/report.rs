//! HTML reports: single pages without external files.
//!
//! The report of a cut has samples from the same noise, costs, a drawing of the network in blocks and levels, losses by
//! timestep, MACs and latency by block, channel groups with their importance, the result of verification, and what was
//! used. The reports of a training and of an evaluation have the same parts as far as they apply.

mod blocks;

mod drawing;

mod evaluation;

mod page;

mod plots;

mod refit;

mod style;

mod training;

mod verification;

use std::path::Path;

use ndarray::{ArrayD, Axis, Slice};

pub use evaluation::{EvaluationPage, FigureTable};

use crate::diffusion::grid_png;
use crate::error::Error;
use crate::gradient::accumulate::LossPoint;
use crate::plan::Plan;
use crate::prune::{BlockTimes, CutJudgement, FinetuneReport, Outline, RefitReport};
use crate::verify::VerifyReport;

/// The contents of the report of a cut.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The title: the name of the pruned network.
    pub title: String,
    /// Program and version.
    pub tool: String,
    /// The command line, as it can be run again.
    pub command: String,
    /// The costs: name, value before, value after, share that is kept.
    pub costs: Vec<[String; 4]>,
    /// Samples of the original, cut, refitted and fine-tuned network.
    pub drawings: Drawings,
    /// The plan of the cut.
    pub plan: &'a Plan,
    /// The network in blocks. `None`: not shown.
    pub outline: Option<&'a Outline>,
    /// The latency of the blocks. `None`: not measured.
    pub block_times: Option<&'a BlockTimes>,
    /// The ratio of removed channels.
    pub ratio: f64,
    /// The losses by timestep. `None`: the criterion computes no gradients.
    pub losses: Option<Losses<'a>>,
    /// Losses and samples of original and cut. `None`: the cut was refitted, or it was not evaluated.
    pub judged: Option<&'a CutJudgement>,
    /// The report of the refit. `None`: there was none.
    pub refit: Option<&'a RefitReport>,
    /// The report of the training. `None`: there was none.
    pub training: Option<&'a FinetuneReport>,
    /// The result of verification. `None`: it was not run.
    pub verification: Option<&'a VerifyReport>,
    /// Warnings.
    pub warnings: &'a [String],
    /// What was used: names and values.
    pub used: Vec<[String; 2]>,
}

/// Samples of networks from the same noise.
#[derive(Clone, Debug, Default)]
pub struct Drawings {
    /// The samples of each network.
    pub of: Vec<Drawing>,
    /// The name of the losses shown with the samples.
    pub loss_name: String,
    /// What the images show, or why there are none, one line each.
    pub lines: Vec<String>,
}

/// Number of latent samples to show; each is a row with one tile per channel.
const LATENTS: usize = 4;

/// The samples of one network.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// The name of the network.
    pub name: String,
    /// The samples as a PNG file.
    pub png: Vec<u8>,
    /// The loss of the network. `None`: not measured.
    pub loss: Option<f64>,
}

impl Drawings {
    /// Adds the samples of a network, `[count, ...]`; `range` holds the values of black and white. If the samples are no
    /// images, a line reports that instead.
    pub fn add(&mut self, name: &str, (values, range): (&ArrayD<f32>, (f64, f64)), loss: Option<f64>) {
        let channels = values.shape().get(1).copied().unwrap_or(0);
        let is_latent = values.ndim() == 4 && !matches!(channels, 1 | 3);
        let most = if is_latent { LATENTS } else { usize::MAX };
        let shown = values.slice_axis(Axis(0), Slice::from(..values.len_of(Axis(0)).min(most)));
        // The samples of a cut without refit may contain values that are not finite.
        let finite = shown.mapv(|value| if value.is_finite() { value } else { range.0 as f32 });
        let line = match grid_png(&finite, range) {
            Ok(png) => {
                self.of.push(Drawing { name: name.to_owned(), png, loss });
                is_latent.then(|| {
                    format!(
                        "The samples are latents, not images: one row per sample, one tile per channel ({channels})."
                    )
                })
            }
            Err(_) => Some(format!(
                "No samples: the network generates values of shape {:?}, which are no images.",
                values.shape().get(1..).unwrap_or_default()
            )),
        };
        self.lines.extend(line.filter(|line| !self.lines.contains(line)));
        if self.loss_name.is_empty() {
            self.loss_name = "denoising loss".to_owned();
        }
    }
}

/// The contents of the report of a training.
#[derive(Clone, Debug)]
pub struct TrainingPage<'a> {
    /// The title.
    pub title: String,
    /// Program and version.
    pub tool: String,
    /// The command line, as it can be run again.
    pub command: String,
    /// Samples of the teacher, and of the network before and after training.
    pub drawings: Drawings,
    /// The report of the training.
    pub report: &'a FinetuneReport,
    /// The cut of the teacher that produced the network. `None`: the plan is not known.
    pub cut: Option<(&'a Plan, &'a Outline)>,
    /// What was used: names and values.
    pub used: Vec<[String; 2]>,
}

/// The loss at every timestep that was evaluated.
#[derive(Clone, Debug)]
pub struct Losses<'a> {
    /// The losses in the order of the timesteps.
    pub curve: &'a [LossPoint],
    /// Share of the largest loss below which timesteps are not used; zero: all are used.
    pub threshold: f64,
    /// The roles of inputs and outputs, the process and the source of the samples, one line each.
    pub lines: Vec<String>,
}

impl Report<'_> {
    /// Writes the page to a file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, self.html().as_bytes())
    }

    /// Returns the page as HTML.
    pub fn html(&self) -> String {
        page::html(self)
    }
}
