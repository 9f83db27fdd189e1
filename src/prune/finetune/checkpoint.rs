//! Checkpoints of a run store weights, optimizer state and moving average as safetensors. A run that was killed resumes
//! from one and arrives at the same weights as an uninterrupted run.
//!
//! `step-000123.safetensors` holds `weight/NAME`, `first/NAME`, `second/NAME` and `average/NAME` of every weight, and
//! `best/NAME` of the best network so far. The metadata entry `run` describes everything else in JSON. A file appears
//! under its name only when it is complete.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, View};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use super::evaluation::StepEvaluation;
use super::run::Best;
use super::settings::FinetuneSettings;
use crate::error::Error;
use crate::files::{map, write_file};
use crate::finetune::graph::TrainedWeight;
use crate::finetune::optimizer::WeightState;
use crate::finetune::trainer::TrainerState;

/// The entry of the metadata that describes the run.
const RUN: &str = "run";

/// The checkpoints of a run.
pub(super) struct Checkpoints<'a> {
    folder: &'a Path,
    keep: usize,
    resumes: bool,
    weights: Arc<Vec<TrainedWeight>>,
    fingerprint: String,
}

/// The content of a checkpoint besides its tensors.
#[derive(Serialize, Deserialize)]
struct Described {
    fingerprint: String,
    step: u64,
    skipped: u64,
    evaluations: Vec<StepEvaluation>,
    best: Option<(u64, f64)>,
}

/// The state of a run that is resumed.
pub(super) struct Saved {
    pub(super) state: TrainerState,
    pub(super) evaluations: Vec<StepEvaluation>,
    pub(super) best: Option<Best>,
}

/// The elements of a tensor.
struct Floats<'v> {
    dims: &'v [usize],
    values: &'v [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

impl<'a> Checkpoints<'a> {
    pub(super) fn new(
        settings: &'a FinetuneSettings,
        (weights, features): (&Arc<Vec<TrainedWeight>>, &[String]),
    ) -> Result<Self, Error> {
        std::fs::create_dir_all(&settings.folder)
            .map_err(|error| Error::io(&settings.folder, format!("can't be created as a folder: {error}")))?;
        let fingerprint = fingerprint(settings, weights, features);
        let (folder, keep) = (settings.folder.as_path(), settings.keep_checkpoints);
        Ok(Self { folder, keep, resumes: settings.resume, weights: weights.clone(), fingerprint })
    }

    /// Returns the checkpoints in the folder and their steps, in ascending order.
    fn files(&self) -> Vec<(u64, PathBuf)> {
        let entries = std::fs::read_dir(self.folder).into_iter().flatten().filter_map(Result::ok);
        let mut files: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let step = name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        files.sort_unstable();
        files
    }

    /// Saves the state after the last step, and removes all but the newest checkpoints.
    ///
    /// # Errors
    /// Fails if the file can't be written.
    pub(super) fn save(
        &self,
        state: TrainerState,
        evaluations: &[StepEvaluation],
        best: Option<&Best>,
    ) -> Result<(), Error> {
        let described = Described {
            fingerprint: self.fingerprint.clone(),
            step: state.step,
            skipped: state.skipped,
            evaluations: evaluations.to_vec(),
            best: best.map(|best| (best.step, best.loss)),
        };
        let path = self.folder.join(format!("step-{:06}.safetensors", state.step));
        let fail = |error: String| Error::io(&path, error);
        let text = serde_json::to_string(&described).map_err(|error| fail(error.to_string()))?;
        let mut tensors: Vec<(String, Floats<'_>)> = Vec::new();
        for (at, weight) in self.weights.iter().enumerate() {
            let WeightState { first, second, average } = &state.states[at];
            let parts = [("weight", &state.weights[at]), ("first", first), ("second", second), ("average", average)];
            let best = best.map(|best| ("best", &best.values[at]));
            let parts = parts.into_iter().chain(best).filter(|(_, values)| values.len() == weight.elements());
            tensors.extend(
                parts.map(|(kind, values)| (format!("{kind}/{}", weight.name), Floats { dims: &weight.dims, values })),
            );
        }
        let metadata = Some(HashMap::from([(RUN.to_owned(), text)]));
        let content = serialize(tensors, metadata).map_err(|error| fail(error.to_string()))?;
        write_file(&path, &content)?;
        let files = self.files();
        for (_, old) in files.iter().take(files.len().saturating_sub(self.keep)) {
            // A checkpoint that can't be removed only takes space.
            let _ = std::fs::remove_file(old);
        }
        Ok(())
    }

    /// Returns whether the run is to be resumed, but there is no checkpoint.
    pub(super) fn lacks_checkpoint(&self) -> bool {
        self.resumes && self.files().is_empty()
    }

    /// Returns the last checkpoint, if the run is to be resumed and there is one.
    ///
    /// # Errors
    /// Fails if it can't be read, or belongs to another run.
    pub(super) fn resumed(&self) -> Result<Option<Saved>, Error> {
        match self.files().last() {
            Some((_, path)) if self.resumes => self.read(path).map(Some),
            _ => Ok(None),
        }
    }

    fn read(&self, path: &Path) -> Result<Saved, Error> {
        let fail = |text: String| Error::unreadable(path, text);
        let file = map(path).map_err(|error| fail(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(|error| fail(error.to_string()))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|error| fail(error.to_string()))?;
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get(RUN));
        let text = text.ok_or_else(|| {
            fail("expected a checkpoint of a fine-tuning run, found a file without its metadata".to_owned())
        })?;
        let described: Described = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        if described.fingerprint != self.fingerprint {
            return Err(Error::usage(
                "--resume: the checkpoint belongs to a run with another network, other data or other settings",
            )
            .in_file(path)
            .hint("use the settings of that run, or start again without --resume"));
        }
        let values = |kind: &str, weight: &TrainedWeight| {
            let name = format!("{kind}/{}", weight.name);
            let tensor = tensors.tensor(&name).ok()?;
            (tensor.dtype() == Dtype::F32 && tensor.shape() == weight.dims).then(|| {
                let (chunks, _) = tensor.data().as_chunks::<4>();
                chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
            })
        };
        let needed = |kind: &str, weight: &TrainedWeight| {
            values(kind, weight).ok_or_else(|| {
                fail(format!("expected float32 tensor {kind}/{} with the shape of the weight, found none", weight.name))
            })
        };
        let mut state = TrainerState { step: described.step, skipped: described.skipped, ..TrainerState::default() };
        let mut best = Vec::new();
        for weight in self.weights.iter() {
            state.weights.push(needed("weight", weight)?);
            let average = values("average", weight).unwrap_or_default();
            state.states.push(WeightState {
                first: needed("first", weight)?,
                second: needed("second", weight)?,
                average,
            });
            best.extend(described.best.map(|_| needed("best", weight)).transpose()?);
        }
        let best = described.best.map(|(step, loss)| Best { step, loss, values: best });
        Ok(Saved { state, evaluations: described.evaluations, best })
    }
}

/// Returns a hash of everything that changes what a step computes. It must be equal for a run to be resumed.
fn fingerprint(settings: &FinetuneSettings, weights: &[TrainedWeight], features: &[String]) -> String {
    let FinetuneSettings { network, sizes, data, batch, rate, schedule, warmup, steps, optimizer, .. } = settings;
    let FinetuneSettings { objective, timesteps, flip, drop_conditioning, seed, precision, held_out, .. } = settings;
    let mut hash = blake3::Hasher::new();
    let text = format!(
        "{:?} {sizes:?} {data:?} {batch} {rate} {schedule:?} {warmup:?} {steps} {optimizer:?} {objective:?} {timesteps:?} {flip} \
         {drop_conditioning} {seed} {precision} {held_out:?} {features:?} {}",
        network.process, settings.held_out_count
    );
    hash.update(text.as_bytes());
    for weight in weights {
        hash.update(format!("{} {:?};", weight.name, weight.dims).as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::settings::Recipe;
    use super::*;
    use crate::finetune::objective::Objective;

    #[test]
    fn the_fingerprint_covers_everything_that_changes_a_step() {
        let plain = || FinetuneSettings::new("data", "folder", Recipe::Quick);
        let of = |settings: &FinetuneSettings, features: &[&str]| {
            let names: Vec<String> = features.iter().map(|name| (*name).to_owned()).collect();
            fingerprint(settings, &[], &names)
        };
        let objective = plain().objective;
        let others = [
            FinetuneSettings { rate: 2e-4, ..plain() },
            FinetuneSettings { objective: Objective { jacobian: 0.1, ..objective }, ..plain() },
            FinetuneSettings { objective: Objective { features: 0.5, ..objective }, ..plain() },
        ];
        let own = of(&plain(), &["a"]);
        assert!(others.iter().all(|other| of(other, &["a"]) != own));
        assert!(of(&plain(), &[]) != own && of(&plain(), &["a", "b"]) != own);
        // Settings that only affect speed and memory may change.
        let same = FinetuneSettings { checkpoint_activations: true, micro_batch: Some(4), threads: Some(1), ..plain() };
        assert_eq!(of(&same, &["a"]), own);
    }
}
