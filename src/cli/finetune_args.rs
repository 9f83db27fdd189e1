//! How a network is trained: the options of `finetune` by their usual names.

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

/// How a network is trained.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct TrainingArgs {
    /// The recipe that gives every option its default: quick (distillation for some hundred steps), diff-pruning (the paper's
    /// on CIFAR-10) or bk-sdm [default: quick].
    #[arg(long, value_enum, help_heading = "Training")]
    recipe: Option<Recipe>,
    /// Steps of the optimizer [default: 1000].
    #[arg(long, value_name = "N", help_heading = "Training")]
    steps: Option<u64>,
    /// Samples of one run of the network, a divisor of the batch: less memory, the same result [default: the batch].
    #[arg(long, value_name = "N", help_heading = "Training")]
    micro_batch: Option<usize>,
    /// Bytes that the run may take, such as 8G [default: what is free]. Where it needs more, runs of the network have fewer
    /// samples.
    #[arg(long, value_name = "BYTES", help_heading = "Training")]
    memory: Option<String>,
    /// Batches whose gradients are summed for one step of the optimizer [default: 1].
    #[arg(long, value_name = "N", help_heading = "Training")]
    accumulate: Option<usize>,
    /// Learning rate [default: 1e-3].
    #[arg(long, value_name = "X", help_heading = "Training")]
    lr: Option<f64>,
    /// How the learning rate falls after the warm-up [default: cosine].
    #[arg(long, value_enum, help_heading = "Training")]
    lr_schedule: Option<RateSchedule>,
    /// Steps over which the learning rate grows from zero [default: a tenth of all, but at most 100].
    #[arg(long, value_name = "N", help_heading = "Training")]
    warmup: Option<u64>,
    /// The optimizer [default: adamw].
    #[arg(long, value_enum, help_heading = "Training")]
    optimizer: Option<OptimizerKind>,
    /// Weight decay [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Decay of the moving average of the weights (EMA), which is what is written; 0 for none [default: 0.999].
    #[arg(long, value_name = "X", help_heading = "Training")]
    ema: Option<f64>,
    /// Largest norm of all gradients together; larger ones are scaled down; 0 for none [default: 1].
    #[arg(long, value_name = "X", help_heading = "Training")]
    clip: Option<f64>,
    /// Share of the teacher's output in the loss, from 0 to 1 [default: 0.7 with --teacher].
    #[arg(long, value_name = "X", help_heading = "Training")]
    distill: Option<f64>,
    /// Compare inner values with the teacher's, of the channels that were kept: those of nodes or values whose name matches, or
    /// auto for a few of the residual stream.
    #[arg(long, value_name = "REGEX|auto", help_heading = "Training")]
    distill_features: Option<String>,
    /// Weight of the inner values in the loss [default: 0.1].
    #[arg(long, value_name = "X", help_heading = "Training", requires = "distill_features")]
    distill_features_weight: Option<f64>,
    /// Weight of the difference between how strongly output and teacher's output change with the noisy samples (2ndMatch), for
    /// example 0.1; takes three times the time and memory [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    distill_jacobian: Option<f64>,
    /// Use the Huber loss: differences beyond this count by their absolute value.
    #[arg(long, value_name = "X", help_heading = "Training")]
    huber: Option<f32>,
    /// Weigh timesteps by min(SNR, X) (Min-SNR weighting).
    #[arg(long, value_name = "X", help_heading = "Training")]
    snr_gamma: Option<f64>,
    /// How timesteps are drawn [default: stratified].
    #[arg(long, value_enum, help_heading = "Training")]
    timestep_sampling: Option<TimestepDraw>,
    /// Mirror half of the images from left to right.
    #[arg(long, help_heading = "Training")]
    flip: bool,
    /// Leave out the conditioning of a sample with this probability, for classifier-free guidance [default: 0].
    #[arg(long, value_name = "X", help_heading = "Training")]
    drop_conditioning: Option<f64>,
    /// What stands for no conditioning, arrays of one row by the names of the inputs [default: zeros].
    #[arg(long, value_name = "FILE.npz", help_heading = "Training")]
    pub(super) empty_conditioning: Option<PathBuf>,
    /// Train the floating point constants whose name matches; may be given again [default: the weights of all channel groups
    /// and their biases].
    #[arg(long, value_name = "REGEX", help_heading = "Training")]
    train: Vec<String>,
    /// Precision of convolutions and matrix products; weights and optimizer are float32 [default: float32].
    #[arg(long, value_enum, help_heading = "Training")]
    precision: Option<Precision>,
    /// Compute activations again in the backward pass instead of keeping them: less memory, more time, the same result.
    #[arg(long, help_heading = "Training")]
    checkpoint_activations: bool,
    /// Where the steps run: cpu, cuda or cuda:N [default: cpu].
    #[arg(long, value_name = "DEVICE", help_heading = "Training")]
    device: Option<String>,
    /// What makes the optimizer's step: a kernel of ours on the CPU, or graphs of standard operators in the memory of any
    /// device [default: kernel on the CPU, graph elsewhere].
    #[arg(long, value_enum, help_heading = "Training")]
    update: Option<UpdateKind>,
    /// Let the CPU run what the device can't, instead of failing.
    #[arg(long, help_heading = "Training")]
    allow_fallback: bool,
    /// Threads within an operator [default: as many as ONNX Runtime takes].
    #[arg(long, value_name = "N", help_heading = "Training")]
    threads: Option<usize>,
    /// Begin no further step after this time.
    #[arg(long, value_name = "HOURS", help_heading = "Training")]
    max_hours: Option<f64>,
    /// Clean samples by which the network is judged during training [default: up to 32 of the data, which are not trained on].
    #[arg(long, value_name = "PATH", help_heading = "Training")]
    eval_data: Option<PathBuf>,
    /// Samples by which the network is judged, at most [default: 32].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_samples: Option<usize>,
    /// Steps between two evaluations [default: a tenth of all, but at least 100].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_every: Option<u64>,
    /// Samples that are drawn from fixed noise at every evaluation, as one PNG [default: 0].
    #[arg(long, value_name = "N", help_heading = "Training")]
    eval_pictures: Option<usize>,
    /// Steps between two checkpoints [default: one every ten minutes].
    #[arg(long, value_name = "N", help_heading = "Training")]
    checkpoint_every: Option<u64>,
    /// Checkpoints that are kept [default: 2].
    #[arg(long, value_name = "N", help_heading = "Training")]
    keep_checkpoints: Option<usize>,
}

impl TrainingArgs {
    /// Samples that are drawn at every evaluation, where that is said.
    pub(super) fn pictures(&self) -> Option<usize> {
        self.eval_pictures
    }

    /// The settings, on these data and in this folder, with `--batch`.
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
            return Err(Error::usage(format!("--distill {}: there is no teacher", objective.distill))
                .hint("name the network whose output is learnt with --teacher, or give --distill 0"));
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
