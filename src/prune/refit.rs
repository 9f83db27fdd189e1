//! The refit of a staged cut on denoising samples.

use std::path::Path;

use super::gradients::{channels, recognise};
use super::network::Denoising;
use super::options::ScoreOptions;
use super::progress::{Progress, Stage, Watch, tell};
use super::runtime::Runtime;
use super::staged::Staged;
use crate::array::Array;
use crate::diffusion::{DenoisingTask, Ranges, Samples, noise};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::accumulate::Denoising as _;
use crate::load::load;
use crate::plan::Plan;
use crate::refit::{Probe, RefitCut, RefitData, RefitLayer, RefitOptions, refit};

/// Samples of a chunk where nothing is said.
const BATCH: usize = 32;

/// Timesteps at which it is found out how much errors count, and samples of each.
const PROBED: usize = 24;
const PROBE_BATCH: usize = 4;

/// On what a refit is made.
#[derive(Clone, Debug)]
pub struct RefitSettings {
    /// Clean samples that are used.
    pub samples: usize,
    /// Samples of a chunk, all at the same timestep; the chunks are spread evenly over the schedule.
    pub batch: Option<usize>,
    /// How the fits are made.
    pub options: RefitOptions,
}

impl Default for RefitSettings {
    fn default() -> Self {
        Self { samples: 2048, batch: None, options: RefitOptions::default() }
    }
}

/// Chunks of noisy samples, each at a timestep of its own.
struct NoisySamples<'a> {
    task: DenoisingTask<'a>,
    batch: usize,
}

impl RefitData for NoisySamples<'_> {
    fn chunks(&self) -> usize {
        self.task.timesteps().len()
    }

    fn time(&self, chunk: usize) -> f64 {
        self.task.timesteps()[chunk]
    }

    fn weight(&self, chunk: usize) -> f64 {
        self.task.weight(chunk)
    }

    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error> {
        let mut inputs = self.task.inputs(chunk, chunk * self.batch..(chunk + 1) * self.batch)?;
        inputs.retain(|(name, _)| name != TARGET);
        Ok(inputs)
    }
}

impl Staged {
    /// Fits the weights of the cut by least squares on the clean samples that `options` names, so that the pruned network
    /// computes what the original does. Returns the staged file with the new weights, and what became of every layer.
    ///
    /// # Errors
    /// No samples are given, a network that does not denoise or does not run, the caller stopped.
    pub fn refit(
        self,
        runtime: &Runtime,
        options: &ScoreOptions,
        settings: &RefitSettings,
        watch: &mut Watch<'_>,
    ) -> Result<(Self, Vec<RefitLayer>), Error> {
        let analysis = self.cut().analysis().0.clone();
        let found = recognise(&analysis, options)?;
        let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
        let gradients = &options.gradients;
        let path = gradients.data.as_deref().ok_or_else(|| Error::usage("a refit needs clean samples (--data)"))?;
        let batch = settings.batch.or_else(|| network.roles().fixed_batch()).unwrap_or(BATCH).max(1);
        let process = &network.configured().process;
        let chunks = (settings.samples / batch).clamp(1, process.schedule.step_count());
        let count = chunks * batch;
        let ranges = Ranges { data: gradients.data_range, sample: gradients.network.process.sample_range };
        let dims = network.sample_dims(batch)?;
        let samples =
            Samples::load(path, (&network.roles().sample.name, &dims), &ranges, count, options.seed.wrapping_add(2))?;
        let conditioning = network.conditioning(count, options.seed)?;
        let task = DenoisingTask::new(
            (process, network.roles(), &conditioning),
            (&analysis.facts, network.sizes()),
            &samples,
            noise(&dims, count, options.seed.wrapping_add(3)),
            Some(chunks),
        )?;
        let data = NoisySamples { task, batch };
        let sizes = network.roles().sizes(&analysis.facts, network.sizes(), batch);
        let pruned = load(self.path())?;
        let cut = RefitCut { analysis: &analysis, rewritten: self.cut().rewritten(), pruned: &pruned };
        let mut progress =
            |done: usize, total: usize| tell(watch, Progress::At { stage: Stage::Refitting, done, total });
        let probed = DenoisingTask::new(
            (process, network.roles(), &conditioning),
            (&analysis.facts, network.sizes()),
            &samples,
            noise(&dims, count, options.seed.wrapping_add(4)),
            Some(chunks.min(PROBED)),
        )?;
        let probe_batch = network.roles().fixed_batch().unwrap_or(PROBE_BATCH.min(batch)).max(1);
        let probed = NoisySamples { task: probed, batch: probe_batch };
        let probe_sizes = network.roles().sizes(&analysis.facts, network.sizes(), probe_batch);
        let probe = Probe {
            data: &probed,
            sizes: &probe_sizes,
            prediction: &network.roles().prediction.name,
            channels: channels(network.roles()).map_err(|error| error.in_file(network.path()))?,
        };
        let fitted = refit(cut, (&data, &sizes), probe, &settings.options, runtime.0, &mut progress)?;
        if fitted.is_empty() {
            return Ok((self, fitted.layers));
        }
        let (mut edits, changed) = fitted.changes(&analysis, cut.rewritten)?.finish(&pruned)?;
        let plan = Plan { changed: Some(changed), ..self.cut().plan().clone() };
        edits.metadata = plan.metadata();
        drop(pruned);
        let output: &Path = self.output();
        let staged = crate::write::stage(&analysis.model, &edits, output)?;
        Ok((self.replaced(plan, staged), fitted.layers))
    }
}
