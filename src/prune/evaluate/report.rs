//! The results of an evaluation.

use std::path::PathBuf;

use serde::Serialize;

use crate::diffusion::{Sampler, Skip};
use crate::error::Error;
use crate::evaluate::{Distribution, FeatureSummary, KernelDistance};
use crate::graph::sizes::Sizes;
use crate::macs::Cost;
use crate::runtime::Latency;

/// The figures of networks and of the original that they were pruned from.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The process of the original, in words.
    pub process: String,
    /// The sizes of symbolic dimensions at which operations were counted and latencies measured.
    pub sizes: Sizes,
    /// The clean samples of the denoising loss, in words.
    pub loss_source: String,
    /// The number of these samples.
    pub loss_count: usize,
    /// The timesteps of the denoising losses.
    pub timesteps: Vec<f64>,
    /// How samples were generated. `None`: none were.
    pub drawing: Option<Drawing>,
    /// The network that computes features for distances. `None`: no distances were computed.
    pub features: Option<FeatureSummary>,
    /// The data samples whose features were computed, in words. `None`: none were.
    pub data_source: Option<String>,
    /// The original.
    pub original: EvaluatedNetwork,
    /// The others, in the order in which they were given.
    pub networks: Vec<EvaluatedNetwork>,
    /// What could not be measured and why, and how to interpret figures.
    pub notes: Vec<String>,
    /// The duration of the evaluation in seconds.
    pub seconds: f64,
}

/// How samples were generated.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Drawing {
    /// Number of samples of every network.
    pub count: usize,
    /// Number of sampler steps.
    pub steps: usize,
    /// The sampler.
    pub sampler: Sampler,
    /// Which timesteps the sampler visits.
    pub skip: Skip,
    /// The share of DDPM's noise that DDIM adds.
    pub eta: f64,
    /// Seed of the noise. All networks start from the same noise.
    pub seed: u64,
    /// The difference between the largest and the smallest value of samples, as used for SSIM and PSNR.
    pub value_range: f64,
}

/// The figures of one network.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EvaluatedNetwork {
    /// Its file.
    pub path: PathBuf,
    /// Parameters, operations and memory.
    pub cost: Cost,
    /// Bytes of its file and external data.
    pub bytes: u64,
    /// The latency of one run. `None`: not measured.
    pub latency: Option<Latency>,
    /// The denoising losses at the timesteps of the evaluation.
    pub losses: Vec<f64>,
    /// Their mean.
    pub mean_loss: f64,
    /// The relative increase of the mean loss over the original's. `None`: this is the original.
    pub loss_increase: Option<f64>,
    /// The similarity of its samples to the original's from the same noise. `None`: this is the original, or there are
    /// no samples.
    pub consistency: Option<Consistency>,
    /// The distances of its samples by their features. `None`: they were not computed.
    pub distances: Option<Distances>,
    /// Number of samples with values that are not finite. Such values count as black.
    pub broken_samples: usize,
    /// Its first samples in one image, as the bytes of a PNG file. `None`: not requested, or not images.
    #[serde(skip)]
    pub picture: Option<Vec<u8>>,
}

/// The similarity of samples of two networks from the same noise.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Consistency {
    /// Structural similarity; 1 for equal samples. `None`: the samples are not images of at least 7x7 pixels.
    pub ssim: Option<Distribution>,
    /// Peak signal-to-noise ratio in decibels of the samples that differ. `None`: all are equal.
    pub psnr: Option<Distribution>,
    /// Number of samples that are equal.
    pub identical: usize,
}

/// Distances between the features of sets of samples.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Distances {
    /// Fréchet distance to the original's samples. `None`: this is the original.
    pub fd_to_original: Option<f64>,
    /// Kernel distance to the original's samples. `None`: this is the original.
    pub kid_to_original: Option<KernelDistance>,
    /// Fréchet distance to the data.
    pub fd_to_data: Option<f64>,
    /// Kernel distance to the data.
    pub kid_to_data: Option<KernelDistance>,
}

/// Limits that networks must meet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvaluationLimits {
    /// Maximum relative increase of the mean loss over the original's. `None`: no limit.
    pub max_loss_increase: Option<f64>,
    /// Minimum mean structural similarity to the original's samples. `None`: no limit.
    pub min_ssim: Option<f64>,
}

/// The result of checking one network against one limit.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LimitCheck {
    /// The network's file.
    pub network: PathBuf,
    /// The name of the limit's option.
    pub limit: &'static str,
    /// Whether the network meets the limit.
    pub passed: bool,
    /// A text with the figure and the limit.
    pub text: String,
}

/// Formats a share as a percentage with at most one decimal.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

impl Evaluation {
    /// Returns the original and the other networks.
    pub fn all(&self) -> impl Iterator<Item = &EvaluatedNetwork> {
        std::iter::once(&self.original).chain(&self.networks)
    }

    /// Checks every network against every given limit, network by network.
    pub fn checks(&self, limits: &EvaluationLimits) -> Vec<LimitCheck> {
        let of = |network: &EvaluatedNetwork| {
            let loss = limits.max_loss_increase.map(|limit| self.check_loss(network, limit));
            let ssim = limits.min_ssim.map(|limit| check_ssim(network, limit));
            [loss, ssim]
        };
        self.networks.iter().flat_map(of).flatten().collect()
    }

    fn check_loss(&self, network: &EvaluatedNetwork, limit: f64) -> LimitCheck {
        let (loss, whole) = (network.mean_loss, self.original.mean_loss);
        let found = match network.loss_increase.filter(|increase| increase.is_finite()) {
            Some(increase) if increase < 0.0 => {
                format!("mean denoising loss {loss:.5} is {} below", percent(-increase))
            }
            Some(increase) => format!("mean denoising loss {loss:.5} is {} above", percent(increase)),
            None => format!("mean denoising loss {loss} can't be compared with"),
        };
        LimitCheck {
            network: network.path.clone(),
            limit: "max-loss-increase",
            passed: network.loss_increase.is_some_and(|increase| increase <= limit),
            text: format!("{found} the original's {whole:.5}, allowed {}", percent(limit)),
        }
    }

    /// Refuses networks that do not meet the limits. A NaN meets no limit.
    ///
    /// # Errors
    /// Fails in this case. The message has every figure with its limit.
    pub fn check(&self, limits: &EvaluationLimits) -> Result<(), Error> {
        let failed = self.checks(limits).into_iter().filter(|check| !check.passed);
        let texts: Vec<String> = failed.map(|check| format!("{}: {}", check.network.display(), check.text)).collect();
        if texts.is_empty() { Ok(()) } else { Err(Error::unmet(texts.join("\n"))) }
    }
}

fn check_ssim(network: &EvaluatedNetwork, limit: f64) -> LimitCheck {
    let ssim = network.consistency.and_then(|consistency| consistency.ssim).map(|ssim| ssim.mean);
    let text = match (network.broken_samples, ssim) {
        (0, Some(ssim)) => {
            format!("mean SSIM to the original's samples is {ssim:.4}, required at least {limit}")
        }
        (0, None) => format!("mean SSIM to the original's samples was not measured, required at least {limit}"),
        (broken, _) => format!("{broken} samples have values that are not finite, required SSIM at least {limit}"),
    };
    let passed = network.broken_samples == 0 && ssim.is_some_and(|ssim| ssim >= limit);
    LimitCheck { network: network.path.clone(), limit: "min-ssim", passed, text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn network(mean_loss: f64, increase: Option<f64>, ssim: Option<f64>) -> EvaluatedNetwork {
        EvaluatedNetwork {
            path: PathBuf::from("a.onnx"),
            cost: Cost::default(),
            bytes: 1,
            latency: None,
            losses: vec![mean_loss],
            mean_loss,
            loss_increase: increase,
            consistency: ssim.map(|ssim| Consistency { ssim: Distribution::of(vec![ssim]), psnr: None, identical: 0 }),
            distances: None,
            broken_samples: 0,
            picture: None,
        }
    }

    fn failures(of: EvaluatedNetwork, max_loss_increase: Option<f64>, min_ssim: Option<f64>) -> Option<String> {
        let evaluation = Evaluation {
            process: String::new(),
            sizes: Sizes::new(),
            loss_source: String::new(),
            loss_count: 1,
            timesteps: vec![0.0],
            drawing: None,
            features: None,
            data_source: None,
            original: network(0.05, None, None),
            networks: vec![of],
            notes: Vec::new(),
            seconds: 0.0,
        };
        let limits = EvaluationLimits { max_loss_increase, min_ssim };
        evaluation.check(&limits).err().map(|error| error.to_string())
    }

    #[test]
    fn messages_about_limits_have_figure_and_limit() {
        let of = |increase: f64, ssim: f64| network(0.05 * (1.0 + increase), Some(increase), Some(ssim));
        assert_eq!(failures(of(0.05, 0.9), Some(0.05), Some(0.9)), None);
        assert_eq!(failures(of(-0.2, 1.0), Some(0.0), Some(0.9)), None);
        let text = failures(of(0.1824, 0.8512), Some(0.05), Some(0.9)).unwrap();
        assert!(text.contains("loss 0.05912 is 18.2 % above the original's 0.05000, allowed 5 %"), "{text}");
        assert!(text.contains("mean SSIM to the original's samples is 0.8512, required at least 0.9"), "{text}");
    }

    #[test]
    fn nan_or_missing_figures_meet_no_limit() {
        assert!(failures(network(f64::NAN, Some(f64::NAN), Some(1.0)), Some(9.0), None).unwrap().contains("NaN"));
        assert!(failures(network(0.05, Some(0.0), None), None, Some(0.1)).unwrap().contains("not measured"));
        let broken = EvaluatedNetwork { broken_samples: 3, ..network(0.05, Some(0.0), Some(1.0)) };
        assert!(failures(broken, None, Some(0.1)).unwrap().contains("3 samples"));
    }
}
