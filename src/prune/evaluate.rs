//! Evaluates pruned networks next to their original: losses, samples from the same noise, distances between features,
//! costs.

mod candidates;

mod drawn;

mod report;

mod run;

use std::path::PathBuf;
use std::sync::Arc;

use super::model::Model;
use super::network::{Network, NetworkOptions};
use super::progress::{Progress, Watch, notify};
use super::runtime::Runtime;
use crate::collective::{Alone, Collective};
use crate::diffusion::{SampleOptions, Sampler, Skip};
use crate::error::Error;
use crate::evaluate::{FeatureOptions, KernelOptions};
use crate::graph::sizes::Sizes;
use crate::runtime::Device;
use candidates::Candidates;
pub use report::{Consistency, Distances, Drawing, EvaluatedNetwork, Evaluation, EvaluationLimits, LimitCheck};
use run::Run;

/// How networks are evaluated.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// How the networks were trained, and the inputs they get.
    pub network: NetworkOptions,
    /// The sizes of symbolic dimensions.
    pub sizes: Sizes,
    /// Clean samples, preferably unseen in training: a folder of images, or a `.npy`, `.npz` or `.safetensors` file.
    pub data: PathBuf,
    /// The values of the data that correspond to the ends of the sample range; see
    /// [`super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// Number of clean samples for the denoising loss. `None`: 256, or as many whole batches as there are.
    pub count: Option<usize>,
    /// Number of timesteps for the denoising loss, spread evenly over the schedule.
    pub timesteps: usize,
    /// Number of samples that every network generates from the same noise; 0: none. `None`: 2048 with features, else
    /// 256.
    pub samples: Option<usize>,
    /// Number of sampler steps. `None`: the default of the sampler.
    pub steps: Option<usize>,
    /// The sampler.
    pub sampler: Sampler,
    /// Which timesteps of a discrete schedule the sampler visits.
    pub skip: Skip,
    /// The share of DDPM's noise that DDIM adds, from 0 to 1.
    pub eta: f64,
    /// Seed of the choice of clean samples, of all noise, and of the subsets of the kernel distance.
    pub seed: u64,
    /// A feature network for distances between samples. `None`: no distances are computed.
    pub features: Option<(Model, FeatureOptions)>,
    /// Number of data samples whose features are computed. `None`: as many as are generated, or all if there are fewer.
    pub data_samples: Option<usize>,
    /// Number of subsets of the kernel distance and of samples in each. The seed is that of the evaluation.
    pub kernel: KernelOptions,
    /// Whether to measure latencies.
    pub measures_latency: bool,
    /// Number of samples of every network to show in one image.
    pub pictures: usize,
    /// The processes that share the samples. Several processes measure no latency.
    pub ranks: Arc<dyn Collective>,
    /// The device that the networks run on.
    pub device: Device,
    /// Whether operators that the device can't run may run on the CPU.
    pub allow_fallback: bool,
}

impl EvaluateOptions {
    /// Returns the default options with these clean samples.
    pub fn on(data: impl Into<PathBuf>) -> Self {
        Self {
            network: NetworkOptions::default(),
            sizes: Sizes::new(),
            data: data.into(),
            data_range: None,
            count: None,
            timesteps: 25,
            samples: None,
            steps: None,
            sampler: Sampler::default(),
            skip: Skip::Uniform,
            eta: 0.0,
            seed: 0,
            features: None,
            data_samples: None,
            kernel: KernelOptions::default(),
            measures_latency: true,
            pictures: 0,
            ranks: Arc::new(Alone),
            device: Device::default(),
            allow_fallback: false,
        }
    }
}

impl EvaluateOptions {
    /// Returns the options for sampling.
    fn sampling(&self, count: usize) -> SampleOptions {
        SampleOptions {
            steps: self.steps.unwrap_or(self.sampler.default_steps()),
            sampler: self.sampler,
            eta: self.eta,
            skip: self.skip,
            count,
            seed: self.seed,
            ..SampleOptions::default()
        }
    }
}

impl Model {
    /// Evaluates networks that were pruned from this one, next to it.
    ///
    /// All networks get the same clean samples with the same noise, and sample from the same noise. A network whose
    /// samples are not finite is no error: its figures show it.
    ///
    /// # Errors
    /// Fails if there are no networks, a network has other inputs than this one, data can't be read or does not fit, a
    /// network does not run, or memory is too small; also if the caller stopped.
    pub fn evaluate(
        &self,
        networks: &[Model],
        runtime: &Runtime,
        options: &EvaluateOptions,
        watch: &mut Watch<'_>,
    ) -> Result<Evaluation, Error> {
        if networks.is_empty() {
            return Err(Error::usage("expected at least one network to evaluate, found none"));
        }
        let open = |model: &Model| {
            let network = Network::open(model, &options.network, &options.sizes, Some(&options.data))?;
            Ok::<_, Error>(network.over(options.ranks.clone()))
        };
        let all: Vec<Network> = std::iter::once(self).chain(networks).map(open).collect::<Result<_, _>>()?;
        for note in all[0].notes() {
            notify(watch, Progress::Warning(note))?;
        }
        let candidates = Candidates::new(&all, runtime.0, options)?;
        Run::new(candidates, options).evaluate(watch)
    }
}
