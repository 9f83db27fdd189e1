//! Evaluates a refit: the denoising loss of original, cut and refitted network on held-out samples, and samples of all
//! three from the same noise.

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use super::super::network::Denoising;
use super::super::progress::{Progress, Stage, Watch, notify};
use crate::collective::Collective;
use crate::diffusion::{
    Conditioning, Denoiser, SampleOptions, Sampler, Samples, denoising_losses, generate, grid_png, noise,
};
use crate::error::Error;
use crate::graph::model::Model;
use crate::lower;
use crate::runtime::{Runtime, SessionOptions};

/// Number of samples that are evaluated together.
const BATCH: usize = 32;

/// Maximum number of MACs for all runs of one network.
const MACS: f64 = 2e12;

/// Number of runs of one network that are made in any case, if the limit on MACs allows it.
const RUNS: usize = 64;

/// Maximum and minimum number of timesteps for comparing losses.
const TIMESTEPS: (usize, usize) = (25, 5);

/// Number of sampler steps for sample images.
const DRAWING_STEPS: usize = 15;

/// The denoising losses of three networks on the same held-out samples and noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RefitLosses {
    /// The number of samples.
    pub samples: usize,
    /// The timesteps.
    pub timesteps: Vec<f64>,
    /// The losses of the original, by timestep.
    pub original: Vec<f64>,
    /// The losses of the cut, by timestep.
    pub cut: Vec<f64>,
    /// The losses of the refitted network, by timestep.
    pub refitted: Vec<f64>,
}

impl RefitLosses {
    /// Returns the means over the timesteps: original, cut, refitted.
    pub fn means(&self) -> [f64; 3] {
        [&self.original, &self.cut, &self.refitted]
            .map(|losses| losses.iter().sum::<f64>() / losses.len().max(1) as f64)
    }
}

/// Samples of the three networks from the same noise.
#[derive(Clone, Debug)]
pub struct RefitPictures {
    /// The samples of original, cut and refitted network, `[count, ...]`.
    pub samples: [ArrayD<f32>; 3],
    /// The sample values that are shown as black and white.
    pub range: (f64, f64),
}

impl RefitPictures {
    /// Returns one PNG image of tiles for each network.
    ///
    /// # Errors
    /// Fails if the samples are not images.
    pub fn pngs(&self) -> Result<[Vec<u8>; 3], Error> {
        let [original, cut, refitted] = &self.samples;
        let png = |samples: &ArrayD<f32>| {
            // A cut that generates noise may also generate NaN.
            let finite = samples.mapv(|value| if value.is_finite() { value } else { self.range.0 as f32 });
            grid_png(&finite, self.range)
        };
        Ok([png(original)?, png(cut)?, png(refitted)?])
    }
}

/// Evaluates networks with the interface of one original.
pub(in crate::prune) struct Judge<'a> {
    pub(in crate::prune) network: Denoising<'a>,
    pub(in crate::prune) conditioning: &'a Conditioning,
    pub(in crate::prune) runtime: &'a Runtime,
    pub(in crate::prune) seed: u64,
    /// MACs of one run on one sample.
    pub(in crate::prune) macs: f64,
    /// Number of noisy samples of the fit. An evaluation uses no more for each network.
    pub(in crate::prune) fitted: usize,
    /// The processes that share the samples.
    pub(in crate::prune) ranks: &'a dyn Collective,
}

/// The evaluation of one network.
#[derive(Debug, Default)]
pub(in crate::prune) struct Judged {
    pub(in crate::prune) losses: Vec<(f64, f64)>,
    pub(in crate::prune) drawn: Option<ArrayD<f32>>,
}

impl Judge<'_> {
    fn denoiser(&self, model: &Model, batch: usize) -> Result<Denoiser, Error> {
        let session = lower::session(self.runtime, model, &SessionOptions::default())?;
        Denoiser::new(session, self.network.roles(), self.network.known.2, self.network.sizes(), batch)
            .map_err(|error| error.in_file(model.path()))
    }

    /// Returns the number of runs with one sample: no more than the fit uses, and fewer for a large network.
    fn runs(&self) -> usize {
        ((MACS / self.macs.max(1.0)) as usize).min(self.fitted.max(RUNS))
    }

    /// Returns the number of evaluated samples in whole batches, the batch size, and the number of timesteps.
    pub(in crate::prune) fn extent(&self, samples: &Samples) -> Option<(usize, usize, usize)> {
        let steps = self.network.configured().process.schedule.step_count();
        let timesteps = (self.runs() / samples.len().clamp(1, 4)).clamp(TIMESTEPS.1, TIMESTEPS.0).min(steps);
        let affordable = samples.len().min((self.runs() / timesteps).max(1));
        let batch = self.network.roles().fixed_batch().unwrap_or_else(|| affordable.min(BATCH)).max(1);
        let count = affordable.next_multiple_of(batch).min(samples.len() / batch * batch);
        (count > 0).then_some((count, batch, timesteps))
    }

    /// Returns the number of samples to generate: fewer for a large network.
    fn drawable(&self, wanted: usize) -> usize {
        wanted.min((self.runs() / DRAWING_STEPS).max(1))
    }

    /// Evaluates a network on held-out samples, and generates `drawn` samples with it.
    ///
    /// # Errors
    /// Fails if the network fails, or if the caller stopped.
    pub(in crate::prune) fn judge(
        &self,
        model: &Model,
        held_out: Option<&Samples>,
        drawn: usize,
        watch: &mut Watch<'_>,
    ) -> Result<Judged, Error> {
        let process = &self.network.configured().process;
        let mut judged = Judged::default();
        let extent = held_out.and_then(|samples| Some((samples, self.extent(samples)?)));
        if let Some((samples, (count, batch, timesteps))) = extent {
            let mut denoiser = self.denoiser(model, batch)?;
            let samples = samples.select(&(0..count).collect::<Vec<_>>());
            let noise = noise(samples.values.shape(), count, self.seed);
            let of = (&samples, &noise);
            judged.losses = denoising_losses(
                &mut denoiser,
                process,
                self.conditioning,
                of,
                timesteps,
                self.ranks,
                &mut |done, total| notify(watch, Progress::At { stage: Stage::Losses, done, total }),
            )
            .map_err(|error| error.in_file(model.path()))?;
        }
        if drawn > 0 {
            let drawn = self.drawable(drawn);
            let batch = self.network.roles().fixed_batch().unwrap_or(drawn.min(16)).max(1);
            let mut denoiser = self.denoiser(model, batch)?;
            let options = SampleOptions {
                steps: DRAWING_STEPS.min(process.schedule.step_count()),
                sampler: Sampler::DpmSolver2M,
                variance: self.network.configured().variance,
                count: drawn,
                seed: self.seed,
                ..SampleOptions::default()
            };
            let values =
                generate(&mut denoiser, process, self.conditioning, &options, self.ranks, &mut |done, total| {
                    notify(watch, Progress::At { stage: Stage::Sampling, done, total })
                })
                .map_err(|error| error.in_file(model.path()))?;
            judged.drawn = Some(values);
        }
        Ok(judged)
    }
}
