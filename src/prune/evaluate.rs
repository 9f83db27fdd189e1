//! How good networks are beside the original that they stem from: losses, samples from the same noise, distances by features,
//! costs.

mod candidates;

mod drawn;

mod report;

mod run;

use std::path::PathBuf;
use std::sync::Arc;

use super::model::Model;
use super::network::{Network, NetworkOptions};
use super::progress::{Progress, Watch, tell};
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
    /// How the networks were trained and what they are fed.
    pub network: NetworkOptions,
    /// The sizes of symbolic dimensions.
    pub sizes: Sizes,
    /// Clean samples, best ones that nothing was trained on: a folder of images, or a `.npy`, `.npz` or `.safetensors` file.
    pub data: PathBuf,
    /// The values of the data that stand for the ends of the sample range; see [`super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// Clean samples of the denoising loss: 256, or as many whole batches as there are.
    pub count: Option<usize>,
    /// Timesteps of the denoising loss, spread evenly over the schedule.
    pub timesteps: usize,
    /// Samples that every network draws from the same noise: 2048 with features, else 256. None are drawn where it is 0.
    pub samples: Option<usize>,
    /// Evaluations of the network for each: as many as the sampler takes by default.
    pub steps: Option<usize>,
    /// The sampler.
    pub sampler: Sampler,
    /// Which steps of a discrete schedule are visited.
    pub skip: Skip,
    /// DDIM's share of the noise that DDPM would add, from 0 to 1.
    pub eta: f64,
    /// Seed of the choice of clean samples, of all noise, and of the subsets of the kernel distance.
    pub seed: u64,
    /// A network whose features distances between samples are taken of; without it there are none.
    pub features: Option<(Model, FeatureOptions)>,
    /// Samples of the data whose features are taken: as many as are drawn, or all where there are fewer.
    pub data_samples: Option<usize>,
    /// Subsets of the kernel distance, and samples in each; the seed is that of the evaluation.
    pub kernel: KernelOptions,
    /// Whether latencies are measured.
    pub measures_latency: bool,
    /// Samples of every network that are shown as one picture.
    pub pictures: usize,
    /// The processes that divide the samples; several measure no latency.
    pub ranks: Arc<dyn Collective>,
    /// Where networks run.
    pub device: Device,
    /// Whether the CPU may run what the device can't.
    pub allow_fallback: bool,
}

impl EvaluateOptions {
    /// The defaults on these clean samples.
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
    /// How samples are drawn.
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
    /// Evaluates networks that stem from this one beside it.
    ///
    /// All get the same clean samples with the same noise, and draw from the same noise. A network that draws what is not
    /// finite is no error: its figures say so.
    ///
    /// # Errors
    /// No networks, or ones that take something else than this one; data that can't be read or does not fit; a network that does
    /// not run; too little memory; the caller stopped.
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
            tell(watch, Progress::Warning(note))?;
        }
        let candidates = Candidates::new(&all, runtime.0, options)?;
        Run::new(candidates, options).evaluate(watch)
    }
}
