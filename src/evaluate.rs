//! Evaluation of networks by their samples: similarity of images, and distances between sets of features.
//!
//! All metrics are computed in float64. Images have shape `[channels, height, width]`. Features are rows of a matrix
//! `[samples, features]`.

mod distribution;

mod features;

mod frechet;

mod kernel;

mod pixels;

mod similarity;

pub use distribution::Distribution;
pub use features::{ChannelOrder, FeatureLayout, FeatureNetwork, FeatureOptions, FeatureSummary};
pub use frechet::{Statistics, frechet_distance};
pub use kernel::{KernelDistance, KernelOptions, kernel_distance, kernel_distance_on};
pub use pixels::resize;
pub use similarity::{psnr, ssim};
