//! The part of a plan that describes a refit.

use serde::{Deserialize, Serialize};

use crate::diffusion::Sampler;
use crate::graph::sizes::Sizes;
use crate::refit::Weighting;

/// How the weights of a cut were fitted, so that the refit can be repeated on the same data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefitPlan {
    /// Number of noisy samples of the fit.
    pub samples: usize,
    /// Number of samples in a chunk, all at one timestep.
    pub batch: usize,
    /// Number of timesteps, spread evenly over the schedule.
    pub timesteps: usize,
    /// Maximum number of clean samples to hold out.
    pub held_out: usize,
    /// How rows were weighted by timestep.
    pub weights: Weighting,
    /// The ridge added to the diagonal of every Gram matrix, relative to the mean of that diagonal.
    pub ridge: f64,
    /// Maximum number of rows in the equations of a layer.
    pub rows: usize,
    /// A regular expression for the layers that were left out. `None`: no layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<String>,
    /// The seed.
    pub seed: u64,
    /// The given sizes of symbolic dimensions.
    pub sizes: Sizes,
    /// The diffusion process, in words.
    pub process: String,
    /// The sampler and its number of steps, if the network generated the clean samples. `None`: the samples were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<(Sampler, usize)>,
    /// The BLAKE3 of the clean samples, as the network takes them, with their positions in the data.
    pub data_blake3: String,
    /// The BLAKE3 of the fitted weights in float32, with their names.
    pub weights_blake3: String,
    /// The mean losses of original, cut and refitted network on the held-out samples. `None`: none were held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<[f64; 3]>,
}
