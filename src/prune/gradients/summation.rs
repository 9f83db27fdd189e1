//! Sums gradients over timesteps, in one pass or in several. Each of several passes differentiates with respect to a
//! part of the weights.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::time::Instant;

use super::super::choice::members;
use super::super::options::{CutOptions, PruneOptions, ScoreOptions};
use super::super::progress::{Progress, Stage, Watch, notify};
use super::graph::Differentiated;
use super::settling::{self, Settling};
use super::{CHECKPOINT_SECONDS, ranks};
use crate::analysis::Analysis;
use crate::array::Array;
use crate::collective::decision_of_first;
use crate::error::Error;
use crate::gradient::accumulate::{
    AccumulateOptions, Accumulated, Denoising, LossPoint, Rounds, ThresholdMode, Visited, accumulate_over, losses,
};
use crate::gradient::checkpoint::Checkpoint;
use crate::gradient::pass::{GradientPass, PassOptions};
use crate::gradient::{GradientGraph, GradientOptions};
use crate::graph::digest::DigestKind;
use crate::runtime::Runtime;

/// The inputs of a summation.
pub(in crate::prune) struct Summation<'a> {
    pub(in crate::prune) analysis: &'a Analysis,
    pub(in crate::prune) runtime: &'a Runtime,
    pub(in crate::prune) options: &'a ScoreOptions,
    pub(in crate::prune) task: &'a dyn Denoising,
    pub(in crate::prune) fed: Fed,
}

/// The parts of the network's inputs that identify a checkpoint.
pub(in crate::prune) struct Fed {
    /// The process, in words.
    pub(in crate::prune) process: String,
    /// Number of samples in the batch.
    pub(in crate::prune) samples: usize,
    /// The sum of all elements of the samples.
    pub(in crate::prune) sum: f64,
    /// The digest of the conditioning of the samples.
    pub(in crate::prune) conditioning: String,
}

/// The sums, and how they were computed.
pub(in crate::prune) struct Summed {
    pub(in crate::prune) sum: Accumulated,
    pub(in crate::prune) settled: bool,
    pub(in crate::prune) resumed: usize,
    pub(in crate::prune) loss_scale: Option<f32>,
    pub(in crate::prune) execution: String,
    pub(in crate::prune) seconds: f64,
}

/// One pass: its number, the number of passes, and what it sums.
#[derive(Clone, Copy)]
struct Part<'a> {
    at: usize,
    of: usize,
    task: &'a dyn Denoising,
    how: &'a AccumulateOptions,
    known: Option<&'a [f64]>,
}

/// The timesteps of a task that an earlier pass kept.
struct Kept<'a> {
    task: &'a dyn Denoising,
    places: Vec<usize>,
    timesteps: Vec<f64>,
}

impl<'a> Kept<'a> {
    fn new(task: &'a dyn Denoising, curve: &[LossPoint]) -> Self {
        let kept = curve.iter().enumerate().filter(|(_, point)| point.kept);
        let (places, timesteps) = kept.map(|(at, point)| (at, point.t)).unzip();
        Self { task, places, timesteps }
    }
}

impl Denoising for Kept<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn batch(&self) -> usize {
        self.task.batch()
    }

    fn weight(&self, at: usize) -> f64 {
        self.task.weight(self.places[at])
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        self.task.inputs(self.places[at], samples)
    }
}

impl Summation<'_> {
    /// Sums the gradients.
    ///
    /// # Errors
    /// Fails if a loss is NaN, a checkpoint belongs to another run, or the caller stopped.
    pub(in crate::prune) fn run(
        &self,
        of: Differentiated,
        sample_elements: f64,
        watch: &mut Watch<'_>,
    ) -> Result<Summed, Error> {
        let Differentiated { graph, options, micro_batch, parts, .. } = of;
        let how = self.options.accumulate_options(micro_batch);
        let known = match how.mode == ThresholdMode::Mask && how.threshold > 0.0 {
            true => Some(self.losses(&options, micro_batch, watch)?),
            false => None,
        };
        let mut graph = (parts.len() == 1).then_some(graph);
        let mut whole: Option<Summed> = None;
        let mut checkpoints = Vec::new();
        for (at, wanted) in parts.iter().enumerate() {
            let graph = match graph.take() {
                Some(graph) => graph,
                None => {
                    let options = GradientOptions { wanted: wanted.clone(), ..options.clone() };
                    GradientGraph::build_for(self.analysis, &options, self.options.gradients.device)?
                }
            };
            // Later passes sum the timesteps that the first pass kept.
            let kept = whole.as_ref().map(|first| Kept::new(self.task, &first.sum.curve));
            let all = AccumulateOptions { threshold: 0.0, mode: ThresholdMode::Prefix, sums_last: false, ..how };
            let part = match &kept {
                None => Part { at, of: parts.len(), task: self.task, how: &how, known: known.as_deref() },
                Some(kept) => Part { at, of: parts.len(), task: kept, how: &all, known: None },
            };
            // Only the first rank has the checkpoint and what was summed before.
            let checkpoint =
                if self.options.gradients.ranks.rank() == 0 { self.checkpoint(part.at, part.of)? } else { None };
            let mut summed = self.part(graph, part, checkpoint.as_ref(), sample_elements, watch)?;
            checkpoints.extend(checkpoint);
            if parts.len() > 1 {
                // Only the reduced sums are needed by the criterion; the complete ones are dropped.
                let groupings = self.analysis.groupings(self.options.attention, self.options.norm_groups);
                let (cx, groups) = members(self.analysis, &groupings, Some(self.runtime))?;
                self.options.gradient_form(sample_elements).reduce(&cx, &groups, &mut summed.sum)?;
            }
            whole = Some(match whole {
                None => summed,
                Some(whole) => whole.with(summed),
            });
        }
        let whole = whole.ok_or_else(|| Error::unmet("there is no weight to differentiate with respect to"))?;
        let was_long = whole.seconds >= CHECKPOINT_SECONDS as f64 || whole.resumed > 0;
        if !(self.options.gradients.keeps_checkpoint && was_long) {
            checkpoints.iter().for_each(Checkpoint::remove);
        }
        Ok(whole)
    }

    fn part(
        &self,
        graph: GradientGraph,
        part: Part<'_>,
        checkpoint: Option<&Checkpoint>,
        sample_elements: f64,
        watch: &mut Watch<'_>,
    ) -> Result<Summed, Error> {
        let (analysis, settings) = (self.analysis, &self.options.gradients);
        let ranks = &*settings.ranks;
        let total = part.task.timesteps().len();
        let mut pass = self.pass(&graph)?;
        // The session has its copy of all weights.
        drop(graph);
        let execution = ranks::described(ranks, pass.execution().to_string());
        let mut sum = Accumulated::new(pass.uses());
        if let (true, Some(checkpoint)) = (settings.resume, checkpoint) {
            checkpoint.load(&mut sum)?;
        }
        ranks::share_progress(ranks, &mut sum)?;
        let (resumed, started) = (sum.visited, Instant::now());
        let mut saved = Instant::now();
        let mut settling = settings.adaptive.as_ref().map(|cut| Settling::new(self.pruning(cut), sample_elements));
        let mut settled = false;
        if !sum.complete {
            let step = |visited: &mut Visited<'_>| {
                let (done, total) = (part.at * total + visited.visited(), part.of * total);
                notify(watch, Progress::At { stage: Stage::Gradients, done, total })?;
                let is_due = settings.checkpoint.is_some() && saved.elapsed().as_secs() >= CHECKPOINT_SECONDS;
                if decision_of_first(ranks, is_due)? {
                    let sum = visited.sum()?;
                    checkpoint.map_or(Ok(()), |checkpoint| checkpoint.save(sum))?;
                    saved = Instant::now();
                }
                if let Some(settling) = &mut settling {
                    settled = decision_of_first(ranks, settling.is_settled(analysis, self.runtime, visited)?)?;
                }
                Ok(if settled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            };
            let rounds = Rounds { ranks, ends_at: settings.adaptive.is_some().then_some(settling::EVERY) };
            let how = (part.how, part.known);
            accumulate_over(&rounds, &mut pass, &analysis.model, part.task, how, &mut sum, step)?;
        }
        sum.reduce(ranks)?;
        let seconds = started.elapsed().as_secs_f64();
        // Later work may be interrupted: other passes, or the steps after the gradients.
        let is_needed = part.of > 1 || settings.keeps_checkpoint;
        if let Some(checkpoint) =
            checkpoint.filter(|_| is_needed && (seconds >= CHECKPOINT_SECONDS as f64 || resumed > 0))
        {
            checkpoint.save(&sum)?;
        }
        Ok(Summed { sum, settled, resumed, loss_scale: pass.loss_scale(), execution, seconds })
    }

    /// Returns the options of the cut that the adaptive rule observes.
    fn pruning(&self, cut: &CutOptions) -> PruneOptions {
        PruneOptions { score: self.options.clone(), cut: cut.clone() }
    }

    fn pass(&self, graph: &GradientGraph) -> Result<GradientPass, Error> {
        let settings = &self.options.gradients;
        let options = PassOptions {
            device: settings.device,
            allow_fallback: settings.allow_fallback,
            threads: ranks::threads(&*settings.ranks),
            ..PassOptions::default()
        };
        GradientPass::with_options(self.runtime, graph, &self.analysis.model, &options)
    }

    /// Computes the losses of all timesteps. A threshold relative to the largest loss needs them in advance.
    fn losses(&self, options: &GradientOptions, micro_batch: usize, watch: &mut Watch<'_>) -> Result<Vec<f64>, Error> {
        let options = GradientOptions { wanted: Vec::new(), ..options.clone() };
        let forward = GradientGraph::build(self.analysis, &options)?;
        let mut pass = self.pass(&forward)?;
        let total = self.task.timesteps().len();
        let mut stopped = Ok(());
        let step = |at: usize, _: f64| {
            stopped = notify(watch, Progress::At { stage: Stage::Losses, done: at + 1, total });
            if stopped.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ranks = &*self.options.gradients.ranks;
        let losses = losses(ranks, &mut pass, &self.analysis.model, self.task, micro_batch, step)?;
        stopped.map(|()| losses)
    }

    /// Returns the checkpoint of a pass.
    fn checkpoint(&self, at: usize, of: usize) -> Result<Option<Checkpoint>, Error> {
        let Some(path) = &self.options.gradients.checkpoint else { return Ok(None) };
        let mut fingerprint = fingerprint(self.analysis, self.options, &self.fed);
        if of > 1 {
            fingerprint += &format!(" pass {at} of {of}");
        }
        // The first pass has the file name that `--resume` looks for.
        let path: PathBuf = if at == 0 { path.clone() } else { path.with_extension(format!("{}.npz", at + 1)) };
        Checkpoint::new(&path, &fingerprint).map(Some)
    }
}

impl Summed {
    /// Adds the sums of another part of the weights.
    fn with(mut self, other: Self) -> Self {
        self.sum.uses.extend(other.sum.uses);
        self.sum.sums.extend(other.sum.sums);
        self.sum.complete &= other.sum.complete;
        self.settled |= other.settled;
        self.resumed += other.resumed;
        self.seconds += other.seconds;
        self.loss_scale = other.loss_scale;
        self
    }
}

/// Describes everything that must be equal for a checkpoint to be continued.
fn fingerprint(analysis: &Analysis, options: &ScoreOptions, fed: &Fed) -> String {
    let Fed { process, samples, sum, conditioning } = fed;
    let how = options.accumulate_options(1);
    format!(
        "{} {process} {samples} {:?} {:?} {:?} {} {} {} {} {} {sum:e} {conditioning}",
        analysis.model.digest(DigestKind::default()),
        options.gradients.timesteps,
        how.threshold,
        how.mode,
        how.squared,
        how.sums_last,
        // Sums by index differ from complete gradients.
        options.gradient_form(1.0).is_linear(),
        options.seed,
        options.gradients.precision,
    )
}
