//! The clean samples of a refit, and the noisy samples that are computed from them.

use blake3::Hasher;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

use super::super::gradients::{channels, clean_samples, samples_of_first};
use super::super::network::Denoising;
use super::super::options::{GradientSettings, ScoreOptions};
use super::super::progress::Watch;
use super::RefitSettings;
use crate::array::Array;
use crate::collective::run_on_first;
use crate::diffusion::{Conditioning, DenoisingTask, Sampler, Samples, noise};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::accumulate::Denoising as _;
use crate::graph::sizes::Sizes;
use crate::refit::{Probe, RefitData};
use crate::runtime::Runtime;

/// Number of samples that the network generates if no data is given: for the fit, and held out.
const DRAWN: (usize, usize) = (48, 16);

/// Seeds of a refit, added to the seed of the run. Gradients use the first two values.
const SEED_OF_SAMPLES: u64 = 2;
const SEED_OF_ORDER: u64 = 3;

/// Clean samples, split into those of the fit and held-out ones.
#[derive(Clone, Debug)]
pub(super) struct Clean {
    /// The samples of the fit.
    pub(super) fit: Samples,
    /// The held-out samples. `None`: there is only one sample.
    pub(super) held_out: Option<Samples>,
    /// The sampler and its number of steps. `None`: the samples were given.
    pub(super) drawn: Option<(Sampler, usize)>,
}

impl Clean {
    /// Reads or generates the samples: for the fit at most as many as there are noisy ones; a fifth of all is held out.
    ///
    /// # Errors
    /// Fails if data can't be read or does not fit the network, or if generated samples are not finite.
    pub(super) fn new(
        network: Denoising<'_>,
        runtime: &Runtime,
        conditioning: &Conditioning,
        (options, settings): (&ScoreOptions, &RefitSettings),
        (noisy, micro_batch): (usize, usize),
        watch: &mut Watch<'_>,
    ) -> Result<Self, Error> {
        let ranks = &*settings.options.ranks;
        let (fitted, held_out) = match &options.gradients.data {
            Some(path) => {
                let available = run_on_first(ranks, || Samples::available(path, &network.roles().sample.name))?;
                let held_out = settings.held_out.min((available / 5).max(usize::from(available > 1)));
                (noisy.min(available - held_out), held_out)
            }
            None => (DRAWN.0.min(noisy), DRAWN.1.min(settings.held_out)),
        };
        // The number of sampler steps should not depend on the number of timesteps that the gradients visit.
        let gradients = GradientSettings { timesteps: None, ..options.gradients.clone() };
        let drawn = gradients.data.is_none().then(|| (gradients.draw_sampler, gradients.drawing_steps()));
        let seed = options.seed.wrapping_add(SEED_OF_SAMPLES);
        let options = ScoreOptions { seed, gradients, ..options.clone() };
        let batches = (fitted + held_out, micro_batch);
        let all = samples_of_first(ranks, || clean_samples(network, runtime, conditioning, &options, batches, watch))?;
        let mut places: Vec<usize> = (0..all.len()).collect();
        places.shuffle(&mut Pcg64Mcg::seed_from_u64(options.seed));
        let (held_out, fitted) = places.split_at(held_out);
        let held_out = (!held_out.is_empty()).then(|| all.select(held_out));
        Ok(Self { fit: all.select(fitted), held_out, drawn })
    }

    /// Returns the BLAKE3 of all samples with their numbers, in hexadecimal.
    pub(super) fn digest(&self) -> String {
        let mut hasher = Hasher::new();
        for samples in [Some(&self.fit), self.held_out.as_ref()].into_iter().flatten() {
            for (row, number) in samples.values.outer_iter().zip(&samples.numbers) {
                hasher.update(&(*number as u64).to_le_bytes());
                row.iter().for_each(|value| _ = hasher.update(&value.to_le_bytes()));
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns `count` samples of the fit in random order, all equally often.
    pub(super) fn repeated(&self, count: usize, seed: u64) -> Samples {
        let mut random = Pcg64Mcg::seed_from_u64(seed.wrapping_add(SEED_OF_ORDER));
        let mut places = Vec::with_capacity(count);
        let mut round: Vec<usize> = (0..self.fit.len()).collect();
        while places.len() < count {
            round.shuffle(&mut random);
            places.extend(round.iter().take(count - places.len()));
        }
        self.fit.select(&places)
    }
}

/// Chunks of noisy samples, each at one timestep.
pub(super) struct NoisySamples<'a> {
    network: Denoising<'a>,
    task: DenoisingTask<'a>,
    batch: usize,
    chunks: usize,
    /// The sizes of the network for one chunk.
    pub(super) sizes: Sizes,
}

impl<'a> NoisySamples<'a> {
    /// Prepares the chunks. `samples` are the samples of all chunks in order. If there are more chunks than timesteps,
    /// several chunks share a timestep.
    ///
    /// # Errors
    /// Fails if there are more timesteps than the schedule has.
    pub(super) fn new(
        network: Denoising<'a>,
        conditioning: &'a Conditioning,
        samples: &'a Samples,
        (batch, timesteps): (usize, usize),
        seed: u64,
    ) -> Result<Self, Error> {
        let noise = noise(samples.values.shape(), samples.len(), seed);
        let task = DenoisingTask::new(
            (&network.configured().process, network.roles(), conditioning),
            (network.known.2, network.sizes()),
            samples,
            noise,
            Some(timesteps),
        )?;
        let sizes = network.roles().sizes(network.known.2, network.sizes(), batch);
        Ok(Self { network, task, batch, chunks: samples.len() / batch, sizes })
    }

    /// Returns these samples as a probe that measures the weight of errors.
    ///
    /// # Errors
    /// Fails if the number of channels of the prediction is not known.
    pub(super) fn probe(&self) -> Result<Probe<'_>, Error> {
        let roles = self.network.roles();
        Ok(Probe {
            data: self,
            sizes: &self.sizes,
            prediction: &roles.prediction.name,
            channels: channels(roles).map_err(|error| error.in_file(self.network.path()))?,
        })
    }

    /// Returns the position of a chunk's timestep.
    fn at(&self, chunk: usize) -> usize {
        chunk * self.task.timesteps().len() / self.chunks
    }
}

impl RefitData for NoisySamples<'_> {
    fn chunks(&self) -> usize {
        self.chunks
    }

    fn time(&self, chunk: usize) -> f64 {
        self.task.timesteps()[self.at(chunk)]
    }

    fn weight(&self, chunk: usize) -> f64 {
        self.task.weight(self.at(chunk))
    }

    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error> {
        let mut inputs = self.task.inputs(self.at(chunk), chunk * self.batch..(chunk + 1) * self.batch)?;
        inputs.retain(|(name, _)| name != TARGET);
        Ok(inputs)
    }
}
