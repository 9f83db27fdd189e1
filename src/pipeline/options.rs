//! Everything that decides a cut.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::importance::{GroupReduction, Norm};
use crate::macs::Sizes;
use crate::select::Scope;

/// What may shrink in attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum AttentionOption {
    /// Whole heads where there is more than one, else head dimensions.
    #[default]
    Heads,
    /// Head dimensions, the same of every head.
    Dims,
    /// Heads and dimensions, each by the ratio.
    Both,
    /// Nothing.
    None,
}

/// What happens to norm groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum NormGroups {
    /// Their number stays; each loses equally many channels.
    #[default]
    Keep,
    /// Their size stays; whole groups go.
    Drop,
}

/// Which criterion scores the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CriterionOption {
    /// The norm of the weights.
    #[default]
    Magnitude,
    /// Random scores.
    Random,
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
            norm: Norm::L2,
            reduction: GroupReduction::Sum,
            seed: 0,
            sizes: Sizes::new(),
        }
    }
}
