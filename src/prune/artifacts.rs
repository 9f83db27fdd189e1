//! Artifacts for training sessions of ONNX Runtime.

use std::path::{Path, PathBuf};

use regex::Regex;

use super::model::Analysis;
use super::progress::{Progress, Stage, Watch, notify};
use crate::error::Error;
use crate::graph::sizes::Sizes;
use crate::training::{Artifacts, TrainingOptions, trained_weights};

/// The trained weights and the loss of a training session.
#[derive(Clone, Debug, Default)]
pub struct ArtifactOptions {
    /// Sizes of symbolic dimensions. The artifacts fix them.
    pub sizes: Sizes,
    /// The output that the loss compares with the target. `None`: the first.
    pub prediction: Option<String>,
    /// The number of the prediction's channels that the loss compares, starting with the first. `None`: all.
    pub channels: Option<i64>,
    /// The floating point constants whose name matches one of these are trained. If empty, the weights of all channel
    /// groups and their biases are trained.
    pub trained: Vec<Regex>,
}

/// The artifacts that were written for a training session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WrittenArtifacts {
    /// Training model, eval model, optimizer model and checkpoint.
    pub files: Vec<PathBuf>,
    /// The inputs of every step, in this order.
    pub inputs: Vec<String>,
    /// The shape of the target.
    pub target_shape: Vec<i64>,
    /// The names of the trained weights.
    pub trained: Vec<String>,
    /// The number of trained elements.
    pub trained_elements: u64,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl Analysis {
    /// Writes the artifacts that a training session of ONNX Runtime loads. Creates the folder if it does not exist.
    ///
    /// # Errors
    /// Fails for an operator without a gradient, if no weight can be trained, if the folder can't be written, or if the
    /// caller stopped.
    pub fn write_artifacts(
        &self,
        folder: &Path,
        options: &ArtifactOptions,
        watch: &mut Watch<'_>,
    ) -> Result<WrittenArtifacts, Error> {
        let sizes = self.sizes(&options.sizes)?;
        notify(watch, Progress::At { stage: Stage::Gradients, done: 0, total: 1 })?;
        let options = TrainingOptions {
            sizes,
            prediction: options.prediction.clone(),
            channels: options.channels,
            trained: trained_weights(&self.0, &options.trained)?,
            outputs_gradients: false,
        };
        let artifacts = Artifacts::build(&self.0, &options)?;
        notify(watch, Progress::At { stage: Stage::Gradients, done: 1, total: 1 })?;
        Ok(WrittenArtifacts {
            files: artifacts.write(&self.0, folder)?,
            trained_elements: artifacts.trained_elements(),
            trained: artifacts.parameters.into_iter().map(|parameter| parameter.name).collect(),
            inputs: artifacts.inputs,
            target_shape: artifacts.target_shape,
            warnings: artifacts.warnings,
        })
    }
}
