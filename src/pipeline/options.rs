//! Everything that decides a cut.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::couple::options::{AttentionOption, NormGroups};
use crate::gradient::accumulate::{AccumulateOptions, ThresholdMode};
use crate::graph::sizes::Sizes;
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

/// Everything that decides a cut.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// How much goes.
    pub target: Target,
    /// Ranking within groups or among all.
    pub scope: Scope,
    /// Surviving channels of every group are a multiple of this.
    pub round_to: usize,
    /// No group loses a larger share.
    pub max_ratio: f64,
    /// Groups with a weight or node of a matching name stay.
    pub keep: Vec<Regex>,
    /// Groups with a weight or node of a matching name have a ratio of their own; the last match counts.
    pub ratio_for: Vec<(Regex, f64)>,
    /// What happens to norm groups.
    pub norm_groups: NormGroups,
    /// What may shrink in attention.
    pub attention: AttentionOption,
    /// Which criterion scores.
    pub criterion: CriterionOption,
    /// The norm of the magnitude criterion.
    pub norm: Norm,
    /// How members make one score.
    pub reduction: GroupReduction,
    /// Which members of a group score in the gradient criteria.
    pub members: ScoringMembers,
    /// A published implementation to follow exactly instead of the paper's formula.
    pub reference: Option<Published>,
    /// Elements of one sample, by which `ddpm_exp` scales its loss.
    pub image_elements: f64,
    /// The seed of everything random.
    pub seed: u64,
    /// Sizes of symbolic dimensions, for counting.
    pub sizes: Sizes,
}

impl PruneOptions {
    /// The defaults with a target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            scope: Scope::Local,
            round_to: 1,
            max_ratio: 1.0,
            keep: Vec::new(),
            ratio_for: Vec::new(),
            norm_groups: NormGroups::Keep,
            attention: AttentionOption::Heads,
            criterion: CriterionOption::Magnitude,
            members: ScoringMembers::All,
            reference: None,
            image_elements: 1.0,
            norm: Norm::L2,
            reduction: GroupReduction::Sum,
            seed: 0,
            sizes: Sizes::new(),
        }
    }

    /// How the gradient criterion that is chosen scores.
    pub fn gradient_form(&self) -> GradientForm {
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
                loss_scale: self.image_elements,
                ..form
            },
        }
    }

    /// How the gradient criterion that is chosen sums gradients over timesteps.
    pub fn accumulate_options(&self, threshold: f64, mode: ThresholdMode, micro_batch: usize) -> AccumulateOptions {
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
