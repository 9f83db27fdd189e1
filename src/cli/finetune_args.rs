//! The training options of `finetune`, under their usual names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use onnx_diffprune::Error;
use onnx_diffprune::finetuning::{
    FeatureChoice, FinetuneSettings, OptimizerKind, RateSchedule, Recipe, TimestepDraw, UpdateKind,
};
use onnx_diffprune::options::Precision;
use onnx_diffprune::ranks::Collective;

use super::config::pattern;
use super::ranks::device_of_option;
use super::refit_args::bytes;

/// The training options.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct TrainingArgs {
    /// The recipe that sets the defaults: quick (distillation, some hundred or thousand steps), diff-pruning (that of
    /// the paper on CIFAR-10) or bk-sdm. The defaults shown for the other options are those of quick [default: quick].
    #[arg(long, value_enum, help_heading = "Training")]
    recipe: Option<Recipe>,
    /// Number of optimizer steps [default: 1000].
    #[arg(long, value_name = "N", help_heading = "Training")]
    steps: Option<u64>,
    /// Number of samples in one run of the network, a divisor of the batch size. Smaller values use less memory and
    /// give the same result [default: the batch size].
    #[arg(long, value_name = "N", help_heading = "Training")]
    micro_batch: Option<usize>,
    /// Memory limit in bytes, such as 8G. If the run needs more, the micro-batch is reduced [default: the free memory].
    #[arg(long, value_name = "BYTES", help_heading = "Training")]
    memory: Option<String>,
    /// Number of batches whose gradients are summed for one optimizer step [default: 1].
    #[arg(long, value_name = "N", help_heading = "Training")]
    accumulate: Option<usize>,
    /// Learning rate [default: 1e-3].
    #[arg(long, value_name = "X", help_heading = "Training")]
    lr: Option<f64>,
    /// How the learning rate changes after the warm-up [default: cosine].
    #[arg(long, value_enum, help_heading = "Training")]
    lr_schedule: Option<RateSchedule>,
    /// Number of warm-up steps, in which the learning rate grows linearly from zero [default: a tenth of all steps, at
    /// most 100].
    #[arg(long, value_name = "N", help_heading = "Training")]
    warmup: Option<u64>,
    /// The optimizer [default: adamw].
    #[arg(long, value_enum, help_heading = "Training")]
    optimizer: Option<OptimizerKind>,
    /// Weight decay [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Decay of the exponential moving average (EMA) of the weights. The averaged weights are the ones written; 0 turns
    /// averaging off [default: 0.999].
    #[arg(long, value_name = "X", help_heading = "Training")]
    ema: Option<f64>,
    /// Gradient clipping: gradients whose global norm is larger are scaled down to this norm; 0 turns clipping off
    /// [default: 1].
    #[arg(long, value_name = "X", help_heading = "Training")]
    clip: Option<f64>,
    /// Weight of the teacher's output in the loss, from 0 to 1; the rest is the weight of the target [default: 0.7 with
    /// --teacher, else 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    distill: Option<f64>,
    /// Also compare features, the values inside of the network, with those of the teacher at the kept channels: the
    /// values or nodes whose name matches, or auto for a few values of the residual stream [default: none].
    #[arg(long, value_name = "REGEX|auto", help_heading = "Training")]
    distill_features: Option<String>,
    /// Weight of the feature comparison in the loss [default: 0.1].
    #[arg(long, value_name = "X", help_heading = "Training", requires = "distill_features")]
    distill_features_weight: Option<f64>,
    /// Weight of a Jacobian term in the loss (2ndMatch), for example 0.1: it compares how strongly the outputs of
    /// network and teacher change with the noisy samples. Takes three times the time and memory [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    distill_jacobian: Option<f64>,
    /// Use the Huber loss with this threshold: larger differences count linearly [default: the squared loss].
    #[arg(long, value_name = "X", help_heading = "Training")]
    huber: Option<f32>,
    /// Weight timesteps by min(SNR, X) (Min-SNR weighting) [default: all timesteps equally].
    #[arg(long, value_name = "X", help_heading = "Training")]
    snr_gamma: Option<f64>,
    /// How the timesteps of samples are chosen [default: stratified].
    #[arg(long, value_enum, help_heading = "Training")]
    timestep_sampling: Option<TimestepDraw>,
    /// Mirror half of the images horizontally.
    #[arg(long, help_heading = "Training")]
    flip: bool,
    /// Probability of dropping the conditioning of a sample, for classifier-free guidance [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    drop_conditioning: Option<f64>,
    /// The empty conditioning that replaces a dropped one: arrays of one row with the names of the inputs [default:
    /// zeros].
    #[arg(long, value_name = "FILE.npz", help_heading = "Training")]
    pub(super) empty_conditioning: Option<PathBuf>,
    /// Train the floating point constants whose name matches. Can be given several times [default: the weights of all
    /// channel groups, with their biases].
    #[arg(long, value_name = "REGEX", help_heading = "Training")]
    train: Vec<String>,
    /// Precision of convolutions and matrix products. Weights and optimizer state are always float32 [default:
    /// float32].
    #[arg(long, value_enum, help_heading = "Training")]
    precision: Option<Precision>,
    /// Recompute activations in the backward pass instead of storing them (gradient checkpointing): less memory, more
    /// time, the same result.
    #[arg(long, help_heading = "Training")]
    checkpoint_activations: bool,
    /// The device to train on: cpu, cuda or cuda:N [default: cpu].
    #[arg(long, value_name = "DEVICE", help_heading = "Training")]
    device: Option<String>,
    /// What computes the optimizer step: a fused kernel of this tool, on the CPU only, or graphs of standard operators
    /// in the memory of the device [default: kernel on the CPU, graph elsewhere].
    #[arg(long, value_enum, help_heading = "Training")]
    update: Option<UpdateKind>,
    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long, help_heading = "Training")]
    allow_fallback: bool,
    /// Number of threads within an operator [default: chosen by ONNX Runtime].
    #[arg(long, value_name = "N", help_heading = "Training")]
    threads: Option<usize>,
    /// Time limit in hours: no step begins after it.
    #[arg(long, value_name = "HOURS", help_heading = "Training")]
    max_hours: Option<f64>,
    /// Held-out clean samples for the evaluations during training [default: up to 32 samples of --data, which are then
    /// not trained on].
    #[arg(long, value_name = "PATH", help_heading = "Training")]
    eval_data: Option<PathBuf>,
    /// Maximum number of samples in an evaluation [default: 32].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_samples: Option<usize>,
    /// Number of steps between evaluations [default: a tenth of all steps, at least 100].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_every: Option<u64>,
    /// Number of samples to generate from fixed noise at every evaluation, saved as one PNG image [default: 0].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_pictures: Option<usize>,
    /// Number of steps between checkpoints [default: a checkpoint every ten minutes].
    #[arg(long, value_name = "N", help_heading = "Training")]
    checkpoint_every: Option<u64>,
    /// Number of checkpoints to keep in addition to the best one [default: 2].
    #[arg(long, value_name = "N", help_heading = "Training")]
    keep_checkpoints: Option<usize>,
}

impl TrainingArgs {
    /// Returns the number of samples to generate at every evaluation, if it is given.
    pub(super) fn pictures(&self) -> Option<usize> {
        self.eval_pictures
    }

    /// Returns the settings of a training on these data and in this run folder, with the value of `--batch`.
    pub(super) fn settings(
        &self,
        (data, folder): (&Path, &Path),
        batch: Option<usize>,
        has_teacher: bool,
        ranks: &dyn Collective,
    ) -> Result<FinetuneSettings, Error> {
        let mut settings = FinetuneSettings::new(data, folder, self.recipe.unwrap_or(Recipe::Quick));
        settings.steps = self.steps.unwrap_or(settings.steps);
        let (batch, accumulate) = (batch.unwrap_or(settings.batch), self.accumulate.unwrap_or(1));
        if accumulate == 0 {
            return Err(Error::usage("--accumulate: expected at least 1, found 0"));
        }
        settings.batch = batch.saturating_mul(accumulate);
        settings.micro_batch = self.micro_batch.or((accumulate > 1).then_some(batch));
        settings.memory = self.memory.as_deref().map(|text| bytes("--memory", text)).transpose()?;
        settings.rate = self.lr.unwrap_or(settings.rate);
        settings.schedule = self.lr_schedule.unwrap_or(settings.schedule);
        settings.warmup = self.warmup.or(settings.warmup);
        let optimizer = &mut settings.optimizer;
        optimizer.kind = self.optimizer.unwrap_or(optimizer.kind);
        optimizer.weight_decay = self.weight_decay.unwrap_or(optimizer.weight_decay);
        let none_if_zero = |given: Option<f64>, default: Option<f64>| match given {
            Some(0.0) => None,
            given => given.or(default),
        };
        optimizer.ema = none_if_zero(self.ema, optimizer.ema);
        optimizer.clip = none_if_zero(self.clip, optimizer.clip);
        let objective = &mut settings.objective;
        objective.distill = self.distill.unwrap_or(if has_teacher { objective.distill } else { 0.0 });
        (objective.huber, objective.snr_gamma) = (self.huber, self.snr_gamma);
        if objective.distill > 0.0 && !has_teacher {
            return Err(Error::usage(format!("--distill {}: no teacher is given", objective.distill))
                .hint("name the original network with --teacher, or use --distill 0"));
        }
        objective.features = self.distill_features_weight.unwrap_or(objective.features);
        objective.jacobian = self.distill_jacobian.unwrap_or(objective.jacobian);
        settings.features = match self.distill_features.as_deref() {
            None => None,
            Some("auto") => Some(FeatureChoice::Auto),
            Some(text) => Some(FeatureChoice::Matching(pattern("--distill-features", text)?)),
        };
        settings.timesteps = self.timestep_sampling.unwrap_or(settings.timesteps);
        settings.flip |= self.flip;
        settings.drop_conditioning = self.drop_conditioning.unwrap_or(0.0);
        settings.trained = self.train.iter().map(|text| pattern("--train", text)).collect::<Result<_, _>>()?;
        settings.precision = self.precision.unwrap_or_default();
        settings.checkpoint_activations = self.checkpoint_activations;
        (settings.device, settings.allow_fallback) =
            (device_of_option(self.device.as_deref(), ranks)?, self.allow_fallback);
        settings.update = self.update;
        settings.threads = self.threads;
        if let Some(hours) = self.max_hours {
            let time = Duration::try_from_secs_f64(3600.0 * hours).ok().filter(|time| !time.is_zero());
            let text = || Error::usage(format!("--max-hours: expected a number above 0, found {hours}"));
            settings.most_time = Some(time.ok_or_else(text)?);
        }
        settings.held_out.clone_from(&self.eval_data);
        settings.held_out_count = self.eval_samples.unwrap_or(settings.held_out_count);
        settings.evaluate_every = self.eval_every;
        settings.pictures = self.eval_pictures.unwrap_or(settings.pictures);
        settings.checkpoint_every = self.checkpoint_every;
        settings.keep_checkpoints = self.keep_checkpoints.unwrap_or(settings.keep_checkpoints);
        Ok(settings)
    }
}
