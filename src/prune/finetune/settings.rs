//! What is trained, on what, and how long.

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

/// Steps between two evaluations, at least, where nothing else is asked for: one takes as long as some steps.
const LEAST_PERIOD: u64 = 100;

/// Steps of the warm-up, at most, where nothing else is asked for. Without one, a fitted network first gets worse.
const MOST_WARMUP: u64 = 100;

/// How a network is fine-tuned.
#[derive(Clone, Debug)]
pub struct FinetuneSettings {
    /// What the network's inputs stand for and how it was trained. [`NetworkOptions::inputs`] are the conditioning of the data.
    pub network: NetworkOptions,
    /// Sizes of symbolic dimensions.
    pub sizes: Sizes,
    /// Clean samples: a folder of images, or an array file.
    pub data: PathBuf,
    /// The values of the data that stand for the ends of the sample range; see
    /// [`super::super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// Clean samples by which the run is judged; taken out of `data` where `None`.
    pub held_out: Option<PathBuf>,
    /// Samples by which the run is judged, at most; a fifth of the data where that is less and they come from it.
    pub held_out_count: usize,
    /// The network whose output is learnt; none where `None`.
    pub teacher: Option<Model>,
    /// The cut of the teacher that this network is, by which their inner values correspond; where there is none, those of one
    /// shape do.
    pub cut: Option<Cut>,
    /// The inner values that are compared with the teacher's, with the weight [`Objective::features`].
    pub features: Option<FeatureChoice>,
    /// Steps of the optimizer.
    pub steps: u64,
    /// Samples of a step.
    pub batch: usize,
    /// Samples of one run of the graph, which bounds its memory; as many as fit where `None`.
    pub micro_batch: Option<usize>,
    /// Bytes that the run may take; what is free where `None`. Where it needs more, runs of the graph have fewer samples.
    pub memory: Option<u64>,
    /// The largest learning rate.
    pub rate: f64,
    /// How it changes.
    pub schedule: RateSchedule,
    /// Steps over which it grows from zero; a tenth of all, but at most 100, where `None`.
    pub warmup: Option<u64>,
    /// The optimizer.
    pub optimizer: OptimizerOptions,
    /// What makes the optimizer's step; what suits the device where `None`.
    pub update: Option<UpdateKind>,
    /// What is minimised.
    pub objective: Objective,
    /// How timesteps are drawn.
    pub timesteps: TimestepDraw,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// The probability with which a sample loses its conditioning, for guidance.
    pub drop_conditioning: f64,
    /// What stands for no conditioning, one row by the name of the input; zeros where there is none.
    pub empty: Vec<(String, Array)>,
    /// The floating point constants whose names match one of these are trained; the weights of all channel groups with their
    /// biases where there is none.
    pub trained: Vec<Regex>,
    /// Seed of everything random.
    pub seed: u64,
    /// Where the steps run.
    pub device: Device,
    /// Whether the CPU may run what the device can't.
    pub allow_fallback: bool,
    /// Threads within an operator; ONNX Runtime decides where `None`.
    pub threads: Option<usize>,
    /// The precision of convolutions and matrix products; weights and optimizer are float32 always.
    pub precision: Precision,
    /// Whether the backward pass computes activations again instead of keeping them: less memory, more time.
    pub checkpoint_activations: bool,
    /// Steps between two evaluations on the held-out samples; a tenth of all, but at least 100, where `None`. The last step is
    /// followed by one in any case.
    pub evaluate_every: Option<u64>,
    /// Samples that are drawn from fixed noise at every evaluation.
    pub pictures: usize,
    /// Steps between two checkpoints; one is saved every ten minutes at least.
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that are kept beside the best one.
    pub keep_checkpoints: usize,
    /// Where checkpoints, metrics and pictures are kept.
    pub folder: PathBuf,
    /// Whether to go on from the last checkpoint.
    pub resume: bool,
    /// After this time no further step begins.
    pub most_time: Option<Duration>,
    /// The processes that divide the batch among them.
    pub ranks: Arc<dyn Collective>,
}

/// Published recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Recipe {
    /// Distillation with a cosine from 1e-3, a batch of 32: for some hundred or thousand steps of a small network.
    Quick,
    /// "Structural Pruning for Diffusion Models" on CIFAR-10: Adam, 2e-4, a batch of 128, antithetic timesteps, 100,000
    /// steps.
    DiffPruning,
    /// "BK-SDM" (2023): AdamW, 5e-5, decay 0.01, a batch of 256, the teacher's output beside the data, 50,000 steps.
    BkSdm,
}

impl FinetuneSettings {
    /// The settings of a recipe.
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

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.objective.check()?;
        if matches!(self.device, Device::TensorRt(_)) {
            let text = format!("fine-tuning runs on cpu and cuda, asked for {}", self.device);
            return Err(Error::unsupported(text)
                .hint("TensorRT builds its engines for weights that stay; --device cuda trains on the same GPU"));
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
            let text = format!("--drop-conditioning: expected a probability, found {}", self.drop_conditioning);
            return Err(Error::usage(text));
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::usage(format!("--lr: expected a number above 0, found {}", self.rate)));
        }
        let of = &self.optimizer;
        if !(of.weight_decay >= 0.0 && of.weight_decay.is_finite()) {
            return Err(Error::usage(format!(
                "--weight-decay: expected a number from 0 on, found {}",
                of.weight_decay
            )));
        }
        if let Some(ema) = of.ema.filter(|ema| !(0.0..1.0).contains(ema)) {
            return Err(Error::usage(format!("--ema: expected a share in [0, 1), found {ema}")));
        }
        match of.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
            Some(clip) => Err(Error::usage(format!("--clip: expected a norm above 0, found {clip}"))),
            None => Ok(()),
        }
    }

    /// Steps over which the learning rate grows.
    pub(super) fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or((self.steps / 10).min(MOST_WARMUP))
    }

    /// Steps between two evaluations.
    pub(super) fn evaluation_period(&self) -> u64 {
        self.evaluate_every.unwrap_or(self.steps.div_ceil(10).max(LEAST_PERIOD)).max(1)
    }
}
