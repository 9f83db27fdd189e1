//! The artifacts of a training session.

use std::path::{Path, PathBuf};

use regex::Regex;

use super::model::Analysis;
use super::progress::{Progress, Stage, Watch, tell};
use crate::error::Error;
use crate::graph::sizes::Sizes;
use crate::training::{Artifacts, TrainingOptions, trained_weights};

/// What is trained, and on which loss.
#[derive(Clone, Debug, Default)]
pub struct ArtifactOptions {
    /// Sizes of symbolic dimensions, which the artifacts fix.
    pub sizes: Sizes,
    /// The output that the loss compares with the target; the first where `None`.
    pub prediction: Option<String>,
    /// How many of the prediction's channels the loss compares, from the first on; all where `None`.
    pub channels: Option<i64>,
    /// The floating point constants whose name matches one of these are trained; the weights of all channel groups with
    /// their biases where there is none.
    pub trained: Vec<Regex>,
}

/// What was written for a training session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WrittenArtifacts {
    /// Training model, eval model, optimizer model and checkpoint.
    pub files: Vec<PathBuf>,
    /// What every step is given, in this order.
    pub inputs: Vec<String>,
    /// The shape of the target.
    pub target_shape: Vec<i64>,
    /// The names of the trained weights.
    pub trained: Vec<String>,
    /// The number of trained elements.
    pub trained_elements: u64,
    /// Things that the user should know.
    pub warnings: Vec<String>,
}

impl Analysis {
    /// Writes what a training session of ONNX Runtime loads into a folder, which is made where there is none.
    ///
    /// # Errors
    /// An operator without a gradient, nothing that can be trained, a folder that can't be written; the caller stopped.
    pub fn write_artifacts(
        &self,
        folder: &Path,
        options: &ArtifactOptions,
        watch: &mut Watch<'_>,
    ) -> Result<WrittenArtifacts, Error> {
        let sizes = self.sizes(&options.sizes)?;
        tell(watch, Progress::At { stage: Stage::Gradients, done: 0, total: 1 })?;
        let options = TrainingOptions {
            sizes,
            prediction: options.prediction.clone(),
            channels: options.channels,
            trained: trained_weights(&self.0, &options.trained)?,
            gives_gradients: false,
        };
        let artifacts = Artifacts::build(&self.0, &options)?;
        tell(watch, Progress::At { stage: Stage::Gradients, done: 1, total: 1 })?;
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
