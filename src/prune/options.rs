//! Everything that decides a cut.

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

/// Which criterion scores the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CriterionOption {
    /// The paper's: |w G| with gradients summed over the timesteps whose loss stays above a threshold.
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
    /// Whether it scores by gradients.
    pub fn needs_gradients(self) -> bool {
        matches!(self, Self::DiffPruning | Self::Taylor | Self::Hessian)
    }
}

/// How much goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of the channels of every group.
    Ratio(f64),
    /// Whatever ratio leaves this share of the multiply-accumulate operations.
    Macs(f64),
    /// Whatever ratio leaves this share of the parameters.
    Params(f64),
}

/// This share of the channels of every group goes, in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl From<Ratio> for Target {
    fn from(ratio: Ratio) -> Self {
        Self::Ratio(ratio.0)
    }
}

/// Which channels go, once they have scores.
#[derive(Clone, Debug)]
pub struct CutOptions {
    /// How much goes.
    pub target: Target,
    /// Ranking within groups or among all.
    pub scope: Scope,
    /// What survives of every axis of a weight is a multiple of this many indices, where that comes out.
    pub round_to: usize,
    /// What survives of every head is a multiple of this many dimensions, all heads together one of `round_to`, where that
    /// comes out; 0 as `round_to`. Products of attention are not quantised where the layers around them are.
    pub round_heads_to: usize,
    /// Whether an even number of channels survives of every norm group, where that comes out.
    pub evens_norm_groups: bool,
    /// No group loses a larger share.
    pub max_ratio: f64,
    /// Groups with a weight or node of a matching name stay.
    pub keep: Vec<Regex>,
    /// Groups with a weight or node of a matching name have a ratio of their own; the last match counts.
    pub ratio_for: Vec<(Regex, f64)>,
}

impl CutOptions {
    /// The defaults with a target.
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

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let (name, share, is_right) = match self.target {
            Target::Ratio(ratio) => ("the ratio: expected a share of channels in [0, 1)", ratio, ratio < 1.0),
            Target::Macs(share) => ("the target of MACs: expected a share in (0, 1]", share, share > 0.0),
            Target::Params(share) => ("the target of parameters: expected a share in (0, 1]", share, share > 0.0),
        };
        let own = self
            .ratio_for
            .iter()
            .map(|(_, ratio)| ("a ratio of some groups: expected a share of channels in [0, 1)", *ratio, *ratio < 1.0));
        let most = ("the largest ratio: expected a share in [0, 1]", self.max_ratio, true);
        for (name, share, is_right) in own.chain([(name, share, is_right), most]) {
            if !is_right || !(0.0..=1.0).contains(&share) {
                return Err(Error::usage(format!("{name}, found {share}")));
            }
        }
        if self.round_to == 0 {
            return Err(Error::usage("surviving channels can't be a multiple of 0: expected a number of at least 1"));
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
    /// Which criterion scores.
    pub criterion: CriterionOption,
    /// What may shrink in attention.
    pub attention: AttentionOption,
    /// What happens to norm groups.
    pub norm_groups: NormGroups,
    /// The norm of the magnitude criterion.
    pub norm: Norm,
    /// How members make one score.
    pub reduction: GroupReduction,
    /// Which members of a group score in the gradient criteria.
    pub members: ScoringMembers,
    /// A published implementation to follow exactly instead of the paper's formula.
    pub reference: Option<Published>,
    /// The seed of everything random.
    pub seed: u64,
    /// Sizes of symbolic dimensions, for counting and for the gradients.
    pub sizes: Sizes,
    /// How the gradient criteria compute their gradients.
    pub gradients: GradientSettings,
    /// What the network is for, and so what its loss is.
    pub task: Task,
    /// Measure what a fit would leave of each layer's output, by which cuts of [`Scope::Global`] compare groups. It takes
    /// samples: those of the gradients, or [`GradientSettings::data`]. Without, cuts compare scores.
    pub compares_groups: bool,
}

impl ScoreOptions {
    /// The defaults with a criterion.
    pub fn by(criterion: CriterionOption) -> Self {
        Self { criterion, ..Self::default() }
    }

    /// Diff-Pruning, the default: |w G| with gradients on these clean samples (a folder of images, or a `.npy`, `.npz`
    /// or `.safetensors` file), summed over the timesteps that matter.
    pub fn diff_pruning(data: impl Into<PathBuf>) -> Self {
        let mut options = Self::by(CriterionOption::DiffPruning);
        options.gradients.data = Some(data.into());
        options
    }

    /// The norm of the weights, for which no data is needed.
    pub fn magnitude() -> Self {
        Self::by(CriterionOption::Magnitude)
    }

    /// How the gradient criterion that is chosen scores; `image_elements` are the elements of one sample, by which
    /// `ddpm_exp` scales its loss.
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

    /// How the gradient criterion that is chosen sums gradients over timesteps.
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

/// Steps of DPM-Solver++ 2M where samples are drawn to take gradients on: their importance then differs from that of 50
/// steps of DDIM by less than another seed changes it (`docs/quality.md`).
const DRAW_STEPS: usize = 10;

/// How gradients are computed.
#[derive(Clone, Debug)]
pub struct GradientSettings {
    /// What the network's inputs stand for and how it was trained.
    pub network: NetworkOptions,
    /// Clean samples: a folder of images, or an array file; drawn from the network itself where `None`.
    pub data: Option<PathBuf>,
    /// The values of the data that stand for the ends of the sample range; 0 and 255 for bytes, floats as they are,
    /// where `None`.
    pub data_range: Option<(f64, f64)>,
    /// Samples in one run; bounds the memory of activations; the whole batch where `None`.
    pub micro_batch: Option<usize>,
    /// Bytes that the gradients may take; what is free where `None`. Where they need more, runs have fewer samples, and
    /// then the weights are divided over several passes.
    pub memory: Option<u64>,
    /// Timesteps that are visited, spread evenly over the schedule; all where `None`.
    pub timesteps: Option<usize>,
    /// Share of the largest loss below which timesteps do not count, in [0, 1).
    pub threshold: f64,
    /// What the threshold keeps.
    pub mode: ThresholdMode,
    /// Where the gradients are computed.
    pub device: Device,
    /// Whether the CPU may run what the device can't.
    pub allow_fallback: bool,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// Stop once the channels that this cut would remove have not changed for three checks, one every ten timesteps.
    pub adaptive: Option<CutOptions>,
    /// How samples are drawn where none are given.
    pub draw_sampler: Sampler,
    /// Evaluations of the network for a sample that is drawn; where `None`, 10 with DPM-Solver++ 2M, but at most
    /// one more than timesteps are visited, and 50 otherwise.
    pub draw_steps: Option<usize>,
    /// Where the sums are saved from time to time.
    pub checkpoint: Option<PathBuf>,
    /// Whether to go on from the checkpoint.
    pub resume: bool,
    /// Whether the checkpoint of a run of more than a minute stays once the sums are complete, because more is to follow that
    /// may be stopped.
    pub keeps_checkpoint: bool,
    /// Processes that divide the timesteps. All of them score with the same options and get the same scores; the samples are
    /// those that the first reads or draws, and only it writes checkpoints.
    pub ranks: Arc<dyn Collective>,
}

impl GradientSettings {
    /// The evaluations of the network for a sample that is drawn. Of few timesteps the importance is rough whatever the
    /// samples are: drawing them does not become the larger part of the work.
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

/// Both halves of a cut's options, as the plan records them.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// How channels are scored.
    pub score: ScoreOptions,
    /// Which of them go.
    pub cut: CutOptions,
}

impl PruneOptions {
    /// The defaults with a target.
    pub fn new(target: impl Into<Target>) -> Self {
        Self { score: ScoreOptions::default(), cut: CutOptions::new(target) }
    }

    /// The defaults with a target and the magnitude criterion, which needs no data.
    pub fn by_magnitude(target: impl Into<Target>) -> Self {
        Self { score: ScoreOptions::magnitude(), ..Self::new(target) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_takes_few_steps_where_few_timesteps_are_visited() {
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
