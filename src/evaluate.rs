//! Judging networks by what they draw: similarity of images, and distances between sets of features.
//!
//! All numbers are computed in double precision. Images have shape `[channels, height, width]`; features are rows of a
//! matrix `[samples, features]`.

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
