//! Weights of a cut that have changed since it was verified, by refit or training, and biases that were added.
//!
//! [`Changes`] writes such weights into the edits of a cut. It describes them as [`ChangedWeights`], which plan and
//! metadata store, together with the [`CutDigest`] of everything in the verified cut that has *not* changed.
//! `docs/verifying.md` explains what this guarantees.

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
    /// Weights whose elements differ from the slices of the original.
    pub weights: Vec<ChangedWeight>,
    /// Biases that the original lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub biases: Vec<AddedBias>,
    /// The digest of the verified cut without the weights and biases above.
    pub cut: CutDigest,
}

/// A weight whose elements differ from the slice of the original. Type and shape are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedWeight {
    /// Name of the initializer in the written file.
    pub name: String,
    /// The tensor that its readers take as input in the original: an initializer, the output of a Constant node, or a
    /// weight that nodes compute from constants.
    pub tensor: String,
    /// Sizes in the written file.
    pub dims: Vec<i64>,
    /// The readers: first output of the node, and input slot. The plan states what each keeps of the original's weight.
    pub readers: Vec<(String, usize)>,
}

/// A bias that the original lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedBias {
    /// Name of the initializer in the written file; a vector.
    pub name: String,
    /// First output of the node that adds the bias.
    pub node: String,
    /// The input slot, empty in the original.
    pub slot: usize,
    /// The axis of the node's output that the bias runs along.
    pub axis: usize,
    /// Its size in the written file.
    pub size: usize,
    /// The indices of the original's axis that it belongs to. `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Vec<usize>>,
}

impl ChangedWeights {
    /// Returns the entry of the written file's metadata: what has changed, and the digest of the rest.
    pub(crate) fn metadata(&self) -> Value {
        json!({"weights": self.weights, "biases": self.biases, "cut_sha256": self.cut.sha256})
    }

    /// Returns the names of all initializers of the written file that differ from the verified cut.
    pub fn names(&self) -> HashSet<&str> {
        names(&self.weights, &self.biases)
    }
}

fn names<'c>(weights: &'c [ChangedWeight], biases: &'c [AddedBias]) -> HashSet<&'c str> {
    let weights = weights.iter().map(|weight| weight.name.as_str());
    weights.chain(biases.iter().map(|bias| bias.name.as_str())).collect()
}
