//! What an evaluation found.

use std::path::PathBuf;

use serde::Serialize;

use crate::diffusion::{Sampler, Skip};
use crate::error::Error;
use crate::evaluate::{Distribution, FeatureSummary, KernelDistance};
use crate::graph::sizes::Sizes;
use crate::macs::Cost;
use crate::runtime::Latency;

/// Networks beside the original that they stem from.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The process of the original, in words.
    pub process: String,
    /// The sizes of symbolic dimensions at which operations were counted and runs timed.
    pub sizes: Sizes,
    /// The clean samples of the denoising loss, in words.
    pub loss_source: String,
    /// The number of these samples.
    pub loss_count: usize,
    /// The timesteps of the losses.
    pub timesteps: Vec<f64>,
    /// How samples were drawn, if they were.
    pub drawing: Option<Drawing>,
    /// The network whose features the distances are taken of, if there is one.
    pub features: Option<FeatureSummary>,
    /// The samples of the data that features were taken of, in words.
    pub data_source: Option<String>,
    /// The original.
    pub original: EvaluatedNetwork,
    /// The others, in the order in which they were given.
    pub networks: Vec<EvaluatedNetwork>,
    /// What could not be measured and why, and what to know of the figures.
    pub notes: Vec<String>,
    /// The time that it took, in seconds.
    pub seconds: f64,
}

/// How samples were drawn.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Drawing {
    /// Samples of every network.
    pub count: usize,
    /// Evaluations of the network for each.
    pub steps: usize,
    /// The sampler.
    pub sampler: Sampler,
    /// Which steps are visited.
    pub skip: Skip,
    /// DDIM's share of added noise.
    pub eta: f64,
    /// Seed of the noise, which is the same for all networks.
    pub seed: u64,
    /// The difference between the largest and the smallest value of a sample, as SSIM and PSNR take it.
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
    /// How long one run takes, if it was measured.
    pub latency: Option<Latency>,
    /// The denoising losses at the timesteps of the evaluation.
    pub losses: Vec<f64>,
    /// Their mean.
    pub mean_loss: f64,
    /// How much the mean is above the original's, as a share of it; nothing for the original.
    pub loss_increase: Option<f64>,
    /// How much its samples are like the original's from the same noise; nothing for the original.
    pub consistency: Option<Consistency>,
    /// How far its samples are from others by their features.
    pub distances: Option<Distances>,
    /// Samples with values that are not finite; they count as black.
    pub broken_samples: usize,
    /// Its first samples as the bytes of a PNG file.
    #[serde(skip)]
    pub picture: Option<Vec<u8>>,
}

/// How much samples of two networks from the same noise are alike.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Consistency {
    /// Structural similarity, 1 for equal samples; nothing where samples are no images of at least 7 x 7.
    pub ssim: Option<Distribution>,
    /// Peak signal-to-noise ratio in decibels of the samples that differ; nothing where all are equal.
    pub psnr: Option<Distribution>,
    /// Samples that are equal.
    pub identical: usize,
}

/// Distances between sets of samples by their features.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Distances {
    /// Fréchet distance to the original's samples; nothing for the original.
    pub fd_to_original: Option<f64>,
    /// Kernel distance to the original's samples; nothing for the original.
    pub kid_to_original: Option<KernelDistance>,
    /// Fréchet distance to the data.
    pub fd_to_data: Option<f64>,
    /// Kernel distance to the data.
    pub kid_to_data: Option<KernelDistance>,
}

/// What networks must reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvaluationLimits {
    /// How much the mean loss may be above the original's, as a share of it.
    pub max_loss_increase: Option<f64>,
    /// The least mean structural similarity to the original's samples.
    pub min_ssim: Option<f64>,
}

/// A network beside one limit.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LimitCheck {
    /// The network's file.
    pub network: PathBuf,
    /// The limit, by the name of its option.
    pub limit: &'static str,
    /// Whether the network reaches it.
    pub passed: bool,
    /// The figure beside the limit.
    pub text: String,
}

/// A share in per cent, as short as it is exact to a tenth of a percent.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

impl Evaluation {
    /// Original and other networks.
    pub fn all(&self) -> impl Iterator<Item = &EvaluatedNetwork> {
        std::iter::once(&self.original).chain(&self.networks)
    }

    /// Every network beside every limit that is given, networks in turn.
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

    /// Refuses networks that do not reach the limits. A figure that is no number reaches none.
    ///
    /// # Errors
    /// See above; the message names every figure beside its limit.
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
            format!("mean SSIM to the original's samples is {ssim:.4}, at least {limit} is asked for")
        }
        (0, None) => format!("mean SSIM to the original's samples was not measured, at least {limit} is asked for"),
        (broken, _) => format!("{broken} samples have values that are not finite, SSIM of {limit} is asked for"),
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
    fn limits_name_figure_and_limit() {
        let of = |increase: f64, ssim: f64| network(0.05 * (1.0 + increase), Some(increase), Some(ssim));
        assert_eq!(failures(of(0.05, 0.9), Some(0.05), Some(0.9)), None);
        assert_eq!(failures(of(-0.2, 1.0), Some(0.0), Some(0.9)), None);
        let text = failures(of(0.1824, 0.8512), Some(0.05), Some(0.9)).unwrap();
        assert!(text.contains("loss 0.05912 is 18.2 % above the original's 0.05000, allowed 5 %"), "{text}");
        assert!(text.contains("mean SSIM to the original's samples is 0.8512, at least 0.9"), "{text}");
    }

    #[test]
    fn what_is_no_number_reaches_no_limit() {
        assert!(failures(network(f64::NAN, Some(f64::NAN), Some(1.0)), Some(9.0), None).unwrap().contains("NaN"));
        assert!(failures(network(0.05, Some(0.0), None), None, Some(0.1)).unwrap().contains("not measured"));
        let broken = EvaluatedNetwork { broken_samples: 3, ..network(0.05, Some(0.0), Some(1.0)) };
        assert!(failures(broken, None, Some(0.1)).unwrap().contains("3 samples"));
    }
}
