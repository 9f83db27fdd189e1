//! What a plan says of a refit.

use serde::{Deserialize, Serialize};

use crate::diffusion::Sampler;
use crate::graph::sizes::Sizes;
use crate::refit::Weighting;

/// How the weights of a cut were fitted, so that it can be repeated on the same data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefitPlan {
    /// Noisy samples of the fit.
    pub samples: usize,
    /// Samples of a chunk, all at one timestep.
    pub batch: usize,
    /// Timesteps, spread evenly over the schedule.
    pub timesteps: usize,
    /// Clean samples that were to be held out, at most.
    pub held_out: usize,
    /// How much rows counted by timestep.
    pub weights: Weighting,
    /// What was added to the diagonal of every Gram matrix, over its mean.
    pub ridge: f64,
    /// Rows of a layer's equations, at most.
    pub rows: usize,
    /// Layers that were left out, as a regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<String>,
    /// The seed.
    pub seed: u64,
    /// Sizes of symbolic dimensions that were given.
    pub sizes: Sizes,
    /// The process, in words.
    pub process: String,
    /// How the network drew the clean samples itself, where it did: the sampler, and the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<(Sampler, usize)>,
    /// The BLAKE3 of the clean samples, as the network takes them, with their numbers in the data.
    pub data_blake3: String,
    /// The BLAKE3 of the fitted weights in float32, with their names.
    pub weights_blake3: String,
    /// The mean losses on the samples that were held out: of original, cut and refitted network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<[f64; 3]>,
}
