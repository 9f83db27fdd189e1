//! The clean samples of a run in memory: those that are trained on, and those by which it is judged.

use ndarray::Axis;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

use super::super::network::Denoising;
use super::FinetuneSettings;
use crate::diffusion::{Conditioning, Ranges, Samples};
use crate::error::Error;
use crate::finetune::trainer::{CleanBatch, CleanSamples};

/// Samples that are trained on, epoch after epoch in another order.
pub(super) struct TrainingSamples<'a> {
    samples: Samples,
    conditioning: &'a Conditioning,
    names: Vec<String>,
    seed: u64,
    flip: bool,
    /// The order of an epoch, and its number.
    order: (u64, Vec<usize>),
}

/// The samples of a run.
pub(super) struct RunSamples {
    pub(super) training: Samples,
    pub(super) held_out: Option<Samples>,
}

impl RunSamples {
    /// Reads all samples and sets some aside.
    ///
    /// # Errors
    /// Data that can't be read or does not fit the network.
    pub(super) fn read(network: Denoising<'_>, settings: &FinetuneSettings) -> Result<Self, Error> {
        let ranges = Ranges { data: settings.data_range, sample: settings.network.process.sample_range };
        let dims = network.sample_dims(1)?;
        let name = &network.roles().sample.name;
        let read = |path: &std::path::Path, most: usize| {
            let count = Samples::available(path, name)?.min(most);
            Samples::load(path, (name, &dims), &ranges, count, settings.seed)
        };
        let all = read(&settings.data, usize::MAX)?;
        if let Some(path) = &settings.held_out {
            return Ok(Self { training: all, held_out: Some(read(path, settings.held_out_count)?) });
        }
        let mut places: Vec<usize> = (0..all.len()).collect();
        places.shuffle(&mut Pcg64Mcg::seed_from_u64(settings.seed));
        let (held_out, training) = places.split_at(settings.held_out_count.min(all.len() / 5));
        let held_out = (!held_out.is_empty()).then(|| all.select(held_out));
        Ok(Self { training: all.select(training), held_out })
    }
}

impl<'a> TrainingSamples<'a> {
    pub(super) fn new(
        samples: Samples,
        (conditioning, names): (&'a Conditioning, Vec<String>),
        seed: u64,
        flip: bool,
    ) -> Self {
        Self { samples, conditioning, names, seed, flip, order: (u64::MAX, Vec::new()) }
    }

    fn place(&mut self, position: u64) -> usize {
        let count = self.samples.len() as u64;
        let epoch = position / count;
        if self.order.0 != epoch {
            let mut order: Vec<usize> = (0..self.samples.len()).collect();
            order.shuffle(&mut Pcg64Mcg::seed_from_u64(self.seed ^ (epoch.wrapping_add(1)).wrapping_mul(0x9e37_79b9)));
            self.order = (epoch, order);
        }
        self.order.1[(position % count) as usize]
    }

    fn is_flipped(&self, position: u64) -> bool {
        let mixed = (position ^ self.seed.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.flip && (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 63 == 1
    }
}

impl CleanSamples for TrainingSamples<'_> {
    fn at(&mut self, positions: &[u64]) -> Result<CleanBatch, Error> {
        let places: Vec<usize> = positions.iter().map(|position| self.place(*position)).collect();
        let mut chosen = self.samples.select(&places);
        for (mut row, position) in chosen.values.axis_iter_mut(Axis(0)).zip(positions) {
            if self.is_flipped(*position) && row.ndim() > 0 {
                let last = Axis(row.ndim() - 1);
                row.invert_axis(last);
                let mirrored = row.to_owned();
                row.invert_axis(last);
                row.assign(&mirrored);
            }
        }
        let conditioning = self
            .names
            .iter()
            .map(|name| {
                let rows = self.conditioning.rows(name, &chosen.numbers);
                let rows = rows.ok_or_else(|| Error::usage(format!("there is no conditioning for input {name:?}")))?;
                Ok((name.clone(), rows))
            })
            .collect::<Result<_, Error>>()?;
        Ok(CleanBatch { values: chosen.values, conditioning })
    }
}
