//! Evaluates a network during a run: its denoising loss on held-out samples, and its samples from fixed noise.

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

/// The evaluation of a network at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepEvaluation {
    /// Number of steps that were made.
    pub step: u64,
    /// The denoising loss, averaged over the timesteps.
    pub loss: f64,
    /// The timesteps with their losses.
    pub losses: Vec<(f64, f64)>,
    /// The samples that the network generated, one per row; stored in another file. `None`: none were generated.
    #[serde(skip)]
    pub drawn: Option<ArrayD<f32>>,
}

/// Evaluates the networks of a run.
pub(super) struct Evaluator<'a> {
    pub(super) judge: Judge<'a>,
    pub(super) held_out: Option<&'a Samples>,
    pub(super) pictures: usize,
    /// The folder for the temporary file of the network.
    pub(super) folder: &'a Path,
}

impl Evaluator<'_> {
    /// Returns whether there is anything to evaluate.
    pub(super) fn has_work(&self) -> bool {
        self.held_out.is_some() || self.pictures > 0
    }

    /// Evaluates a network.
    ///
    /// # Errors
    /// Fails if the network fails, or if the caller stopped.
    pub(super) fn of_model(&self, step: u64, model: &Model, watch: &mut Watch<'_>) -> Result<StepEvaluation, Error> {
        let judged = self.judge.judge(model, self.held_out, self.pictures, watch)?;
        let count = judged.losses.len().max(1) as f64;
        let loss = judged.losses.iter().map(|(_, loss)| loss).sum::<f64>() / count;
        Ok(StepEvaluation { step, loss, losses: judged.losses, drawn: judged.drawn })
    }

    /// Evaluates a network with these weights, rounded to the precision of the file that would be written.
    ///
    /// # Errors
    /// Same as [`Evaluator::of_model`].
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
