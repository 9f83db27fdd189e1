//! Drawing samples: DDPM and DDIM over any schedule.
//!
//! Both are written for `x_t = a x_0 + s ε`, so the same step serves discrete, flow and sigma schedules. Without added
//! noise DDIM's step `a' x̂_0 + s' ε̂` is Euler's step of the probability-flow equation of a flow or sigma network.

use ndarray::{ArrayD, Axis, Slice, Zip};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::conditioning::Conditioning;
use super::config::VarianceType;
use super::denoiser::{Denoiser, ELEMENT_LIMIT};
use super::process::Process;
use super::schedule::{Level, Skip};
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

/// The next sample of one step as a sum: `clean x̂_0 + noisy x_t + noise ε̂ + fresh z`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    clean: f64,
    noisy: f64,
    noise: f64,
    fresh: f64,
}

/// What remains of the noise variance at `level` when the signal is scaled to `next`: `s² - (a / a')² s'²`. In discrete
/// schedules this is `β` of the step.
fn added_variance(level: &Level, next: &Level) -> f64 {
    (level.noise.powi(2) - (level.signal / next.signal * next.noise).powi(2)).max(0.0)
}

/// The variance of `x'` given `x_t` and `x_0`: `s'² β / s²`, DDPM's `β̃`.
fn posterior_variance(level: &Level, next: &Level) -> f64 {
    next.noise.powi(2) * added_variance(level, next) / level.noise.powi(2)
}

impl Step {
    fn new(options: &SampleOptions, level: &Level, next: &Level) -> Self {
        match options.sampler {
            Sampler::Ddim => Self::ddim(level, next, options.eta),
            Sampler::Ddpm => Self::ddpm(level, next, options.variance),
        }
    }

    /// DDIM, equations 12 and 16 of Song et al.
    fn ddim(level: &Level, next: &Level, eta: f64) -> Self {
        let variance = eta * eta * posterior_variance(level, next);
        let noise = (next.noise.powi(2) - variance).max(0.0).sqrt();
        Self { clean: next.signal, noisy: 0.0, noise, fresh: variance.sqrt() }
    }

    /// DDPM, equation 7 of Ho et al.
    fn ddpm(level: &Level, next: &Level, variance: VarianceType) -> Self {
        let added = added_variance(level, next);
        let clean = next.signal * added / level.noise.powi(2);
        let noisy = level.signal / next.signal * next.noise.powi(2) / level.noise.powi(2);
        let fresh = match (next.noise > 0.0, variance) {
            (false, _) => 0.0,
            (true, VarianceType::FixedLarge) => added.sqrt(),
            (true, _) => posterior_variance(level, next).sqrt(),
        };
        Self { clean, noisy, noise: 0.0, fresh }
    }
}

/// What one step works on; all arrays have the same shape.
#[derive(Debug)]
pub struct StepInput<'a> {
    /// `x_t`; becomes the next sample.
    pub x: &'a mut ArrayD<f32>,
    /// The network's output.
    pub output: &'a ArrayD<f32>,
    /// Standard normal noise.
    pub fresh: &'a ArrayD<f32>,
    /// What the network says of the variance, for [`VarianceType::LearnedRange`].
    pub variance: Option<&'a ArrayD<f32>>,
}

/// Takes one step of sampling from `level` to `next` in place.
pub fn sampling_step(
    process: &Process,
    options: &SampleOptions,
    (level, next): (&Level, &Level),
    input: StepInput<'_>,
) {
    let step = Step::new(options, level, next);
    let (p, q) = process.clean_factors(level);
    // ε̂ = (x - a x̂_0) / s, of the estimate before it is clipped.
    let (from_x, from_output) = ((1.0 - level.signal * p) / level.noise, -level.signal * q / level.noise);
    let (low, high) = process.clip.map_or((f64::NEG_INFINITY, f64::INFINITY), |(a, b)| (a.into(), b.into()));
    Zip::from(&mut *input.x).and(input.output).and(input.fresh).for_each(|x, output, fresh| {
        let (noisy, output) = (f64::from(*x), f64::from(*output));
        let clean = (p * noisy + q * output).clamp(low, high);
        let noise = from_x * noisy + from_output * output;
        let next = step.clean * clean + step.noisy * noisy + step.noise * noise + step.fresh * f64::from(*fresh);
        *x = next as f32;
    });
    // The learned variance lies between the two fixed ones in the logarithm; above, the smaller one was applied.
    if let Some(variance) = input.variance.filter(|_| step.fresh > 0.0) {
        let (small, large) = (posterior_variance(level, next).max(1e-20).ln(), added_variance(level, next).ln());
        Zip::from(input.x).and(variance).and(input.fresh).for_each(|x, share, fresh| {
            let share = f64::from(share + 1.0) / 2.0;
            let deviation = (0.5 * (share * large + (1.0 - share) * small)).exp();
            *x += ((deviation - step.fresh) * f64::from(*fresh)) as f32;
        });
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
/// Sample `i` takes row `i` of the conditioning. `progress` is called after every evaluation of the network with the
/// number of evaluations so far and in all; its error ends the run.
///
/// # Errors
/// A number of steps that the schedule does not have, or a network that fails.
pub fn generate(
    denoiser: &mut Denoiser,
    process: &Process,
    conditioning: &Conditioning,
    options: &SampleOptions,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<ArrayD<f32>, Error> {
    if !(0.0..=1.0).contains(&options.eta) {
        return Err(Error::usage(format!("--eta: expected a share from 0 to 1, found {}", options.eta)));
    }
    let mut levels = process.schedule.sampling_levels(options.steps, options.skip)?;
    if let (Sampler::Ddpm, Some(last)) = (options.sampler, levels.last_mut()) {
        *last = Level::CLEAN;
    }
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
    let evaluations = batches * (levels.len() - 1);
    let mut done = 0;
    for first in (0..options.count).step_by(batch) {
        let numbers: Vec<usize> = (first..first + batch).collect();
        denoiser.set_conditioning(conditioning, &numbers)?;
        let mut random = generators(options.seed, first..first + batch);
        draw(&mut random, &mut x);
        if let Some(level) = levels.first().filter(|_| !process.schedule.is_discrete()) {
            let scale = level.noise as f32;
            x.mapv_inplace(|value| value * scale);
        }
        for pair in levels.windows(2) {
            let (level, next) = (&pair[0], &pair[1]);
            denoiser.predict(process, &x, level, &mut output, variance.as_mut())?;
            if Step::new(options, level, next).fresh > 0.0 {
                draw(&mut random, &mut fresh);
            }
            let input = StepInput { x: &mut x, output: &output, fresh: &fresh, variance: variance.as_ref() };
            sampling_step(process, options, (level, next), input);
            done += 1;
            progress(done, evaluations)?;
        }
        let rows = batch.min(options.count - first);
        samples
            .slice_axis_mut(Axis(0), Slice::from(first..first + rows))
            .assign(&x.slice_axis(Axis(0), Slice::from(0..rows)));
    }
    Ok(samples)
}
