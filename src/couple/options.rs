//! What the user decides of coupling.

use serde::{Deserialize, Serialize};

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
