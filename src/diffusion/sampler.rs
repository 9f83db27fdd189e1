//! Drawing samples: DDPM, DDIM and DPM-Solver++ over any schedule.
//!
//! All are written for `x_t = a x_0 + s ε`, so the same step serves discrete, flow and sigma schedules. Without added
//! noise DDIM's step `a' x̂_0 + s' ε̂` is Euler's step of the probability-flow equation of a flow or sigma network.

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

/// How samples are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Sampler {
    /// Song et al. 2021, "Denoising Diffusion Implicit Models"; no noise is added unless `eta` says so.
    #[default]
    Ddim,
    /// Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; noise is added at every step.
    Ddpm,
    /// Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints: fewer steps, no noise is added.
    #[serde(rename = "dpm++2m")]
    #[cfg_attr(feature = "cli", value(name = "dpm++2m"))]
    DpmSolver2M,
}

impl Sampler {
    /// The name in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Ddpm => "DDPM",
            Self::DpmSolver2M => "DPM-Solver++ 2M",
        }
    }

    /// The number of steps for samples to be looked at, where none is given.
    pub fn default_steps(self) -> usize {
        match self {
            Self::Ddim | Self::Ddpm => 50,
            Self::DpmSolver2M => 20,
        }
    }
}

/// What is drawn and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleOptions {
    /// The number of evaluations of the network per sample.
    pub steps: usize,
    /// The sampler.
    pub sampler: Sampler,
    /// DDIM's share of the noise that DDPM would add, from 0 to 1.
    pub eta: f64,
    /// Which steps are visited.
    pub skip: Skip,
    /// The variance of DDPM steps.
    pub variance: VarianceType,
    /// The number of samples.
    pub count: usize,
    /// Seed of all noise.
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

/// The noise of every sample comes from a generator of its own, so that samples do not depend on the batch.
fn generators(seed: u64, samples: std::ops::Range<usize>) -> Vec<Pcg64> {
    samples.map(|sample| Pcg64::new(u128::from(seed), sample as u128)).collect()
}

fn draw(generators: &mut [Pcg64], out: &mut ArrayD<f32>) {
    for (mut row, generator) in out.axis_iter_mut(Axis(0)).zip(generators) {
        row.iter_mut().for_each(|value| *value = StandardNormal.sample(generator));
    }
}

/// Standard normal noise for samples 0 to `count`: that of a sample depends on the seed and its number alone.
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

/// Draws `options.count` samples, batch after batch; their shape is that of a batch with this count first.
///
/// Sample `i` takes row `i` of the conditioning, and noise that follows from its number. `ranks` divide the batches; all get
/// all samples. `progress` is called before the first and after every evaluation of the
/// network with the number of evaluations so far and in all; its error ends the run.
///
/// # Errors
/// A number of steps that the schedule does not have, noise for a sampler that adds none, or a network that fails.
pub fn generate(
    denoiser: &mut Denoiser,
    process: &Process,
    conditioning: &Conditioning,
    options: &SampleOptions,
    ranks: &dyn Collective,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<ArrayD<f32>, Error> {
    if !(0.0..=1.0).contains(&options.eta) {
        return Err(Error::usage(format!("--eta: expected a share from 0 to 1, found {}", options.eta)));
    }
    if options.eta > 0.0 && options.sampler == Sampler::DpmSolver2M {
        return Err(Error::usage(format!("--eta: DPM-Solver++ 2M adds no noise, found {}", options.eta))
            .hint("leave --eta out, or give --sampler ddim"));
    }
    let mut trajectory = Trajectory::new(process, options)?;
    let learned = options.sampler == Sampler::Ddpm && options.variance == VarianceType::LearnedRange;
    if learned && denoiser.roles().variance_axis.is_none() {
        return Err(Error::usage("the configuration asks for a learned variance, but the network predicts none")
            .hint("expected an output with twice the channels of the sample"));
    }
    let dims = denoiser.dims().to_vec();
    let batch = denoiser.batch();
    let batches = options.count.div_ceil(batch);
    let mut all = dims.clone();
    all[0] = options.count;
    if crate::array::element_count(&all).is_none_or(|count| count > ELEMENT_LIMIT) {
        return Err(Error::usage(format!("{} samples of shape {:?} are too many", options.count, &dims[1..])));
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
