//! The user's settings of coupling.

use serde::{Deserialize, Serialize};

/// What may be removed from attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum AttentionOption {
    /// Whole heads if there is more than one, else head dimensions.
    #[default]
    Heads,
    /// Head dimensions, the same ones in every head.
    Dims,
    /// Heads and head dimensions, each at the given ratio.
    Both,
    /// Nothing.
    None,
}

/// How norm groups are pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum NormGroups {
    /// Keeps their number. The same number of channels is removed from each.
    #[default]
    Keep,
    /// Keeps their size. Whole groups are removed.
    Drop,
}
