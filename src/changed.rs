//! Weights of a cut that have changed since it was verified, refitted or trained, and biases that came with them.
//!
//! [`Changes`] writes such weights into the edits of a cut, and describes them as [`ChangedWeights`], which plan and
//! metadata carry. With the description goes the [`CutDigest`] of the verified cut over all that has *not* changed. See
//! `docs/verifying.md` for what that is worth.

mod digest;

mod make;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use digest::CutDigest;
pub use make::Changes;

/// What has changed since a cut was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedWeights {
    /// Weights with other elements than the cut of the original has.
    pub weights: Vec<ChangedWeight>,
    /// Biases that the original lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub biases: Vec<AddedBias>,
    /// The verified cut, without what is named above.
    pub cut: CutDigest,
}

/// A weight with other elements than the cut of the original has; type and shape are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedWeight {
    /// Name of the initializer in the written file.
    pub name: String,
    /// What its readers read in the original: an initializer, the output of a Constant node, or of nodes that compute a
    /// weight from constants.
    pub tensor: String,
    /// Sizes in the written file.
    pub dims: Vec<i64>,
    /// The readers: first output of the node, and input slot. What each keeps of the original's weight says the plan.
    pub readers: Vec<(String, usize)>,
}

/// A bias that the original lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedBias {
    /// Name of the initializer in the written file; a vector.
    pub name: String,
    /// First output of the node that reads it, to which it is added.
    pub node: String,
    /// The input slot, empty in the original.
    pub slot: usize,
    /// The axis of the output along which it lies.
    pub axis: usize,
    /// Its size in the written file.
    pub size: usize,
    /// The indices of the original's axis that it belongs to; all where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Vec<usize>>,
}

impl ChangedWeights {
    /// What the metadata of the written file says: what has changed, and the digest of the rest.
    pub(crate) fn metadata(&self) -> Value {
        json!({"weights": self.weights, "biases": self.biases, "cut_sha256": self.cut.sha256})
    }

    /// The names of all initializers of the written file that are not the verified cut's.
    pub fn names(&self) -> HashSet<&str> {
        names(&self.weights, &self.biases)
    }
}

fn names<'c>(weights: &'c [ChangedWeight], biases: &'c [AddedBias]) -> HashSet<&'c str> {
    let weights = weights.iter().map(|weight| weight.name.as_str());
    weights.chain(biases.iter().map(|bias| bias.name.as_str())).collect()
}
