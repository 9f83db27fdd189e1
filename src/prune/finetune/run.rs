//! Runs fine-tuning from the first step to the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::gradients::{channels, recognise, threads};
use super::super::model::{Analysis, check_sizes};
use super::super::network::Denoising;
use super::super::options::{GradientSettings, ScoreOptions};
use super::super::progress::{Progress, Stage, Watch, notify};
use super::super::refit::judge::Judge;
use super::super::runtime::Runtime;
use super::checkpoint::Checkpoints;
use super::demand::MemoryNeed;
use super::evaluation::{Evaluator, StepEvaluation};
use super::log::RunLog;
use super::samples::{RunSamples, TrainingSamples};
use super::settings::FinetuneSettings;
use super::teaching::TeacherSetup;
use super::weights::TunedWeights;
use crate::collective::Alone;
use crate::diffusion::Noising;
use crate::error::{Error, ErrorKind};
use crate::finetune::directions::step;
use crate::finetune::draw::Draws;
use crate::finetune::graph::{TrainedWeight, TrainingGraph};
use crate::finetune::pass::TrainingPass;
use crate::finetune::schedule::Rate;
use crate::finetune::trainer::{CleanSamples, StepOptions, StepReport, Trainer};
use crate::gradient::GradientOptions;
use crate::gradient::pass::PassOptions;
use crate::graph::model::Model;
use crate::macs::demand::Demand;
use crate::runtime::SessionOptions;
use crate::training::trained_weights;

/// Maximum time between two checkpoints.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(600);

/// Approximate number of noisy samples of an evaluation. Each costs a run of the network.
const EVALUATED: usize = 800;

/// Seeds of the parts of a run, added to the seed of the run.
const SEED_OF_NOISE: u64 = 11;
const SEED_OF_JUDGE: u64 = 12;

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FinetuneReport {
    /// The recognised roles of inputs and outputs, one line each.
    pub network: Vec<String>,
    /// The process, in words.
    pub process: String,
    /// The source of the clean samples, in words.
    pub source: String,
    /// Number of samples in the training data.
    pub samples: usize,
    /// Number of steps that were made, including those of a resumed run.
    pub steps: u64,
    /// Number of steps that were requested.
    pub wanted_steps: u64,
    /// Number of steps that changed nothing, because the loss or the gradients were not finite.
    pub skipped_steps: u64,
    /// Number of samples in a step.
    pub batch: usize,
    /// Number of samples in one run of the graph.
    pub micro_batch: usize,
    /// The estimated memory of the run; of the device's memory if there is a device.
    pub memory: Demand,
    /// Number of weights that were trained.
    pub weights: usize,
    /// Number of elements of all trained weights.
    pub elements: usize,
    /// The intermediate values that were compared with the teacher's.
    pub features: Vec<String>,
    /// The mean loss of the last steps.
    pub training_loss: f64,
    /// The evaluations of the network, the first before training.
    pub evaluations: Vec<StepEvaluation>,
    /// The same evaluation of the teacher. `None`: there is no teacher, or nothing to evaluate.
    pub teacher: Option<StepEvaluation>,
    /// The sample values that are shown as black and white.
    #[serde(skip)]
    pub sample_range: (f64, f64),
    /// The step whose weights are the result.
    pub best_step: u64,
    /// The execution provider of the steps, in words.
    pub execution: String,
    /// Duration of the steps of this run, in seconds.
    pub seconds: f64,
    /// Whether the run ended before its last step, by the caller or the time limit.
    pub is_stopped: bool,
}

/// The result of a run.
pub(super) struct Trained {
    pub(super) weights: TunedWeights,
    pub(super) report: FinetuneReport,
}

/// Returns options for recognising the roles of the network.
fn recognition(settings: &FinetuneSettings) -> ScoreOptions {
    let gradients = GradientSettings {
        network: settings.network.clone(),
        data: Some(settings.data.clone()),
        data_range: settings.data_range,
        ..GradientSettings::default()
    };
    ScoreOptions { seed: settings.seed, sizes: settings.sizes.clone(), gradients, ..ScoreOptions::default() }
}

/// Returns the number of samples in a run of the graph: the requested number, or a rank's share of the batch.
fn micro_batch(network: Denoising<'_>, settings: &FinetuneSettings) -> Result<usize, Error> {
    let ranks = settings.ranks.size();
    let wrong = |what: &str, size: usize| {
        let of = if ranks > 1 { format!(" times {ranks} ranks") } else { String::new() };
        Err(Error::usage(format!("--batch: expected a multiple of {what} ({size}{of}), found {}", settings.batch)))
    };
    if !settings.batch.is_multiple_of(ranks) {
        return wrong("one sample per rank", 1);
    }
    let batch = settings.batch / ranks;
    match (network.roles().fixed_batch(), settings.micro_batch) {
        (Some(fixed), _) if !batch.is_multiple_of(fixed.max(1)) => wrong("the network's fixed batch size", fixed),
        (Some(fixed), _) => Ok(fixed.max(1)),
        (None, Some(micro)) if !batch.is_multiple_of(micro) => wrong("--micro-batch", micro),
        (None, micro) => Ok(micro.unwrap_or(batch)),
    }
}

/// Trains a network.
///
/// # Errors
/// Fails if data can't be read, the network does not denoise, an operator has no gradient, or steps have no finite
/// gradients.
pub(super) fn train(
    analysis: &Analysis,
    runtime: &Runtime,
    settings: &FinetuneSettings,
    watch: &mut Watch<'_>,
) -> Result<Trained, Error> {
    settings.check()?;
    let analysis = &analysis.0;
    check_sizes(&settings.sizes, &analysis.facts, analysis.model.path())?;
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let found = recognise(analysis, &recognition(settings))?;
    let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
    let (roles, process) = (network.roles(), &network.configured().process);
    let of_teacher = TeacherSetup::teacher(settings)?;
    let of = MemoryNeed::new((network, analysis), of_teacher.as_ref().map(|teacher| &*teacher.0), settings)?;
    let (micro_batch, memory) = of.fitted(micro_batch(network, settings)?)?;
    let lessons = TeacherSetup::new(settings, of_teacher, (analysis, network), micro_batch)?;
    let conditioning = network.conditioning(micro_batch, settings.seed)?;
    let lines = network.lines(&conditioning);
    notify(watch, Progress::Network(&network.described(&lines)))?;
    notify(watch, Progress::Note(&format!("memory:       {}; {micro_batch} samples per run", memory.describe())))?;
    let samples = RunSamples::open(network, settings)?;
    let objective = lessons.objective;
    let compared = (roles.prediction.name.as_str(), channels(roles).map_err(in_file)?);
    let step = step(network.sample_dims(1)?.iter().product());
    let options = GradientOptions {
        sizes: roles.sizes(&analysis.facts, network.sizes(), lessons.batch),
        loss: objective.terms(process, compared, &lessons.names(), step),
        wanted: trained_weights(analysis, &settings.trained)?,
        precision: settings.precision,
        recomputes: settings.checkpoint_activations,
        ..GradientOptions::default()
    };
    let graph = TrainingGraph::build(analysis, &options, settings.device)?;
    let elements = graph.elements();
    let FinetuneSettings { device, allow_fallback, .. } = *settings;
    let threads = settings.threads.or_else(|| threads(&*settings.ranks));
    let pass_options = PassOptions { device, allow_fallback, threads, ..PassOptions::default() };
    let pass = TrainingPass::new(runtime.0, analysis, &graph, &pass_options)?;
    let weights = Arc::new(graph.weights);
    drop(graph.graph);
    let session = SessionOptions { device, allow_fallback, threads, ..SessionOptions::default() };
    let noising = Noising { process, roles, facts: &analysis.facts, sizes: network.sizes() };
    let draws = Draws {
        seed: settings.seed.wrapping_add(SEED_OF_NOISE),
        timesteps: settings.timesteps,
        steps: process.schedule.step_count(),
        batch: settings.batch,
    };
    let names: Vec<String> = roles.conditioning_ports().map(|port| port.name.clone()).collect();
    // Every rank computes the same directions, from the first samples of the run.
    let alone = FinetuneSettings { ranks: Arc::new(Alone), ..settings.clone() };
    let mut first = || {
        let data = samples.training(&alone, &conditioning, names.clone(), (micro_batch, 0))?;
        Ok(Box::new(data) as Box<dyn CleanSamples + '_>)
    };
    let teaching = lessons.teaching(runtime.0, network, (&noising, &draws), &session, &mut first)?;
    let rate = Rate {
        peak: settings.rate,
        schedule: settings.schedule,
        warmup: settings.warmup_steps(),
        steps: settings.steps,
    };
    let FinetuneSettings { batch, optimizer, update, .. } = *settings;
    let step = StepOptions { batch, micro_batch, objective, optimizer, update, rate };
    let mut trainer = Trainer::new(pass, teaching, (noising, draws), step, settings.ranks.clone())?;
    let of_judge = samples.judged(network, &conditioning, &names, settings.seed)?;
    let held_out = of_judge.as_ref().map(|(held_out, _)| held_out);
    let judge = Judge {
        network,
        conditioning: of_judge.as_ref().map_or(&conditioning, |(_, conditioning)| conditioning),
        runtime: runtime.0,
        seed: settings.seed.wrapping_add(SEED_OF_JUDGE),
        macs: super::super::refit::macs_of_sample(network, analysis),
        fitted: EVALUATED,
        ranks: &Alone,
    };
    let evaluator = Evaluator { judge, held_out, pictures: settings.pictures, folder: &settings.folder };
    let mut run = Run {
        settings,
        model: &analysis.model,
        weights,
        evaluator,
        evaluations: Vec::new(),
        best: None,
        log: None,
        is_first: settings.ranks.rank() == 0,
    };
    let checkpoints = Checkpoints::new(settings, (&run.weights, &lessons.names()))?;
    let judged = lessons.teacher.as_ref().filter(|_| run.is_first && run.evaluator.has_work());
    let teacher = judged.map(|of| run.evaluator.of_model(0, &of.0.model, watch)).transpose()?;
    if run.is_first && checkpoints.lacks_checkpoint() {
        let text = format!("--resume: found no checkpoint in {}; starting at step 0", settings.folder.display());
        notify(watch, Progress::Warning(&text))?;
    }
    let resumed = run.resume(&mut trainer, &checkpoints)?;
    if run.is_first {
        run.log = Some(RunLog::open(&settings.folder, settings.steps, resumed.then(|| trainer.steps()))?);
    }
    let of = (micro_batch, trainer.steps());
    let mut data = samples.training(settings, &conditioning, names, of)?;
    let outcome = run.steps(&mut trainer, &mut data, &checkpoints, watch)?;
    // Only the first rank has the best weights; all ranks have parts of the last ones.
    let last = if run.best.is_none() || settings.ranks.size() > 1 { trainer.result()? } else { Vec::new() };
    let (values, best_step) = run.best.take().map_or((last, trainer.steps()), |best| (best.values, best.step));
    let report = FinetuneReport {
        network: lines,
        process: process.describe(),
        source: samples.describe(),
        samples: samples.training_count(),
        steps: trainer.steps(),
        wanted_steps: settings.steps,
        skipped_steps: trainer.skipped(),
        batch: settings.batch,
        micro_batch,
        memory,
        weights: run.weights.len(),
        elements,
        features: lessons.names(),
        training_loss: outcome.training_loss,
        evaluations: run.evaluations,
        teacher,
        sample_range: settings.network.process.sample_range,
        best_step,
        execution: trainer.execution(),
        seconds: outcome.seconds,
        is_stopped: trainer.steps() < settings.steps,
    };
    Ok(Trained { weights: TunedWeights { weights: run.weights, values }, report })
}

/// The best weights so far.
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) loss: f64,
    pub(super) values: Vec<Vec<f32>>,
}

struct Run<'a> {
    settings: &'a FinetuneSettings,
    model: &'a Model,
    weights: Arc<Vec<TrainedWeight>>,
    evaluator: Evaluator<'a>,
    evaluations: Vec<StepEvaluation>,
    best: Option<Best>,
    /// The log. `None`: this is not the first rank.
    log: Option<RunLog>,
    is_first: bool,
}

/// The outcome of the steps of a run.
struct Outcome {
    training_loss: f64,
    seconds: f64,
}

impl Run<'_> {
    /// Makes all steps, or those until the caller or the time limit stops the run; saves the state reached by then.
    fn steps(
        &mut self,
        trainer: &mut Trainer<'_>,
        data: &mut TrainingSamples<'_>,
        checkpoints: &Checkpoints,
        watch: &mut Watch<'_>,
    ) -> Result<Outcome, Error> {
        let settings = self.settings;
        let judges = self.evaluator.has_work();
        if judges {
            // All ranks have parts of the moving average.
            let values = trainer.result()?;
            if self.evaluations.is_empty() && self.is_first {
                self.evaluate(trainer.steps(), values, watch)?;
            }
        }
        let (started, mut saved, mut seconds) = (Instant::now(), Instant::now(), 0.0);
        let mut training_loss = f64::NAN;
        let mut is_stopped = false;
        while trainer.steps() < settings.steps && !is_stopped {
            let step_started = Instant::now();
            let report = trainer.step(data)?;
            let taken = step_started.elapsed().as_secs_f64();
            seconds += taken;
            training_loss = mean_of_last(training_loss, &report);
            if let Some(log) = &mut self.log {
                log.step(&report, settings.batch as f64 / taken.max(1e-9))?;
            }
            let mut stops = settings.most_time.is_some_and(|most| started.elapsed() >= most);
            stops |= self.notify(&report, data, watch);
            let at = trainer.steps();
            let is_due = at.is_multiple_of(settings.evaluation_period()) || at == settings.steps;
            if is_due && judges {
                let values = trainer.result()?;
                if self.is_first && !stops {
                    stops = self.evaluate_or_stop(at, values, watch)?;
                }
            }
            let is_due = settings.checkpoint_every.is_some_and(|every| at.is_multiple_of(every.max(1)))
                || self.is_first && saved.elapsed() >= CHECKPOINT_PERIOD;
            // All ranks stop after the same step, and save after the same steps.
            let [stop, save] = trainer.any_rank([stops, is_due])?;
            is_stopped = stop;
            if save || is_stopped {
                if let Some(state) = trainer.state()? {
                    checkpoints.save(state, &self.evaluations, self.best.as_ref())?;
                }
                saved = Instant::now();
            }
        }
        Ok(Outcome { training_loss, seconds })
    }

    /// Resumes from the last checkpoint, if requested and there is one.
    fn resume(&mut self, trainer: &mut Trainer<'_>, checkpoints: &Checkpoints<'_>) -> Result<bool, Error> {
        let saved = if self.is_first { checkpoints.resumed()? } else { None };
        let [is_resumed] = trainer.any_rank([saved.is_some()])?;
        let mut state = None;
        if let Some(saved) = saved {
            (self.evaluations, self.best, state) = (saved.evaluations, saved.best, Some(saved.state));
        }
        if is_resumed {
            trainer.restore(state)?;
        }
        Ok(is_resumed)
    }

    /// Reports a step; returns whether the caller stops the run.
    fn notify(&self, report: &StepReport, data: &mut TrainingSamples<'_>, watch: &mut Watch<'_>) -> bool {
        let (done, total) = (report.step as usize, self.settings.steps as usize);
        let warned =
            std::mem::take(&mut data.warnings).iter().try_for_each(|text| notify(watch, Progress::Warning(text)));
        let told = warned.and_then(|()| notify(watch, Progress::Trained { report, total: self.settings.steps }));
        told.and_then(|()| notify(watch, Progress::At { stage: Stage::Training, done, total })).is_err()
    }

    /// Evaluates these weights; returns whether the caller stopped meanwhile.
    fn evaluate_or_stop(&mut self, step: u64, values: Vec<Vec<f32>>, watch: &mut Watch<'_>) -> Result<bool, Error> {
        match self.evaluate(step, values, watch) {
            Err(error) if error.kind() == ErrorKind::Cancelled => Ok(true),
            result => result.map(|()| false),
        }
    }

    /// Evaluates these weights.
    fn evaluate(&mut self, step: u64, values: Vec<Vec<f32>>, watch: &mut Watch<'_>) -> Result<(), Error> {
        let tuned = TunedWeights { weights: self.weights.clone(), values };
        let evaluation = self.evaluator.of_weights(step, self.model, &tuned, watch)?;
        if let Some(log) = &mut self.log {
            log.evaluation(&evaluation, self.settings.network.process.sample_range)?;
        }
        notify(watch, Progress::Evaluated(&evaluation))?;
        let is_best = self.best.as_ref().is_none_or(|best| evaluation.loss < best.loss);
        if is_best && self.evaluator.held_out.is_some() {
            self.best = Some(Best { step: evaluation.step, loss: evaluation.loss, values: tuned.values });
        }
        self.evaluations.push(evaluation);
        Ok(())
    }
}

/// Updates the moving average of the loss, over about the last twenty steps.
fn mean_of_last(mean: f64, report: &StepReport) -> f64 {
    match (mean.is_finite(), report.is_skipped) {
        (_, true) => mean,
        (false, false) => report.loss,
        (true, false) => mean + 0.05 * (report.loss - mean),
    }
}
