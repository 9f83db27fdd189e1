//! The settings of a fine-tuning run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::super::cut::Cut;
use super::super::model::Model;
use super::super::network::NetworkOptions;
use crate::array::Array;
use crate::collective::{Alone, Collective};
use crate::error::Error;
use crate::finetune::draw::TimestepDraw;
use crate::finetune::features::FeatureChoice;
use crate::finetune::objective::Objective;
use crate::finetune::optimizer::{OptimizerKind, OptimizerOptions};
use crate::finetune::schedule::RateSchedule;
use crate::finetune::update::UpdateKind;
use crate::gradient::Precision;
use crate::graph::sizes::Sizes;
use crate::runtime::Device;

/// Default minimum number of steps between two evaluations: an evaluation takes as long as several steps.
const LEAST_PERIOD: u64 = 100;

/// Default maximum number of warm-up steps. Without a warm-up, a refitted network first gets worse.
const MOST_WARMUP: u64 = 100;

/// How a network is fine-tuned.
#[derive(Clone, Debug)]
pub struct FinetuneSettings {
    /// The roles of the network's inputs and how it was trained. [`NetworkOptions::inputs`] are the conditioning of the
    /// data.
    pub network: NetworkOptions,
    /// Sizes of symbolic dimensions.
    pub sizes: Sizes,
    /// Clean samples: a folder of images, or an array file.
    pub data: PathBuf,
    /// The values of the data that correspond to the ends of the sample range; see
    /// [`super::super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// Held-out clean samples. `None`: they are taken from `data`.
    pub held_out: Option<PathBuf>,
    /// Maximum number of held-out samples. If they are taken from `data`, at most a fifth of it is held out.
    pub held_out_count: usize,
    /// The teacher, whose output is learnt. `None`: there is no teacher.
    pub teacher: Option<Model>,
    /// The cut of the teacher that produced this network; it determines which of their intermediate values correspond.
    /// `None`: values of the same shape do.
    pub cut: Option<Cut>,
    /// The intermediate values that are compared with the teacher's, with the weight [`Objective::features`]. `None`:
    /// none.
    pub features: Option<FeatureChoice>,
    /// Number of optimizer steps.
    pub steps: u64,
    /// Number of samples in a step.
    pub batch: usize,
    /// Number of samples in one run of the graph, which limits memory. `None`: as many as fit.
    pub micro_batch: Option<usize>,
    /// Maximum memory of the run in bytes. `None`: the free memory. If more is needed, runs of the graph have fewer
    /// samples.
    pub memory: Option<u64>,
    /// The peak learning rate.
    pub rate: f64,
    /// The learning rate schedule.
    pub schedule: RateSchedule,
    /// Number of warm-up steps. `None`: a tenth of all steps, but at most 100.
    pub warmup: Option<u64>,
    /// The optimizer.
    pub optimizer: OptimizerOptions,
    /// How the optimizer's step is computed. `None`: chosen for the device.
    pub update: Option<UpdateKind>,
    /// The loss.
    pub objective: Objective,
    /// How timesteps are sampled.
    pub timesteps: TimestepDraw,
    /// Whether half of the images are flipped horizontally.
    pub flip: bool,
    /// The probability that a sample's conditioning is dropped, for classifier-free guidance.
    pub drop_conditioning: f64,
    /// The conditioning of dropped samples, one row by the name of the input. Inputs that are missing here get zeros.
    pub empty: Vec<(String, Array)>,
    /// The floating point constants whose names match one of these are trained. If empty, the weights of all channel
    /// groups and their biases are trained.
    pub trained: Vec<Regex>,
    /// Seed of all random choices.
    pub seed: u64,
    /// The device that the steps run on.
    pub device: Device,
    /// Whether operators that the device can't run may run on the CPU.
    pub allow_fallback: bool,
    /// Number of threads within an operator. `None`: ONNX Runtime decides.
    pub threads: Option<usize>,
    /// The precision of convolutions and matrix products. Weights and optimizer are always float32.
    pub precision: Precision,
    /// Whether the backward pass recomputes activations instead of storing them, which needs less memory and more time.
    pub checkpoint_activations: bool,
    /// Number of steps between two evaluations on the held-out samples. `None`: a tenth of all steps, but at least 100.
    /// The last step is always followed by an evaluation.
    pub evaluate_every: Option<u64>,
    /// Number of samples to generate from fixed noise at every evaluation.
    pub pictures: usize,
    /// Number of steps between two checkpoints. `None`: a checkpoint is saved every ten minutes. One is saved at least
    /// that often in any case.
    pub checkpoint_every: Option<u64>,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// The folder for checkpoints, metrics and images.
    pub folder: PathBuf,
    /// Whether to resume from the last checkpoint.
    pub resume: bool,
    /// The time after which no further step begins. `None`: no limit.
    pub most_time: Option<Duration>,
    /// The processes that share the batch.
    pub ranks: Arc<dyn Collective>,
}

/// Published recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Recipe {
    /// Distillation, a cosine schedule from 1e-3, batch size 32: for hundreds or thousands of steps of a small network.
    Quick,
    /// "Structural Pruning for Diffusion Models" on CIFAR-10: Adam, 2e-4, batch size 128, antithetic timesteps, 100,000
    /// steps.
    DiffPruning,
    /// "BK-SDM" (2023): AdamW, 5e-5, weight decay 0.01, batch size 256, distillation and denoising loss, 50,000 steps.
    BkSdm,
}

impl FinetuneSettings {
    /// Returns the settings of a recipe.
    pub fn new(data: impl Into<PathBuf>, folder: impl Into<PathBuf>, recipe: Recipe) -> Self {
        let quick = Self {
            network: NetworkOptions::default(),
            sizes: Sizes::default(),
            data: data.into(),
            data_range: None,
            held_out: None,
            held_out_count: 32,
            teacher: None,
            cut: None,
            features: None,
            steps: 1000,
            batch: 32,
            micro_batch: None,
            memory: None,
            rate: 1e-3,
            schedule: RateSchedule::Cosine,
            warmup: None,
            optimizer: OptimizerOptions::default(),
            update: None,
            objective: Objective::default(),
            timesteps: TimestepDraw::Stratified,
            flip: false,
            drop_conditioning: 0.0,
            empty: Vec::new(),
            trained: Vec::new(),
            seed: 0,
            device: Device::default(),
            allow_fallback: false,
            threads: None,
            precision: Precision::default(),
            checkpoint_activations: false,
            evaluate_every: None,
            pictures: 0,
            checkpoint_every: None,
            keep_checkpoints: 2,
            folder: folder.into(),
            resume: false,
            most_time: None,
            ranks: Arc::new(Alone),
        };
        match recipe {
            Recipe::Quick => quick,
            Recipe::DiffPruning => Self {
                steps: 100_000,
                batch: 128,
                rate: 2e-4,
                schedule: RateSchedule::Constant,
                optimizer: OptimizerOptions { kind: OptimizerKind::Adam, ema: Some(0.9999), ..quick.optimizer },
                objective: Objective { distill: 0.0, ..quick.objective },
                warmup: Some(0),
                timesteps: TimestepDraw::Antithetic,
                flip: true,
                ..quick
            },
            Recipe::BkSdm => Self {
                steps: 50_000,
                batch: 256,
                rate: 5e-5,
                schedule: RateSchedule::Constant,
                optimizer: OptimizerOptions { weight_decay: 1e-2, ema: Some(0.9999), ..quick.optimizer },
                objective: Objective { distill: 0.5, ..quick.objective },
                warmup: Some(0),
                timesteps: TimestepDraw::Uniform,
                ..quick
            },
        }
    }

    /// Refuses invalid settings.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.objective.check()?;
        if matches!(self.device, Device::TensorRt(_)) {
            let text = format!("--device: fine-tuning runs on cpu or cuda, found {}", self.device);
            return Err(Error::unsupported(text)
                .hint("TensorRT engines have constant weights; use --device cuda, which trains on the same GPU"));
        }
        let counts = [
            ("--steps", self.steps > 0),
            ("--batch", self.batch > 0),
            ("--micro-batch", self.micro_batch != Some(0)),
            ("--keep-checkpoints", self.keep_checkpoints > 0),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, is_right)| !is_right) {
            return Err(Error::usage(format!("{name}: expected at least 1, found 0")));
        }
        if !(0.0..=1.0).contains(&self.drop_conditioning) {
            let text =
                format!("--drop-conditioning: expected a probability from 0 to 1, found {}", self.drop_conditioning);
            return Err(Error::usage(text));
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::usage(format!("--lr: expected a number above 0, found {}", self.rate)));
        }
        let of = &self.optimizer;
        if !(of.weight_decay >= 0.0 && of.weight_decay.is_finite()) {
            return Err(Error::usage(format!(
                "--weight-decay: expected a number of at least 0, found {}",
                of.weight_decay
            )));
        }
        if let Some(ema) = of.ema.filter(|ema| !(0.0..1.0).contains(ema)) {
            return Err(Error::usage(format!("--ema: expected a decay in [0, 1), found {ema}")));
        }
        match of.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
            Some(clip) => Err(Error::usage(format!("--clip: expected a norm above 0, found {clip}"))),
            None => Ok(()),
        }
    }

    /// Returns the number of warm-up steps.
    pub(super) fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or((self.steps / 10).min(MOST_WARMUP))
    }

    /// Returns the number of steps between two evaluations.
    pub(super) fn evaluation_period(&self) -> u64 {
        self.evaluate_every.unwrap_or(self.steps.div_ceil(10).max(LEAST_PERIOD)).max(1)
    }
}
