//! How good a network is in the middle of a run: its denoising loss on samples that it was not trained on, and what it draws
//! from fixed noise.

use std::path::Path;

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use super::super::progress::Watch;
use super::super::refit::judge::Judge;
use super::weights::TunedWeights;
use crate::diffusion::Samples;
use crate::error::Error;
use crate::files::TemporaryFolder;
use crate::graph::model::Model;
use crate::load::load;

/// A network judged at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepEvaluation {
    /// Steps that were made.
    pub step: u64,
    /// The denoising loss, the mean over the timesteps.
    pub loss: f64,
    /// The timesteps with their losses.
    pub losses: Vec<(f64, f64)>,
    /// What the network drew, one sample per row; in its own file.
    #[serde(skip)]
    pub drawn: Option<ArrayD<f32>>,
}

/// What judges the networks of a run.
pub(super) struct Evaluator<'a> {
    pub(super) judge: Judge<'a>,
    pub(super) held_out: Option<&'a Samples>,
    pub(super) pictures: usize,
    /// Where the network that is judged lies meanwhile.
    pub(super) folder: &'a Path,
}

impl Evaluator<'_> {
    /// Whether there is anything to judge by.
    pub(super) fn is_of_use(&self) -> bool {
        self.held_out.is_some() || self.pictures > 0
    }

    /// Judges a network.
    ///
    /// # Errors
    /// The network fails; the caller stopped.
    pub(super) fn of_model(&self, step: u64, model: &Model, watch: &mut Watch<'_>) -> Result<StepEvaluation, Error> {
        let judged = self.judge.judge(model, self.held_out, self.pictures, watch)?;
        let count = judged.losses.len().max(1) as f64;
        let loss = judged.losses.iter().map(|(_, loss)| loss).sum::<f64>() / count;
        Ok(StepEvaluation { step, loss, losses: judged.losses, drawn: judged.drawn })
    }

    /// Judges a network with these weights: as the file that would be written, rounded to its precision.
    ///
    /// # Errors
    /// As [`Evaluator::of_model`].
    pub(super) fn of_weights(
        &self,
        step: u64,
        model: &Model,
        weights: &TunedWeights,
        watch: &mut Watch<'_>,
    ) -> Result<StepEvaluation, Error> {
        let edits = weights.edits(model)?;
        let unwritable = |error: std::io::Error| Error::io(model.path(), error.to_string());
        let folder = TemporaryFolder::inside(self.folder).map_err(unwritable)?;
        let path = folder.path().join("network.onnx");
        crate::write::write(model, &edits, &path)?;
        self.of_model(step, &load(&path)?, watch)
    }
}
