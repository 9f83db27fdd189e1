//! Sampling: DDPM, DDIM and DPM-Solver++ for any schedule.
//!
//! All samplers are written for `x_t = a x_0 + s ε`, so the same step works for discrete, flow and sigma schedules.
//! Without added noise, DDIM's step `a' x̂_0 + s' ε̂` is an Euler step of the probability flow ODE of a flow or sigma
//! network.

mod trajectory;

pub use trajectory::{StepInput, Trajectory};

use std::ops::Range;

use ndarray::{ArrayD, Axis, Slice};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::conditioning::Conditioning;
use super::config::VarianceType;
use super::denoiser::{Denoiser, ELEMENT_LIMIT};
use super::process::Process;
use super::schedule::Skip;
use crate::collective::{Collective, parts};
use crate::error::Error;

/// The sampling algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Sampler {
    /// Song et al. 2021, "Denoising Diffusion Implicit Models"; adds no noise unless `eta` is above 0.
    #[default]
    Ddim,
    /// Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; adds noise at every step.
    Ddpm,
    /// Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints; needs fewer steps and adds no noise.
    #[serde(rename = "dpm++2m")]
    #[cfg_attr(feature = "cli", value(name = "dpm++2m"))]
    DpmSolver2M,
}

impl Sampler {
    /// Returns the name for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Ddpm => "DDPM",
            Self::DpmSolver2M => "DPM-Solver++ 2M",
        }
    }

    /// Returns the default number of steps for samples to look at.
    pub fn default_steps(self) -> usize {
        match self {
            Self::Ddim | Self::Ddpm => 50,
            Self::DpmSolver2M => 20,
        }
    }
}

/// The settings of sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleOptions {
    /// The number of evaluations of the network per sample.
    pub steps: usize,
    /// The sampler.
    pub sampler: Sampler,
    /// DDIM's fraction of the noise that DDPM would add, from 0 to 1.
    pub eta: f64,
    /// The choice of timesteps.
    pub skip: Skip,
    /// The variance of DDPM steps.
    pub variance: VarianceType,
    /// The number of samples.
    pub count: usize,
    /// The seed of all noise.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            steps: 50,
            sampler: Sampler::Ddim,
            eta: 0.0,
            skip: Skip::Uniform,
            variance: VarianceType::FixedSmall,
            count: 16,
            seed: 0,
        }
    }
}

/// Returns a random generator for each sample, so that samples do not depend on the batch size.
fn generators(seed: u64, samples: std::ops::Range<usize>) -> Vec<Pcg64> {
    samples.map(|sample| Pcg64::new(u128::from(seed), sample as u128)).collect()
}

fn draw(generators: &mut [Pcg64], out: &mut ArrayD<f32>) {
    for (mut row, generator) in out.axis_iter_mut(Axis(0)).zip(generators) {
        row.iter_mut().for_each(|value| *value = StandardNormal.sample(generator));
    }
}

/// Returns standard normal noise for samples 0 to `count`. The noise of a sample depends only on the seed and its
/// number.
///
/// `dims` is the shape of a batch; its first size is replaced by `count`.
pub fn noise(dims: &[usize], count: usize, seed: u64) -> ArrayD<f32> {
    let mut dims = dims.to_vec();
    if let Some(first) = dims.first_mut() {
        *first = count;
    }
    let mut out = ArrayD::zeros(dims);
    draw(&mut generators(seed, 0..count), &mut out);
    out
}

/// Generates `options.count` samples, batch after batch. The result has the shape of a batch with this count as first
/// size.
///
/// Sample `i` uses row `i` of the conditioning, and noise that depends on its number. `ranks` divide the batches, and
/// all ranks get all samples. `progress` is called before the first evaluation of the network and after each one, with
/// the number of finished evaluations and their total. An error that it returns ends the run.
///
/// # Errors
/// The schedule does not have this number of steps, `eta` is set for a sampler that adds no noise, or the network
/// fails.
pub fn generate(
    denoiser: &mut Denoiser,
    process: &Process,
    conditioning: &Conditioning,
    options: &SampleOptions,
    ranks: &dyn Collective,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<ArrayD<f32>, Error> {
    if !(0.0..=1.0).contains(&options.eta) {
        return Err(Error::usage(format!("--eta: expected a number from 0 to 1, found {}", options.eta)));
    }
    if options.eta > 0.0 && options.sampler == Sampler::DpmSolver2M {
        return Err(Error::usage(format!("--eta {} has no effect: DPM-Solver++ 2M adds no noise", options.eta))
            .hint("leave --eta out, or use --sampler ddim"));
    }
    let mut trajectory = Trajectory::new(process, options)?;
    let learned = options.sampler == Sampler::Ddpm && options.variance == VarianceType::LearnedRange;
    if learned && denoiser.roles().variance_axis.is_none() {
        return Err(Error::usage(
            "the scheduler configuration has variance_type learned_range, but the network predicts no variance",
        )
        .hint("use --sampler ddim, or a network whose output has twice the channels of the sample"));
    }
    let dims = denoiser.dims().to_vec();
    let batch = denoiser.batch();
    let batches = options.count.div_ceil(batch);
    let mut all = dims.clone();
    all[0] = options.count;
    if crate::array::element_count(&all).is_none_or(|count| count > ELEMENT_LIMIT) {
        let text = format!("{} samples of shape {:?} have more than 2^31 elements", options.count, &dims[1..]);
        return Err(Error::usage(text).hint("lower the number of samples"));
    }
    let mut samples = ArrayD::<f32>::zeros(all);
    let (mut x, mut output, mut fresh) =
        (ArrayD::zeros(dims.clone()), ArrayD::zeros(dims.clone()), ArrayD::zeros(dims.clone()));
    let mut variance = learned.then(|| ArrayD::zeros(dims.clone()));
    let shares = parts(batches, ranks.size());
    let own = shares[ranks.rank()].clone();
    let evaluations = own.len() * trajectory.len();
    let mut done = 0;
    progress(done, evaluations)?;
    for first in own.map(|number| number * batch) {
        let numbers: Vec<usize> = (first..first + batch).collect();
        denoiser.set_conditioning(conditioning, &numbers)?;
        let mut random = generators(options.seed, first..first + batch);
        draw(&mut random, &mut x);
        if !process.schedule.is_discrete() {
            let scale = trajectory.level(0).noise as f32;
            x.mapv_inplace(|value| value * scale);
        }
        for at in 0..trajectory.len() {
            denoiser.predict(process, &x, trajectory.level(at), &mut output, variance.as_mut())?;
            if trajectory.adds_noise(at) {
                draw(&mut random, &mut fresh);
            }
            let input = StepInput { x: &mut x, output: &output, fresh: &fresh, variance: variance.as_ref() };
            trajectory.step(at, input);
            done += 1;
            progress(done, evaluations)?;
        }
        let rows = batch.min(options.count - first);
        samples
            .slice_axis_mut(Axis(0), Slice::from(first..first + rows))
            .assign(&x.slice_axis(Axis(0), Slice::from(0..rows)));
    }
    let elements: usize = dims[1..].iter().product();
    let of = |share: &Range<usize>| {
        let rows = (share.start * batch).min(options.count)..(share.end * batch).min(options.count);
        rows.start * elements..rows.end * elements
    };
    if let Some(values) = samples.as_slice_mut() {
        ranks.all_gather(values, &shares.iter().map(of).collect::<Vec<_>>())?;
    }
    Ok(samples)
}
