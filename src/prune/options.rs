//! All options of a cut.

use std::path::PathBuf;
use std::sync::Arc;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::network::NetworkOptions;
use super::output::Task;
use crate::collective::{Alone, Collective};
use crate::couple::options::{AttentionOption, NormGroups};
use crate::diffusion::Sampler;
use crate::error::Error;
use crate::gradient::Precision;
use crate::gradient::accumulate::{AccumulateOptions, ThresholdMode};
use crate::graph::sizes::Sizes;
use crate::runtime::Device;
use crate::score::{GradientForm, GroupReduction, Norm, Published, ScoringMembers, Term};
use crate::select::Scope;

/// The criterion that scores the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CriterionOption {
    /// The paper's criterion: |w G| with gradients summed over the timesteps whose loss is above a threshold.
    #[default]
    DiffPruning,
    /// |sum of w G| with gradients summed over all timesteps.
    Taylor,
    /// w^2 times the squared gradients of all timesteps.
    Hessian,
    /// The norm of the weights.
    Magnitude,
    /// Random scores.
    Random,
}

impl CriterionOption {
    /// Returns whether the criterion needs gradients.
    pub fn needs_gradients(self) -> bool {
        matches!(self, Self::DiffPruning | Self::Taylor | Self::Hessian)
    }
}

/// How much to remove.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Removes this share of the channels of every group.
    Ratio(f64),
    /// Removes channels until this share of the multiply-accumulate operations is left.
    Macs(f64),
    /// Removes channels until this share of the parameters is left.
    Params(f64),
}

/// The share of the channels of every group to remove, in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl From<Ratio> for Target {
    fn from(ratio: Ratio) -> Self {
        Self::Ratio(ratio.0)
    }
}

/// Options for choosing the channels to remove, based on their scores.
#[derive(Clone, Debug)]
pub struct CutOptions {
    /// How much to remove.
    pub target: Target,
    /// Whether to rank channels within groups or among all.
    pub scope: Scope,
    /// The kept size of every axis of a weight is a multiple of this number, if possible.
    pub round_to: usize,
    /// The number of kept dimensions of every head is a multiple of this number, and of all heads together of
    /// `round_to`, if possible; 0: the same as `round_to`. The products of attention are not quantised where the layers
    /// around them are, so that heads can have a smaller multiple.
    pub round_heads_to: usize,
    /// Whether every norm group keeps an even number of channels, if possible.
    pub evens_norm_groups: bool,
    /// Maximum share of the channels of a group to remove.
    pub max_ratio: f64,
    /// Groups with a weight or node whose name matches are kept.
    pub keep: Vec<Regex>,
    /// Groups with a weight or node whose name matches have this ratio. The last match counts.
    pub ratio_for: Vec<(Regex, f64)>,
}

impl CutOptions {
    /// Returns the default options with a target.
    pub fn new(target: impl Into<Target>) -> Self {
        Self {
            target: target.into(),
            scope: Scope::Local,
            round_to: 1,
            round_heads_to: 0,
            evens_norm_groups: false,
            max_ratio: 1.0,
            keep: Vec::new(),
            ratio_for: Vec::new(),
        }
    }

    /// Refuses invalid options.
    pub(super) fn check(&self) -> Result<(), Error> {
        let (name, share, is_right) = match self.target {
            Target::Ratio(ratio) => ("ratio: expected a share of channels in [0, 1)", ratio, ratio < 1.0),
            Target::Macs(share) => ("target for MACs: expected a share in (0, 1]", share, share > 0.0),
            Target::Params(share) => ("target for parameters: expected a share in (0, 1]", share, share > 0.0),
        };
        let own = self
            .ratio_for
            .iter()
            .map(|(_, ratio)| ("ratio of single groups: expected a share of channels in [0, 1)", *ratio, *ratio < 1.0));
        let most = ("maximum ratio: expected a share in [0, 1]", self.max_ratio, true);
        for (name, share, is_right) in own.chain([(name, share, is_right), most]) {
            if !is_right || !(0.0..=1.0).contains(&share) {
                return Err(Error::usage(format!("{name}, found {share}")));
            }
        }
        if self.round_to == 0 {
            return Err(Error::usage("multiple for the number of kept channels: expected at least 1, found 0"));
        }
        Ok(())
    }
}

impl From<Target> for CutOptions {
    fn from(target: Target) -> Self {
        Self::new(target)
    }
}

impl From<Ratio> for CutOptions {
    fn from(ratio: Ratio) -> Self {
        Self::new(ratio)
    }
}

/// How channels are grouped and scored.
#[derive(Clone, Debug, Default)]
pub struct ScoreOptions {
    /// The criterion.
    pub criterion: CriterionOption,
    /// Whether heads or head dimensions of attention may be removed.
    pub attention: AttentionOption,
    /// How norm groups are treated.
    pub norm_groups: NormGroups,
    /// The norm of the magnitude criterion.
    pub norm: Norm,
    /// How the scores of members are combined.
    pub reduction: GroupReduction,
    /// Which members of a group score in the gradient criteria.
    pub members: ScoringMembers,
    /// A published implementation to follow exactly. `None`: the paper's formula.
    pub reference: Option<Published>,
    /// The seed of all random choices.
    pub seed: u64,
    /// Sizes of symbolic dimensions for counting and for the gradients.
    pub sizes: Sizes,
    /// How the gradient criteria compute their gradients.
    pub gradients: GradientSettings,
    /// The purpose of the network, which decides its loss.
    pub task: Task,
    /// Whether to measure the error that a fit would leave in each layer's output, by which cuts of [`Scope::Global`]
    /// compare groups. This needs samples: those of the gradients, or [`GradientSettings::data`]. If false, cuts
    /// compare scores.
    pub compares_groups: bool,
}

impl ScoreOptions {
    /// Returns the default options with a criterion.
    pub fn by(criterion: CriterionOption) -> Self {
        Self { criterion, ..Self::default() }
    }

    /// Returns the options for Diff-Pruning, the default: |w G| with gradients on these clean samples (a folder of
    /// images, or a `.npy`, `.npz` or `.safetensors` file), summed over the timesteps that matter.
    pub fn diff_pruning(data: impl Into<PathBuf>) -> Self {
        let mut options = Self::by(CriterionOption::DiffPruning);
        options.gradients.data = Some(data.into());
        options
    }

    /// Returns the options for the magnitude criterion, which needs no data.
    pub fn magnitude() -> Self {
        Self::by(CriterionOption::Magnitude)
    }

    /// Returns how the chosen gradient criterion scores. `image_elements` is the number of elements of one sample, by
    /// which `ddpm_exp` scales its loss.
    pub(super) fn gradient_form(&self, image_elements: f64) -> GradientForm {
        let (name, term) = match self.criterion {
            CriterionOption::Taylor => ("taylor", Term::Signed),
            CriterionOption::Hessian => ("hessian", Term::Curvature),
            _ => ("diff-pruning", Term::Absolute),
        };
        let (members, reduction) = (self.members, self.reduction);
        let form = GradientForm { name, term, members, reduction, is_ddpm_exp: false, loss_scale: 1.0 };
        let members = ScoringMembers::Weights;
        match self.reference {
            None => form,
            Some(Published::DdpmPrune) => GradientForm { members, reduction: GroupReduction::Mean, ..form },
            Some(Published::DdpmExp) => GradientForm {
                term: Term::Squared,
                members,
                reduction: GroupReduction::Sum,
                is_ddpm_exp: true,
                loss_scale: image_elements,
                ..form
            },
        }
    }

    /// Returns how the chosen gradient criterion sums gradients over timesteps.
    pub(super) fn accumulate_options(&self, micro_batch: usize) -> AccumulateOptions {
        let GradientSettings { threshold, mode, .. } = self.gradients;
        let is_thresholded = self.criterion == CriterionOption::DiffPruning;
        AccumulateOptions {
            threshold: if is_thresholded { threshold } else { 0.0 },
            mode: if self.reference.is_some() { ThresholdMode::Prefix } else { mode },
            sums_last: self.reference == Some(Published::DdpmPrune),
            squared: self.criterion == CriterionOption::Hessian,
            micro_batch,
        }
    }
}

/// Number of DPM-Solver++ 2M steps for samples that gradients are computed on. The importance then differs from that of
/// 50 DDIM steps by less than from one seed to another (`docs/diffusion.md`).
const DRAW_STEPS: usize = 10;

/// The settings for computing gradients.
#[derive(Clone, Debug)]
pub struct GradientSettings {
    /// The roles of the network's inputs and how it was trained.
    pub network: NetworkOptions,
    /// Clean samples: a folder of images, or an array file. `None`: the network generates them.
    pub data: Option<PathBuf>,
    /// The values of the data that correspond to the ends of the sample range. `None`: 0 and 255 for bytes, floats as
    /// they are.
    pub data_range: Option<(f64, f64)>,
    /// Number of samples in one run, which limits the memory of activations. `None`: the whole batch.
    pub micro_batch: Option<usize>,
    /// Maximum memory of the gradients in bytes. `None`: the free memory. If more is needed, runs have fewer samples,
    /// and then the weights are divided over several passes.
    pub memory: Option<u64>,
    /// Number of timesteps to visit, spread evenly over the schedule. `None`: all.
    pub timesteps: Option<usize>,
    /// Timesteps with a loss below this share of the largest loss are left out, in [0, 1).
    pub threshold: f64,
    /// Which timesteps the threshold keeps.
    pub mode: ThresholdMode,
    /// The device that computes the gradients.
    pub device: Device,
    /// Whether operators that the device can't run may run on the CPU.
    pub allow_fallback: bool,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// The cut for the adaptive rule: gradients stop when the channels that this cut would remove have not changed for
    /// three checks, one every ten timesteps. `None`: all timesteps are visited.
    pub adaptive: Option<CutOptions>,
    /// The sampler for samples that the network generates.
    pub draw_sampler: Sampler,
    /// Number of sampler steps for samples that the network generates. `None`: 10 with DPM-Solver++ 2M, but at most one
    /// more than the number of visited timesteps; 50 with other samplers.
    pub draw_steps: Option<usize>,
    /// The file in which the sums are saved from time to time. `None`: they are not saved.
    pub checkpoint: Option<PathBuf>,
    /// Whether to resume from the checkpoint.
    pub resume: bool,
    /// Whether the checkpoint of a run of more than a minute is kept after the sums are complete, because later steps
    /// may be interrupted.
    pub keeps_checkpoint: bool,
    /// The processes that share the timesteps. All of them score with the same options and get the same scores. The
    /// first one reads or generates the samples, and only it writes checkpoints.
    pub ranks: Arc<dyn Collective>,
}

impl GradientSettings {
    /// Returns the number of sampler steps for samples that the network generates. With few timesteps the importance is
    /// rough whatever the samples are, so generating them should not dominate the work.
    pub(super) fn drawing_steps(&self) -> usize {
        let default = match self.draw_sampler {
            Sampler::DpmSolver2M => self.timesteps.map_or(DRAW_STEPS, |count| DRAW_STEPS.min(count.saturating_add(1))),
            other => other.default_steps(),
        };
        self.draw_steps.unwrap_or(default)
    }
}

impl Default for GradientSettings {
    fn default() -> Self {
        Self {
            network: NetworkOptions::default(),
            data: None,
            data_range: None,
            micro_batch: None,
            memory: None,
            timesteps: None,
            threshold: 0.05,
            mode: ThresholdMode::default(),
            device: Device::default(),
            allow_fallback: false,
            precision: Precision::default(),
            adaptive: None,
            draw_sampler: Sampler::DpmSolver2M,
            draw_steps: None,
            checkpoint: None,
            resume: false,
            keeps_checkpoint: false,
            ranks: Arc::new(Alone),
        }
    }
}

/// The options of scoring and of the cut, as the plan records them.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// How channels are scored.
    pub score: ScoreOptions,
    /// How channels are chosen.
    pub cut: CutOptions,
}

impl PruneOptions {
    /// Returns the default options with a target.
    pub fn new(target: impl Into<Target>) -> Self {
        Self { score: ScoreOptions::default(), cut: CutOptions::new(target) }
    }

    /// Returns the default options with a target and the magnitude criterion, which needs no data.
    pub fn by_magnitude(target: impl Into<Target>) -> Self {
        Self { score: ScoreOptions::magnitude(), ..Self::new(target) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_generated_in_few_steps_if_few_timesteps_are_visited() {
        let steps = |timesteps, draw_sampler, draw_steps| {
            GradientSettings { timesteps, draw_sampler, draw_steps, ..GradientSettings::default() }.drawing_steps()
        };
        assert_eq!(steps(None, Sampler::DpmSolver2M, None), DRAW_STEPS);
        assert_eq!(steps(Some(100), Sampler::DpmSolver2M, None), DRAW_STEPS);
        assert_eq!(steps(Some(3), Sampler::DpmSolver2M, None), 4);
        assert_eq!(steps(Some(3), Sampler::DpmSolver2M, Some(7)), 7);
        assert_eq!(steps(Some(3), Sampler::Ddim, None), 50);
    }
}
