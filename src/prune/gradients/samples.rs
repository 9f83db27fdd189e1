//! The clean samples for gradients.

use super::super::network::Denoising;
use super::super::options::{GradientSettings, ScoreOptions};
use super::super::progress::{Progress, Stage, Watch, notify};
use crate::diffusion::{Conditioning, Ranges, SampleOptions, Samples, Skip};
use crate::error::Error;
use crate::runtime::Runtime;

/// Reads the samples, or generates them with the network.
///
/// # Errors
/// Fails if data can't be read or does not fit the network, or if generated samples are not finite.
pub(in crate::prune) fn samples(
    network: Denoising<'_>,
    runtime: &Runtime,
    conditioning: &Conditioning,
    options: &ScoreOptions,
    (batch, micro_batch): (usize, usize),
    watch: &mut Watch<'_>,
) -> Result<Samples, Error> {
    let settings = &options.gradients;
    if let Some(path) = &settings.data {
        let ranges = Ranges { data: settings.data_range, sample: settings.network.process.sample_range };
        let dims = network.sample_dims(micro_batch)?;
        return Samples::load(path, (&network.roles().sample.name, &dims), &ranges, batch, options.seed);
    }
    let in_file = |error: Error| error.in_file(network.path());
    let at_once = drawn_at_once(network, settings, batch, micro_batch)?;
    let mut denoiser = network.denoiser(runtime, at_once)?;
    let configured = network.configured();
    let sampling = SampleOptions {
        steps: settings.drawing_steps().clamp(1, configured.process.schedule.step_count()),
        sampler: settings.draw_sampler,
        eta: 0.0,
        skip: Skip::Uniform,
        variance: configured.variance,
        count: batch,
        seed: options.seed,
    };
    let samples =
        Samples::from_network(&mut denoiser, &configured.process, conditioning, &sampling, &mut |done, total| {
            notify(watch, Progress::At { stage: Stage::Sampling, done, total })
        })
        .map_err(in_file)?;
    if samples.values.iter().any(|value| !value.is_finite()) {
        return Err(in_file(
            Error::unmet("the samples that the network generates contain values that are not finite")
                .hint("check --prediction-type, --schedule and --time-input, or give samples with --data"),
        ));
    }
    Ok(samples)
}

/// Returns the number of samples to generate in one run. Without activations to store, more fit into memory than for
/// gradients.
fn drawn_at_once(
    network: Denoising<'_>,
    settings: &GradientSettings,
    batch: usize,
    micro_batch: usize,
) -> Result<usize, Error> {
    match settings.micro_batch.or(network.roles().fixed_batch()) {
        Some(_) => Ok(micro_batch),
        None => network.fitting(batch.clamp(micro_batch, MOST_AT_ONCE.max(micro_batch)), true),
    }
}

/// Maximum number of samples to generate in one run. Larger runs need the same time per sample.
const MOST_AT_ONCE: usize = 16;
