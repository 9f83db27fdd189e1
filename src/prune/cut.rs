//! Scores and cuts, as callers of the library hold them.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::choice::Scoring;
use super::cutting::{Cutting, cut_scored};
use super::gradients::GradientReport;
use super::model::{Analysis, Model};
use super::options::{CutOptions, PruneOptions, ScoreOptions};
use super::staged::Staged;
use crate::changed::ChangedWeights;
use crate::error::Error;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::load::load;
use crate::macs::Cost;
use crate::operator::couple::kept::Kept;
use crate::plan::Plan;
use crate::refit::Refitted;
use crate::rewrite::{Rewritten, Unfused};

/// The scores of all channels, from which cuts are made. A clone shares the data.
#[derive(Clone, Debug)]
pub struct Scores {
    analysis: Analysis,
    options: ScoreOptions,
    scoring: Arc<Scoring>,
    gradients: Option<Arc<GradientReport>>,
}

impl Scores {
    pub(super) fn new(
        analysis: Analysis,
        options: ScoreOptions,
        scoring: Scoring,
        gradients: Option<GradientReport>,
    ) -> Self {
        Self { analysis, options, scoring: Arc::new(scoring), gradients: gradients.map(Arc::new) }
    }

    /// Describes how the gradients were computed. `None`: the criterion needs none.
    pub fn gradients(&self) -> Option<&GradientReport> {
        self.gradients.as_deref()
    }

    /// Chooses channels and builds the smaller graph for a [`super::Ratio`], a [`super::Target`] or complete
    /// [`CutOptions`]. Writes nothing.
    ///
    /// # Errors
    /// Fails if the options are invalid, a target can't be met, or a node can't express the cut.
    pub fn cut(&self, options: impl Into<CutOptions>) -> Result<Cut, Error> {
        let options = PruneOptions { score: self.options.clone(), cut: options.into() };
        options.cut.check()?;
        let Cutting { rewritten, mut plan, before, after, sizes, warnings, ratio: _, kept } =
            cut_scored(&self.analysis.0, &self.scoring, &options)?;
        if let Some(gradients) = self.gradients() {
            plan.options.insert("process".to_owned(), Value::from(gradients.process.as_str()));
        }
        Ok(Cut {
            analysis: self.analysis.clone(),
            rewritten: Arc::new(rewritten),
            kept: Arc::new(kept),
            plan: Arc::new(plan),
            before,
            after,
            sizes,
            warnings,
        })
    }
}

/// A cut that can be written. A clone shares the data.
#[derive(Clone, Debug)]
pub struct Cut {
    analysis: Analysis,
    rewritten: Arc<Rewritten>,
    kept: Arc<Kept>,
    plan: Arc<Plan>,
    before: Cost,
    after: Cost,
    sizes: Sizes,
    warnings: Vec<String>,
}

impl Cut {
    pub(super) fn repeated(analysis: Analysis, plan: Plan, kept: Kept, rewritten: Rewritten) -> Self {
        let sizes = sizes_for(&analysis.0.facts, &Sizes::new());
        let cost = |kept: Option<&Kept>| analysis.0.count(|counter| counter.cost(kept, &sizes));
        let (before, after) = (cost(None), cost(Some(&kept)));
        let (rewritten, plan, kept) = (Arc::new(rewritten), Arc::new(plan), Arc::new(kept));
        let mut warnings = analysis.0.model.notes().to_vec();
        warnings.extend(rewritten.warnings());
        Self { analysis, rewritten, kept, plan, before, after, sizes, warnings }
    }

    /// Returns the analysis of the original.
    pub fn analysis(&self) -> &Analysis {
        &self.analysis
    }

    /// Returns the original.
    pub fn model(&self) -> Model {
        self.analysis.model()
    }

    /// Returns the plan: kept indices, scores and reasons.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn rewritten(&self) -> &Rewritten {
        &self.rewritten
    }

    /// Returns the kept indices of every index space.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    pub(super) fn with_plan(self, plan: Plan) -> Self {
        Self { plan: Arc::new(plan), ..self }
    }

    /// Adds an entry to the options that plan and metadata record.
    pub fn record(&mut self, name: &str, value: Value) {
        Arc::make_mut(&mut self.plan).options.insert(name.to_owned(), value);
    }

    /// Returns the channel ratio of the cut: the requested one, or the one that was found for a target.
    pub fn ratio(&self) -> f64 {
        self.plan.ratio
    }

    /// Returns the cost of the original.
    pub fn before(&self) -> &Cost {
        &self.before
    }

    /// Returns the cost of the pruned network.
    pub fn after(&self) -> &Cost {
        &self.after
    }

    /// Returns the sizes of symbolic dimensions at which costs were counted.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Returns warnings for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the names of values computed from shapes that were frozen at their old values, such as an attention
    /// scale.
    pub fn frozen(&self) -> &[String] {
        &self.rewritten.frozen
    }

    /// Returns the fused nodes that are written in standard operators, because ONNX Runtime's kernel does not accept
    /// their new sizes.
    pub fn unfused(&self) -> &[Unfused] {
        &self.rewritten.unfused
    }

    /// Writes the pruned model into a hidden folder next to `output`, which is deleted unless it is
    /// [saved](Staged::save). Weights are sliced while they are written; none is held in memory.
    ///
    /// # Errors
    /// Fails if the output can't be written, or would replace the original.
    pub fn stage(&self, output: impl AsRef<Path>) -> Result<Staged, Error> {
        let mut edits = self.rewritten.edits.clone();
        self.plan.record_in(&self.analysis.0.model, &mut edits);
        let output = output.as_ref();
        let staged = crate::write::stage(&self.analysis.0.model, &edits, output)?;
        Ok(Staged::new(self.clone(), staged, output))
    }

    /// Does the same as [`Cut::stage`], with the weights that `changed` lists taken from `file`, a file of this cut.
    ///
    /// # Errors
    /// Same as [`Cut::stage`]; also fails if `file` lacks such a weight.
    pub fn stage_changed(&self, file: &Model, changed: &ChangedWeights, output: &Path) -> Result<Staged, Error> {
        let analysis = &self.analysis.0;
        let staged = self.stage(output)?;
        let cut = load(staged.path())?;
        let changes = Refitted::default().changes(analysis, &self.rewritten, Some((changed, &file.0)))?;
        let (mut edits, changed) = changes.finish(&cut)?;
        let plan = Plan { changed: Some(changed), ..Plan::clone(&self.plan) };
        plan.record_in(&analysis.model, &mut edits);
        let file = crate::write::stage(&analysis.model, &edits, output)?;
        Ok(staged.replaced(plan, file))
    }
}
