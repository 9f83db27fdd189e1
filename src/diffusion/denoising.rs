//! The denoising loss at every timestep for the gradient pass: fixed clean samples and fixed noise.

use std::ops::Range;

use ndarray::{ArrayD, Axis, Slice};

use super::conditioning::Conditioning;
use super::data::Samples;
use super::denoiser::Denoiser;
use super::noising::Noising;
use super::process::Process;
use super::roles::{Port, Roles};
use super::schedule::Level;
use crate::array::Array;
use crate::collective::{Collective, parts};
use crate::error::Error;
use crate::gradient::accumulate::Denoising;
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;

/// A batch of clean samples, with the noise that is added to them at every timestep.
///
/// The paper fixes both, so that the loss is a function of t alone.
#[derive(Debug)]
pub struct DenoisingTask<'a> {
    process: &'a Process,
    roles: &'a Roles,
    conditioning: &'a Conditioning,
    facts: &'a Facts,
    sizes: &'a Sizes,
    samples: &'a Samples,
    noise: ArrayD<f32>,
    levels: Vec<Level>,
    timesteps: Vec<f64>,
}

impl<'a> DenoisingTask<'a> {
    /// Creates a task over `count` timesteps that are spread evenly over the schedule, from small noise to large.
    /// `None`: all timesteps.
    ///
    /// # Errors
    /// `count` is zero, or the schedule has fewer timesteps.
    pub fn new(
        (process, roles, conditioning): (&'a Process, &'a Roles, &'a Conditioning),
        (facts, sizes): (&'a Facts, &'a Sizes),
        samples: &'a Samples,
        noise: ArrayD<f32>,
        count: Option<usize>,
    ) -> Result<Self, Error> {
        let levels = spread(process, count)?;
        let timesteps = levels.iter().map(|level| level.t).collect();
        Ok(Self { process, roles, conditioning, facts, sizes, samples, noise, levels, timesteps })
    }

    fn rows(&self, values: &ArrayD<f32>, samples: &Range<usize>) -> ArrayD<f32> {
        values.slice_axis(Axis(0), Slice::from(samples.start..samples.end)).to_owned()
    }
}

impl Denoising for DenoisingTask<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn batch(&self) -> usize {
        self.samples.len()
    }

    fn weight(&self, at: usize) -> f64 {
        self.process.loss_weight(&self.levels[at])
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        let (x0, noise) = (self.rows(&self.samples.values, &samples), self.rows(&self.noise, &samples));
        let numbers: Vec<usize> = self.samples.numbers[samples].to_vec();
        let rows = |port: &Port| self.conditioning.rows(&port.name, &numbers);
        let Self { process, roles, facts, sizes, .. } = *self;
        Noising { process, roles, facts, sizes }.inputs(&x0, &noise, &self.levels[at..=at], &rows)
    }
}

/// Computes the denoising loss of a network at `count` timesteps that are spread evenly over the schedule. Returns
/// pairs of t and the mean over all elements of all samples. The noise is the same at every timestep.
///
/// The number of samples must be a multiple of the denoiser's batch. `ranks` divide the batches among them. The sums
/// are then added in the order of a single process: if the ranks compute the same values, the losses are the same as
/// well. `progress` gets the number of finished evaluations and their total. An error that it returns ends the run.
///
/// # Errors
/// `count` is zero, the schedule has fewer timesteps, or the network fails.
pub fn denoising_losses(
    denoiser: &mut Denoiser,
    process: &Process,
    conditioning: &Conditioning,
    (samples, noise): (&Samples, &ArrayD<f32>),
    count: usize,
    ranks: &dyn Collective,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Vec<(f64, f64)>, Error> {
    let levels = spread(process, Some(count))?;
    let batch = denoiser.batch();
    let runs = samples.len() / batch.max(1);
    let own = parts(runs, ranks.size())[ranks.rank()].clone();
    let mut sums = vec![0.0; levels.len() * runs];
    let mut x_t = ArrayD::zeros(denoiser.dims());
    let (mut target, mut prediction) = (x_t.clone(), x_t.clone());
    for (at, level) in levels.iter().enumerate() {
        for run in own.clone() {
            let rows = run * batch..(run + 1) * batch;
            let of = |values: &ArrayD<f32>| values.slice_axis(Axis(0), Slice::from(rows.start..rows.end)).to_owned();
            let (x0, noise) = (of(&samples.values), of(noise));
            process.add_noise(&x0, &noise, level, &mut x_t);
            process.target(&x0, &noise, level, &mut target);
            denoiser.set_conditioning(conditioning, &samples.numbers[rows])?;
            denoiser.predict(process, &x_t, level, &mut prediction, None)?;
            let pairs = prediction.iter().zip(target.iter());
            sums[at * runs + run] = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            progress(at * own.len() + run - own.start + 1, levels.len() * own.len())?;
        }
    }
    ranks.sum_f64(&mut sums)?;
    let elements = (runs * x_t.len()).max(1) as f64;
    let loss = |(at, level): (usize, &Level)| {
        let sum = sums[at * runs..(at + 1) * runs].iter().sum::<f64>();
        (level.t, process.loss_weight(level) * sum / elements)
    };
    Ok(levels.iter().enumerate().map(loss).collect())
}

/// Returns `count` levels of a schedule, spread evenly, from small noise to large. `None`: all levels.
fn spread(process: &Process, count: Option<usize>) -> Result<Vec<Level>, Error> {
    let all = process.schedule.levels();
    let count = count.unwrap_or(all.len());
    if count == 0 || count > all.len() {
        let text = format!("--timesteps: expected 1 to {} timesteps, found {count}", all.len());
        return Err(Error::usage(text));
    }
    Ok((0..count).map(|at| all[at * all.len() / count]).collect())
}
