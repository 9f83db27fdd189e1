//! Refits a staged cut on denoising samples.

mod across;

pub(super) mod judge;

mod output;

mod repeat;

mod samples;

mod unfitted;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::gradients::recognise;
use super::network::Denoising;
use super::options::ScoreOptions;
use super::output::Task;
use super::progress::{Progress, Stage, Watch, notify};
use super::runtime::Runtime;
use super::staged::Staged;
use crate::analysis::Analysis;
use crate::collective::least;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::sizes::sizes_for;
use crate::load::load;
use crate::macs::Cost;
use crate::plan::{Plan, RefitPlan};
use crate::refit::{RefitCut, RefitLayer, RefitOptions, Refitted, Weighting, refit};
pub(super) use across::measure;
use judge::{Judge, Judged};
pub use judge::{RefitLosses, RefitPictures};
use repeat::{checkpoint, refuse_other};
use samples::{Clean, NoisySamples};
pub use unfitted::CutJudgement;

/// Default maximum and minimum number of noisy samples of a fit.
const SAMPLES: (usize, usize) = (512, 32);

/// Default maximum number of MACs for all runs of the original.
const MACS: f64 = 2e13;

/// Default maximum number of bytes that are passed from segment to segment: the largest set of activations of both
/// networks, for all samples. Data that exceeds the memory of a refit is written to a file.
const SPILLED: f64 = 8.0 * (1u64 << 30) as f64;

/// Maximum number of samples in a chunk, and minimum number of chunks.
const BATCH: usize = 32;
const CHUNKS: usize = 64;

/// Number of timesteps at which the weight of errors is measured, and samples for each.
const PROBED: usize = 24;
const PROBE_BATCH: usize = 4;

/// Time between two checkpoints.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(30);

/// Seeds of the noise, added to the seed of the run.
const SEED_OF_NOISE: u64 = 4;
const SEED_OF_PROBE: u64 = 5;
const SEED_OF_JUDGE: u64 = 6;

/// The settings of a refit.
#[derive(Clone, Debug)]
pub struct RefitSettings {
    /// Number of noisy samples of the fit. `None`: 512, or fewer for large networks. If there are fewer clean samples,
    /// they are used repeatedly with different noise.
    pub samples: Option<usize>,
    /// Number of samples in a chunk, all at one timestep. `None`: chosen automatically, or fixed by the network.
    pub batch: Option<usize>,
    /// Number of timesteps, spread evenly over the schedule. `None`: one for every chunk of samples.
    pub timesteps: Option<usize>,
    /// Maximum number of clean samples to hold out. At most a fifth of all samples is held out.
    pub held_out: usize,
    /// Number of samples that original, cut and refitted network generate from the same noise.
    pub pictures: usize,
    /// The options of the least-squares fits.
    pub options: RefitOptions,
    /// The checkpoint file, from which an interrupted run can be resumed. `None`: no checkpoint is saved.
    pub checkpoint: Option<PathBuf>,
    /// Time between two checkpoints.
    pub checkpoint_period: Duration,
    /// Whether to resume from the checkpoint.
    pub resume: bool,
    /// The refit to repeat. Other data or another process are then refused. `None`: this is a new refit.
    pub repeats: Option<RefitPlan>,
}

impl Default for RefitSettings {
    fn default() -> Self {
        Self {
            samples: None,
            batch: None,
            timesteps: None,
            held_out: 32,
            pictures: 0,
            options: RefitOptions::default(),
            checkpoint: None,
            checkpoint_period: CHECKPOINT_PERIOD,
            resume: false,
            repeats: None,
        }
    }
}

/// The loss for evaluating a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LossKind {
    /// The denoising loss.
    Denoising,
    /// The mean squared error of the output relative to the original's output.
    Output,
}

impl LossKind {
    /// Describes the loss in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Denoising => "denoising loss",
            Self::Output => "squared error to the original's output",
        }
    }
}

/// The report of a refit.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RefitReport {
    /// The source of the clean samples, in words.
    pub source: String,
    /// The process, in words.
    pub process: String,
    /// The kind of the losses.
    pub loss: LossKind,
    /// Number of noisy samples of the fit.
    pub samples: usize,
    /// Number of clean samples that they were computed from.
    pub clean_samples: usize,
    /// Number of timesteps of the fit.
    pub timesteps: usize,
    /// How rows were weighted by timestep.
    pub weights: Weighting,
    /// The result for every layer.
    pub layers: Vec<RefitLayer>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The losses on held-out samples. `None`: there are too few samples to hold some out.
    pub losses: Option<RefitLosses>,
    /// Samples of the three networks. `None`: not requested.
    #[serde(skip)]
    pub pictures: Option<RefitPictures>,
    /// Duration of the fit in seconds.
    pub seconds: f64,
}

impl RefitReport {
    /// Describes the samples of the fit, in words.
    pub fn extent(&self) -> String {
        match self.loss {
            LossKind::Denoising => format!("{} noisy samples over {} timesteps", self.samples, self.timesteps),
            LossKind::Output => format!("{} samples", self.samples),
        }
    }

    /// Returns the number of fitted layers.
    pub fn fitted(&self) -> usize {
        self.layers.iter().filter(|layer| layer.errors.is_some()).count()
    }
}

/// The sizes of a fit.
#[derive(Clone, Copy, Debug)]
struct Extent {
    batch: usize,
    samples: usize,
    timesteps: usize,
}

impl Extent {
    /// Returns the requested number of samples, or the number that suits the network, divided into chunks.
    fn new(network: Denoising<'_>, sample: &Cost, settings: &RefitSettings) -> Result<Self, Error> {
        let steps = network.configured().process.schedule.step_count();
        if let Some(0) = settings.samples {
            return Err(Error::usage("--refit-samples: expected at least 1, found 0"));
        }
        if let Some(timesteps) = settings.timesteps.filter(|count| !(1..=steps).contains(count)) {
            return Err(Error::usage(format!("--refit-timesteps: expected 1 to {steps} timesteps, found {timesteps}")));
        }
        let wanted = settings.samples.unwrap_or_else(|| affordable(sample));
        let chunks = settings.timesteps.unwrap_or(CHUNKS).min(wanted);
        let batch = match network.roles().fixed_batch().or(settings.batch) {
            Some(fixed) => fixed.max(1),
            None => least(&*settings.options.ranks, network.fitting((wanted / chunks).clamp(1, BATCH), true)?)?,
        };
        let chunks = wanted.div_ceil(batch);
        let timesteps = settings.timesteps.unwrap_or(chunks).min(chunks).min(steps);
        Ok(Self { batch, samples: chunks * batch, timesteps })
    }
}

/// Returns the number of samples for a network with this cost per sample.
fn affordable(sample: &Cost) -> usize {
    let by_time = MACS / (sample.macs + sample.attention_macs).max(1.0);
    let by_space = SPILLED / (2.0 * sample.activation_bytes.max(1) as f64);
    (by_time.min(by_space) as usize).clamp(SAMPLES.1, SAMPLES.0)
}

/// Returns the cut with its fitted weights, and records them in the plan. Without fitted weights, the cut is unchanged.
fn adopt(staged: Staged, fitted: &Refitted, pruned: &Model, plan: &mut Plan) -> Result<Staged, Error> {
    if fitted.is_empty() {
        return Ok(staged);
    }
    let analysis = staged.cut().analysis().0.clone();
    let before = plan.changed.as_ref().map(|changed| (changed, pruned));
    let (mut edits, changed) = fitted.changes(&analysis, staged.cut().rewritten(), before)?.finish(pruned)?;
    plan.changed = Some(changed);
    plan.record_in(&analysis.model, &mut edits);
    let file = crate::write::stage(&analysis.model, &edits, staged.output())?;
    Ok(staged.replaced(plan.clone(), file))
}

impl Staged {
    /// Fits the weights of the cut by least squares, so that the pruned network computes what the original does. The
    /// fit uses the clean samples of `options`, or samples that the network generates. The staged file then has the new
    /// weights, and needs a new [verification](Self::check). [`Staged::refit_report`] returns the report.
    ///
    /// Several ranks ([`RefitOptions::ranks`]) share the samples. Each rank stages the same cut and gets the same
    /// weights. The first rank reads the data.
    ///
    /// # Errors
    /// Fails if data can't be read, the network does not denoise or does not run, or the caller stopped.
    pub fn refit(
        self,
        runtime: &Runtime,
        options: &ScoreOptions,
        settings: &RefitSettings,
        watch: &mut Watch<'_>,
    ) -> Result<Self, Error> {
        if let Task::Output(samples) = &options.task {
            return output::refit_output(self, runtime, (options, settings), samples, watch);
        }
        let analysis = self.cut().analysis().0.clone();
        let found = recognise(&analysis, options)?;
        let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
        let sample = cost_of_sample(network, &analysis);
        let macs = sample.macs + sample.attention_macs;
        let extent = Extent::new(network, &sample, settings)?;
        let conditioning = network.conditioning(extent.samples, options.seed)?;
        let clean =
            Clean::new(network, runtime.0, &conditioning, (options, settings), (extent.samples, extent.batch), watch)?;
        let (process, data_blake3) = (network.configured().process.describe(), clean.digest());
        if let Some(plan) = &settings.repeats {
            refuse_other(plan, &process, &data_blake3)?;
        }
        let judge = Judge {
            network,
            conditioning: &conditioning,
            runtime: runtime.0,
            seed: options.seed.wrapping_add(SEED_OF_JUDGE),
            macs,
            fitted: extent.samples,
            ranks: &*settings.options.ranks,
        };
        let pruned = load(self.path())?;
        let held_out = clean.held_out.as_ref();
        let before = [&analysis.model, &pruned].map(|model| judge.judge(model, held_out, settings.pictures, watch));
        let [original, cut] = before;
        let (original, cut) = (original?, cut?);
        let started = Instant::now();
        let work = Work { network, analysis: &analysis, clean: &clean, extent, seed: options.seed, macs };
        let checkpoint = checkpoint(settings, (self.cut().plan(), &pruned), (extent, &data_blake3, &process), watch)?;
        let fit_options = RefitOptions { seed: options.seed, checkpoint, ..settings.options.clone() };
        let fitted = work.fit(self.cut().rewritten(), &pruned, &conditioning, &fit_options, runtime, watch)?;
        let seconds = started.elapsed().as_secs_f64();
        let mut report = RefitReport {
            source: clean.fit.source.clone(),
            process,
            loss: LossKind::Denoising,
            samples: extent.samples,
            clean_samples: clean.fit.len().min(extent.samples),
            timesteps: extent.timesteps,
            weights: settings.options.weighting,
            layers: fitted.layers.clone(),
            notes: fitted.notes.clone(),
            losses: None,
            pictures: None,
            seconds,
        };
        let mut plan = Plan::clone(self.cut().plan());
        let had_changed = plan.changed.is_some();
        let staged = adopt(self, &fitted, &pruned, &mut plan)?;
        let refitted = judge.judge(&load(staged.path())?, held_out, settings.pictures, watch)?;
        report.losses = losses(held_out.and_then(|samples| judge.extent(samples)), [&original, &cut, &refitted]);
        report.pictures = pictures([original, cut, refitted], options.gradients.network.process.sample_range);
        // A fit that started from weights other than the original's can't be repeated from the original.
        plan.refit = (!had_changed).then(|| RefitPlan {
            samples: extent.samples,
            batch: extent.batch,
            timesteps: extent.timesteps,
            held_out: settings.held_out,
            weights: settings.options.weighting,
            ridge: settings.options.ridge,
            rows: settings.options.rows,
            exclude: settings.options.exclude.as_ref().map(|pattern| pattern.as_str().to_owned()),
            seed: options.seed,
            sizes: options.sizes.clone(),
            process: report.process.clone(),
            drawn: clean.drawn,
            data_blake3,
            weights_blake3: fitted.digest(),
            losses: report.losses.as_ref().map(RefitLosses::means),
        });
        Ok(staged.refitted(plan, report))
    }
}

/// Returns the MACs of a run with one sample.
pub(super) fn macs_of_sample(network: Denoising<'_>, analysis: &Analysis) -> f64 {
    let cost = cost_of_sample(network, analysis);
    cost.macs + cost.attention_macs
}

/// Returns the cost of a run with one sample.
fn cost_of_sample(network: Denoising<'_>, analysis: &Analysis) -> Cost {
    let sizes = network.roles().sizes(&analysis.facts, network.sizes(), 1);
    analysis.count(|counter| counter.cost(None, &sizes_for(&analysis.facts, &sizes)))
}

/// The inputs of a fit.
struct Work<'a> {
    network: Denoising<'a>,
    analysis: &'a Analysis,
    clean: &'a Clean,
    extent: Extent,
    seed: u64,
    /// MACs of a run on one sample.
    macs: f64,
}

/// Returns the number of samples in a chunk and of timesteps for measuring the weight of errors. Both are smaller for a
/// large network, since a backward pass takes as long as two forward passes.
fn probe_extent(fixed: Option<usize>, (batch, steps): (usize, usize), macs: f64) -> (usize, usize) {
    let affordable = ((MACS / 6.0 / macs.max(1.0)) as usize).clamp(SAMPLES.1.min(8), PROBED * PROBE_BATCH);
    let batch = fixed.unwrap_or_else(|| PROBE_BATCH.min(batch).min((affordable / PROBED).max(1))).max(1);
    (batch, PROBED.min(steps).min((affordable / batch).max(1)))
}

impl Work<'_> {
    fn fit(
        &self,
        rewritten: &crate::rewrite::Rewritten,
        pruned: &Model,
        conditioning: &crate::diffusion::Conditioning,
        options: &RefitOptions,
        runtime: &Runtime,
        watch: &mut Watch<'_>,
    ) -> Result<Refitted, Error> {
        let Self { network, analysis, clean, extent: Extent { batch, samples, timesteps }, seed, .. } = *self;
        let roles = network.roles();
        let noisy = clean.repeated(samples, seed);
        let data =
            NoisySamples::new(network, conditioning, &noisy, (batch, timesteps), seed.wrapping_add(SEED_OF_NOISE))?;
        let steps = network.configured().process.schedule.step_count();
        let (probe_batch, probed) = probe_extent(roles.fixed_batch(), (batch, steps), self.macs);
        let of_probe = clean.repeated(probed * probe_batch, seed.wrapping_add(1));
        let probe = NoisySamples::new(
            network,
            conditioning,
            &of_probe,
            (probe_batch, probed),
            seed.wrapping_add(SEED_OF_PROBE),
        )?;
        let cut = RefitCut { analysis, rewritten, pruned };
        let mut progress =
            |done: usize, total: usize| notify(watch, Progress::At { stage: Stage::Refitting, done, total });
        refit(cut, (&data, &data.sizes), probe.probe()?, options, runtime.0, &mut progress)
    }
}

fn losses(extent: Option<(usize, usize, usize)>, [original, cut, refitted]: [&Judged; 3]) -> Option<RefitLosses> {
    let (samples, ..) = extent?;
    let of = |judged: &Judged| judged.losses.iter().map(|(_, loss)| *loss).collect();
    Some(RefitLosses {
        samples,
        timesteps: original.losses.iter().map(|(t, _)| *t).collect(),
        original: of(original),
        cut: of(cut),
        refitted: of(refitted),
    })
}

fn pictures([original, cut, refitted]: [Judged; 3], range: (f64, f64)) -> Option<RefitPictures> {
    Some(RefitPictures { samples: [original.drawn?, cut.drawn?, refitted.drawn?], range })
}
