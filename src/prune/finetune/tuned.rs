//! A fine-tuned network, before its file is written.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::cut::Cut;
use super::super::model::Analysis;
use super::super::progress::Watch;
use super::super::runtime::Runtime;
use super::super::staged::Staged;
use super::run::{FinetuneReport, train};
use super::settings::FinetuneSettings;
use super::weights::TunedWeights;
use crate::changed::{ChangedWeight, ChangedWeights, CutDigest};
use crate::error::Error;
use crate::graph::model::Model as Loaded;
use crate::load::load;
use crate::lower;
use crate::plan::Plan;
use crate::runtime::SessionOptions;
use crate::write;

/// A network with trained weights.
#[derive(Debug)]
pub struct Tuned {
    model: Loaded,
    weights: TunedWeights,
    /// The report of the run.
    pub report: FinetuneReport,
}

impl Analysis {
    /// Fine-tunes this network: trains its weights by the denoising loss, and by the output of a teacher if there is
    /// one. If `watch` stops the run, the weights reached by then are the result, and the folder has a checkpoint of
    /// them.
    ///
    /// # Errors
    /// Fails if data can't be read, the network does not denoise, an operator has no gradient, or ten consecutive steps
    /// have no finite gradients.
    pub fn finetune(
        &self,
        runtime: &Runtime,
        settings: &FinetuneSettings,
        watch: &mut Watch<'_>,
    ) -> Result<Tuned, Error> {
        let trained = train(self, runtime, settings, watch)?;
        Ok(Tuned { model: self.0.model.clone(), weights: trained.weights, report: trained.report })
    }
}

impl Tuned {
    /// Returns the elements of the trained weights in float32.
    pub fn values(&self) -> &[Vec<f32>] {
        &self.weights.values
    }

    /// Writes the network into a hidden folder next to `output`. Names, metadata, precision and the layout of external
    /// data remain unchanged.
    ///
    /// # Errors
    /// Fails if the output can't be written, or would replace the input.
    pub fn stage(&self, output: &Path) -> Result<write::Staged, Error> {
        write::stage(&self.model, &self.weights.edits(&self.model)?, output)
    }

    /// Checks a file that [`Tuned::stage`] wrote: everything but the trained weights equals the input bit for bit, and
    /// ONNX Runtime loads the file.
    ///
    /// # Errors
    /// Fails with [`crate::error::ErrorKind::VerificationFailed`] if something else has changed or ONNX Runtime refuses
    /// the file.
    pub fn check(&self, file: &Path, runtime: &Runtime) -> Result<(), Error> {
        let written = load(file)?;
        let names: Vec<ChangedWeight> = self.weights.changed();
        let (before, after) = (CutDigest::of(&self.model, &names, &[])?, CutDigest::of(&written, &names, &[])?);
        if before.sha256 != after.sha256 {
            let differs = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
                before.iter().find(|(name, hash)| after.get(*name) != Some(hash)).map(|(name, _)| name.clone())
            };
            let name = differs(&before.nodes, &after.nodes).or_else(|| differs(&before.tensors, &after.tensors));
            let text = format!("{:?} was not trained but has changed", name.unwrap_or_default());
            return Err(Error::verification_failed(text).in_file(self.model.path()));
        }
        lower::session(runtime.0, &written, &SessionOptions::default())
            .map(|_| ())
            .map_err(|error| Error::verification_failed(error.to_string()).in_file(self.model.path()))
    }

    /// Does the same as [`Tuned::stage`] for a network that was cut. Plan and metadata list the trained weights, so
    /// that the file can be verified against the original. `cut` is the cut of its plan, `changed` lists the weights
    /// that had already changed before.
    ///
    /// # Errors
    /// Same as [`Tuned::stage`]; also fails if the cut has other weights.
    pub fn stage_cut(&self, cut: &Cut, changed: Option<&ChangedWeights>, output: &Path) -> Result<Staged, Error> {
        let analysis = &cut.analysis().0;
        let staged = cut.stage(output)?;
        let of_cut = load(staged.path())?;
        let before = changed.map(|changed| (changed, &self.model));
        let changes = self.weights.refitted().changes(analysis, cut.rewritten(), before)?;
        let (mut edits, changed) = changes.finish(&of_cut)?;
        let plan = Plan { changed: Some(changed), ..Plan::clone(cut.plan()) };
        plan.record_in(&analysis.model, &mut edits);
        let file = write::stage(&analysis.model, &edits, output)?;
        Ok(staged.replaced(plan, file))
    }
}
