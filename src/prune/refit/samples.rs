//! The clean samples of a refit, and the noisy ones that are made of them.

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
use crate::collective::of_first;
use crate::diffusion::{Conditioning, DenoisingTask, Sampler, Samples, noise};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::accumulate::Denoising as _;
use crate::graph::sizes::Sizes;
use crate::refit::{Probe, RefitData};
use crate::runtime::Runtime;

/// Samples that the network draws itself where no data is given: those of the fit, and those that are held out.
const DRAWN: (usize, usize) = (48, 16);

/// Seeds of the choices of a refit, each added to the seed of the run: that of the gradients takes the first two.
const SEED_OF_SAMPLES: u64 = 2;
const SEED_OF_ORDER: u64 = 3;

/// Clean samples, split.
#[derive(Clone, Debug)]
pub(super) struct Clean {
    /// Those of the fit.
    pub(super) fit: Samples,
    /// Those that nothing is fitted to; none where there is a single sample.
    pub(super) held_out: Option<Samples>,
    /// How they were drawn, where they were: the sampler, and the steps.
    pub(super) drawn: Option<(Sampler, usize)>,
}

impl Clean {
    /// Reads or draws the samples: at most as many for the fit as it takes noisy ones, a fifth of all held out.
    ///
    /// # Errors
    /// Data that can't be read or does not fit the network; a network that draws no finite samples.
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
                let available = of_first(ranks, || Samples::available(path, &network.roles().sample.name))?;
                let held_out = settings.held_out.min((available / 5).max(usize::from(available > 1)));
                (noisy.min(available - held_out), held_out)
            }
            None => (DRAWN.0.min(noisy), DRAWN.1.min(settings.held_out)),
        };
        // Drawing takes as many steps as it is worth, however few timesteps the gradients visit.
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

    /// The BLAKE3 of all samples with their numbers, in hexadecimal.
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

    /// `count` samples of the fit in random order, each as often as any other.
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

/// Chunks of noisy samples, each at a timestep of its own.
pub(super) struct NoisySamples<'a> {
    network: Denoising<'a>,
    task: DenoisingTask<'a>,
    batch: usize,
    chunks: usize,
    /// The sizes of the network for one chunk.
    pub(super) sizes: Sizes,
}

impl<'a> NoisySamples<'a> {
    /// `samples` are those of all chunks in order. Chunks outnumber timesteps where several have the same.
    ///
    /// # Errors
    /// More timesteps than the schedule has.
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

    /// These samples to find out by how much errors count.
    ///
    /// # Errors
    /// The number of channels of the prediction is not known.
    pub(super) fn probe(&self) -> Result<Probe<'_>, Error> {
        let roles = self.network.roles();
        Ok(Probe {
            data: self,
            sizes: &self.sizes,
            prediction: &roles.prediction.name,
            channels: channels(roles).map_err(|error| error.in_file(self.network.path()))?,
        })
    }

    /// The place of a chunk's timestep.
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
