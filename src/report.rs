//! Reports: HTML pages that need nothing else.
//!
//! Of a cut: samples from the same noise, costs, a drawing of the network in blocks and levels, losses by timestep, operations
//! and times by block, channel groups with their importance, the result of verification, and what was used. Of a training and
//! of an evaluation: the same as far as they have it.

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
    /// What original, cut, refitted and tuned network draw.
    pub drawings: Drawings,
    /// The plan of the cut.
    pub plan: &'a Plan,
    /// The network in blocks.
    pub outline: Option<&'a Outline>,
    /// How long the blocks take, where it was measured.
    pub block_times: Option<&'a BlockTimes>,
    /// The channel ratio that was used.
    pub ratio: f64,
    /// Losses over timesteps, where the criterion takes gradients.
    pub losses: Option<Losses<'a>>,
    /// Original and cut by the same measure, where nothing was fitted.
    pub judged: Option<&'a CutJudgement>,
    /// How the weights were fitted, if they were.
    pub refit: Option<&'a RefitReport>,
    /// How the weights were trained, if they were.
    pub training: Option<&'a FinetuneReport>,
    /// The result of verification, if it ran.
    pub verification: Option<&'a VerifyReport>,
    /// Things that the user should know.
    pub warnings: &'a [String],
    /// What was used: names and what they stand for.
    pub used: Vec<[String; 2]>,
}

/// What networks draw from the same noise.
#[derive(Clone, Debug, Default)]
pub struct Drawings {
    /// One for each network.
    pub of: Vec<Drawing>,
    /// What the losses beside them are.
    pub loss_name: String,
    /// What they show, or why there are none, one line each.
    pub lines: Vec<String>,
}

/// Latents that are shown, each as a row of its channels.
const LATENTS: usize = 4;

/// What one network draws.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Which network it is.
    pub name: String,
    /// A PNG file.
    pub png: Vec<u8>,
    /// Its loss, where that was measured.
    pub loss: Option<f64>,
}

impl Drawings {
    /// Adds what a network draws, `[count, ...]`, with the values that become black and white. Of what is no image a line says
    /// so.
    pub fn add(&mut self, name: &str, (values, range): (&ArrayD<f32>, (f64, f64)), loss: Option<f64>) {
        let channels = values.shape().get(1).copied().unwrap_or(0);
        let is_latent = values.ndim() == 4 && !matches!(channels, 1 | 3);
        let most = if is_latent { LATENTS } else { usize::MAX };
        let shown = values.slice_axis(Axis(0), Slice::from(..values.len_of(Axis(0)).min(most)));
        // A cut that draws noise may draw what is no number.
        let finite = shown.mapv(|value| if value.is_finite() { value } else { range.0 as f32 });
        let line = match grid_png(&finite, range) {
            Ok(png) => {
                self.of.push(Drawing { name: name.to_owned(), png, loss });
                is_latent.then(|| {
                    format!("Latents, not images: a row for each sample, a tile for each of its {channels} channels.")
                })
            }
            Err(_) => Some(format!(
                "No samples are shown: the network draws values of shape {:?}, which are no images.",
                values.shape().get(1..).unwrap_or_default()
            )),
        };
        self.lines.extend(line.filter(|line| !self.lines.contains(line)));
        if self.loss_name.is_empty() {
            self.loss_name = "denoising loss".to_owned();
        }
    }
}

/// What the page of a training shows.
#[derive(Clone, Debug)]
pub struct TrainingPage<'a> {
    /// The title.
    pub title: String,
    /// Program and version.
    pub tool: String,
    /// The command line, as it can be run again.
    pub command: String,
    /// What teacher, network and tuned network draw.
    pub drawings: Drawings,
    /// How the training went.
    pub report: &'a FinetuneReport,
    /// The cut of the teacher that the network is, where that is known.
    pub cut: Option<(&'a Plan, &'a Outline)>,
    /// What was used: names and what they stand for.
    pub used: Vec<[String; 2]>,
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
